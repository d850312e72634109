"""Distillation as a task: a student is an ordinary run, resumes to the bit, and mistakes are said in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import TOKENIZER
from helpers.students import KINDS, method_of, student_of
from helpers.training import assert_same_run, train_in_two, weights

from artok.config import merge, validate
from artok.evaluation.evaluate import evaluate
from artok.pipeline import Pipeline
from artok.planning.meta_model import build
from artok.planning.plan import PlanOptions, plan
from artok.training.experiment import Experiment
from artok.training.progress import Progress
from artok.training.run import train

KL = merge(TOKENIZER, {"name": "kl", "tokenizer": {"quantizer": {"kind": "gaussian"}}})
NETWORK = {"kind": "dit", "depth": 1, "width": 16, "heads": 2, "patch_size": 1}
PATH = {"schedule": "straight", "prediction_type": "velocity", "solver": "euler", "steps": 4}
SPED = {"images": 64, "global_batch": 16, "validate_images": 16, "monitor_images": 0, "ema": 0.9}
SPED |= {"log_every": 16, "validate_every": 64, "preview_every": 64, "checkpoint_every": 32}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer `kl` and a teacher `teacher` on it."""
    folder = tmp_path_factory.mktemp("runs")
    assert train(validate(Experiment, merge(KL, {"training": {"images": 32}}), "test"), folder / "kl")
    section = {"kind": "diffusion", "network": NETWORK, "diffusion": PATH}
    given = {"name": "teacher", "tokenizer": str(folder / "kl"), "generator": section, "training": SPED}
    assert train(validate(Experiment, merge(KL, given) | {"tokenizer": str(folder / "kl")}, "test"), folder / "teacher")
    return folder


def student(runs: Path, kind: str = "meanflow", **changes: Any) -> Experiment:
    method = method_of(kind)
    section = {"kind": "diffusion", "network": NETWORK, "diffusion": student_of(method).model_dump(mode="json")}
    given = {"name": kind, "generator": section, "training": SPED}
    given["distill"] = {"teacher": str(runs / "teacher"), "method": method.model_dump(mode="json")}
    return validate(Experiment, merge(merge(KL, given) | {"tokenizer": str(runs / "kl")}, changes), "test")


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_is_an_ordinary_run(kind: str, runs: Path, tmp_path: Path) -> None:
    assert train(student(runs, kind, init=str(runs / "teacher")), tmp_path / "run")
    names = set(weights(tmp_path / "run"))
    other = {name for name in set(weights(runs / "teacher")) ^ names if ".time." not in name}
    assert not other, "it holds the tensors of a diffusion model, and none of a teacher"
    (runs / "teacher").rename(runs / "elsewhere")
    try:
        pipeline = Pipeline.from_pretrained(tmp_path / "run")
        images = pipeline([0, 1], seed=1)
        assert images.shape == (2, 1, 16, 16) and torch.equal(images, pipeline([0, 1], seed=1))
        results = evaluate(str(tmp_path / "run"), 16, "pixels", [], "cpu", Progress("student", quiet=True))
    finally:
        (runs / "elsewhere").rename(runs / "teacher")
    assert results


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_distillation_resumes_to_the_bit(
    kind: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = student(runs, kind)
    assert train(experiment, tmp_path / "whole")
    train_in_two(experiment, tmp_path / "stopped", monkeypatch, stop=32)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_planned_with_the_cost_of_its_teacher(kind: str, runs: Path) -> None:
    planned = plan(build(student(runs, kind)), PlanOptions())
    alone = plan(build(validate(Experiment, merge(KL, {"generator": {
        "kind": "diffusion", "network": NETWORK, "diffusion": PATH}}), "test")), PlanOptions())  # fmt: skip
    assert planned.sampling is not None and planned.sampling.passes == 1
    assert planned.training.flops > 1.2 * alone.training.flops or kind == "pairs"
