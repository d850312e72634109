"""How a codebook is used on a data set: codes used, dead codes, perplexity and entropy.

Comparable only on one data set. Residual quantizers have one codebook a level, so their overall values are means over
the levels (dead codes a sum) and the levels follow by name; several scales share a codebook, and follow by name too.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from artok.errors import ArtokError
from artok.layout import TokenLayout
from artok.metrics.base import EvalBatch, Metric, MetricConfig, MetricContext, enough
from artok.metrics.quantity import Quantity


class Config(MetricConfig):
    """Codes used, usage, dead codes, perplexity and entropy of the codes of held-out images."""

    kind: Literal["codebook"] = "codebook"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("codes_used", "codes used", "", "higher", "Codebook", "Different codes that the held-out images use."),
        Quantity("codebook_usage", "codebook usage", "", "higher", "Codebook", "The same as a share of the codebook."),
        Quantity("dead_codes", "dead codes", "", "lower", "Codebook", "Codes that no held-out image uses."),
        Quantity(
            "perplexity",
            "perplexity",
            "",
            "higher",
            "Codebook",
            "Codes in effective use: 2 to the entropy of their frequencies.",
        ),
        Quantity(
            "code_entropy_bits", "code entropy", "bits", "higher", "Codebook", "Entropy of a code, over all positions."
        ),
        Quantity(
            "code_entropy_by_position_bits",
            "code entropy by position",
            "bits",
            "",
            "Codebook",
            "Entropy of the code at one position, averaged; held-out images bound it to log2 of their number.",
        ),
    )

    def suits(self, subject: MetricContext) -> bool:
        return subject.layout is not None and subject.layout.discrete

    def build(self, subject: MetricContext) -> CodebookUsage:
        layout = subject.require_layout("codebook")
        if layout.vocab is None:
            raise ArtokError("the metric codebook needs tokens that are codes, but these are continuous")
        return CodebookUsage(layout, layout.vocab)

    @classmethod
    def tiny(cls) -> Config:
        return cls()


def entropy(counts: Tensor) -> Tensor:
    """Shannon entropy in bits over the last axis of counts (..., V), as (...) float64; 0 where all counts are 0."""
    shares = counts.to(torch.float64) / counts.sum(-1, keepdim=True).clamp(min=1)
    return -torch.xlogy(shares, shares).sum(-1) / math.log(2)


class CodebookUsage(Metric):
    needs: ClassVar[frozenset[str]] = frozenset({"codes"})

    def __init__(self, layout: TokenLayout, vocab: int) -> None:
        self._layout, self._vocab, self._count = layout, vocab, 0
        self._scales = list(layout.scales())
        self._counts_SKV = torch.zeros(len(self._scales), layout.codes, vocab, dtype=torch.int64)
        self._places: list[Tensor] = []  # (B, N, K) int32: cheaper than N histograms of V when V is large

    @property
    def count(self) -> int:
        return self._count

    def update(self, seen: EvalBatch) -> None:
        if seen.codes is None:
            return
        codes = seen.codes.cpu()
        if tuple(codes.shape[1:]) != self._layout.value_shape() or codes.is_floating_point():
            raise ArtokError(
                f"codes of shape {tuple(codes.shape)}, {codes.dtype}, do not fit the layout {self._layout}"
            )
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self._vocab):
            raise ArtokError(f"codes from {int(codes.min())} to {int(codes.max())} are outside 0..{self._vocab - 1}")
        for scale, positions in enumerate(self._scales):
            for level in range(self._layout.codes):
                values = codes[:, positions, level].reshape(-1)
                self._counts_SKV[scale, level] += torch.bincount(values, minlength=self._vocab)
        self._places.append(codes.to(torch.int32))
        self._count += len(codes)

    def by_position(self) -> Tensor:
        """Entropy in bits of the codes of each position, (N, K) float64: 0 where every image has the same code."""
        enough("codebook usage", {"encoded": self._count}, 1)
        codes = torch.cat(self._places).flatten(1)
        values = [entropy(torch.unique(column, return_counts=True)[1]) for column in codes.T]
        return torch.stack(values).reshape(self._layout.value_shape())

    def compute(self) -> dict[str, float]:
        enough("codebook usage", {"encoded": self._count}, 1)
        levels_KV = self._counts_SKV.sum(0)
        used = (levels_KV > 0).sum(-1).double()
        values = {
            "codes_used": float(used.mean()),
            "codebook_usage": float(used.mean()) / self._vocab,
            "dead_codes": float((levels_KV == 0).sum()),
            "perplexity": float((2 ** entropy(levels_KV)).mean()),
            "code_entropy_bits": float(entropy(levels_KV).mean()),
            "code_entropy_by_position_bits": float(self.by_position().mean()),
        }
        if self._layout.codes > 1:
            values |= self._parts(levels_KV[:, None], [f"level_{level + 1}" for level in range(len(levels_KV))])
        if len(self._scales) > 1:
            values |= self._parts(self._counts_SKV, self._layout.scale_names())
        return values

    def _parts(self, counts: Tensor, names: list[str]) -> dict[str, float]:
        """Usage and perplexity of each named part of counts (parts, K, V), means over the levels."""
        values = {}
        for name, part in zip(names, counts, strict=True):
            values[f"codebook_usage/{name}"] = float((part > 0).double().mean())
            values[f"perplexity/{name}"] = float((2 ** entropy(part)).mean())
        return values
