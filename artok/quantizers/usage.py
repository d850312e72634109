"""How evenly codes are used: of one batch, and over a window of training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artok.quantizers.distributed import count_processes, sum_over_processes

WINDOW = 8  # choices per code, if use were even, that training usage is taken over


def split_scales(values: Tensor, lengths: Sequence[int]) -> Sequence[Tensor]:
    """The positions (B, N, ...) of each scale; of a single one there may be any number, as of more frames."""
    return (values,) if len(lengths) == 1 else values.split(list(lengths), dim=1)


class Usage(nn.Module):
    """Which codes each of S scales and K levels has used lately.

    The window holds as many positions as would show each code 8 times if use were even. A batch alone cannot tell: it
    may have fewer tokens than there are codes, and its 1x1 grids are as many as its images.

    counts: (S, K, V) of the step so far, in this process. frequencies: (S, K, V) over the window; their mean over
    processes is the frequency in all of them. least: (S, K, 1), below which a code has left the window.
    """

    counts: Tensor
    frequencies: Tensor
    least: Tensor

    def __init__(self, grids: Sequence[tuple[int, ...]], codes: int, vocab: int) -> None:
        super().__init__()
        self.lengths = [math.prod(grid) for grid in grids]
        self.names = ["x".join(map(str, grid)) for grid in grids] if len(grids) > 1 else []
        self.vocab = vocab
        for name, last in (("counts", vocab), ("frequencies", vocab), ("least", 1)):  # no part of the saved weights
            self.register_buffer(name, torch.zeros(len(grids), codes, last), persistent=False)

    def count(self, values: Tensor) -> Tensor:
        """How often each code is among the values (B, N, K): (S, K, V)."""
        return torch.stack([count_codes(scale, self.vocab) for scale in split_scales(values, self.lengths)])

    def collect(self, values: Tensor) -> None:
        """Add the codes (B, N, K) of a part of a step."""
        self.counts.add_(self.count(values))

    def settle(self) -> Tensor:
        """At the end of a step, bring its codes into the window. Returns their counts (S, K, V) in this process."""
        counts = self.counts.clone()
        self.counts.zero_()
        positions = counts.sum(-1, keepdim=True)
        everywhere, window = positions * count_processes(), WINDOW * self.vocab
        self.frequencies.lerp_(counts / positions.clamp(min=1), (everywhere / window).clamp(max=1))
        self.least.copy_(0.3 / everywhere.clamp(min=window))  # a hit is worth 1/e after one window
        return counts

    def share(self) -> None:
        """Give each process the frequencies of all; to be called by all of them."""
        sum_over_processes(self.frequencies).div_(count_processes())

    def monitors(self) -> dict[str, Tensor]:
        """`fill` of the window, over all processes; to be called by all of them."""
        self.share()
        return self.fill(self.frequencies, self.least)

    def batch_monitors(self, values: Tensor) -> dict[str, Tensor]:
        """`fill` of the codes (B, N, K) of one batch."""
        return self.fill(self.count(values), torch.zeros_like(self.least))

    def fill(self, frequencies: Tensor, least: Tensor) -> dict[str, Tensor]:
        """usage: share of the codes that occurred. perplexity: exp of the entropy of their frequencies, in [1, V].

        Scalars, the means over the levels, of all scales together and of each by its name. frequencies: (S, K, V).
        """
        seen, frequencies = frequencies > least, F.normalize(frequencies, p=1, dim=-1)
        lengths = frequencies.new_tensor(self.lengths)[:, None, None]
        together = (frequencies * lengths).sum(0) / lengths.sum()
        values = {"usage": seen.any(0).float().mean(), "perplexity": perplexity(together).mean()}
        for index, name in enumerate(self.names):
            values[f"usage, {name}"] = seen[index].float().mean()
            values[f"perplexity, {name}"] = perplexity(frequencies[index]).mean()
        return values


def count_codes(values: Tensor, vocab: int) -> Tensor:
    """How often each level K of codes (B, N, K) has each code, (K, vocab)."""
    levels = values.shape[-1]
    slots = (values + vocab * torch.arange(levels, device=values.device)).flatten()
    # scatter_add_ and not bincount, which makes the host wait for a GPU to learn the largest value
    counts = torch.zeros(levels * vocab, device=values.device)
    counts.scatter_add_(0, slots, torch.ones((), device=values.device).expand(slots.shape))
    return counts.view(levels, vocab)


def perplexity(frequencies: Tensor) -> Tensor:
    """exp of the entropy of frequencies (..., V) that sum to 1."""
    return torch.special.entr(frequencies).sum(-1).exp()
