"""The common part of `mar` and `causal_mar`: patches of continuous tokens and a diffusion head (Li et al. 2024)."""

from __future__ import annotations

import math
from abc import ABC
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.config import Depth
from artok.errors import LayoutError
from artok.generators.base import Generator, GeneratorConfig
from artok.generators.diffusion_head import DiffusionHead, Objective
from artok.layout import Condition, TokenLayout, Tokens
from artok.nn.patches import divides, merge_patches, patch_grid, split_patches
from artok.noise import Noise
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.settings import GUIDANCE, Sampling

SIZES = {  # width, layers of the encoder and of the decoder, heads, layers and width of the head: as published
    "base": (768, 12, 12, 6, 1024),
    "large": (1024, 16, 16, 8, 1280),
    "huge": (1280, 20, 16, 12, 1536),
}


class PatchedConfig(GeneratorConfig, ABC):
    """size: a published model. Or set `depth`, half of all layers (those of MAR's encoder): by default width is
    64 * depth, there are depth heads, and the diffusion head has depth / 2 layers of the model's width.

    buffer_size: copies of the context's sequence before the tokens.
    patch_size: side of a patch in tokens.
    diffusion_batch_mul: times and noises per token in the loss.
    embedding_init: deviation of the initial weights of class, mask token and positions. Published is .02; in runs of a
        few hundred steps the positions of known tokens are then not learned, and 1 helps.
    token_init: deviation of the initial weights of the token embedding, default Xavier's; 1 / sqrt(numbers per token)
        makes known tokens as large as positions of deviation 1.
    diffusion: of the head; `diffusion.steps` are its steps per token.
    """

    size: Literal["base", "large", "huge"] | None = None
    depth: Depth | None = None
    width: int | None = Field(None, ge=2)
    heads: int | None = Field(None, ge=1)
    head_depth: Depth | None = None
    head_width: int | None = Field(None, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    buffer_size: int = Field(64, ge=1)
    patch_size: int = Field(1, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    diffusion_batch_mul: int = Field(4, ge=1)
    embedding_init: float = Field(0.02, gt=0)
    token_init: float | None = Field(None, gt=0)
    diffusion: DiffusionConfig = DiffusionConfig(schedule="cosine", variance="learned", steps=100)

    @model_validator(mode="after")
    def _check_sizes(self) -> PatchedConfig:
        if (self.size is None) == (self.depth is None):
            raise ValueError("give either size (base, large, huge) or depth")
        if self.size and (self.width or self.heads or self.head_depth or self.head_width):
            raise ValueError("width, heads, head_depth and head_width follow from size; leave them out, or give depth")
        width, _, heads, _, _ = self.shape()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of the heads ({heads})")
        return self

    def shape(self) -> tuple[int, int, int, int, int]:
        """Width, layers, heads, layers of the head, width of the head."""
        if self.size:
            return SIZES[self.size]
        assert self.depth is not None
        width = self.width or 64 * self.depth
        head = self.head_depth or max(1, self.depth // 2), self.head_width or width
        return (width, self.depth, self.heads or self.depth, *head)

    def refuse(self, layout: TokenLayout) -> str | None:
        return self.refuse_tokens(layout)

    def refuse_tokens(self, layout: TokenLayout) -> str | None:
        """What neither family can model."""
        if layout.discrete:
            return "needs continuous tokens, since its diffusion head samples vectors and not codes"
        if len(layout.grids) != 1:
            return "needs a single grid"
        if not divides(layout.grid, self.patch_size):
            return f"with patch_size {self.patch_size} needs a grid whose sides are multiples of it"
        return None


class PatchedGenerator(Generator):
    """grid, length N and dimension D are those of the patches."""

    keeps_known = True
    reads: ClassVar = GUIDANCE | {"steps", "head_steps", "solver", "eta", "temperature"}
    undecayed = ("head",)  # as published

    def __init__(self, config: PatchedConfig, layout: TokenLayout, classes: int, head_input: int) -> None:
        """head_input: width of the head's conditions z."""
        super().__init__(layout, classes)
        width, _, _, head_depth, head_width = config.shape()
        self.patch, self.token_init, self.draws = config.patch_size, config.token_init, config.diffusion_batch_mul
        self.grid = patch_grid(layout.grid, self.patch)
        self.length = math.prod(self.grid)
        self.dimension = layout.width * self.patch**2
        self.input = nn.Linear(self.dimension, width)
        self.head = DiffusionHead(config.diffusion, self.dimension, head_input, head_width, head_depth)

    def initialise_input(self) -> None:
        """Initialise the token embedding, if the config sets its deviation."""
        if self.token_init is not None:
            nn.init.normal_(self.input.weight, std=self.token_init)

    def attach_objective(self, objective: Objective) -> None:
        """Set the losses that `forward` gives in the place of the head's own."""
        self.head.objective = objective

    def objective_losses(self, objective: Objective, x_BND: Tensor, z_BNZ: Tensor, noise: Noise) -> dict[str, Tensor]:
        """The losses of an objective on tokens x under z, each `diffusion_batch_mul` times."""
        rows = noise.branch("head").split(x_BND.shape[1] * self.draws)
        x, z = (each.flatten(0, 1).repeat_interleave(self.draws, 0)[:, None] for each in (x_BND, z_BNZ))
        return objective(x, z, rows, None)

    def patches(self, tokens: Tokens) -> Tensor:
        """Token values as (B, N, D) patches."""
        return split_patches(tokens.values, self.layout.grid, self.patch)

    def known_patches(self, condition: Condition) -> tuple[Tensor, Tensor | None]:
        """The known patches (B, N, D) of a condition, zero elsewhere, and their positions (B, N) bool, None for none.

        LayoutError: a patch is only partly known.
        """
        if condition.known is None:
            return torch.zeros(len(condition), self.length, self.dimension, device=condition.device), None
        side = self.patch**2
        flags = split_patches(condition.known.flags[..., None].long(), self.layout.grid, self.patch).sum(-1)
        if bool((flags % side).any()):
            raise LayoutError(f"known tokens must be whole patches of {self.patch}x{self.patch} tokens")
        known = flags == side
        return torch.where(known[..., None], self.patches(condition.known), 0.0), known

    def to_tokens(self, patches: Tensor, known_BN: Tensor | None) -> Tokens:
        """Tokens of (B, N, D) patches; those in known_BN are decided, by default all."""
        grid, side = self.layout.grid, self.patch
        values = merge_patches(patches, grid, side).clone()
        if known_BN is None:
            return Tokens(values, self.layout)
        known = merge_patches(known_BN[..., None].repeat(1, 1, side**2), grid, side)[..., 0]
        return Tokens(values, self.layout, known=known)

    def check(self, sampling: Sampling) -> None:
        self.head.diffusion.config.plan(sampling, sampling.head_steps)
        self.passes(sampling)
