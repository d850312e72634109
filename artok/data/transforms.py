"""Random changes of a batch of training images or clips, drawn from each sample's own noise.

A clip is changed as an image of many channels: all its frames in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from artok.data.base import Augment, Examples
from artok.data.controls.base import ControlConfig
from artok.errors import DataError
from artok.images import from_uint8, to_uint8
from artok.noise import Noise, fold

REVISION = 1  # of the pixels that decoding and augmentation give; cached tokens of another one are not used


def plain(images: Tensor, size: int) -> Tensor:
    """The centre `size` x `size` of images (B, C, R, R) or clips (B, C, T, R, R), uint8 or in [-1, 1], as float."""
    return _to_float(_centre(images, size))


def augment(images: Tensor, changes: Augment, size: int, noise: Noise) -> Tensor:
    """Images (B, C, R, R) or clips (B, C, T, R, R), uint8 or in [-1, 1], changed and cut to `size`, float in [-1, 1].

    Shift, rotation, scale and shear are one bicubic resampling, which also does the crop; outside the image its border
    is repeated. Everything switched off is `plain`, exactly, and draws nothing.
    """
    return _to_float(augment_stored(images, changes, size, noise))


def augment_stored(images: Tensor, changes: Augment, size: int, noise: Noise) -> Tensor:
    """`augment`, with uint8 images left so where nothing is resampled."""
    if changes == Augment():
        return _centre(images, size)
    draws_B8 = noise.uniform(8)  # one draw, so that switching one change off leaves the others unchanged
    offsets_B2 = _crop_offsets(images, changes, size, draws_B8[:, 0:2])
    if changes.shift or changes.rotate or changes.scale or changes.shear:
        shift_B2 = _signed(draws_B8[:, 2:4]) * (changes.shift * size)
        cut = _resample(_to_float(images), _affine(changes, draws_B8[:, 4:7]), offsets_B2, shift_B2, size)
    else:
        cut = _cut(images, offsets_B2, size) if changes.crop == "random" else _centre(images, size)
    if changes.flip:
        mirrored = (draws_B8[:, 7] < 0.5).view(-1, *[1] * (cut.ndim - 1))
        cut = torch.where(mirrored, cut.flip(-1), cut)
    return cut


def stack_maps(examples: Examples) -> Tensor:
    """The images with the maps beside them as further channels, so that both are changed in the same way."""
    return examples.images if examples.maps is None else torch.cat([examples.images, examples.maps], dim=1)


def split_maps(changed: Tensor, channels: int, control: ControlConfig | None) -> tuple[Tensor, Tensor | None]:
    """Images (B, channels, *size) and their control (B, ..., *size) uint8, of changed stacks of `stack_maps`."""
    images = changed[:, :channels]
    if control is None:
        return images, None
    if control.stored:
        return images, _to_uint8(changed[:, channels:])
    return images, control.compute(_to_uint8(images))


def augmented_copies(images: Tensor, changes: Augment, size: int, indices: Tensor, copies: int, seed: int) -> Tensor:
    """Float (B, copies, C, ..., size, size) of images (B, C, ..., R, R): copy 0 is plain, the others are changed.

    When mirroring is the only change, copy 1 is the mirror image exactly, and there can be no third.
    indices: (B,) int64, the images' places in the split; a copy depends on (seed, index, copy) alone.
    """
    first = plain(images, size)
    if copies == 1:
        return first[:, None]
    if changes == Augment():
        raise DataError(f"{copies} copies of an image would be the same: set data.augment, or 1 copy")
    if changes == Augment(flip=True):
        if copies > 2:
            raise DataError(f"mirroring makes 2 different copies of an image, not {copies}: use 2, or augment more")
        return torch.stack([first, first.flip(-1)], dim=1)
    noises = [Noise(fold("copy", seed, copy), indices) for copy in range(1, copies)]
    return torch.stack([first, *(augment(images, changes, size, noise) for noise in noises)], dim=1)


def _centre(images: Tensor, size: int) -> Tensor:
    top = (images.shape[-1] - size) // 2
    return images[..., top : top + size, top : top + size]


def _to_float(images: Tensor) -> Tensor:
    return from_uint8(images) if images.dtype == torch.uint8 else images


def _to_uint8(images: Tensor) -> Tensor:
    return images if images.dtype == torch.uint8 else to_uint8(images)


def _signed(uniform: Tensor) -> Tensor:
    return uniform * 2 - 1


def _crop_offsets(images: Tensor, changes: Augment, size: int, uniform_B2: Tensor) -> Tensor:
    """(B, 2) int64: top and left of each crop."""
    room = images.shape[-1] - size
    if changes.crop == "random":
        return (uniform_B2 * (room + 1)).long()
    return torch.full((len(images), 2), room // 2, dtype=torch.int64, device=images.device)


def _cut(images: Tensor, offsets_B2: Tensor, size: int) -> Tensor:
    places = zip(images, offsets_B2.tolist(), strict=True)
    return torch.stack([image[..., top : top + size, left : left + size] for image, (top, left) in places])


def _affine(changes: Augment, uniform_B3: Tensor) -> Tensor:
    """(B, 2, 2) from a place in the result, relative to its centre as (x, y), to one in the image."""
    turn, size, lean = _signed(uniform_B3).unbind(1)
    angle, scale, shear = turn * math.radians(changes.rotate), 1 + size * changes.scale, lean * changes.shear
    cos, sin, one, zero = angle.cos(), angle.sin(), torch.ones_like(turn), torch.zeros_like(turn)
    unturn = _matrix([cos, sin, -sin, cos])
    unshear = _matrix([one, -shear, zero, one])
    return unshear @ unturn / scale[:, None, None]


def _matrix(entries: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(entries), dim=1).view(-1, 2, 2)


def _resample(images: Tensor, affine: Tensor, offsets_B2: Tensor, shift_B2: Tensor, size: int) -> Tensor:
    side = images.shape[-1]
    axis = torch.arange(size, device=images.device, dtype=torch.float32) - (size - 1) / 2
    place_HW2 = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    centre_B2 = offsets_B2.flip(-1) + (size - 1) / 2  # as (x, y), of pixel centres
    pixels = torch.einsum("bij,bhwj->bhwi", affine, place_HW2 - shift_B2[:, None, None]) + centre_B2[:, None, None]
    where = (2 * pixels + 1) / side - 1  # grid_sample's -1 and 1 are the outer edges of the image
    planes = images.flatten(1, -3)
    result = functional.grid_sample(planes, where, mode="bicubic", padding_mode="border", align_corners=False)
    return result.clamp(-1, 1).unflatten(1, images.shape[1:-2])  # bicubic overshoots at edges
