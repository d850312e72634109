"""What lets one table of codes serve several scales: residuals of one size, and codes in use at every scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from artok.renamed import rename_tensors

RATE = 0.1  # what one choice takes off a bias, in the squared distance of residuals whose variance is 1


class Standardisation(nn.Module):
    """Running mean and deviation of what S scales look up, channel by channel, as batch normalisation keeps them.

    Both are those of earlier steps, so that a code means the same vector to every image, in training too.

    moments: (S, 2D + 1), of the step so far in this process: sums, sums of squares, and the number of residuals.
    """

    mean: Tensor
    variance: Tensor
    moments: Tensor
    averaged = ("mean", "variance")

    def __init__(self, scales: int, width: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(scales, width))
        self.register_buffer("variance", torch.ones(scales, width))
        self.register_buffer("moments", torch.zeros(scales, 2 * width + 1), persistent=False)

    def standardise(self, scale: int, points: Tensor) -> Tensor:
        """Residuals (..., D) of a scale with mean 0 and deviation 1, as they are looked up."""
        return (points - self.mean[scale]) / self._deviation(scale)

    def restore(self, scale: int, codes: Tensor) -> Tensor:
        """The inverse of `standardise`: the residuals of a scale that codes (..., D) stand for."""
        return codes * self._deviation(scale) + self.mean[scale]

    def _deviation(self, scale: int) -> Tensor:
        return self.variance[scale].clamp(min=1e-8).sqrt()  # a channel that never changes is left as it is

    def collect(self, scale: int, residuals: Tensor) -> None:
        """Add residuals (M, D) of a scale, not standardised, of a part of a step."""
        count = residuals.new_full((1,), len(residuals))
        self.moments[scale] += torch.cat([residuals.sum(0), residuals.square().sum(0), count])

    def take(self) -> Tensor:
        """The moments of the step in this process, which then start anew."""
        moments = self.moments.clone()
        self.moments.zero_()
        return moments

    def update(self, moments: Tensor) -> None:
        """moments: of a step, over all processes."""
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
    averaged = ("bias",)

    def __init__(self, scales: int, codes: int, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("bias", torch.zeros(scales, codes))
        self.register_load_state_dict_pre_hook(rename_tensors)

    def update(self, counts: Tensor) -> None:
        """counts: (S, V) of the codes in this step, over all processes."""
        least = self.floor * counts.mean(1, keepdim=True)
        excess = torch.minimum(counts - least, 8 * (1 + least))  # one batch of equal images undoes no long ascent
        self.bias.sub_(RATE * excess).clamp_(min=0)

    def reset(self, codes: Tensor) -> None:
        """Clear the bias of codes, (V,) bool, that have been replaced: it might draw a whole scale to them."""
        self.bias.masked_fill_(codes, 0)
