"""Collapse monitors and verdicts: what they say of made-up logs, of stubs that collapse, and of real runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from helpers.images import encoded
from helpers.models import generator_experiment, tokenizer_experiment
from PIL import Image
from pyarrow import parquet
from torch import Tensor, nn

from artok.conditioning.base import Conditioners, ContextShape
from artok.config import find, validate
from artok.data import digits, hub
from artok.data.base import Split
from artok.data.splits import MemorySplit
from artok.errors import CheckpointError, ConfigError, RunError
from artok.generators.base import Generator
from artok.generators.raster import Raster
from artok.layout import Codec, Condition, TokenLayout, Tokens
from artok.metrics.diversity import classes_covered, distinct, measure_diversity, nearest
from artok.metrics.features import extract, open_extractor
from artok.noise import Noise
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling
from artok.tokenizers import pixels
from artok.training.health import (
    CODEBOOK_COLLAPSED,
    COLLAPSED,
    CRITIC_LOST,
    CRITIC_WON,
    DIVERGED,
    OFF_DISTRIBUTION,
    UNSTABLE,
    diagnose,
    verdict,
)
from artok.training.log import Log, read_log
from artok.training.loop import Trainer
from artok.training.monitor import FEWEST, Monitor
from artok.training.run import train
from artok.training.settings import Training

# ---------------------------------------------------------------------------------------------- made-up logs

HEALTHY = {
    "samples": 200,
    "distinct": 1.0,
    "neighbour_ratio": 0.9,
    "precision": 0.95,
    "recall": 0.9,
    "coverage": 0.9,
    "precision_floor": 0.97,
    "recall_floor": 0.96,
    "coverage_floor": 0.98,
    "classes_covered": 1.0,
    "classes_covered_floor": 1.0,
}


def monitored(*changes: dict[str, float], wanted: int = 4_000) -> list[dict[str, Any]]:
    """A log with a monitor every 1,000 images, healthy but for these changes."""
    start = {"event": "start", "images": 0, "wanted": wanted}
    monitors = [
        {"event": "monitor", "images": 1_000 * (index + 1)} | HEALTHY | each for index, each in enumerate(changes)
    ]
    return [start, *monitors]


def trained(**series: list[float]) -> list[dict[str, Any]]:
    """A log with a report every 100 images."""
    reports = [dict(zip(series, values, strict=True)) for values in zip(*series.values(), strict=True)]
    return [{"event": "train", "images": 100 * (index + 1)} | each for index, each in enumerate(reports)]


def found(events: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(finding.kind, finding.since) for finding in diagnose(events)]


FINE: dict[str, float] = {}


@pytest.mark.parametrize(
    ("monitors", "expected"),
    [
        ([FINE, FINE], []),
        ([{"distinct": 0.51}], []),
        ([{"distinct": 0.49}], [(COLLAPSED, 1_000)]),  # even at the start: no beginner repeats itself
        ([FINE, {"distinct": 0.1}, {"distinct": 0.1}, {"distinct": 0.1}], [(COLLAPSED, 2_000)]),
        ([{"distinct": 0.1}, {"distinct": 0.1}, FINE], []),  # it recovered
        ([FINE, FINE, {"classes_covered": 0.79}], [(COLLAPSED, 3_000)]),
        ([FINE, FINE, {"classes_covered": 0.8}], []),
        ([FINE, FINE, {"classes_covered": 0.1, "classes_covered_floor": 0.85}], []),  # the features cannot tell them
        ([{"classes_covered": 0.1}], []),  # a quarter of the training: it has just begun
        ([{"coverage": 0.2}, {"coverage": 0.2}, {"coverage": 0.24}], [(COLLAPSED, 2_000)]),
        ([{"coverage": 0.2}, {"coverage": 0.2}, {"coverage": 0.25}], []),
        ([{"coverage": 0.6}, {"coverage": 0.6}, {"coverage": 0.31}], []),
        ([FINE, FINE, {"recall": 0.1, "neighbour_ratio": 0.4}], [(COLLAPSED, 3_000)]),
        ([FINE, FINE, {"recall": 0.1, "neighbour_ratio": 0.9}], []),
        ([FINE, FINE, {"recall": 0.8, "neighbour_ratio": 0.4}], []),
        ([{"coverage": 0.6}, {"coverage": 0.29}, {"coverage": 0.29}], [(COLLAPSED, 2_000)]),
        ([FINE, FINE, {"precision": 0.1, "coverage": 0.01}], [(OFF_DISTRIBUTION, 3_000)]),
        ([{"precision": 0.1, "coverage": 0.01}], []),
        ([FINE, FINE, {"precision": 0.1, "coverage": 0.01, "distinct": 0.0}], [(COLLAPSED, 3_000)]),
    ],
)
def test_collapse_is_called_by_its_rules(monitors: list[dict[str, float]], expected: list[tuple[str, int]]) -> None:
    assert found(monitored(*monitors)) == expected


def test_unlabelled_data_have_no_classes_to_cover() -> None:
    events = monitored(FINE, FINE, FINE)
    for event in events:
        event.pop("classes_covered", None)
        event.pop("classes_covered_floor", None)
    assert diagnose(events) == []


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0, 2.0, 1.0, 0.9, 0.9], []),
        ([3.0, 1.0, 3.1, 3.1, 3.1], [(DIVERGED, 300)]),
        ([3.0, 1.0, 3.1, 3.1, 2.9], []),
        ([3.0, 1.0, 0.9, 3.1, 3.1], []),  # two reports are no trend
        ([3.0, -1.0, 3.1, 3.1, 3.1], []),  # a loss below zero has no multiples
        ([3.0, 1.0, float("nan")], [(DIVERGED, 300)]),
        ([3.0, 1.0, float("inf")], [(DIVERGED, 300)]),
    ],
)
def test_divergence_is_called_by_its_rules(losses: list[float], expected: list[tuple[str, int]]) -> None:
    assert found(trained(model_loss=losses)) == expected


def test_losses_of_a_game_measure_who_is_ahead_and_nothing_else() -> None:
    losses = [1.0, 0.5, 5.0, 5.0, 5.0, 5.0, 5.0, 50.0]
    assert found(trained(model_loss=losses)) != []
    assert found(trained(model_loss=losses, critic_loss=losses)) == []


def coded(usage: list[float], perplexity: list[float], wanted: int = 1_000, codes: int = 256) -> list[dict[str, Any]]:
    """A tokenizer's log of a codebook, of which held-out images use half."""
    held_out = {"event": "validation", "images": 100, "codes_used": codes / 2, "codebook_usage": 0.5, "perplexity": 9.0}
    return [{"event": "start", "images": 0, "wanted": wanted}, held_out, *trained(usage=usage, perplexity=perplexity)]


