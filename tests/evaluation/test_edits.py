"""Edits of held-out images are measured by mask, against another image of the class, and known pixels are checked."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from helpers.commands import artok
from helpers.models import generator_experiment, tokenizer_experiment
from torch import Tensor

from artok.config import kinds
from artok.errors import ConfigError
from artok.evaluation.edits import MASKS, add_edits, pair_within_classes
from artok.evaluation.evaluator import Evaluator
from artok.layout import Condition
from artok.metrics.base import EvalBatch, MetricContext
from artok.metrics.edits import Config
from artok.metrics.results import Results
from artok.metrics.selection import MetricChoice
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling
from artok.saved import RESULTS
from artok.training.progress import Progress
from artok.training.run import train

N = 24


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert train(tokenizer_experiment(), folder / "vq")
    assert train(generator_experiment(str(folder / "vq")), folder / "raster")
    return folder / "raster"


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    choice = MetricChoice(edits=("left", "random"))
    return Evaluator(tokenizer_experiment().data, "pixels", "cpu", N, Progress("test"), choice)


@pytest.fixture
def pipeline(run: Path) -> Pipeline:
    return Pipeline.from_pretrained(run)


def measured(evaluator: Evaluator, pipeline: Pipeline) -> dict[str, float]:
    results = add_edits(evaluator, pipeline, Sampling(), Results("run", ()))
    return {each.name: each.value for each in results.measurements}


def test_a_perfect_edit_has_no_error_and_a_paste_has_an_error_of_one(evaluator: Evaluator, pipeline: Pipeline) -> None:
    def original(images: Tensor, mask: Tensor, condition: Condition, *rest: object) -> Tensor:
        return images

    with patch.object(pipeline, "fill", original):
        perfect = measured(evaluator, pipeline)
    assert set(perfect) == {
        f"{name}/edit_{mask}" for name in ("fd", "fill_error", "known_kept") for mask in ("left", "random")
    }
    assert perfect["fill_error/edit_left"] == 0 and perfect["known_kept/edit_left"] == 1
    made = measured(evaluator, pipeline)
    assert made["known_kept/edit_random"] == 1 and made["fill_error/edit_random"] > 0
    assert made["fd/edit_left"] > perfect["fd/edit_left"]


def test_the_images_the_class_and_the_mask_are_those_of_each_row(evaluator: Evaluator, pipeline: Pipeline) -> None:
    """The model is given held-out images with their labels, and random masks differ from image to image."""
    seen: list[tuple[Tensor, Tensor, Condition, int]] = []

    def record(images: Tensor, mask: Tensor, condition: Condition, sampling: Sampling, first: int) -> Tensor:
        seen.append((images, mask, condition, first))
        return images

    with patch.object(pipeline, "fill", record):
        measured(evaluator.of(70), pipeline)
    assert [first for *_, first in seen] == [0, 64, 0, 64]
    images, mask, condition, _ = seen[2]
    rows = torch.arange(64)
    held_out = next(evaluator.read_batches(evaluator.test_split, evaluator.rows[rows], 64))
    assert torch.equal(images, held_out.images) and condition.labels is not None
    assert torch.equal(condition.labels, held_out.labels)
    assert not torch.equal(mask[0], mask[1]) and not torch.equal(mask[:6], seen[3][1])


def test_each_image_is_paired_with_another_of_its_class() -> None:
    labels = torch.tensor([0, 1, 0, 2, 0, 1, 0, 0])
    pairs = pair_within_classes(labels)
    several = torch.tensor([0, 1, 2, 4, 5, 6, 7])
    assert torch.equal(labels[pairs[several]], labels[several])
    assert not (pairs == torch.arange(8)).any()
    assert sorted(pairs[several].tolist()) == several.tolist()


def test_the_error_is_pooled_and_a_changed_known_pixel_is_seen() -> None:
    originals = torch.full((2, 1, 2, 2), 100, dtype=torch.uint8)
    hidden = torch.tensor([[True, False], [False, False]]).expand(2, 2, 2)
    edited, pasted = originals.clone(), originals.clone()
    edited[0, 0, 0, 0], pasted[:, 0, 0, 0] = 103, 99
    pasted[0, 0, 1, 1] = 0  # known, so it counts for nothing
    edited[1, 0, 1, 1] = 101
    metric = Config().build(MetricContext())
    metric.update(EvalBatch(edited=edited, originals=originals, pasted=pasted, hidden=hidden))
    assert metric.compute() == {"fill_error": 9 / 2, "known_kept": 0.5}


def test_what_cannot_be_edited_is_left_out_and_said(
    evaluator: Evaluator, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    with patch.object(type(pipeline.generator), "keeps_known", False):
        assert measured(evaluator, pipeline) == {}
    said = capsys.readouterr()
    assert "edits with mask left are not measured: a raster keeps no part of an image" in " ".join(
        (said.out + said.err).split()
    )
    with (
        patch.object(evaluator, "choice", MetricChoice(edits=("leftish",))),
        pytest.raises(ConfigError, match="leftish"),
    ):
        measured(evaluator, pipeline)


def test_the_command_measures_edits_and_takes_other_masks(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["evaluate", run, "-n", N, "--extractor", "pixels", "--edit", "evaluation.metrics=[frechet]"]
    assert artok(monkeypatch, *command, "evaluation.edits=[top, 'box:4,4,9,12']") == 0
    names = {each["name"] for each in json.loads((run / RESULTS).read_text())["metrics"]}
    assert names >= {"fd", "fd/edit_top", "fill_error/edit_box:4,4,9,12", "known_kept/edit_top"}
    assert artok(monkeypatch, *command) == 0
    names = {each["name"] for each in json.loads((run / RESULTS).read_text())["metrics"]}
    assert {f"fill_error/edit_{mask}" for mask in MASKS} <= names
    assert "edits" in kinds("metrics")


def test_later_rounds_see_known_tokens_of_the_image_with_the_result_in_the_hole(pipeline: Pipeline) -> None:
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:, :8] = True
    given: list[Tensor] = []
    encode = pipeline.tokenizer.encode

    def record(images: Tensor) -> object:
        given.append(images)
        return encode(images)

    with patch.object(pipeline.tokenizer, "encode", record):
        once = pipeline.edit(images, mask, [1, 2])
        assert len(given) == 2
        twice = pipeline.edit(images, mask, [1, 2], sampling=pipeline.settings({"edit_rounds": 2}))
    assert len(given) == 5 and not torch.equal(once, twice)
    for whole in given[3:]:
        assert torch.equal(whole[..., 8:], images[..., 8:]) and not torch.equal(whole[..., :8], given[2][..., :8])
    assert torch.equal(twice[..., 8:], images[..., 8:])
    with patch.object(type(pipeline.generator), "keeps_known", False), pytest.raises(ConfigError, match="edit_rounds"):
        pipeline.settings({"edit_rounds": 2})
