"""MAR: masked autoregression over continuous tokens with a diffusion head (Li et al. 2024, arXiv 2406.11838)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.errors import ConfigError
from artok.generators.base import Generator, GeneratorConfig
from artok.generators.diffusion_head import DiffusionHead
from artok.generators.masked import MaskedTransformer, evenly_spread, masked_flags, picked, still_masked
from artok.layout import Codec, Condition, TokenLayout, Tokens
from artok.nn.patches import divides, merge_patches, patch_grid, split_patches
from artok.nn.vit import initialise_linear
from artok.noise import Noise
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.guidance import scale_at
from artok.sampling.settings import Sampling

SIZES = {  # width, layers of the encoder and of the decoder, heads, layers and width of the head: as published
    "base": (768, 12, 12, 6, 1024),
    "large": (1024, 16, 16, 8, 1280),
    "huge": (1280, 20, 16, 12, 1536),
}


class Config(GeneratorConfig):
    """kind: mar.

    size: a published model, or leave it out and turn one dial, `depth`, the layers of the encoder and as many of the
    decoder: width 64 * depth, depth heads, and a head of depth / 2 layers as wide as the model unless given.
    buffer_size: copies of the class embedding before the tokens. patch_size: side of the squares of tokens read as one.
    diffusion_batch_mul: times and noises that each token's loss is taken at.
    mask_ratio_min, mask_ratio_std: the share of masked tokens in training is normal around 1, cut off
        below mask_ratio_min.
    embedding_init: deviation of the first weights of the class, the mask token and the positions that the transformer
        reads. Published is .02; in runs of a few hundred steps known tokens are then not placed, so not used: 1 helps.
    token_init: the same for the layer that embeds a token's numbers, Xavier's unless given; 1 / sqrt(their count) makes
    what is known as loud as positions of deviation 1.
    causal: tokens one by one in raster order under causal attention, without an encoder (section 4.1's AR variant).
    steps: transformer passes of a sampling that names none; `diffusion.steps` are the head's in each.
    """

    kind: Literal["mar"] = "mar"
    size: Literal["base", "large", "huge"] | None = None
    depth: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=2)
    heads: int | None = Field(None, ge=1)
    decoder_depth: int | None = Field(
        None, ge=1, description="layers of the decoder; as many as the encoder's unless given"
    )
    decoder_width: int | None = Field(None, ge=2, description="the same for the width")
    decoder_heads: int | None = Field(None, ge=1, description="the same for the heads")
    head_depth: int | None = Field(None, ge=1)
    head_width: int | None = Field(None, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    buffer_size: int = Field(64, ge=1)
    patch_size: int = Field(1, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    diffusion_batch_mul: int = Field(4, ge=1)
    mask_ratio_min: float = Field(0.7, ge=0, lt=1)
    mask_ratio_std: float = Field(0.25, gt=0)
    embedding_init: float = Field(0.02, gt=0)
    token_init: float | None = Field(None, gt=0)
    causal: bool = False
    steps: int = Field(64, ge=1)
    diffusion: DiffusionConfig = DiffusionConfig(schedule="cosine", variance="learned", steps=100)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Config:
        if (self.size is None) == (self.depth is None):
            raise ValueError("give either size (base, large, huge) or depth")
        if self.size and (self.width or self.heads or self.head_depth or self.head_width):
            raise ValueError("width, heads, head_depth and head_width follow from size; leave them out, or give depth")
        width, _, heads, _, _ = self.shape()
        wide, _, decoder_heads = self.decoder_shape()
        if width % heads or wide % decoder_heads:
            raise ValueError(f"width {width} must be a multiple of the heads ({heads}), in the decoder too")
        if self.causal and (wide, self.decoder_depth) != (width, None):
            raise ValueError("the causal variant has no decoder, so leave decoder_depth and decoder_width out")
        return self

    def shape(self) -> tuple[int, int, int, int, int]:
        """Width, layers, heads, layers of the head, width of the head."""
        if self.size:
            return SIZES[self.size]
        assert self.depth is not None
        width = self.width or 64 * self.depth
        head = self.head_depth or max(1, self.depth // 2), self.head_width or width
        return (width, self.depth, self.heads or self.depth, *head)

    def decoder_shape(self) -> tuple[int, int, int]:
        """Width, layers and heads of the decoder."""
        width, depth, heads, _, _ = self.shape()
        return self.decoder_width or width, self.decoder_depth or depth, self.decoder_heads or heads

    def refuse(self, layout: TokenLayout) -> str | None:
        if layout.discrete:
            return "needs continuous tokens, since its diffusion head draws vectors and not codes"
        if not divides(layout.grid, self.patch_size):
            return f"with patch {self.patch_size} needs a grid whose sides are multiples of it"
        return None

    def build(self, layout: TokenLayout, classes: int) -> Generator:
        from artok.generators.causal_mar import CausalMar

        return CausalMar(self, layout, classes) if self.causal else Mar(self, layout, classes)

    @classmethod
    def tiny(cls) -> Config:
        diffusion = DiffusionConfig(schedule="cosine", variance="learned", timesteps=50, steps=10)
        return cls(depth=1, width=32, heads=2, buffer_size=2, dropout=0.0, steps=4, diffusion=diffusion)


class PatchedGenerator(Generator):
    """What both orders of MAR share: squares of tokens as one, and the head.

    positions N and dimension D are those of the patches, where they differ from the layout's.
    """

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__(layout, classes)
        self.config = config
        width, _, _, head_depth, head_width = config.shape()
        told, _, _ = config.decoder_shape()
        self.length = math.prod(patch_grid(layout.grid, config.patch_size))
        self.dimension = layout.width * config.patch_size**2
        self.input = nn.Linear(self.dimension, width)
        self.head = DiffusionHead(config.diffusion, self.dimension, told, head_width, head_depth)

    def initialise_input(self) -> None:
        """The first weights of the tokens' embedding, where the config sets them."""
        if self.config.token_init is not None:
            nn.init.normal_(self.input.weight, std=self.config.token_init)

    def patches(self, tokens: Tokens) -> Tensor:
        """Token values as (B, N, D) patches."""
        return split_patches(tokens.values, self.layout.grid, self.config.patch_size)

    def finished(self, patches: Tensor, known_BN: Tensor | None) -> Tokens:
        """Tokens of (B, N, D) patches, of which those in known_BN are decided, or all."""
        grid, side = self.layout.grid, self.config.patch_size
        values = merge_patches(patches, grid, side).clone()
        if known_BN is None:
            return Tokens(values, self.layout)
        known = merge_patches(known_BN[..., None].repeat(1, 1, side**2), grid, side)[..., 0]
        return Tokens(values, self.layout, known=known)

    def both_labels(self, condition: Condition, sampling: Sampling) -> Tensor:
        """Labels (B,), or (2B,) with those of the unconditional half behind them."""
        if not sampling.guides:
            return condition.labels
        return torch.cat([condition.labels, condition.dropped(True, self.classes).labels])

    def check(self, sampling: Sampling) -> None:
        self.config.diffusion.plan(sampling, sampling.head_steps)
        self.passes(sampling)


class Mar(PatchedGenerator):
    """Sets of tokens in random order, each drawn by the head under what is known so far."""

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__(config, layout, classes)
        width, depth, heads, _, _ = config.shape()
        wide, layers, decoder_heads = config.decoder_shape()
        hidden = int(config.mlp_ratio * width)
        self.body = MaskedTransformer(
            self.length, classes, width, heads, hidden, depth, layers, config.buffer_size, config.dropout,
            (wide, decoder_heads, int(config.mlp_ratio * wide)),
        )  # fmt: skip
        self.apply(initialise_linear)
        self.body.initialise(config.embedding_init)
        self.initialise_input()

    def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        x_BND, draws = self.patches(tokens), self.config.diffusion_batch_mul
        order, counts = noise.permutation(self.length), self.masked_counts(noise.uniform())
        room = self.length - math.ceil(self.config.mask_ratio_min * self.length)
        z_BNW = self.body(self.input(x_BND), condition.labels, order, counts, room)
        masked = masked_flags(order, counts)
        uniform, normal = noise.uniform(self.length, draws), noise.normal(self.length, draws, self.dimension)
        # a mean over each image's masked tokens, then over images, so that processes share a batch exactly
        weights = (1 / (counts * len(tokens)))[:, None].expand_as(masked)
        columns = (x_BND, z_BNW, uniform, normal, weights)
        *given, weights = (picked(column, masked, self.expected) for column in columns)
        terms = self.head.losses(*given)
        return {name: (term * weights).sum() for name, term in terms.items()}

    @cached_property
    def expected(self) -> float:
        """The share of tokens masked in training, on average."""
        return float(self.masked_counts(evenly_spread()).double().mean()) / self.length

    def masked_counts(self, uniform: Tensor) -> Tensor:
        """How many tokens of each image are masked, (B,) int64 from uniform (B,): a truncated normal share, rounded up.

        The published code draws one share for a whole batch; here each image has its own.
        """
        normal = torch.distributions.Normal(1.0, self.config.mask_ratio_std)
        low = float(normal.cdf(torch.tensor(self.config.mask_ratio_min)))
        share = 1 + self.config.mask_ratio_std * torch.special.ndtri((low + (0.5 - low) * uniform).double())
        count = (share.clamp(self.config.mask_ratio_min, 1) * self.length).ceil().long()
        return count.clamp(math.ceil(self.config.mask_ratio_min * self.length), self.length).clamp(min=1)

    def steps(self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None) -> Iterator[Tokens]:
        batch, count, total = len(condition), self.length, self.passes(sampling)
        labels, order = self.both_labels(condition, sampling), noise.permutation(self.length)
        halves = len(labels) // batch
        x_BND = torch.zeros(batch, self.length, self.dimension, device=labels.device)
        for step in range(total):
            left = still_masked(self.length, total, step, count)
            places = order[:, left:count]
            z = self.body(self.input(x_BND).repeat(halves, 1, 1), labels, order.repeat(halves, 1), count)
            z = z.gather(1, places.repeat(halves, 1)[..., None].expand(-1, -1, z.shape[2]))
            scale = scale_at(sampling, step, total, share=(self.length - max(left, 1)) / self.length)
            drawn = self.head.sample(z[:batch], z[batch:] if halves > 1 else None, scale, sampling, noise)
            x_BND = x_BND.scatter(1, places[..., None].expand(-1, -1, self.dimension), drawn)
            count = left
            known = ~masked_flags(order, torch.full_like(order[:, 0], count))
            yield self.finished(x_BND, known if count else None)

    def passes(self, sampling: Sampling) -> int:
        if sampling.steps is not None and sampling.steps > self.length:
            raise ConfigError(
                f"{sampling.steps} sampling steps are more than the {self.length} tokens, of which each step decides "
                "at least one; ask for fewer"
            )
        return sampling.steps or min(self.config.steps, self.length)