@pytest.mark.parametrize(
    ("usage", "perplexity", "expected"),
    [
        ([0.54] * 4, [32.0] * 4, [(CODEBOOK_COLLAPSED, 100)]),  # 138 of 256 codes
        ([0.54] * 4, [65.0] * 4, []),
        ([0.54] * 4, [65.0, 63.0, 63.0, 63.0], [(CODEBOOK_COLLAPSED, 200)]),
        ([0.54] * 4, [63.0, 63.0, 65.0, 63.0], []),  # it came back in between
        ([0.49] * 4, [100.0] * 4, [(CODEBOOK_COLLAPSED, 100)]),
        ([0.51] * 4, [100.0] * 4, []),
        ([0.9] * 2, [32.0] * 2, []),  # too few reports
    ],
)
def test_a_codebook_that_collapsed_is_called(
    usage: list[float], perplexity: list[float], expected: list[tuple[str, int]]
) -> None:
    assert found(coded(usage, perplexity)) == expected


def test_a_codebook_is_not_judged_before_its_training_has_begun() -> None:
    poor = [0.1] * 4, [8.0] * 4
    assert found(coded(*poor, wanted=4_000)) == []
    assert found(coded(*poor, wanted=2_000)) == [(CODEBOOK_COLLAPSED, 200)]
    (finding,) = diagnose(coded(*poor))
    assert finding.text.startswith("10% of 256 codes are in use, their perplexity is 8 (rule: under 50%")
    unknown = [event for event in coded(*poor) if event["event"] != "validation"]
    assert found(unknown) == []
    continuous = [event for event in coded(*poor) if event["event"] != "train"]
    assert found(continuous + trained(model_loss=[1.0] * 4)) == []


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([1.0] * 5 + [9.9], []),
        ([1.0] * 5 + [10.1], [(UNSTABLE, 600)]),
        ([1.0] * 4 + [10.1], []),  # too few before it
        ([1.0] * 5 + [float("inf"), 1.0], []),  # mixed precision skips such steps
        ([1.0] * 5 + [11.0, 1.0, 1.0, 20.0, 1.0], [(UNSTABLE, 600)]),
        ([20.0] * 5 + [1.0] * 20 + [11.0], [(UNSTABLE, 2_600)]),  # the beginning is forgotten
    ],
)
def test_leaps_of_the_gradient_norm_are_called(norms: list[float], expected: list[tuple[str, int]]) -> None:
    assert found(trained(critic_gradient_norm=norms)) == expected


