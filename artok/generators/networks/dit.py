"""The diffusion transformer (Peebles and Xie 2023, arXiv 2212.09748), also with attention to a text."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.conditioning.base import Conditioners, Context, add_last
from artok.config import OPEN, Depth, of_kind
from artok.generators.networks.base import DiffusionNetwork, NetworkConfig
from artok.nn.controlnet import ControlNet
from artok.nn.gradient_checkpointing import run
from artok.nn.grid_layers import ConvFeedForward, GridAttention
from artok.nn.joint_attention import JointBlock
from artok.nn.patches import divides, merge_patches, patch_grid, split_patches
from artok.nn.patterns import full
from artok.nn.patterns.base import PatternConfig
from artok.nn.rotary import rotary_table
from artok.nn.time import TimeEmbedding
from artok.nn.vit import ConditionedBlock, ConditionedOutput, ZeroLinear, initialise_linear, per_token, sincos_table

SIZES = {  # layers, width, heads: as published
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}


class Config(NetworkConfig):
    """kind: dit.

    size: a published model. Or set `depth`: by default width is 64 * depth and there are depth heads.
    patch_size: side of a patch in tokens; "XL/2" is size XL with patch 2.
    condition_init: deviation of the initial weights of the label and time embeddings. Published is .02; in runs of a
    few hundred steps 0.1 learns much faster.
    text_attention: how a context of several entries, such as a text, is heard besides its pooled vector: by
    cross-attention (PixArt), by joint attention (MM-DiT, Stable Diffusion 3), or not at all.
    attention: which tokens see which, a file in `artok/nn/patterns`: full, factorised, local or tiles.
    positions: sincos, added, as published; learned, added; or rotary, in queries and keys, on every axis of the grid.
    feed_forward: linear, as published, or conv, which reads a token's neighbours on all axes. In short runs on video
    conv learns faster.
    """

    kind: Literal["dit"] = "dit"
    size: Literal["S", "B", "L", "XL"] | None = None
    depth: Depth | None = None
    width: int | None = Field(None, ge=4)
    heads: int | None = Field(None, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    patch_size: int = Field(2, ge=1)
    condition_init: float = Field(0.02, gt=0)
    text_attention: Literal["cross", "joint", "none"] = "cross"
    attention: Annotated[PatternConfig, of_kind("nn.patterns"), OPEN] = full.Config()
    positions: Literal["sincos", "rotary", "learned"] = "sincos"
    feed_forward: Literal["linear", "conv"] = "linear"

    @property
    def takes_frame_times(self) -> bool:
        return self.text_attention != "joint"

    @model_validator(mode="after")
    def _check_sizes(self) -> Config:
        if (self.size is None) == (self.depth is None):
            raise ValueError("give either size (S, B, L, XL) or depth")
        if self.size and (self.width or self.heads):
            raise ValueError("width and heads follow from size; leave them out, or give depth instead of size")
        _, width, heads = self.shape()
        if width % (2 * heads):
            raise ValueError(f"width {width} must be a multiple of twice the heads ({heads})")
        plain = self.attention.kind == "full" and self.feed_forward == "linear" and self.positions != "rotary"
        if self.text_attention == "joint" and not plain:
            raise ValueError(
                "text_attention joint goes with full attention, a linear feed_forward and added positions; choose cross"
            )
        return self

    def shape(self) -> tuple[int, int, int]:
        """Layers, width, heads."""
        if self.size:
            return SIZES[self.size]
        assert self.depth is not None
        return self.depth, self.width or 64 * self.depth, self.heads or self.depth

    def refuse(self, grid: tuple[int, ...]) -> str | None:
        if not divides(grid, self.patch_size):
            return f"with network.patch_size {self.patch_size} needs a grid whose sides are multiples of it"
        if self.feed_forward == "conv" and len(grid) > 3:
            return "with feed_forward conv needs a grid of at most three axes"
        return self.attention.refuse(patch_grid(grid, self.patch_size))

    def build(
        self, grid: tuple[int, ...], width: int, out: int, conditioners: Callable[[int, tuple[int, ...]], Conditioners]
    ) -> DiffusionTransformer:
        return DiffusionTransformer(self, grid, width, out, conditioners)

    @classmethod
    def tiny(cls) -> Config:
        return cls(depth=1, width=32, heads=2, patch_size=1)


class DiffusionTransformer(DiffusionNetwork):
    """Transformer over patches with fixed positions; time and class modulate the norms of its blocks."""

    def __init__(
        self,
        config: Config,
        grid: tuple[int, ...],
        width: int,
        out: int,
        conditioners: Callable[[int, tuple[int, ...]], Conditioners],
    ) -> None:
        super().__init__()
        depth, hidden, heads = config.shape()
        self.grid, self.patch, self.gradient_checkpointing = grid, config.patch_size, False
        self.input = nn.Linear(width * config.patch_size**2, hidden)
        self.given: ZeroLinear | None = None
        self.controlnet: ControlNet | None = None
        time = self.time = TimeEmbedding(hidden)
        patches = patch_grid(grid, config.patch_size)
        self.conditioner = conditioners(hidden, patches)
        self.attention = config.text_attention if self.conditioner.length > 1 else "none"
        self.blocks = nn.ModuleList(
            JointBlock(hidden, heads, int(config.mlp_ratio * hidden), last=layer == depth - 1)
            if self.attention == "joint"
            else conditioned_block(config, patches, layer, cross=self.attention == "cross")
            for layer in range(depth)
        )
        self.output = ConditionedOutput(hidden, out * config.patch_size**2)
        self.positions: Tensor | None
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.randn(math.prod(patches), hidden) * config.condition_init)
        else:
            table = sincos_table(patches, hidden) if config.positions == "sincos" else None
            self.register_buffer("positions", table, persistent=False)
        self.apply(initialise_linear)
        fill = partial(nn.init.normal_, std=config.condition_init)
        self.conditioner.initialise(fill)
        for layer in (time.layers[0], time.layers[2]):
            assert isinstance(layer, nn.Linear)
            fill(layer.weight)

    @property
    def stages(self) -> list[nn.Module]:
        return list(self.blocks)

    def widen(self, width: int) -> None:
        self.given = ZeroLinear(width * self.patch**2, self.input.out_features, bias=False)

    def add_controlnet(self) -> None:
        """Copy the first half of the blocks, each of which steers its own (PixArt-delta, Chen et al. 2024, arXiv
        2401.05252, section 3.2)."""
        copied = self.blocks[: (len(self.blocks) + 1) // 2]
        width = self.input.out_features
        self.requires_grad_(False)
        self.conditioner["control"].requires_grad_(True)
        self.controlnet = ControlNet({"blocks": copied}, [ZeroLinear(width, width) for _ in copied])

    def forward(self, x_BND: Tensor, times_B: Tensor, context: Context, given_BNG: Tensor | None = None) -> Tensor:
        x, controlnet, places = self.tokens(x_BND), self.controlnet, context.places
        if places is not None and controlnet is None:
            x = x + places
        if self.given is not None and given_BNG is not None:
            x = x + self.given(split_patches(given_BNG, self.grid, self.patch))
        given = self.condition(times_B, context)
        entries = context.sequence.shape[1] if self.attention == "joint" else 0
        if entries:
            x = torch.cat([context.sequence.to(x.dtype), x], dim=1)
        copies, copy = nn.ModuleList(), x
        if controlnet is not None and places is not None:
            copies, copy = controlnet.copy("blocks"), add_last(x, places)

        def step(block: nn.Module, x_BND: Tensor) -> Tensor:
            heard = (entries, context.mask) if entries else context.heard(block.cross)  # type: ignore[arg-type]
            return run(block, x_BND, given, *heard, checkpoint=self.gradient_checkpointing)

        for layer, block in enumerate(self.blocks):
            x = step(block, x)
            if controlnet is not None and layer < len(copies):
                copy = step(copies[layer], copy)
                x = x + controlnet.residual(layer, copy, context.mapped)
        x = x[:, entries:]
        return merge_patches(self.output(x, per_token(given, x.shape[1])), self.grid, self.patch)

    def tokens(self, x_BND: Tensor) -> Tensor:
        """(B, patches, hidden): embedded patches at their positions."""
        x: Tensor = self.input(split_patches(x_BND, self.grid, self.patch))
        return x if self.positions is None else x + self.positions

    def condition(self, times_B: Tensor, context: Context) -> Tensor:
        """(B, hidden), or with times (B, F) of each frame (B, F, hidden)."""
        if times_B.ndim == 2 and type(self.time) is TimeEmbedding:
            by_frame: Tensor = self.time(times_B.flatten()).unflatten(0, times_B.shape)
            return by_frame + context.pooled[:, None]
        time: Tensor = self.time(times_B)
        return time + context.pooled


def conditioned_block(config: Config, grid: tuple[int, ...], layer: int, cross: bool) -> ConditionedBlock:
    """A block over the tokens of a grid, with the layers that the config asks for."""
    _, width, heads = config.shape()
    hidden, pattern = int(config.mlp_ratio * width), config.attention.build(grid, layer)
    attention = inner = None
    if pattern is not None or config.positions == "rotary":
        rotary = rotary_table(grid, width // heads) if config.positions == "rotary" else None
        attention = GridAttention(width, heads, pattern, rotary)
    if config.feed_forward == "conv":
        inner = ConvFeedForward(width, hidden, grid)
    return ConditionedBlock(width, heads, hidden, cross, attention, inner)
