"""What lets one table of codes serve several scales: residuals of one size, and codes in use at every scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artok.quantizers.base import count_codes, perplexity
from artok.quantizers.distributed import sum_over_processes
from artok.renamed import rename_tensors

RATE = 0.1  # what one choice takes off a bias, in the squared distance of residuals whose variance is 1


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

    def standardise(self, scale: int, points: Tensor) -> Tensor:
        """Residuals (..., D) of a scale with mean 0 and deviation 1, as they are looked up."""
        return (points - self.mean[scale]) / self._deviation(scale)

    def restore(self, scale: int, codes: Tensor) -> Tensor:
        """The inverse of `standardise`: the residuals of a scale that codes (..., D) stand for."""
        return codes * self._deviation(scale) + self.mean[scale]

    def _deviation(self, scale: int) -> Tensor:
        return self.variance[scale].clamp(min=1e-8).sqrt()  # a channel that never changes is left as it is

    @torch.no_grad()
    def update(self, residuals: Sequence[Tensor]) -> None:
        """residuals: (M, D) of each scale in this process, not standardised. All processes get the same means."""
        sums = torch.stack([torch.cat([each.sum(0), each.square().sum(0)]) for each in residuals])
        counts = sums.new_tensor([len(each) for each in residuals])[:, None]
        moments = sum_over_processes(torch.cat([sums, counts], dim=1))
        mean, square = (moments[:, :-1] / moments[:, -1:]).chunk(2, dim=1)
        self.mean.lerp_(mean, 1 - self.decay)
        around = square - 2 * mean * self.mean + self.mean.square()
        self.variance.lerp_(around.clamp(min=0), 1 - self.decay)


class UsageBalancing(nn.Module):
    """A bias (S, V) taken off the squared distance of each code at each scale, which keeps every code in use there.

    The bias of a code grows while a scale chooses it less often than `floor` times an even use (DeSieno 1988, "Adding a
    conscience to competitive learning"). This is stochastic ascent on the prices of a transport problem: the choice of
    least distortion among those in which each code is used that often. A step counts by its positions, so that a choice
    changes a bias by as much at every scale; with equal steps the biases of coarse scales would swing too far.
    """

    bias: Tensor

    def __init__(self, scales: int, codes: int, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("bias", torch.zeros(scales, codes))
        self.register_load_state_dict_pre_hook(rename_tensors)

    @torch.no_grad()
    def update(self, counts: Tensor) -> None:
        """counts: (S, V) of the codes in this step, over all processes."""
        least = self.floor * counts.mean(1, keepdim=True)
        excess = torch.minimum(counts - least, 8 * (1 + least))  # one batch of equal images undoes no long ascent
        self.bias.sub_(RATE * excess).clamp_(min=0)

    @torch.no_grad()
    def reset(self, codes: Tensor) -> None:
        """Clear the bias of codes, (V,) bool, that have been replaced: it might draw a whole scale to them."""
        self.bias.masked_fill_(codes, 0)


class Usage(nn.Module):
    """Which codes each scale has used lately: over as many positions as would show each code 8 times if use were even.

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
    def update(self, counts: Tensor) -> None:
        """counts: as in UsageBalancing."""
        positions = counts.sum(1, keepdim=True)
        self.frequencies.lerp_(counts / positions, (positions / self.window).clamp(max=1))
        self.least.copy_(0.3 / positions.clamp(min=self.window))  # a hit is worth 1/e after one window

    @torch.no_grad()
    def monitors(self, names: Sequence[str]) -> dict[str, Tensor]:
        """usage: share of the codes that occurred. perplexity: exp of the entropy of their frequencies.

        Both of each scale, by its name.
        """
        seen = self.frequencies > self.least
        spread = perplexity(F.normalize(self.frequencies, p=1, dim=1))
        usage = {f"usage, {name}": part for name, part in zip(names, seen.float().mean(1), strict=True)}
        return usage | {f"perplexity, {name}": part for name, part in zip(names, spread, strict=True)}


@torch.no_grad()
def count_by_scale(chosen: Sequence[Tensor], codes: int) -> Tensor:
    """How often each of V codes is among the codes (B, n) of each scale, over all processes: (S, V)."""
    return sum_over_processes(torch.cat([count_codes(values.unsqueeze(-1), codes) for values in chosen]))
