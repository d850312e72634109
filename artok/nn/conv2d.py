"""Two-dimensional convolutional encoder and decoder of VQGAN (Esser et al. 2021, appendix; after Ho et al. 2020).

Every published convolutional tokenizer that artok knows (taming, LDM, LlamaGen, VAR, MAR) is a setting of these two.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from artok.nn.attention import attend
from artok.nn.gradient_checkpointing import run


def arrange(x: Tensor) -> Tensor:
    """Images in the memory order in which their device convolves fastest.

    On a GPU that is channels last. On a CPU it is not: GroupNorm in bfloat16 is ten times slower with it.
    """
    return x.contiguous(memory_format=torch.channels_last if x.is_cuda else torch.contiguous_format)


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with eps 1e-6 and at most `groups` groups, fewer where the channels do not divide."""
    return nn.GroupNorm(gcd(channels, groups), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """norm, swish, 3x3 convolution, twice, added to the input (through a 1x1 convolution where the width changes)."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class PixelAttention(nn.Module):
    """Single-head attention over all pixels, added to the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (k c) h w -> k b 1 (h w) c", k=3)
        return x + self.out(rearrange(attend(q, k, v), "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """3x3 convolution of stride 2; one row and one column of zeros at the bottom and right only, as published."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour by 2, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def level(channels: int, out_channels: int, blocks: int, attention: bool, groups: int) -> nn.Sequential:
    """Residual blocks of one resolution, each followed by attention if asked for."""
    layers: list[nn.Module] = []
    for index in range(blocks):
        layers.append(ResidualBlock(channels if index == 0 else out_channels, out_channels, groups))
        if attention:
            layers.append(PixelAttention(out_channels, groups))
    return nn.Sequential(*layers)


def middle(channels: int, attention: bool, groups: int) -> nn.Sequential:
    layers: list[nn.Module] = [ResidualBlock(channels, channels, groups)]
    if attention:
        layers.append(PixelAttention(channels, groups))
    return nn.Sequential(*layers, ResidualBlock(channels, channels, groups))


class Encoder(nn.Module):
    """Images (B, in_channels, H, W) to features (B, out_channels, H / 2^(L-1), W / 2^(L-1)) for L widths.

    widths: channels of each level, finest first. attention: which levels have it.
    """

    def __init__(
        self,
        in_channels: int,
        stem: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[bool],
        middle_attention: bool,
        out_channels: int,
        groups: int,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.conv_in = nn.Conv2d(in_channels, stem, 3, padding=1)
        before = [stem, *widths[:-1]]
        self.levels = nn.ModuleList(
            level(before[i], widths[i], blocks, attention[i], groups) for i in range(len(widths))
        )
        self.downsamples = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.middle = middle(widths[-1], middle_attention, groups)
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for index, blocks in enumerate(self.levels):
            x = run(blocks, x, checkpoint=self.gradient_checkpointing)
            if index < len(self.downsamples):
                x = self.downsamples[index](x)
        x = run(self.middle, x, checkpoint=self.gradient_checkpointing)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Features (B, in_channels, h, w) to images (B, out_channels, h 2^(L-1), w 2^(L-1)).

    widths and attention are given finest first, as for the encoder; levels are held in running order, coarsest first.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[bool],
        middle_attention: bool,
        out_channels: int,
        groups: int,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        running = list(reversed(widths))
        before = [running[0], *running[:-1]]
        attends = list(reversed(attention))
        self.conv_in = nn.Conv2d(in_channels, running[0], 3, padding=1)
        self.middle = middle(running[0], middle_attention, groups)
        self.levels = nn.ModuleList(
            level(before[i], running[i], blocks, attends[i], groups) for i in range(len(running))
        )
        self.upsamples = nn.ModuleList(Upsample(width) for width in running[:-1])
        self.norm_out = group_norm(running[-1], groups)
        self.conv_out = nn.Conv2d(running[-1], out_channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = run(self.middle, self.conv_in(features), checkpoint=self.gradient_checkpointing)
        for index, blocks in enumerate(self.levels):
            x = run(blocks, x, checkpoint=self.gradient_checkpointing)
            if index < len(self.upsamples):
                x = self.upsamples[index](x)
        return self.conv_out(F.silu(self.norm_out(x)))

    def last_layer(self) -> nn.Parameter:
        return self.conv_out.weight  # type: ignore[return-value]
