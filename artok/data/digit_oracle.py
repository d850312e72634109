"""Where the digit of a clip is in each frame, and which one it is; nothing is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from artok.data.drawing import paste_glyphs
from artok.oracle import Motion, MotionOracle

FAINT = 16  # of 255; darker pixels are what a decoder leaves of the background
GONE = 0.2  # of a digit's mass; a frame with less shows none
AT_ONCE = 1024  # frames


class DigitOracle(MotionOracle):
    """Knows clips of one bright digit on black by its glyphs (G, g, g) uint8, of labels (G,).

    The centre is the centre of mass of what is not faint. The class is that of the glyph which, drawn with its centre
    of mass there, has the largest normalised correlation with the frame.
    """

    def __init__(self, glyphs: Tensor, labels: Tensor, side: int, fastest: float) -> None:
        """side: of the frames. fastest: as in the base class."""
        self.fastest = fastest
        self._glyphs, self._labels, self._room = glyphs.float(), labels, side - glyphs.shape[-1]
        middle = torch.full((len(glyphs), 2), self._room / 2)
        drawn = _bright(paste_glyphs(self._glyphs, middle, side))
        self._mass, self._centres = drawn.sum((1, 2)), _centre(drawn) - middle

    def follow(self, clips: Tensor) -> Motion:
        frames = _bright(clips.float().mean(1)).flatten(0, 1)  # channels of a grey digit are alike
        mass, centre = frames.sum((1, 2)), _centre(frames)
        parts = zip(frames.split(AT_ONCE), centre.split(AT_ONCE), strict=True)
        glyph = torch.cat([self._recognise(*part) for part in parts])
        label = torch.where(mass < GONE * self._mass[glyph], -1, self._labels[glyph])
        centre = centre.masked_fill((label < 0)[:, None], torch.nan)
        corner = centre - self._centres[glyph]
        margin = torch.minimum(corner, self._room - corner).amin(1)
        shape = clips.shape[0], clips.shape[2]
        return Motion(
            label.view(shape), centre.view(*shape, 2), (mass / self._mass[glyph]).view(shape), margin.view(shape)
        )

    def _recognise(self, frames: Tensor, centre: Tensor) -> Tensor:
        """(N,) int64: the glyph that frames (N, H, W) show at their centres of mass."""
        likeness = []
        for glyph, own in zip(self._glyphs, self._centres, strict=True):
            drawn = _bright(paste_glyphs(glyph.expand(len(frames), -1, -1), centre - own, frames.shape[-1]))
            length = drawn.square().sum((1, 2)).clamp(min=1).sqrt()
            likeness.append((drawn * frames).sum((1, 2)) / length)
        return torch.stack(likeness, dim=1).argmax(1)


def _bright(frames: Tensor) -> Tensor:
    """Pixels less what is faint; 0 below that."""
    return (frames - FAINT).clamp(min=0)


def _centre(frames: Tensor) -> Tensor:
    """Centres of mass (N, 2) as (x, y) of frames (N, H, W), in pixels from the middle of the upper left one."""
    mass = frames.sum((1, 2)).clamp(min=1e-6)
    x = (frames.sum(1) * torch.arange(frames.shape[2])).sum(1) / mass
    y = (frames.sum(2) * torch.arange(frames.shape[1])).sum(1) / mass
    return torch.stack([x, y], dim=1)