def test_a_leap_of_the_loss_is_called() -> None:
    assert found(trained(model_loss=[1.0] * 5 + [3.1, 1.0])) == [(UNSTABLE, 600)]
    assert found(trained(model_loss=[1.0] * 5 + [2.9, 1.0])) == []


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        ([0.5] * 9 + [1.0] * 3, [(CRITIC_WON, 1_000)]),
        ([1.0] * 9 + [0.98, 0.99, 0.99], []),
        ([1.0] * 9 + [0.3] * 3, [(CRITIC_LOST, 1_000)]),
        ([1.0] * 9 + [0.45] * 3, []),
        ([1.0] * 9 + [0.51] * 3, []),
        ([1.0] * 8, []),  # a quarter of them is too few
    ],
)
def test_a_lost_balance_is_called(accuracy: list[float], expected: list[tuple[str, int]]) -> None:
    assert found(trained(critic_accuracy=accuracy)) == expected


def test_a_verdict_names_the_numbers_and_the_rule() -> None:
    assert verdict([]).startswith("healthy")
    text = verdict(diagnose(monitored(FINE, FINE, {"distinct": 0.02}) + trained(model_loss=[1.0, 4.0, 4.0, 4.0])))
    assert "diverged: the loss is 4, 4.0 times its best, 1 after 100 images (rule: over 3 times for 3 reports)" in text
    assert "collapsed: only 2% of 200 samples are distinct" in text and "(rule: under 50%)" in text
    assert diagnose([]) == []


# A value at the very bound: the rules say "under" and "over".
AT_A_BOUND: list[tuple[list[dict[str, Any]], list[tuple[str, int]]]] = [
    (monitored({"distinct": 0.5}), []),
    (monitored(FINE, FINE, {"precision": 0.24, "precision_floor": 0.96}), []),
    (monitored(FINE, FINE, {"precision": 0.23, "precision_floor": 0.96}), [(OFF_DISTRIBUTION, 3_000)]),
    (monitored(FINE, {"precision": 0.23}), [(OFF_DISTRIBUTION, 2_000)]),  # at half of the training
    (monitored({"precision": 0.23}), []),
    (monitored(FINE, {"precision": 0.23, "coverage": 0.4}, wanted=9_000), [(OFF_DISTRIBUTION, 2_000)]),  # fallen
    (monitored({"coverage": 0.6}, {"coverage": 0.3}), []),
    (monitored({"coverage": 0.2}, {"coverage": 0.245}), []),
    (monitored(FINE, {"recall": 0.24, "neighbour_ratio": 0.4}), []),
    (monitored(FINE, {"recall": 0.23, "neighbour_ratio": 0.6}), []),
    (monitored(FINE, {"recall": 0.23, "neighbour_ratio": 0.59}), [(COLLAPSED, 2_000)]),
    (monitored({"recall": 0.23, "neighbour_ratio": 0.59}), []),
    (monitored(FINE, {"classes_covered": 0.79, "classes_covered_floor": 0.9}), [(COLLAPSED, 2_000)]),
    (trained(model_loss=[1.0, 3.0, 3.0, 3.0]), []),
    (trained(model_loss=[0.0, 1.0, 1.0, 1.0]), []),  # nothing is a multiple of nothing
    (coded([0.5] * 3, [64.0] * 3), []),
    (coded([0.9] * 3, [32.0] * 3), [(CODEBOOK_COLLAPSED, 100)]),
    (trained(critic_gradient_norm=[1.0] * 5 + [10.0]), []),
    (trained(critic_gradient_norm=[0.0] * 5 + [10.0]), []),
    (trained(model_loss=[1.0] * 5 + [3.0]), []),
    (trained(critic_accuracy=[0.5] * 9 + [0.99] * 3), []),
    (trained(critic_accuracy=[0.5] * 9 + [0.36] * 3), []),
    (trained(critic_accuracy=[1.0] * 8 + [0.0] + [0.5] * 3), []),  # the last quarter begins after it
    (trained(critic_accuracy=[0.5] * 8 + [1.0, 1.0, float("nan"), 1.0, 1.0]), [(CRITIC_WON, 1_000)]),
]  # fmt: skip


