"""The one rule for "differs": against scipy's Tukey HSD, with exact counts and with single seeds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import tukey_hsd

from artok.evaluation.statistics import ALPHA, Comparison, Value


def test_a_value_is_the_mean_and_the_unbiased_deviation() -> None:
    assert Value.of([1.0, 3.0]) == Value(2.0, math.sqrt(2), 2)
    assert Value.of([5.0]) == Value(5.0, 0.0, 1)
    assert Value.of([0.1, 0.1, 0.1]).mean == 0.1


@pytest.mark.parametrize("seed", range(6))
def test_means_differ_where_scipy_says_so(seed: int) -> None:
    draws = np.random.default_rng(seed)
    groups = {f"g{i}": draws.normal(0.5 + 0.1 * i, 0.07, size=3 + i % 2) for i in range(4)}
    compared = Comparison({name: Value.of(values.tolist()) for name, values in groups.items()}, "higher")
    reference = tukey_hsd(*groups.values()).pvalue
    for (i, one), (j, other) in itertools.combinations(enumerate(groups), 2):
        assert compared.differ(one, other) is bool(reference[i, j] < ALPHA)


def test_distances_are_compared_in_proportion() -> None:
    values = {"small": Value.of([1.0, 1.1, 0.9]), "large": Value.of([100.0, 110.0, 90.0]), "near": Value(1.2, 0.12, 3)}
    compared = Comparison(values, "lower")
    assert compared.relative and compared.deviation == pytest.approx(0.1) and compared.degrees == 6
    assert compared.differ("small", "large") is True
    assert compared.differ("small", "near") is False
    assert not Comparison(values, "higher").relative


def test_more_comparisons_ask_for_larger_differences() -> None:
    pair = {"a": Value(0.5, 0.01, 3), "b": Value(0.525, 0.01, 3)}
    many = pair | {str(index): Value(0.9 + index, 0.01, 3) for index in range(20)}
    assert Comparison(pair, "higher").differ("a", "b") is True
    assert Comparison(many | {"x": Value(0.5, 0.04, 3)}, "higher").differ("a", "b") is False


def test_single_seeds_say_nothing_of_the_noise_and_counts_have_none() -> None:
    assert Comparison({"a": Value(1.0), "b": Value(9.0)}, "lower").differ("a", "b") is None
    assert Comparison({"a": Value(1.0), "b": Value(1.0)}, "lower").differ("a", "b") is False
    counts = Comparison({"a": Value(16, exact=True), "b": Value(17, exact=True)}, "lower")
    assert counts.differ("a", "b") is True
