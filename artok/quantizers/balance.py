"""What lets one table of codes serve several scales: residuals of one size, and a turn for every code everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artok.quantizers.base import occurrences, perplexity
from artok.quantizers.codebook import summed

CHOICE = 0.1  # what one choice takes off a discount, in the squared distance of residuals whose variance is 1


class Standardisation(nn.Module):
    """Running mean and deviation of what S scales look up, channel by channel, as batch normalisation keeps them.

    Both are those of earlier batches, so that a code means the same vector to every image, in training too.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, scales: int, width: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(scales, width))
        self.register_buffer("variance", torch.ones(scales, width))

    def standard(self, scale: int, points: Tensor) -> Tensor:
        """Residuals (..., D) of a scale, as they are looked up."""
        return (points - self.mean[scale]) / self._deviation(scale)

    def restored(self, scale: int, codes: Tensor) -> Tensor:
        """Codes (..., D) as the residuals of a scale that they stand for."""
        return codes * self._deviation(scale) + self.mean[scale]

    def _deviation(self, scale: int) -> Tensor:
        return self.variance[scale].clamp(min=1e-8).sqrt()  # a channel that never changes is left as it is

    @torch.no_grad()
    def follow(self, residuals: Sequence[Tensor]) -> None:
        """residuals: (M, D) of each scale, not standardised. Shared among processes."""
        sums = torch.stack([torch.cat([each.sum(0), each.square().sum(0)]) for each in residuals])
        counts = sums.new_tensor([len(each) for each in residuals])[:, None]
        moments = summed(torch.cat([sums, counts], dim=1))
        mean, square = (moments[:, :-1] / moments[:, -1:]).chunk(2, dim=1)
        self.mean.lerp_(mean, 1 - self.decay)
        around = square - 2 * mean * self.mean + self.mean.square()
        self.variance.lerp_(around.clamp(min=0), 1 - self.decay)


class Conscience(nn.Module):
    """Discounts (S, V) on the squared distance of the codes at each scale, which keep every code in use at every scale.

    A code that a scale chooses less often than `floor` times an even use gets a discount there, which grows until it is
    chosen (DeSieno 1988). It is stochastic ascent on the prices of a transport problem: the choice of least distortion
    among those in which each code is used that often. A step counts by its positions, so that a choice takes as much
    off a discount at every scale; with equal steps the discounts of coarse scales would swing too far to keep.
    """

    discounts: Tensor

    def __init__(self, scales: int, codes: int, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("discounts", torch.zeros(scales, codes))

    @torch.no_grad()
    def follow(self, counts: Tensor) -> None:
        """counts: (S, V) of the codes in this step, over all processes."""
        wanted = self.floor * counts.mean(1, keepdim=True)
        excess = torch.minimum(counts - wanted, 8 * (1 + wanted))  # one batch all alike undoes no long ascent
        self.discounts.sub_(CHOICE * excess).clamp_(min=0)

    @torch.no_grad()
    def forget(self, codes: Tensor) -> None:
        """The discounts of codes (V,) bool that now stand elsewhere, where they might draw a whole scale to them."""
        self.discounts.masked_fill_(codes, 0)


class Usage(nn.Module):
    """Which codes each scale has used lately, over as many positions as would show each code of an even use 8 times.

    A batch alone cannot tell: its 1x1 grids are as many as its images, fewer than the codes.
    """

    frequencies: Tensor
    least: Tensor

    def __init__(self, scales: int, codes: int) -> None:
        super().__init__()
        self.window = 8 * codes
        self.register_buffer("frequencies", torch.zeros(scales, codes), persistent=False)  # for the log alone
        self.register_buffer("least", torch.zeros(scales, 1), persistent=False)

    @torch.no_grad()
    def follow(self, counts: Tensor) -> None:
        """counts: as in Conscience."""
        positions = counts.sum(1, keepdim=True)
        self.frequencies.lerp_(counts / positions, (positions / self.window).clamp(max=1))
        self.least.copy_(0.3 / positions.clamp(min=self.window))  # a hit is worth 1/e after one window

    @torch.no_grad()
    def monitors(self, names: Sequence[str]) -> dict[str, Tensor]:
        """usage: share of the codes that occurred. perplexity: exp of the entropy. Both by the name of the scale."""
        seen = self.frequencies > self.least
        spread = perplexity(F.normalize(self.frequencies, p=1, dim=1))
        usage = {f"usage, {name}": part for name, part in zip(names, seen.float().mean(1), strict=True)}
        return usage | {f"perplexity, {name}": part for name, part in zip(names, spread, strict=True)}


@torch.no_grad()
def hits(chosen: Sequence[Tensor], codes: int) -> Tensor:
    """How often (S, V) each of V codes is among the codes (B, n) of each scale, over all processes."""
    return summed(torch.cat([occurrences(values.unsqueeze(-1), codes) for values in chosen]))
