"""Dropout whose masks belong to the images, so that no mask depends on how a batch is split."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artok.noise import Noise


class Dropout(nn.Module):
    """Zero a share of the entries in training and scale the others by 1 / (1 - share) (Srivastava et al. 2014).

    noise: of the images of this pass, set by `draw_dropout`. Without it torch's generator draws.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.noise: Noise | None = None

    def forward(self, x: Tensor, place: int = 0) -> Tensor:
        """x: (B, ...). place: tells calls of one pass apart. The same call gives the same mask again, which gradient
        checkpointing relies on."""
        if not self.training or not self.share:
            return x
        if self.noise is None:
            return F.dropout(x, self.share)
        kept = self.noise.keep(self.share, place, *x.shape[1:])
        return torch.where(kept, x * (1 / (1 - self.share)), 0)

    def extra_repr(self) -> str:
        return f"share={self.share}"


def draw_dropout(model: nn.Module, noise: Noise) -> None:
    """Set the random numbers of the next training pass of a model. noise: of its images."""
    for number, part in enumerate(part for part in model.modules() if isinstance(part, Dropout) and part.share):
        part.noise = noise.branch(f"dropout {number}")
