"""Resampling of images by two with the binomial filter 1, 3, 3, 1, which is bilinear interpolation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def halve(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, H / 2, W / 2), antialiased; zeros beyond the border.

    As sums of slices, not as a convolution of one group a channel: on a CPU in bfloat16 that takes five times as long
    when it is differentiated twice, as R1 does.
    """
    x = F.pad(x, (1, 1, 1, 1))
    even, odd = x[..., 0::2], x[..., 1::2]
    x = (even[..., :-1] + odd[..., 1:]) / 8 + (odd[..., :-1] + even[..., 1:]) * (3 / 8)
    even, odd = x[..., 0::2, :], x[..., 1::2, :]
    return (even[..., :-1, :] + odd[..., 1:, :]) / 8 + (odd[..., :-1, :] + even[..., 1:, :]) * (3 / 8)


def double(x: Tensor) -> Tensor:
    """(B, C, 2 H, 2 W) of (B, C, H, W)."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
