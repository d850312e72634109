"""Converts images between files and tensors with one rounding rule; writes grids and GIFs.

A tensor image is float in [-1, 1], (B, C, H, W), with C 1 or 3; a stored one is uint8. A clip has its frames between
these axes, (B, C, T, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import GifImagePlugin, Image
from torch import Tensor

FRAME_RATE = 12  # frames per second of clips that say nothing else
SHOWN = 9  # frames of a clip on a sheet


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to 0..255: clamped, then rounded to nearest. Every metric and every file uses this one rule."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """0..255 to float32 in [-1, 1], the same to the bit on every device; `to_uint8` inverts it exactly."""
    if images.device.type == "cpu":
        return images.to(torch.float32) / 127.5 - 1
    # A GPU divides by a number by multiplying with its inverse, which rounds otherwise, so the values are looked up.
    return _levels(images.device).index_select(0, images.flatten().int()).view(images.shape)


@cache
def _levels(device: torch.device) -> Tensor:
    return from_uint8(torch.arange(256, dtype=torch.uint8)).to(device)


def frames_of(images: Tensor) -> Tensor:
    """The frames (B * T, C, H, W) of clips (B, C, T, H, W); images (B, C, H, W) as they are."""
    return images if images.ndim == 4 else images.transpose(1, 2).flatten(0, 1)


def to_pil(image: Tensor) -> Image.Image:
    """One float image (C, H, W) in [-1, 1], or uint8, as a PIL image."""
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    array = pixels.cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def grid(images: Tensor, columns: int | None = None, gap: int = 1, scale: int = 1) -> Image.Image:
    """Images (B, C, H, W) side by side on white, row by row, enlarged by whole pixels; of clips (B, C, T, H, W) a row
    each, of up to `SHOWN` frames."""
    if images.ndim == 5:
        images, columns = film_strips(images)
    pixels = (images if images.dtype == torch.uint8 else to_uint8(images)).cpu()
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    count, channels, height, width = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = torch.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for index, image in enumerate(pixels):
        y, x = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[:, y : y + height, x : x + width] = image
    return to_pil(sheet)


def film_strips(clips: Tensor, most: int = SHOWN) -> tuple[Tensor, int]:
    """Frames (B * n, C, H, W) of clips (B, C, T, H, W), n of each with its first and last, and n."""
    count = min(most, clips.shape[2])
    chosen = torch.linspace(0, clips.shape[2] - 1, count).round().long()
    return clips[:, :, chosen].transpose(1, 2).flatten(0, 1), count


def save_grid(images: Tensor, path: Path, columns: int | None = None, gap: int = 1, scale: int = 1) -> None:
    """Write the `grid` of images; of clips (B, C, T, H, W) also the moving one, as a GIF of the same name."""
    grid(images, columns, gap, scale).save(path)
    if images.ndim == 5:
        frames = [grid(frame, columns, gap, scale) for frame in images.unbind(2)]
        save_gif(frames, path.with_suffix(".gif"), len(frames) / FRAME_RATE, hold=1 / FRAME_RATE)


def put_first(maps: Tensor, images: Tensor) -> Tensor:
    """Images (R * n, C, H, W) float, n for each of R maps (R, c, H, W) uint8 or float, with each map before its n
    images: (R * (n + 1), C, H, W). A map of other channels is shown as their mean."""
    shown = (from_uint8(maps) if maps.dtype == torch.uint8 else maps).to(images.device)
    if shown.shape[1] != images.shape[1]:
        shown = shown.mean(1, keepdim=True).expand(-1, images.shape[1], -1, -1)
    rows = images.unflatten(0, (len(maps), -1))
    return torch.cat([shown[:, None], rows], dim=1).flatten(0, 1)


def save_gif(frames: Sequence[Image.Image], path: Path, seconds: float = 3.0, hold: float = 1.5) -> None:
    """Write an endless GIF. Its frames take at most `seconds`; the last is shown `hold` seconds longer."""
    each = max(20, round(1000 * seconds / len(frames)))
    durations = [each] * (len(frames) - 1) + [round(1000 * hold)]
    frames[0].save(path, save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)


class GifWriter:
    """An endless GIF written frame by frame, so that its length takes no memory; to be used in a `with`.

    All frames have the colours of the first where those are grey levels, and their own otherwise.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.duration = path, max(20, round(1000 / fps))
        self._file: IO[bytes] | None = None

    def __enter__(self) -> GifWriter:
        return self

    def add(self, frame: Image.Image) -> None:
        """Write a frame, of the size of the first one."""
        shown = frame if frame.mode == "L" else frame.convert("P", palette=Image.Palette.ADAPTIVE)
        if self._file is None:
            self._file = self.path.open("wb")
            for block in GifImagePlugin.getheader(shown.copy(), info={"loop": 0})[0]:
                self._file.write(block)
        for block in GifImagePlugin.getdata(shown, duration=self.duration, include_color_table=True):
            self._file.write(block)
        self._file.flush()

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.write(b";")
            self._file.close()
