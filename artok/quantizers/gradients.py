"""Gradient estimators of quantization, which has no gradient: the value is the codes, exactly, in both."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def straight_through(points: Tensor, codes: Tensor) -> Tensor:
    """Value of `codes` (..., D), gradient to `points` (..., D) as through the identity (Bengio 2013, van den Oord
    2017 section 3.2). Written so that the value is that of the codes to the bit."""
    return codes.detach() + (points - points.detach())


def rotation_trick(points: Tensor, codes: Tensor) -> Tensor:
    """Value of `codes` (..., D), gradient to `points` (..., D) through the rotation and scaling that takes one to the
    other, held constant (Fifty 2024, arXiv 2410.06424, section 4.2):

        q = |q|/|e| R e,   R = I - 2 w w' + 2 q^ e^',   w = (e^ + q^) / |e^ + q^|,   ^ = divided by the norm

    so the gradient keeps its angle: to the latent it is what it was to the code. vector-quantize-pytorch's goes through
    batched matrix products of one row, which are slower on a CPU.
    """
    start, target = points.detach(), codes.detach()
    unit_start, unit_target = F.normalize(start, dim=-1), F.normalize(target, dim=-1)
    axis = F.normalize(unit_start + unit_target, dim=-1)
    scale = target.norm(dim=-1, keepdim=True) / start.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    rotated = (
        points
        - 2 * (points * axis).sum(-1, keepdim=True) * axis
        + 2 * (points * unit_start).sum(-1, keepdim=True) * unit_target
    )
    return straight_through(rotated * scale, codes)
