"""Three-dimensional convolutional encoder and decoder of videos, causal in time, and the memory that continues them.

Videos are (B, T, C, H, W) here. Frames are computed like images, with the norms and attention of `conv2d`, and only
`CausalConv` looks back in time, so that nothing of a frame depends on a later one (MAGVIT-v2, Yu et al. 2023, arXiv
2310.05737, section 3.2; the memory as in Wan, 2025, arXiv 2503.20314, section 4.1.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artok.nn.conv2d import PixelAttention, arrange, group_norm
from artok.nn.gradient_checkpointing import run


class Past:
    """The last frames that each layer has seen, so that a video is computed in parts.

    A pass with a new one begins a video, and each further pass goes on with it. The frames are copies: what a part took
    is freed.
    """

    def __init__(self) -> None:
        self.frames: dict[nn.Module, Tensor] = {}


def per_frame(layer: nn.Module, x_BTCHW: Tensor) -> Tensor:
    """A layer of images on each frame."""
    return layer(x_BTCHW.flatten(0, 1)).unflatten(0, x_BTCHW.shape[:2])


class CausalConv(nn.Module):
    """A convolution over a frame and those before it, computed as one of images whose channels are these frames.

    frames: those that it sees; before the first one stand copies of it. every: the step in time. spread: frames made of
    each one that it sees. A video has 1 + k every frames, a further part of one k every, and the results are as many
    groups of `spread`, less spread - 1 at the beginning. So the first frame stands for itself alone.

    The weight (spread out_channels, frames channels, k, k) begins with what the current frame is multiplied by.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int,
        frames: int,
        every: int = 1,
        spread: int = 1,
        stride: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        made = nn.Conv2d(frames * channels, spread * out_channels, kernel)
        assert made.bias is not None and frames > 1
        self.weight, self.bias = nn.Parameter(made.weight), nn.Parameter(made.bias)
        self.frames, self.every, self.spread, self.stride = frames, every, spread, stride
        # a side that it halves is padded at its end, as in `conv2d.Downsample`
        self.padding = tuple(kernel // 2 if step == 1 else 0 for step in stride)
        self.ends = [pixels for step in reversed(stride) for pixels in (0, 0 if step == 1 else kernel - step)]

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        before = None if past is None else past.frames.get(self)
        begins = before is None
        if before is None:
            before = x[:, :1].expand(-1, self.frames - 1, -1, -1, -1)
        whole = torch.cat([before, x], dim=1)
        if past is not None:
            past.frames[self] = whole[:, 1 - self.frames :].clone()
        last = self.frames - 1 if begins else self.frames - 2 + self.every  # the frame at which the first step ends
        seen = [whole[:, last - back : whole.shape[1] - back : self.every] for back in range(self.frames)]
        stacked = torch.cat(seen, dim=2)
        images = stacked.flatten(0, 1) if not any(self.ends) else F.pad(stacked.flatten(0, 1), self.ends)
        made = F.conv2d(arrange(images), self.weight, self.bias, self.stride, self.padding)
        made = made.unflatten(0, stacked.shape[:2])
        if self.spread == 1:
            return made
        made = made.unflatten(2, (self.spread, -1)).flatten(1, 2)
        return made[:, self.spread - 1 :] if begins else made

    def inflates(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a parameter, "weight" or "bias", can be made of one of that shape of a convolution of images."""
        own = (getattr(self, name).shape[0] // self.spread, *getattr(self, name).shape[1:])
        return own == (shape if len(shape) < 4 else (shape[0], shape[1] * self.frames, *shape[2:]))

    @torch.no_grad()
    def inflate(self, name: str, given: Tensor) -> None:
        """Make a parameter of one of a convolution of images: with both, each frame is convolved by itself."""
        if name == "bias":
            self.bias.copy_(given.repeat(self.spread))
        else:
            self.weight.zero_()
            self.weight[:, : given.shape[1]] = given.repeat(self.spread, 1, 1, 1)


class ResidualBlock(nn.Module):
    """norm, swish, causal 3x3 convolution, twice, added to the input (through a 1x1 one where the width changes)."""

    def __init__(self, channels: int, out_channels: int, groups: int, frames: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, groups)
        self.conv1 = CausalConv(channels, out_channels, 3, frames)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        h = self.conv1(F.silu(per_frame(self.norm1, x)), past)
        return per_frame(self.skip, x) + per_frame(self.conv2, F.silu(per_frame(self.norm2, h)))


class Level(nn.ModuleList):
    """Residual blocks of one resolution, and attention within each frame."""

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        for layer in self:
            x = layer(x, past) if isinstance(layer, ResidualBlock) else per_frame(layer, x)
        return x


def level(channels: int, out_channels: int, blocks: int, attention: bool, groups: int, frames: int) -> Level:
    layers: list[nn.Module] = []
    for index in range(blocks):
        layers.append(ResidualBlock(channels if index == 0 else out_channels, out_channels, groups, frames))
        if attention:
            layers.append(PixelAttention(out_channels, groups))
    return Level(layers)


def middle(channels: int, attention: bool, groups: int, frames: int) -> Level:
    layers: list[nn.Module] = [ResidualBlock(channels, channels, groups, frames)]
    if attention:
        layers.append(PixelAttention(channels, groups))
    return Level([*layers, ResidualBlock(channels, channels, groups, frames)])


class Downsample(nn.Module):
    """A 3x3 convolution with a step of 1 or 2 along (time, height, width)."""

    def __init__(self, channels: int, steps: tuple[int, int, int], frames: int) -> None:
        super().__init__()
        self.conv = CausalConv(channels, channels, 3, frames, every=steps[0], stride=steps[1:])

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        return self.conv(x, past)


class Upsample(nn.Module):
    """Nearest neighbour by 1 or 2 along (height, width), then a 3x3 convolution that makes 1 or 2 frames of each."""

    def __init__(self, channels: int, steps: tuple[int, int, int], frames: int) -> None:
        super().__init__()
        self.scale = [float(step) for step in steps[1:]]
        self.conv = CausalConv(channels, channels, 3, frames, spread=steps[0])

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        images = F.interpolate(x.flatten(0, 1), scale_factor=self.scale, mode="nearest")
        return self.conv(images.unflatten(0, x.shape[:2]), past)


class Encoder(nn.Module):
    """Videos (B, T, in_channels, H, W) to features (B, t, out_channels, h, w), with the parts of `conv2d.Encoder`.

    widths: channels of each level, finest first. steps: of each `Downsample` between them. attention: which levels have
    it. frames: those that a convolution sees. patch: frames that the first one takes together.
    """

    def __init__(
        self,
        in_channels: int,
        stem: int,
        widths: Sequence[int],
        steps: Sequence[tuple[int, int, int]],
        blocks: int,
        attention: Sequence[bool],
        middle_attention: bool,
        out_channels: int,
        groups: int,
        frames: int,
        patch: int,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.conv_in = CausalConv(in_channels, stem, 3, max(frames, patch), every=patch)
        before = [stem, *widths[:-1]]
        self.levels = nn.ModuleList(
            level(before[i], widths[i], blocks, attention[i], groups, frames) for i in range(len(widths))
        )
        self.downsamples = nn.ModuleList(Downsample(widths[i], step, frames) for i, step in enumerate(steps))
        self.middle = middle(widths[-1], middle_attention, groups, frames)
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        x = self.conv_in(x, past)
        for index, blocks in enumerate(self.levels):
            x = run(blocks, x, past, checkpoint=self.gradient_checkpointing)
            if index < len(self.downsamples):
                x = self.downsamples[index](x, past)
        x = run(self.middle, x, past, checkpoint=self.gradient_checkpointing)
        return per_frame(self.conv_out, F.silu(per_frame(self.norm_out, x)))


class Decoder(nn.Module):
    """Features (B, t, in_channels, h, w) to videos (B, T, out_channels, H, W), with the parts of `conv2d.Decoder`.

    widths, steps and attention are given finest first, as for the encoder; levels run coarsest first. patch: frames
    that the last convolution makes of each one.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        steps: Sequence[tuple[int, int, int]],
        blocks: int,
        attention: Sequence[bool],
        middle_attention: bool,
        out_channels: int,
        groups: int,
        frames: int,
        patch: int,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        running, attends = list(reversed(widths)), list(reversed(attention))
        before = [running[0], *running[:-1]]
        self.conv_in = CausalConv(in_channels, running[0], 3, frames)
        self.middle = middle(running[0], middle_attention, groups, frames)
        self.levels = nn.ModuleList(
            level(before[i], running[i], blocks, attends[i], groups, frames) for i in range(len(running))
        )
        self.upsamples = nn.ModuleList(Upsample(running[i], step, frames) for i, step in enumerate(reversed(steps)))
        self.norm_out = group_norm(running[-1], groups)
        self.conv_out = CausalConv(running[-1], out_channels, 3, frames, spread=patch)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        x = run(self.middle, self.conv_in(x, past), past, checkpoint=self.gradient_checkpointing)
        for index, blocks in enumerate(self.levels):
            x = run(blocks, x, past, checkpoint=self.gradient_checkpointing)
            if index < len(self.upsamples):
                x = self.upsamples[index](x, past)
        return self.conv_out(F.silu(per_frame(self.norm_out, x)), past)
