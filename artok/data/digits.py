"""The 1,797 handwritten digits that ship with scikit-learn (UCI "Optical Recognition of Handwritten Digits").

8x8 images of 17 grey levels, enlarged by bilinear interpolation. The split is fixed: 540 images are held out,
stratified by class, drawn with seed 0.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from artok.data.base import DataConfig, Split, SplitName
from artok.data.captions import templated
from artok.data.fingerprints import digest_parts, digest_tensor
from artok.data.holdout import split_stratified
from artok.data.splits import MemorySplit

HELD_OUT = 540
SPLIT_SEED = 0


class Config(DataConfig):
    """`data: {kind: digits}`: 1,257 images to train on and 540 held out, in memory."""

    kind: Literal["digits"] = "digits"
    size: int = Field(16, gt=0)
    channels: Literal[1, 3] = 1

    def open(self, split: SplitName) -> Split:
        pictures, labels, fingerprint = _read(split, self.side)
        images = pictures.expand(-1, self.channels, -1, -1).contiguous()
        if self.channels > 1:
            fingerprint = digest_parts("digits", split, digest_tensor(images), digest_tensor(labels))
        plain = MemorySplit(images, labels, [str(digit) for digit in range(10)], fingerprint)
        return templated(plain, self.caption_templates)

    @classmethod
    def tiny(cls, folder: Path) -> Config:
        return cls(size=8)


@cache
def _read(split: SplitName, side: int) -> tuple[Tensor, Tensor, str]:
    """Images (N, 1, side, side) uint8, labels (N,) and fingerprint; cached, as a study opens them often."""
    from sklearn.datasets import load_digits  # takes a second to import

    grey, targets = load_digits(return_X_y=True)
    train, test = split_stratified(torch.from_numpy(targets.astype(np.int64)), HELD_OUT, SPLIT_SEED)
    rows = train if split == "train" else test
    levels = np.rint(grey[rows.numpy()].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    # Pillow resizes in integer arithmetic, so the pixels are the same on every machine.
    large = [np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BILINEAR)) for each in levels]
    images = torch.from_numpy(np.stack(large))[:, None]
    labels = torch.from_numpy(targets.astype(np.int64))[rows]
    return images, labels, digest_parts("digits", split, digest_tensor(images), digest_tensor(labels))
