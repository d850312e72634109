"""Means over seeds, and the one rule that says whether two of them differ: Tukey's HSD (Tukey 1949, Kramer 1956)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from scipy.stats import studentized_range

from artok.metrics.quantity import Quantity

ALPHA = 0.05  # chance that any pair of equal means is called different, over all pairs that are compared


@dataclass(frozen=True)
class Value:
    """mean: over the seeds. spread: their standard deviation, 0 where there is one seed.

    exact: a count, such as tokens or parameters, in which any difference is one.
    """

    mean: float
    spread: float = 0.0
    seeds: int = 1
    exact: bool = False

    @classmethod
    def of(cls, values: Sequence[float]) -> Value:
        """The mean and the unbiased standard deviation of one or more values."""
        mean = math.fsum(values) / len(values)
        if len(values) < 2:
            return cls(mean)
        if len(set(values)) == 1:  # no rounding of the mean may make equal values differ from it
            return cls(values[0], 0.0, len(values))
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        return cls(mean, math.sqrt(variance), len(values))


class Comparison:
    """All pairs of some means compared at once.

    The noise of a seed is pooled over all of them, since each has only a few seeds; the more means are compared, the
    larger a difference has to be (Tukey and Kramer's studentized range). Positive figures of which less is better, such
    as distances and times, vary in proportion to their size, so their logarithms are compared; others as they are.
    """

    def __init__(self, values: Mapping[str, Value], better: Literal["higher", "lower", ""]) -> None:
        self.values = values
        self.relative = better == "lower" and all(value.mean > 0 for value in values.values())
        noisy = [value for value in values.values() if not value.exact]
        squares = math.fsum(
            (value.seeds - 1) * (value.spread / (value.mean if self.relative else 1.0)) ** 2 for value in noisy
        )
        self.degrees = sum(value.seeds - 1 for value in noisy)
        self.deviation = math.sqrt(squares / self.degrees) if self.degrees else 0.0

    def differ(self, one: str, other: str) -> bool | None:
        """Whether two means differ beyond the noise; None where single seeds say nothing of it."""
        pair = self.values[one], self.values[other]
        if pair[0].mean == pair[1].mean:
            return False
        noisy = [value for value in pair if not value.exact]
        if not noisy:
            return True
        if not self.degrees:
            return None
        gap = abs(math.log(pair[0].mean / pair[1].mean) if self.relative else pair[0].mean - pair[1].mean)
        error = self.deviation * math.sqrt(math.fsum(1 / value.seeds for value in noisy) / 2)
        return gap > _critical_range(len(self.values), self.degrees) * error


@cache
def _critical_range(means: int, degrees: int) -> float:
    """The studentized range that equal means exceed with a probability of ALPHA."""
    return float(studentized_range.ppf(1 - ALPHA, means, degrees))


def format_mean(value: Value, quantity: Quantity, unit: bool = False) -> str:
    """`1.27 ± 0.05 ms`, to three digits."""
    return quantity.format(value.mean, value.spread, digits=3, unit=unit)
