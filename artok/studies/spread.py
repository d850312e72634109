"""Whether two means over seeds differ by more than the seeds do: Welch's test (1947)."""

from __future__ import annotations

from scipy.stats import ttest_ind_from_stats

from artok.metrics.results import number
from artok.studies.pareto import Value

CHANCE = 0.05  # a difference counts when seeds alone would make one as large less often than this


def apart(one: Value, other: Value) -> bool:
    """Whether two values differ beyond the noise of their seeds.

    Values without any spread, such as counts, differ when they are not equal. With a single seed on either side
    nothing is known of the noise, and no difference counts unless both are exact.
    """
    if one.mean == other.mean:
        return False
    if min(one.seeds, other.seeds) < 2:
        return False
    if not one.spread and not other.spread:
        return True
    found = ttest_ind_from_stats(
        one.mean, one.spread, one.seeds, other.mean, other.spread, other.seeds, equal_var=False
    )
    return bool(found.pvalue < CHANCE)


def known_apart(one: Value, other: Value) -> bool | None:
    """`apart`, or None where a single seed says nothing of the noise."""
    if min(one.seeds, other.seeds) < 2 and one.mean != other.mean:
        return None
    return apart(one, other)


def shown(value: Value, unit: str = "") -> str:
    """1.27 ± 0.05 ms."""
    mean = number(float(f"{value.mean:.3g}"))
    spread = f" ± {value.spread:.2g}" if value.spread else ""
    return f"{mean}{spread}{f' {unit}' if unit else ''}"
