"""Pareto fronts and dominated settings, on made-up figures."""

from __future__ import annotations

import math

import pytest

from artok.studies.pareto import Objective, Settings, Value, dominated, dominates, front, noise, surpasses

ERROR, COST, SCORE = Objective("error", "lower"), Objective("cost", "lower"), Objective("score", "higher")


def settings(**pairs: tuple[float, float]) -> Settings:
    return {name: {"error": Value(error), "cost": Value(cost)} for name, (error, cost) in pairs.items()}


def seeded(*values: float) -> dict[str, Value]:
    return {"error": Value.of(values), "cost": Value.of([4.0] * len(values))}


def test_a_value_is_the_mean_and_the_unbiased_deviation() -> None:
    assert Value.of([1.0, 3.0]) == Value(2.0, math.sqrt(2), 2)
    assert Value.of([5.0]) == Value(5.0, 0.0, 1)
    assert Value.of([0.1, 0.1, 0.1]).mean == 0.1


def test_the_front_has_what_nothing_is_better_than() -> None:
    made = settings(cheap=(9, 1), middle=(4, 2), worse=(5, 2), dear=(1, 8), foolish=(9, 8), twin=(4, 2))
    assert front(made, [ERROR, COST]) == ["cheap", "middle", "dear", "twin"]
    assert front({**made, "unmeasured": {"error": Value(0)}}, [ERROR, COST]) == ["cheap", "middle", "dear", "twin"]


def test_higher_is_better_where_it_says_so() -> None:
    one, other = {"score": Value(3), "cost": Value(1)}, {"score": Value(2), "cost": Value(1)}
    assert dominates(one, other, [SCORE, COST])
    assert not dominates(other, one, [SCORE, COST])
    assert not dominates(one, one, [SCORE, COST])


def test_a_dominated_setting_names_a_better_one_that_is_itself_undominated() -> None:
    made = settings(best=(1, 1), good=(2, 2), bad=(3, 3), other=(0.5, 9))
    found = {each.name: each for each in dominated(made, [ERROR, COST])}
    assert set(found) == {"good", "bad"}
    assert found["bad"].by == "best"
    assert found["bad"].gains == {"error": (3, 1), "cost": (3, 1)}
    assert not dominated(settings(left=(1, 2), right=(2, 1)), [ERROR, COST])


def test_equal_costs_are_no_gain_and_no_loss() -> None:
    (each,) = dominated(settings(better=(1, 4), worse=(2, 4)), [ERROR, COST])
    assert (each.name, each.by, each.gains) == ("worse", "better", {"error": (2, 1)})


def test_a_difference_within_the_noise_of_the_seeds_proves_nothing() -> None:
    clear = {"one": seeded(1.0, 1.1, 0.9), "other": seeded(2.0, 2.1, 1.9)}
    assert [each.name for each in dominated(clear, [ERROR, COST])] == ["other"]
    vague = {"one": seeded(1.0, 2.0, 1.5), "other": seeded(1.1, 2.1, 1.6)}
    assert not dominated(vague, [ERROR, COST])
    assert front(vague, [ERROR, COST]) == ["one", "other"]
    # a cheaper setting, whose error may or may not be lower, does not dominate either
    vague["one"]["cost"] = Value(1.0, 0.0, 3)
    assert not dominated(vague, [ERROR, COST])


def test_noise_is_twice_the_standard_error_of_the_difference() -> None:
    one, other = Value(1.0, 0.3, 3), Value(2.0, 0.4, 4)
    assert noise(one, other) == pytest.approx(2 * math.sqrt(0.09 / 3 + 0.16 / 4))
    assert noise(one, Value(2.0)) == 0
    assert surpasses(one, other, ERROR)
    assert not surpasses(other, one, ERROR)
    assert not surpasses(Value(1.0, 1.0, 2), Value(2.0, 1.0, 2), ERROR)


def test_an_objective_that_only_one_has_makes_them_incomparable() -> None:
    codes = {"error": Value(1), "bits": Value(64)}
    latents = {"error": Value(2)}
    objectives = [ERROR, Objective("bits", "lower")]
    assert not dominates(codes, latents, objectives)
    assert not dominates(latents, codes, objectives)
    assert dominates({"error": Value(1)}, latents, objectives)
