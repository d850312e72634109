"""The convolutional U-Net of diffusion models (Ho et al. 2020; its adaptive norms from Dhariwal and Nichol 2021)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from artok.conditioning.base import Conditioners, Context
from artok.config import Depth
from artok.generators.networks.base import DiffusionNetwork, NetworkConfig
from artok.nn.controlnet import ControlNet
from artok.nn.conv2d import Downsample, PixelAttention, Upsample, arrange, group_norm
from artok.nn.gradient_checkpointing import run
from artok.nn.time import TimeEmbedding
from artok.nn.vit import CrossAttention, ZeroLinear

HEAD_WIDTH = 64  # of cross-attention


class Config(NetworkConfig):
    """kind: unet.

    base_channels times each multiplier gives the channels of a level, finest first; each level halves the sides.
    num_res_blocks: residual blocks per level on the way down; one more on the way up. attention_resolutions: levels
    with attention, 0 being the finest; the middle always has it. Where the context has several entries, such as a
    text, each attention is followed by cross-attention to them (Rombach et al. 2022, section 3.3).
    """

    kind: Literal["unet"] = "unet"
    base_channels: int = Field(128, ge=1)
    channel_multipliers: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: Depth = 2
    attention_resolutions: tuple[int, ...] = ()
    groups: int = Field(32, ge=1)

    def refuse(self, grid: tuple[int, ...]) -> str | None:
        factor = 2 ** (len(self.channel_multipliers) - 1)
        if len(grid) != 2 or any(side % factor for side in grid):
            return f"with network kind unet needs a grid of two axes whose sides are multiples of {factor}"
        return None

    def build(
        self, grid: tuple[int, ...], width: int, out: int, conditioners: Callable[[int, tuple[int, ...]], Conditioners]
    ) -> UNet:
        return UNet(self, grid, width, out, conditioners)

    @classmethod
    def tiny(cls) -> Config:
        return cls(base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1, groups=4)


class ConditionedResidual(nn.Module):
    """Norm, swish, convolution, twice. The condition scales and shifts the second norm; the last convolution starts at
    zero."""

    def __init__(self, channels: int, out_channels: int, condition: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.modulation = nn.Sequential(nn.SiLU(), ZeroLinear(condition, 2 * out_channels))
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = zero_convolution(out_channels, out_channels)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        scale, shift = self.modulation(condition)[..., None, None].chunk(2, dim=1)
        return self.skip(x) + self.conv2(F.silu(h * (1 + scale) + shift))


def zero_convolution(channels: int, out_channels: int, bias: bool = True, kernel: int = 3) -> nn.Conv2d:
    layer = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=bias)
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


class Stage(nn.Module):
    """A residual block, with attention if wanted. hears: with cross-attention beside it, to entries as wide as the
    condition."""

    def __init__(
        self, channels: int, out_channels: int, condition: int, attention: bool, groups: int, hears: bool
    ) -> None:
        super().__init__()
        self.block = ConditionedResidual(channels, out_channels, condition, groups)
        self.attention = PixelAttention(out_channels, groups) if attention else nn.Identity()
        heads = gcd(out_channels, max(1, out_channels // HEAD_WIDTH))
        self.cross = CrossAttention(out_channels, condition, heads) if attention and hears else None

    def forward(self, x: Tensor, condition: Tensor, context: Context) -> Tensor:
        x = self.attention(self.block(x, condition))
        if self.cross is None:
            return x
        pixels = rearrange(x, "b c h w -> b (h w) c")
        return x + rearrange(self.cross(pixels, *context.heard(self.cross)), "b (h w) c -> b c h w", h=x.shape[2])


class UNet(DiffusionNetwork):
    """A U-Net: a context's map is added to the input, every state on the way down is concatenated on the way up."""

    def __init__(
        self,
        config: Config,
        grid: tuple[int, ...],
        width: int,
        out: int,
        conditioners: Callable[[int, tuple[int, ...]], Conditioners],
    ) -> None:
        super().__init__()
        self.grid, self.gradient_checkpointing = grid, False
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        condition, groups, last = 4 * config.base_channels, config.groups, len(widths) - 1
        self.time, self.conditioner = TimeEmbedding(condition), conditioners(condition, grid)
        hears = self.conditioner.length > 1
        stage = partial(Stage, condition=condition, groups=groups, hears=hears)
        self.input = nn.Conv2d(width, config.base_channels, 3, padding=1)
        self.map = nn.Conv2d(condition, config.base_channels, 1) if self.conditioner.gives_map else None
        self.given: nn.Conv2d | None = None
        self.controlnet: ControlNet | None = None
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        channels, self.kept = config.base_channels, [config.base_channels]
        for index, wide in enumerate(widths):
            for _ in range(config.num_res_blocks):
                self.down.append(stage(channels, wide, attention=index in config.attention_resolutions))
                channels = wide
                self.kept.append(channels)
            if index < last:
                self.down.append(Downsample(channels))
                self.kept.append(channels)
        kept = list(self.kept)
        self.middle = nn.ModuleList(
            [stage(channels, channels, attention=True), stage(channels, channels, attention=False)]
        )
        for index, wide in reversed(list(enumerate(widths))):
            for _ in range(config.num_res_blocks + 1):
                self.up.append(stage(channels + kept.pop(), wide, attention=index in config.attention_resolutions))
                channels = wide
            if index:
                self.up.append(Upsample(channels))
        self.norm_out = group_norm(channels, groups)
        self.output = zero_convolution(channels, out)

    @property
    def stages(self) -> list[nn.Module]:
        return [layer for layer in (*self.down, *self.middle) if isinstance(layer, Stage)]

    def widen(self, width: int) -> None:
        self.given = zero_convolution(width, self.input.out_channels, bias=False)

    def add_controlnet(self) -> None:
        """Copy the way down and the middle, whose states steer those kept for the way up, and the middle's."""
        assert self.map is not None
        self.requires_grad_(False)
        self.conditioner["control"].requires_grad_(True)
        self.map.requires_grad_(True)
        zeros = [zero_convolution(channels, channels, kernel=1) for channels in (*self.kept, self.kept[-1])]
        self.controlnet = ControlNet({"down": self.down, "middle": self.middle}, zeros)

    def forward(self, x_BND: Tensor, times_B: Tensor, context: Context, given_BNG: Tensor | None = None) -> Tensor:
        given = self.time(times_B) + context.pooled, context
        x = self.input(arrange(x_BND.transpose(1, 2).unflatten(2, self.grid)))
        hint = self.map(context.spatial) if self.map is not None and context.spatial is not None else None
        if hint is not None and self.controlnet is None:
            x = x + hint
        if self.given is not None and given_BNG is not None:
            x = x + self.given(arrange(given_BNG.transpose(1, 2).unflatten(2, self.grid)))
        states = self._descend(x, given, self.down, self.middle)
        if hint is not None and self.controlnet is not None:
            copies = self.controlnet.copy("down"), self.controlnet.copy("middle")
            steering = self._descend(x + hint, given, *copies)
            for index, state in enumerate(steering):
                states[index] = states[index] + self.controlnet.residual(index, state, context.mapped)
        x = states.pop()
        for layer in self.up:
            if isinstance(layer, Stage):
                x = run(layer, torch.cat([x, states.pop()], dim=1), *given, checkpoint=self.gradient_checkpointing)
            else:
                x = layer(x)
        return rearrange(self.output(F.silu(self.norm_out(x))), "b d h w -> b (h w) d")

    def _descend(
        self, x: Tensor, given: tuple[Tensor, Context], down: nn.ModuleList, middle: nn.ModuleList
    ) -> list[Tensor]:
        """The states kept for the way up, x first, and the middle's last."""
        states = [x]
        for layer in down:
            x = run(layer, x, *given, checkpoint=self.gradient_checkpointing) if isinstance(layer, Stage) else layer(x)
            states.append(x)
        for layer in middle:
            x = run(layer, x, *given, checkpoint=self.gradient_checkpointing)
        return [*states, x]
