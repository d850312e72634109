"""Which settings are worth choosing: Pareto fronts, and settings that another one beats in everything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from artok.evaluation.statistics import Value


@dataclass(frozen=True)
class Objective:
    """name: of the values that it looks at."""

    name: str
    better: Literal["higher", "lower"]


@dataclass(frozen=True)
class Dominated:
    """A setting that nobody should choose, since `by` is no worse in any objective and better in `gains`.

    gains: objective to (this setting's value, that of `by`).
    """

    name: str
    by: str
    gains: Mapping[str, tuple[float, float]]


Settings = Mapping[str, Mapping[str, Value]]  # setting, objective: value; an objective that it has not is left out


def noise(one: Value, other: Value) -> float:
    """The difference of two means that seeds alone may explain: twice its standard error, 0 where it is unknown."""
    if min(one.seeds, other.seeds) < 2:
        return 0.0
    return 2 * math.sqrt(one.spread**2 / one.seeds + other.spread**2 / other.seeds)


def surpasses(one: Value, other: Value, objective: Objective) -> bool:
    """Whether `one` is better by more than the noise."""
    gain = other.mean - one.mean if objective.better == "lower" else one.mean - other.mean
    return gain > noise(one, other)


def dominates(one: Mapping[str, Value], other: Mapping[str, Value], objectives: Sequence[Objective]) -> bool:
    """Whether `one` is better in some objective, and in each of the others better too or exactly equal.

    A difference within the noise is neither: it proves nothing. An objective that only one of them has, such as the
    bits of codes against continuous tokens, makes them incomparable.
    """
    better = False
    for objective in objectives:
        pair = one.get(objective.name), other.get(objective.name)
        if pair[0] is None or pair[1] is None:
            if pair[0] is not pair[1]:
                return False
            continue
        if surpasses(pair[0], pair[1], objective):
            better = True
        elif pair[0].mean != pair[1].mean:
            return False
    return better


def front(settings: Settings, objectives: Sequence[Objective]) -> list[str]:
    """The settings that no other dominates, in their order; those that lack an objective are left out."""
    whole = {
        name: values for name, values in settings.items() if all(objective.name in values for objective in objectives)
    }
    return [
        name
        for name, values in whole.items()
        if not any(dominates(other, values, objectives) for other in whole.values())
    ]


def dominated(settings: Settings, objectives: Sequence[Objective]) -> list[Dominated]:
    """Every dominated setting with one that dominates it, preferably one that is not dominated itself."""
    beaten = {
        name: [other for other, theirs in settings.items() if dominates(theirs, values, objectives)]
        for name, values in settings.items()
    }
    found = []
    for name, others in beaten.items():
        if others:
            by = min(others, key=lambda other: (bool(beaten[other]), len(beaten[other]), others.index(other)))
            found.append(Dominated(name, by, _gains(settings[name], settings[by], objectives)))
    return found


def _gains(
    loser: Mapping[str, Value], winner: Mapping[str, Value], objectives: Sequence[Objective]
) -> dict[str, tuple[float, float]]:
    return {
        objective.name: (loser[objective.name].mean, winner[objective.name].mean)
        for objective in objectives
        if objective.name in loser and surpasses(winner[objective.name], loser[objective.name], objective)
    }
