"""Modes of stacked images: closed forms against draws, reading them, and their place in an evaluation."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from helpers.models import generator_experiment, tokenizer_experiment

from artok.data import digits, stacked
from artok.errors import ArtokError
from artok.evaluation.evaluator import Evaluator
from artok.metrics.base import HELD_OUT, EvalBatch, MetricContext
from artok.metrics.features import extract, parse
from artok.metrics.modes import (
    COVERED,
    DIVERGENCE,
    Config,
    divergence,
    expected_covered,
    expected_divergence,
    of_stacks,
)
from artok.training.extractor import build_extractor, find_modes
from artok.training.progress import Progress
from artok.training.run import train

UNIFORM = torch.full((1_000,), 1e-3, dtype=torch.float64)


def test_covered_modes_of_a_perfect_sampler() -> None:
    assert expected_covered(UNIFORM, 1) == pytest.approx(1)
    assert expected_covered(UNIFORM, 1_000) == pytest.approx(1_000 * (1 - 0.999**1_000))
    assert expected_covered(UNIFORM, 25_600) == pytest.approx(1_000, abs=1e-6)
    skewed = torch.tensor([0.5, 0.5, 0.0])
    assert expected_covered(skewed, 2) == pytest.approx(1.5)


def every_draw(modes: list[float], count: int) -> tuple[float, float]:
    """Expected modes covered and divergence, by going through all that could be drawn."""
    covered = total = 0.0
    given = torch.tensor(modes, dtype=torch.float64)
    for draws in itertools.product(range(len(modes)), repeat=count):
        chance = math.prod(modes[draw] for draw in draws)
        counts = torch.bincount(torch.tensor(draws), minlength=len(modes))
        covered += chance * int((counts > 0).sum())
        total += chance * divergence(counts, given)
    return covered, total


@pytest.mark.parametrize("count", [1, 2, 6])
def test_expectations_are_those_of_all_draws(count: int) -> None:
    modes = [0.5, 0.3, 0.2]
    covered, total = every_draw(modes, count)
    given = torch.tensor(modes, dtype=torch.float64)
    assert expected_covered(given, count) == pytest.approx(covered, rel=1e-12)
    assert expected_divergence(given, count) == pytest.approx(total, rel=1e-10)


def test_the_divergence_of_many_draws_follows_its_expansion() -> None:
    """(M - 1) / 2 n + (sum of 1 / p - 1) / 12 n^2, and terms of n^-3 that are left out (Harris 1975)."""
    for shares in ((0.5, 0.5), (0.7, 0.2, 0.1)):
        expected = (len(shares) - 1) / 4_000 + (sum(1 / share for share in shares) - 1) / (12 * 2_000**2)
        assert expected_divergence(torch.tensor(shares), 2_000) == pytest.approx(expected, rel=1e-5)
    assert expected_divergence(torch.tensor([1.0, 0.0]), 9) == 0, "one mode is all there is"


@pytest.mark.parametrize("count", [540, 25_600])
def test_a_perfect_sampler_reaches_the_floor(count: int) -> None:
    random = torch.Generator().manual_seed(0)
    metric = Config(count=1_000).build(MetricContext())
    for part in torch.randint(0, 1_000, (count,), generator=random).split(10_000):
        metric.update(EvalBatch(fake_predicted=part))
    values = metric.compute()
    assert metric.count == count
    assert values[COVERED] == pytest.approx(values[COVERED + HELD_OUT], abs=4 * math.sqrt(1_000 * 0.25))
    assert values[DIVERGENCE] == pytest.approx(values[DIVERGENCE + HELD_OUT], rel=0.1)
    if count == 25_600:
        assert values[COVERED] == 1_000
        assert values[DIVERGENCE + HELD_OUT] == pytest.approx(999 / (2 * count), rel=0.02)


def test_a_collapsed_sampler_is_far_from_it() -> None:
    metric = Config().build(MetricContext(modes=UNIFORM))
    metric.update(EvalBatch(fake_predicted=torch.tensor([7, 7, 7, 8])))
    values = metric.compute()
    assert values[COVERED] == 2
    expected = 0.75 * math.log(0.75 * 1_000) + 0.25 * math.log(0.25 * 1_000)
    assert values[DIVERGENCE] == pytest.approx(expected)


def test_what_has_no_modes_is_refused() -> None:
    with pytest.raises(ArtokError, match="needs data whose modes are known"):
        Config().build(MetricContext())
    metric = Config(count=2).build(MetricContext())
    for mode in (2, 3):
        with pytest.raises(ArtokError, match=f"mode {mode} is outside the 2 modes"):
            metric.update(EvalBatch(fake_predicted=torch.tensor([0, mode])))
    metric.update(EvalBatch(fake_predicted=torch.tensor([], dtype=torch.int64)))
    assert metric.count == 0
    metric = Config(count=3).build(MetricContext())
    metric.update(EvalBatch(fake_predicted=torch.tensor([1])))
    alone = {COVERED: 1, COVERED + HELD_OUT: 1, DIVERGENCE: math.log(3), DIVERGENCE + HELD_OUT: math.log(3)}
    assert metric.compute() == pytest.approx(alone, rel=1e-12)
    with pytest.raises(ArtokError, match="modes that the data do not have"):
        divergence(torch.tensor([1, 1]), torch.tensor([1.0, 0.0]))
    assert divergence(torch.tensor([3, 0]), torch.tensor([1.0, 0.0])) == 0


def test_modes_of_stacks_are_products_of_their_channels() -> None:
    modes = of_stacks(torch.tensor([0, 0, 0, 2]), 3, 2)
    assert modes.tolist() == pytest.approx([9 / 16, 0, 3 / 16, 0, 0, 0, 3 / 16, 0, 1 / 16])


@pytest.mark.slow
def test_a_classifier_of_digits_reads_the_modes_of_stacks() -> None:
    split = stacked.Config().open("test")
    extractor = build_extractor(parse("classifier"), stacked.Config().open("train"), 16, "cpu")
    indices = range(300)
    features, logits = extract(extractor, split.read(indices).images)
    assert features.shape == (300, 3 * 64) and logits is not None and logits.shape == (300, 1_000)
    single = digits.Config().open("test")
    modes = single.labels[split.draw_sources(indices)] @ torch.tensor([100, 10, 1])
    assert float((logits.argmax(1) == modes).double().mean()) > 0.93  # three readings of .99 each
    chances = find_modes(stacked.Config().open("train"), 16)
    assert chances is not None and float(chances.sum()) == pytest.approx(1) and float(chances.min()) > 8e-4
    assert find_modes(single, 16) is None


def test_an_evaluation_counts_the_modes(tmp_path: Path) -> None:
    data = {"kind": "stacked", "size": 16, "train": 300, "test": 60}
    brief = {"images": 32, "monitor_images": 20}
    assert train(tokenizer_experiment(data=data, training=brief), tmp_path / "vq")
    assert train(generator_experiment(str(tmp_path / "vq"), data=data, training=brief), tmp_path / "raster")
    from artok.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(tmp_path / "raster")
    evaluator = Evaluator(
        stacked.Config(size=16, train=300, test=60), "classifier", "cpu", None, Progress("test", quiet=True)
    )
    results = evaluator.generator(pipeline, "raster", pipeline.sampling)
    covered = results["modes_covered"]
    assert 1 <= covered.value <= 60 and covered.n == 60
    assert covered.floor == pytest.approx(expected_covered(evaluator.modes, 60))
    assert covered.extractor == "classifier of channels" and results["fd"].dim == 192
    plain = Evaluator(stacked.Config(size=16, train=300, test=60), "pixels", "cpu", None, Progress("test", quiet=True))
    assert plain.modes is None  # pixels read no digits
