"""The convolutional tokenizer of videos, causal in time (MAGVIT-v2, Yu et al. 2023, arXiv 2310.05737, section 3.2).

The first frame has tokens of its own, and so has each group of `downsample[0]` frames after it: T = 1 + k
downsample[0]. Nothing of a frame depends on a later group. So one set of weights takes images and clips of any length,
and a video can be encoded and decoded in parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.config import FREE
from artok.errors import ConfigError, LayoutError
from artok.layout import TokenLayout, Tokens
from artok.nn.conv3d import Decoder, Encoder, Past, per_frame
from artok.tokenizers.autoencoder import Autoencoder, AutoencoderConfig, count_halvings

AXES = ("frames", "height", "width")


class Config(AutoencoderConfig):
    """kind: conv3d.

    downsample: frames, height and width of a clip over those of its grid, powers of two. The coarsest levels halve what
        is halved less often. Each level but the last ends in a halving, so there are as many as the axis with the most
        halvings after patches has, and one more.
    frame_patch: frames that the first convolution takes together, and the last one makes, as `patch_size` does with
        pixels.
    kernel_frames: frames that a causal convolution sees.
    pad_frames: repeat the last frame of a clip until its frames are 1 + k downsample[0], and leave the repeated ones
        out after decoding. Other clips are refused without it.
    chunk: frames of the grid that encoding and decoding compute at a time, except in training; memory depends on it,
        and results do not.
    """

    tiny_image: ClassVar[tuple[int, ...]] = (3, 5, 16, 16)

    kind: Literal["conv3d"] = "conv3d"
    downsample: tuple[int, int, int] = (4, 8, 8)
    frame_patch: Literal[1, 2, 4, 8] = 1
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    kernel_frames: int = Field(3, ge=2)
    pad_frames: bool = False
    chunk: Annotated[int | None, FREE] = Field(4, ge=1)

    @model_validator(mode="after")
    def _levels_match(self) -> Config:
        self.check_multipliers(len(self.steps) + 1, f"downsample {list(self.downsample)} after patches")
        return self

    @property
    def steps(self) -> list[tuple[int, int, int]]:
        """What each halving divides (frames, height, width) by, finest first."""
        patches = (self.frame_patch, self.patch_size, self.patch_size)
        names = ("frame_patch", "patch_size", "patch_size")
        counts = [
            count_halvings(f"downsample of {axis}", factor, patch, name)
            for axis, factor, patch, name in zip(AXES, self.downsample, patches, names, strict=True)
        ]
        most = max(counts)
        frames, height, width = ([2 if level >= most - count else 1 for level in range(most)] for count in counts)
        return list(zip(frames, height, width, strict=True))

    def count_frames(self, frames: int) -> int:
        """Frames of the grid of a clip. ConfigError: its frames do not fit and are not to be padded."""
        every = self.downsample[0]
        groups, rest = divmod(frames - 1, every)
        if frames < 1 or (rest and not self.pad_frames):
            below, above = 1 + max(groups, 0) * every, 1 + (max(groups, 0) + 1) * every
            raise ConfigError(
                f"clips of {frames} frames do not fit a tokenizer that takes 1 + {every} k of them; use {below} or "
                f"{above} frames, or set tokenizer.pad_frames=true to repeat the last one"
            )
        return 1 + groups + bool(rest)

    def build(self, image: tuple[int, ...]) -> VideoTokenizer:
        if len(image) != 4:
            raise ConfigError(
                f"tokenizer kind conv3d takes clips of (channels, frames, height, width), not {image}; use data with "
                "frames, or tokenizer kind conv"
            )
        self.count_frames(image[1])
        for side, factor, axis in zip(image[2:], self.downsample[1:], AXES[1:], strict=True):
            if side % factor:
                raise ConfigError(
                    f"the {axis} of a clip must be a multiple of its downsampling, and {side} is none of {factor}; "
                    "change data.size or tokenizer.downsample"
                )
        return VideoTokenizer(self, image)

    @classmethod
    def tiny(cls) -> Config:
        from artok.quantizers import vq

        return cls(
            downsample=(4, 4, 4),
            frame_patch=2,
            patch_size=2,
            base_channels=8,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            z_channels=8,
            groups=4,
            chunk=2,
            quantizer=vq.Config.tiny(),
        )


class VideoTokenizer(Autoencoder):
    """Grids (t, h, w) of clips (channels, T, H, W), T = 1 + (t - 1) downsample[0].

    Frames may differ in number from those of the layout, where the quantizer codes each position by itself.
    """

    def __init__(self, config: Config, image: tuple[int, ...]) -> None:
        super().__init__()
        channels, frames, *size = image
        self.config = config
        grid = (
            config.count_frames(frames),
            *(side // by for side, by in zip(size, config.downsample[1:], strict=True)),
        )
        quantizer = config.quantizer.build(grid)
        self.patch = config.patch_size
        halved = [math.prod(step[1] for step in config.steps[:level]) for level in range(len(config.widths))]
        sides = [size[0] // self.patch // factor for factor in halved]
        padding = config.quantizer_kernel // 2
        encoded = config.z_channels * quantizer.input_channels // quantizer.width
        self.encoder = Encoder(
            in_channels=channels * self.patch**2,
            stem=config.stem or config.base_channels,
            widths=config.widths,
            steps=config.steps,
            blocks=config.num_res_blocks,
            attention=config.attention(sides),
            middle_attention=config.middle_attention,
            out_channels=encoded,
            groups=config.groups,
            frames=config.kernel_frames,
            patch=config.frame_patch,
        )
        self.to_quantizer = nn.Conv2d(encoded, quantizer.input_channels, config.quantizer_kernel, padding=padding)
        self.quantizer = quantizer
        self.from_quantizer = nn.Conv2d(quantizer.width, config.z_channels, config.quantizer_kernel, padding=padding)
        self.decoder = Decoder(
            in_channels=config.z_channels,
            widths=config.decoder_widths,
            steps=config.steps,
            blocks=config.decoder_blocks,
            attention=config.attention(sides, decoder=True),
            middle_attention=config.middle_attention,
            out_channels=channels * self.patch**2,
            groups=config.groups,
            frames=config.kernel_frames,
            patch=config.frame_patch,
        )
        self.layout = TokenLayout(quantizer.grids, quantizer.width, quantizer.vocab, image, quantizer.codes)
        self.register_statistics()

    # ------------------------------------------------------------------------------------------------ lengths

    def layout_of(self, frames: int) -> TokenLayout:
        if frames == self.layout.image[1]:
            return self.layout
        return self._layout(frames, self.config.count_frames(frames))

    def layout_like(self, images: Tensor) -> TokenLayout:
        return self.layout_of(images.shape[2])

    def part_layout(self, count: int, begins: bool) -> TokenLayout:
        every = self.config.downsample[0]
        return self._layout(1 + (count - 1) * every if begins else count * every, count)

    def _layout(self, frames: int, count: int) -> TokenLayout:
        if self.config.quantizer.mixes_positions:
            raise LayoutError(
                f"this tokenizer takes clips of {self.layout.image[1]} frames only, since quantizer kind "
                f"{self.config.quantizer.kind} codes a whole clip together; use another quantizer for other lengths"
            )
        channels, _, *size = self.layout.image
        return replace(self.layout, image=(channels, frames, *size), grids=((count, *self.layout.grid[1:]),))

    # ------------------------------------------------------------------------------------------------ parts

    def latents(self, images: Tensor) -> Tensor:
        every, chunk, frames = self.config.downsample[0], self.config.chunk, images.shape[2]
        missing = 1 + (self.config.count_frames(frames) - 1) * every - frames
        if missing:
            images = torch.cat([images, images[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)
        if self.training or chunk is None:
            return self._encode(images)
        first, past = 1 + (chunk - 1) * every, Past()
        parts = [images[:, :, :first]]
        parts += [images[:, :, at : at + chunk * every] for at in range(first, images.shape[2], chunk * every)]
        return torch.cat([self._encode(part, past) for part in parts], dim=2)

    def _encode(self, images: Tensor, past: Past | None = None) -> Tensor:
        features = self.encoder(F.pixel_unshuffle(images.transpose(1, 2), self.patch), past)
        return per_frame(self.to_quantizer, features).transpose(1, 2)

    def decode_latents(self, vectors: Tensor, layout: TokenLayout | None = None) -> Tensor:
        if self.training or self.config.chunk is None:
            images = self._decode(vectors)
        else:
            past = Past()
            images = torch.cat([self._decode(part, past) for part in vectors.split(self.config.chunk, dim=2)], dim=2)
        return images[:, :, : (layout or self.layout).image[1]]  # frames that `latents` added end here

    def _decode(self, vectors: Tensor, past: Past | None = None) -> Tensor:
        features = per_frame(self.from_quantizer, vectors.transpose(1, 2))
        return F.pixel_shuffle(self.decoder(features, past), self.patch).transpose(1, 2)

    def encode_chunks(self, clips: Iterable[Tensor]) -> Iterator[Tokens]:
        """Tokens of consecutive parts of a video (B, C, n, H, W), of 1 + k downsample[0] frames and then of multiples.

        Together they are those of `encode`. ConfigError: a part has another number of frames.
        """
        past, every, begins = Past(), self.config.downsample[0], True
        for clip in clips:
            frames = clip.shape[2]
            if not frames or (frames - begins) % every:
                rule = f"1 + {every} k" if begins else f"a multiple of {every}"
                raise ConfigError(f"a part of a video has {frames} frames, and it needs {rule}")
            layout = self.part_layout((frames - begins) // every + begins, begins)
            values = self.quantizer(self._encode(clip, past)).values
            yield Tokens(self._normalised(values), layout)
            begins = False

    def decode_chunks(self, parts: Iterable[Tokens]) -> Iterator[Tensor]:
        if self.config.quantizer.mixes_positions:
            self._layout(0, 0)
        past = Past()
        for tokens in parts:
            yield self._decode(self.embed(tokens), past)

    # ------------------------------------------------------------------------------------------------ training

    def decoder_parts(self) -> list[nn.Module]:
        return [self.from_quantizer, self.decoder]

    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight
