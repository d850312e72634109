"""Whether means over seeds differ by more than the seeds do: Fisher's least significant difference (1935)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t as student

from artok.metrics.quantity import Quantity

CHANCE = 0.05  # a difference counts when seeds alone would make one as large less often than this


@dataclass(frozen=True)
class Value:
    """mean: over the seeds. spread: their standard deviation, 0 where there is one seed or where nothing varies."""

    mean: float
    spread: float = 0.0
    seeds: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Value:
        """The mean and the unbiased standard deviation of one or more values."""
        mean = math.fsum(values) / len(values)
        if len(values) < 2:
            return cls(mean)
        if len(set(values)) == 1:  # a count of tokens: no rounding of the mean may make it differ from itself
            return cls(values[0], 0.0, len(values))
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        return cls(mean, math.sqrt(variance), len(values))


@dataclass(frozen=True)
class Noise:
    """What seeds do to a figure, estimated from all contestants together: each has only a few seeds.

    deviation: of one seed; of its logarithm where `relative`. degrees: of freedom of that estimate.
    """

    deviation: float
    degrees: int
    relative: bool

    @classmethod
    def of(cls, values: Mapping[str, Value], better: Literal["higher", "lower", ""]) -> Noise:
        """Distances, times and other positive figures of which less is better vary in proportion to their size, so
        their logarithms are compared; shares as they are."""
        relative = better == "lower" and all(value.mean > 0 for value in values.values())
        squares, degrees = 0.0, 0
        for value in values.values():
            scale = value.mean if relative else 1.0
            squares += (value.seeds - 1) * (value.spread / scale) ** 2
            degrees += value.seeds - 1
        return cls(math.sqrt(squares / degrees) if degrees else 0.0, degrees, relative)

    def apart(self, one: Value, other: Value) -> bool | None:
        """Whether two means differ beyond the noise; None where single seeds say nothing of it."""
        if one.mean == other.mean:
            return False
        if not self.degrees:
            return None
        gap = abs(math.log(one.mean / other.mean) if self.relative else one.mean - other.mean)
        error = self.deviation * math.sqrt(1 / one.seeds + 1 / other.seeds)
        return bool(gap > student.ppf(1 - CHANCE / 2, self.degrees) * error)


def format_mean(value: Value, quantity: Quantity, unit: bool = False) -> str:
    """`1.27 ± 0.05 ms`, to three digits."""
    return quantity.format(value.mean, value.spread, digits=3, unit=unit)
