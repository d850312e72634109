"""Pareto fronts and dominated settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from artok.evaluation.statistics import Comparison, Value


@dataclass(frozen=True)
class Objective:
    """name: of a metric or cost. better: its direction."""

    name: str
    better: Literal["higher", "lower"]


@dataclass(frozen=True)
class Dominated:
    """A setting that `by` dominates: better in `gains` beyond the noise, and equal in every other objective.

    gains: objective to (this setting's value, that of `by`).
    """

    name: str
    by: str
    gains: Mapping[str, tuple[float, float]]


Settings = Mapping[str, Mapping[str, Value]]  # setting to objective to value; missing objectives are left out


class Dominance:
    """Pairwise comparisons of settings; the correction for many comparisons is per objective over all settings."""

    def __init__(self, settings: Settings, objectives: Sequence[Objective]) -> None:
        self.settings, self.objectives = settings, objectives
        self.compared = {
            each.name: Comparison(
                {name: of[each.name] for name, of in settings.items() if each.name in of}, each.better
            )
            for each in objectives
        }

    def better(self, one: str, other: str, objective: Objective, unknown: bool = False) -> bool:
        """Whether `one` is better beyond the noise. unknown: whether single seeds count as differing."""
        mean, than = (self.settings[name][objective.name].mean for name in (one, other))
        ahead = mean < than if objective.better == "lower" else mean > than
        differ = self.compared[objective.name].differ(one, other)
        return ahead and (unknown if differ is None else differ)

    def dominates(self, one: str, other: str, unknown: bool = False) -> bool:
        """Whether `one` is better in some objective, and better or exactly equal in all others.

        Settings are incomparable if only one of them has an objective, such as the bits of codes.
        """
        better = False
        for objective in self.objectives:
            pair = [self.settings[name].get(objective.name) for name in (one, other)]
            if pair[0] is None or pair[1] is None:
                if pair[0] is not pair[1]:
                    return False
            elif self.better(one, other, objective, unknown):
                better = True
            elif pair[0].mean != pair[1].mean:
                return False
        return better


def front(settings: Settings, objectives: Sequence[Objective]) -> list[str]:
    """The settings that no other dominates, in their order; those that lack an objective are left out.

    Single seeds, whose noise is unknown, count as differing, since a front is only shown.
    """
    whole = {name: values for name, values in settings.items() if all(each.name in values for each in objectives)}
    order = Dominance(whole, objectives)
    return [name for name in whole if not any(order.dominates(other, name, unknown=True) for other in whole)]


def dominated(settings: Settings, objectives: Sequence[Objective]) -> list[Dominated]:
    """Every setting that another dominates beyond the noise; `by` is preferably not dominated itself."""
    order = Dominance(settings, objectives)
    beaten = {name: [other for other in settings if order.dominates(other, name)] for name in settings}
    found = []
    for name, others in beaten.items():
        if others:
            by = min(others, key=lambda other: (bool(beaten[other]), len(beaten[other]), others.index(other)))
            gains = {
                each.name: (settings[name][each.name].mean, settings[by][each.name].mean)
                for each in objectives
                if each.name in settings[name] and order.better(by, name, each)
            }
            found.append(Dominated(name, by, gains))
    return found