@pytest.mark.parametrize(("events", "expected"), AT_A_BOUND)
def test_rules_say_under_and_over(events: list[dict[str, Any]], expected: list[tuple[str, int]]) -> None:
    assert found(events) == expected


def test_findings_name_the_numbers_they_were_made_of() -> None:
    fallen = monitored({"coverage": 0.7}, {"coverage": 0.9}, {"coverage": 0.4})
    few = monitored(FINE, {"recall": 0.1, "neighbour_ratio": 0.4})
    norms = [1.0, 2.0, 2.0, 2.0, 8.0, 24.0, 2.0, 2.0]
    leaps = trained(model_gradient_norm=norms, model_loss=[1.0] * 5 + [1.0, 8.0, 1.0])
    for events, words in (
        (fallen, "samples cover 40% of real images, and covered 90% after 2,000 images (rule: under 50%"),
        (
            few,
            "10% of real images lie where samples do, 96% where other real ones do, and samples lie 0.40 times",
        ),
        (leaps, "model_loss leapt to 8.0 times its usual after 700 images, the highest of 2 such leaps (rule: over 3"),
        (leaps[:6], "model_gradient_norm leapt to 12.0 times its usual after 600 images (rule: over 10 times"),
    ):
        (finding,) = diagnose(events)
        assert words in finding.text
    assert [finding.since for finding in diagnose(leaps)] == [600]


# ---------------------------------------------------------------------------------------------- closed forms


def test_neighbours_are_others_than_oneself() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0], [3.0]])
    assert nearest(points)[0].tolist() == [1, 1, 0, 0]
    assert nearest(points, torch.tensor([[2.0], [10.0]]))[0].tolist() == [2, 1, 1, 1]
    assert nearest(points, torch.tensor([[9.0], [0.0]]))[1].tolist() == [1, 1, 1, 1]


def test_distinct_samples_in_closed_form() -> None:
    real = torch.arange(10.0)[:, None]  # each 1 from its neighbour
    assert distinct(real + 0.5, real) == {"distinct": 1.0, "neighbour_ratio": 1.0}
    pairs = torch.tensor([[0.0], [0.24], [5.0], [5.26], [9.0], [9.0]])
    values = distinct(pairs, real)
    assert values["distinct"] == pytest.approx(2 / 6) and values["neighbour_ratio"] == pytest.approx(0.24)
    assert distinct(torch.zeros(8, 1), real)["distinct"] == 0


def test_classes_covered_in_closed_form() -> None:
    reference, labels = torch.tensor([[0.0], [10.0], [20.0]]), torch.tensor([0, 1, 2])
    features = torch.tensor([[1.0], [9.0], [11.0], [1.0], [19.0], [1.0], [2.0]])
    asked = torch.tensor([0, 1, 1, 1, 2, 2, 2])  # 0: all of 1; 1: 2 of 3; 2: 1 of 3
    assert classes_covered(reference, labels, features, asked) == pytest.approx(2 / 3)


