"""Pareto fronts and dominated settings, on made-up figures."""

from __future__ import annotations

from artok.evaluation.statistics import Value
from artok.studies.pareto import Dominance, Objective, Settings, dominated, front

ERROR, COST, SCORE = Objective("error", "lower"), Objective("cost", "lower"), Objective("score", "higher")


def settings(**pairs: tuple[float, float]) -> Settings:
    return {
        name: {"error": Value(error, exact=True), "cost": Value(cost, exact=True)}
        for name, (error, cost) in pairs.items()
    }


def seeded(*values: float, cost: float = 4.0) -> dict[str, Value]:
    return {"error": Value.of(values), "cost": Value(cost, exact=True)}


def test_the_front_has_what_nothing_is_better_than() -> None:
    made = settings(cheap=(9, 1), middle=(4, 2), worse=(5, 2), dear=(1, 8), foolish=(9, 8), twin=(4, 2))
    assert front(made, [ERROR, COST]) == ["cheap", "middle", "dear", "twin"]
    assert front({**made, "unmeasured": {"error": Value(0)}}, [ERROR, COST]) == ["cheap", "middle", "dear", "twin"]


def test_higher_is_better_where_it_says_so() -> None:
    exact = {name: {"score": Value(score, exact=True)} for name, score in (("one", 3), ("other", 2))}
    order = Dominance(exact, [SCORE])
    assert order.dominates("one", "other")
    assert not order.dominates("other", "one") and not order.dominates("one", "one")


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
    cheaper = {"one": seeded(1.0, 2.0, 1.5, cost=1.0), "other": seeded(1.1, 2.1, 1.6)}
    assert not dominated(cheaper, [ERROR, COST]), "its error may or may not be lower"


def test_single_seeds_dominate_nobody_but_draw_a_front() -> None:
    single = {"one": seeded(1.0, cost=1.0), "other": seeded(9.0, cost=4.0)}
    assert not dominated(single, [ERROR, COST])
    assert front(single, [ERROR, COST]) == ["one"]


def test_an_objective_that_only_one_has_makes_them_incomparable() -> None:
    objectives = [ERROR, Objective("bits", "lower")]
    error = {name: {"error": Value(value, exact=True)} for name, value in (("codes", 1), ("latents", 2))}
    assert Dominance(error, objectives).dominates("codes", "latents")
    error["codes"]["bits"] = Value(64, exact=True)
    order = Dominance(error, objectives)
    assert not order.dominates("codes", "latents") and not order.dominates("latents", "codes")