def test_variety_of_real_images_is_their_floor() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    real, train = (10 * labels[:, None] + torch.randn(60, 2, generator=random) for _ in range(2))
    values = measure_diversity(real, train, train, labels, labels, labels)
    for name in ("precision", "recall", "coverage"):
        assert values[name] == values[f"{name}_floor"] > 0.7
    assert values["classes_covered"] == values["classes_covered_floor"] == 1
    one = torch.zeros(60, dtype=torch.int64)
    assert "classes_covered" not in measure_diversity(real, train, train, one, one, one)
    every = torch.arange(60)
    assert "classes_covered" not in measure_diversity(real, train, train, every, every, every)  # one sample a class


def test_pixels_are_means_over_a_grid_and_need_no_training() -> None:
    image = torch.arange(0, 256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    features, logits = extract(open_extractor("pixels"), image)
    assert features.shape == (1, 192) and logits is None
    expected = (image[0, 0, :2, :2].float() / 127.5 - 1).mean()
    assert features[0, [0, 64, 128]].tolist() == pytest.approx([float(expected)] * 3)


# ---------------------------------------------------------------------------------------------- stubs


class Stub(Generator):
    """Pixels of training digits of the class asked for, or of the first few of them whatever is asked."""

    def __init__(self, layout: TokenLayout, kept: int | None) -> None:
        super().__init__(layout, 10)
        shape = ContextShape(4, layout.grid, layout.image)
        with torch.random.fork_rng():
            self.conditioner = Conditioners((find("conditioning", "labels").tiny(),), shape, 10)  # type: ignore[arg-type]
        self.place = nn.Parameter(torch.zeros(()))
        split = digits.Config().open("train")
        self.images, self.labels, self.kept = split.images, split.labels, kept

    def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        return {"loss": self.place}

    def steps(self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None) -> Iterator[Tokens]:
        drawn = noise.uniform()
        rows = [
            int(draw * (self.kept or 100)) if self.kept else int((self.labels == label).nonzero()[int(draw * 100), 0])
            for draw, label in zip(drawn, condition.labels, strict=True)
        ]
        images = self.images[torch.tensor(rows)].float() / 127.5 - 1 + 0.02 * noise.normal(1, 16, 16)
        assert isinstance(codec, pixels.PixelTokenizer)
        yield codec.encode(images)


def watched(kept: int | None, extractor: str = "pixels", labelled: bool = True) -> dict[str, float]:
    """What a monitor says of a stub."""
    train_split, test_split = digits.Config().open("train"), digits.Config().open("test")
    labels = (train_split.labels, test_split.labels) if labelled else (None, None)
    monitor = Monitor(extractor, 200, train_split, test_split, *labels, 16, torch.device("cpu"))
    tokenizer = pixels.Config().build((1, 16, 16))
    classes = train_split.classes
    return monitor(Pipeline(tokenizer, Stub(tokenizer.layout, kept), classes, Sampling(), None, None))  # type: ignore[arg-type]


def as_log(values: dict[str, float]) -> list[dict[str, Any]]:
    return [{"event": "start", "images": 0, "wanted": 100}, {"event": "monitor", "images": 100} | values]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_generator_of_all_digits_is_healthy(labelled: bool) -> None:
    values = watched(None, labelled=labelled)
    assert diagnose(as_log(values)) == []
    assert values["classes_covered"] == 1 and values["coverage"] > 0.8 * values["coverage_floor"]


@pytest.mark.parametrize("kept", [1, 3, 20])
def test_a_generator_of_a_few_images_has_collapsed(kept: int) -> None:
    values = watched(kept)
    assert values["distinct"] < 0.5
    assert [finding.kind for finding in diagnose(as_log(values))] == [COLLAPSED]


@pytest.mark.slow
def test_other_features_see_the_same() -> None:
    assert watched(1, "classifier")["coverage"] < 0.1 < 0.7 < watched(None, "classifier")["coverage"]


def monitor_of(train_split: Split, test_split: Split, labels: Tensor | None, images: int) -> Monitor:
    return Monitor("pixels", images, train_split, test_split, labels, labels, 8, torch.device("cpu"))


def test_real_images_are_compared_with_as_many_of_each_class() -> None:
    labels = (torch.arange(100) >= 90).long()  # ten of the second
    split = MemorySplit(torch.arange(100).to(torch.uint8).expand(1, 8, 8, 100).permute(3, 0, 1, 2), labels, "ab", "")
    assert torch.bincount(monitor_of(split, split, labels, 20).real_labels).tolist() == [10, 10]
    assert torch.bincount(monitor_of(split, split, labels, 40).real_labels).tolist() == [20, 10]  # all there are
    assert len(monitor_of(split, split, None, 40).real_labels) == 40  # whatever they are


def test_of_a_stream_the_first_images_are_taken(tmp_path: Path) -> None:
    images = [{"bytes": encoded(Image.new("RGB", (8, 8), (i, i, i))), "path": None} for i in range(60)]
    columns = {"img": images, "label": [i % 2 for i in range(60)]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    data = hub.Config(files=str(tmp_path / "a.parquet"), size=8, streaming=True, classes=["a", "b"], holdout=0.5)
    train_split, test_split = data.open("train"), data.open("test")
    expected = data.open("test").read(range(10)).images.float().mean((1, 2, 3)) / 127.5 - 1
    known = monitor_of(train_split, test_split, torch.zeros(len(test_split), dtype=torch.int64), 10)
    torch.testing.assert_close(known.real.mean(1), expected)


def test_a_monitor_leaves_random_numbers_as_they_are() -> None:
    before = torch.get_rng_state()
    first = watched(None)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(7)
    assert watched(None) == first


# ---------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def tokenizer_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "vq"
    assert train(tokenizer_experiment(), folder)
    return folder


JUDGED = ("monitor", "warning", "end")


def constant(self: Raster, condition: Condition, *_: object) -> Iterator[Tokens]:
    yield Tokens(torch.zeros(len(condition), *self.layout.value_shape(), dtype=torch.int64), self.layout)


@pytest.mark.parametrize("stop", [32, 96])
def test_a_resumed_run_is_judged_as_an_uninterrupted_one(
    tokenizer_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Stopped before the first warning, and after it: it is given once, when it was due."""
    monkeypatch.setattr(Raster, "steps", constant)
    experiment = generator_experiment(str(tokenizer_run))
    assert train(experiment, tmp_path / "whole")
    step = Trainer.step

    def until(self: Trainer, batch: Any, meter: Any) -> None:
        step(self, batch, meter)
        if self.seen + self.training.global_batch == stop:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", until)
        assert train(experiment, tmp_path / "stopped") is False
    assert train(experiment, tmp_path / "stopped")
    logs = []
    for name in ("whole", "stopped"):
        events = [event for event in read_log(tmp_path / name / "log.jsonl") if event["event"] in JUDGED]
        logs.append([{key: value for key, value in event.items() if key != "time"} for event in events])
    assert logs[0] == logs[1] and [event["event"] for event in logs[0]].count("warning") == 1


def test_a_run_that_collapses_says_so(
    tokenizer_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Raster, "steps", constant)
    assert train(generator_experiment(str(tokenizer_run)), tmp_path)
    events = read_log(tmp_path / "log.jsonl")
    assert [event["images"] for event in events if event["event"] == "monitor"] == [64, 128]
    warnings = [event for event in events if event["event"] == "warning"]
    assert [(event["kind"], event["images"], event["since"]) for event in warnings] == [(COLLAPSED, 64, 64)]  # once
    assert events[-1]["event"] == "end" and events[-1]["health"].startswith("collapsed: only 0% of 32 samples")
    said = capfd.readouterr().err
    assert said.count("collapsed: only 0%") == 2 and said.splitlines()[-1].startswith(f"{tmp_path}: collapsed")


def test_a_steady_run_ends_as_healthy(tokenizer_run: Path) -> None:
    events = read_log(tokenizer_run / "log.jsonl")
    assert events[-1]["health"].startswith("healthy")
    assert not [event for event in events if event["event"] in ("warning", "monitor")]  # tokenizers have no samples


def test_a_run_is_the_same_with_and_without_a_monitor(tokenizer_run: Path, tmp_path: Path) -> None:
    kept = []
    for images in (0, 32):
        folder = tmp_path / str(images)
        settings = {"monitor_images": images, "monitor_every": 32}
        assert train(generator_experiment(str(tokenizer_run), training=settings), folder)
        events = read_log(folder / "log.jsonl")
        assert len([event for event in events if event["event"] == "monitor"]) == images // 8
        kept.append([event["model_loss"] for event in events if event["event"] == "train"])
    assert kept[0] == kept[1]


def test_gradient_norms_are_logged_without_a_bound_too(tokenizer_run: Path, tmp_path: Path) -> None:
    norms = []
    for clip in (None, 1e9):
        settings = {"optimizer": {"grad_clip": clip}}
        assert train(generator_experiment(str(tokenizer_run), training=settings), tmp_path / str(clip))
        events = read_log(tmp_path / str(clip) / "log.jsonl")
        norms.append([event["model_gradient_norm"] for event in events if event["event"] == "train"])
    assert norms[0] == norms[1] and min(norms[0]) > 0


def test_a_run_that_broke_says_so_in_its_log(
    tokenizer_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def poisoned(self: Trainer, batch: Any, meter: Any) -> None:
        if self.seen == 48:
            next(iter(self.modules["model"].parameters())).data.fill_(float("nan"))
        step(self, batch, meter)

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(RunError):
        train(generator_experiment(str(tokenizer_run)), tmp_path)
    last = read_log(tmp_path / "log.jsonl")[-1]
    assert (last["event"], last["kind"]) == ("warning", DIVERGED)


def test_too_few_images_are_not_watched(tokenizer_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = {"monitor_images": FEWEST - 1}
    assert train(generator_experiment(str(tokenizer_run), training=settings), tmp_path)
    assert "no monitor of collapse" in capfd.readouterr().err
    assert not [event for event in read_log(tmp_path / "log.jsonl") if event["event"] == "monitor"]


def test_features_that_do_not_exist_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'monitor_extractor': there is no .* 'pixel'; did you mean 'pixels'"):
        validate(Training, {"images": 1, "monitor_extractor": "pixel"}, "test")


@pytest.mark.parametrize(
    "line",
    [
        b"\x8b\x00",
        b'{"event": "train"',
        b"[1]",
        b"null",
        b'{"event": "train"}',
        b'{"event": 1, "images": 1, "time": 1}',
    ],
)
def test_a_damaged_line_of_a_log_is_named_and_an_incomplete_end_left_out(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    Log(path, 0).write("train", 10, {"model_loss": 1.0})
    whole = path.read_bytes()
    path.write_bytes(whole + line)
    assert len(read_log(path)) == 1
    path.write_bytes(whole + line + b"\n" + whole)
    with pytest.raises(CheckpointError, match=r"line 2 of .*log\.jsonl is damaged"):
        read_log(path)
    assert path.read_bytes() == whole + line + b"\n" + whole


def test_a_monitor_that_lacks_a_value_is_passed_over() -> None:
    events = monitored({"distinct": 0.01}, {"distinct": 0.01})
    assert found(events)
    for event in events:
        event.pop("recall", None)
    assert not found(events)


def test_a_log_keeps_in_memory_what_it_has_on_disk(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl", 0)
    log.write("train", 10, {"model_loss": 1.0})
    log.write("train", 20, {"model_loss": 2.0})
    again = Log(tmp_path / "log.jsonl", 10)
    assert again.events == read_log(tmp_path / "log.jsonl") == log.events[:1]
    assert json.loads((tmp_path / "log.jsonl").read_text())["images"] == 10
