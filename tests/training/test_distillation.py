"""Distillation as a task: a student is an ordinary run, resumes to the bit, and mistakes are said in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import TOKENIZER
from helpers.students import KINDS, method_of, student_of
from helpers.training import assert_same_run, train_in_two, weights

from artok.config import merge, validate
from artok.errors import ArtokError, CheckpointError, ConfigError, LayoutError
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


def test_the_head_of_mar_is_a_student_too(runs: Path, tmp_path: Path) -> None:
    section = {"kind": "mar", "depth": 1, "width": 16, "heads": 2, "dropout": 0.0, "diffusion": AVERAGE}
    experiment = student(runs, "shortcut", generator=section, distill={"teacher": None})
    assert train(experiment, tmp_path / "run")
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    assert pipeline([0, 1]).shape == (2, 1, 16, 16)
    with pytest.raises(ConfigError, match="8 sampling steps are more than the 4"):
        pipeline.settings({"head_steps": 8})
    assert plan(build(experiment), PlanOptions()).training.flops > 0


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_planned_with_the_cost_of_its_teacher(kind: str, runs: Path) -> None:
    planned = plan(build(student(runs, kind)), PlanOptions())
    alone = plan(build(validate(Experiment, merge(KL, {"generator": {
        "kind": "diffusion", "network": NETWORK, "diffusion": PATH}}), "test")), PlanOptions())  # fmt: skip
    assert planned.sampling is not None and planned.sampling.passes == 1
    assert planned.training.flops > (2 if kind == "adversarial" else 1.2) * alone.training.flops or kind == "pairs"


# ---------------------------------------------------------------------------------------------- mistakes

AVERAGE = {"schedule": "straight", "prediction_type": "average_velocity", "solver": "euler", "steps": 1}
NARROW = {"tokenizer": {"quantizer": {"kind": "gaussian", "latent_channels": 2}}, "name": "narrow"}
MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no teacher": ("pairs", {"distill": {"teacher": None}}, "method pairs needs a teacher; name its run"),
    "a teacher's guidance without one": ("meanflow", {"distill": {"teacher": None, "cfg_scale": 2}}, "there is none"),
    "another target": (
        "meanflow",
        {"generator": {"diffusion": {"prediction_type": "velocity"}}},
        "needs schedule straight and prediction_type average_velocity in generator.diffusion",
    ),
    "a target without its boundary": (
        "consistency",
        {"generator": {"diffusion": {"prediction_type": "x0"}}},
        "needs prediction_type v or velocity",
    ),
    "more steps than made for": ("pairs", {"sampling": {"steps": 2}}, "2 sampling steps are more than the 1"),
    "guidance twice": (
        "meanflow",
        {"distill": {"cfg_scale": 2}, "sampling": {"cfg_scale": 2}},
        "teacher's guidance of cfg_scale 2 folded in",
    ),
    "guidance that nothing learns": (
        "adversarial",
        {"distill": {"cfg_scale": 2, "method": {"distribution_matching": 0}}},
        "set its pool or its distribution_matching",
    ),
    "a pool of fresh tokens": ("pairs", {"tokens": {"online": True}}, "no use for tokens.online"),
    "another family": (
        "meanflow",
        {"generator": {"kind": "raster", "depth": 1, "width": 16, "heads": 2}},
        "trains a generator of kind diffusion",
    ),
    "a teacher of a head": (
        "meanflow",
        {"generator": {"kind": "mar", "depth": 1, "width": 16, "heads": 2, "diffusion": AVERAGE}},
        "a diffusion head learns few steps without a teacher",
    ),
    "more steps of a head than made for": (
        "shortcut",
        {
            "generator": {"kind": "mar", "depth": 1, "width": 16, "heads": 2, "diffusion": AVERAGE},
            "distill": {"teacher": None},
            "sampling": {"head_steps": 8},
        },
        "8 sampling steps are more than the 4",
    ),
    "a scale that is not learned": (
        "latent_consistency",
        {"sampling": {"cfg_scale": 9}},
        "learned guidance scales from 1 to 4, and cfg_scale is 9",
    ),
    "a scale that is not read": (
        "latent_consistency",
        {"generator": {"diffusion": {"reads_scale": False}}},
        "needs generator.diffusion.reads_scale on",
    ),
    "a scale that nothing teaches": (
        "consistency",
        {"generator": {"diffusion": {"reads_scale": True}}},
        "needs generator.diffusion.reads_scale off",
    ),
    "an unknown method": ("meanflow", {"distill": {"method": {"kind": "meanflows"}}}, "did you mean 'meanflow'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_said(name: str, runs: Path) -> None:
    kind, changes, message = MISTAKES[name]
    with pytest.raises(ConfigError, match=message):
        student(runs, kind, **changes)


def test_the_critic_takes_its_turns(runs: Path, tmp_path: Path) -> None:
    """Two steps of it for one of the student, whose weights alone are shared."""
    assert train(student(runs, "adversarial", distill={"method": {"n_critic": 2}}), tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [{name for name in event if name in ("critic_loss", "model_loss")} for event in events]
    assert [each for each in steps if each] == [{"critic_loss"}, {"critic_loss", "model_loss"}] * 2
    assert not any("heads" in name or "samples" in name for name in weights(tmp_path / "run"))


def test_average_velocities_are_not_learned_without_a_method(runs: Path) -> None:
    with pytest.raises(ConfigError, match="learned by a method of distillation"):
        student(runs, "meanflow", distill=None)


def test_a_teacher_must_fit(runs: Path, tmp_path: Path) -> None:
    """Refused: another layout, tokenizer or schedule, a tokenizer for a teacher, and no run at all."""
    assert train(validate(Experiment, merge(KL, {"training": {"images": 16}, "seed": 1}), "test"), tmp_path / "other")
    narrow = merge(KL, {"training": {"images": 16}, **NARROW})
    assert train(validate(Experiment, narrow, "test"), tmp_path / "narrow")
    for folder, error, message in (
        ("other", ConfigError, "trained on the tokens of another tokenizer"),
        ("narrow", LayoutError, r"models 16 tokens.*width 16\), and its student 16 tokens.*width 2"),
    ):
        with pytest.raises(error, match=message):
            train(student(runs, tokenizer=str(tmp_path / folder)), tmp_path / "run")
    chain = {"schedule": "cosine", "prediction_type": "v"}
    for changes, message in (
        ({"generator": {"diffusion": chain}}, "noise schedule cosine, and its teacher straight"),
        ({"distill": {"teacher": str(runs / "kl")}}, "holds a tokenizer, not a generator"),
        ({"distill": {"teacher": str(runs / "none")}}, "there is no run"),
    ):
        with pytest.raises(ArtokError, match=message):
            train(student(runs, "consistency", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_student_deeper_than_its_teacher_does_not_start_from_it(runs: Path, tmp_path: Path) -> None:
    deeper = {"generator": {"network": {"depth": 2}}}
    with pytest.raises(CheckpointError, match="the student is deeper than the teacher that init starts it from"):
        train(student(runs, init=str(runs / "teacher"), **deeper), tmp_path / "run")
    assert train(student(runs, **deeper), tmp_path / "run")


def test_a_student_says_what_it_was_not_made_for(runs: Path, tmp_path: Path) -> None:
    assert train(student(runs, "pairs", distill={"cfg_scale": 2.0}), tmp_path / "run")
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    for changes, message in (({"steps": 4}, "4 sampling steps are more than"), ({"cfg_scale": 3}, "folded in")):
        with pytest.raises(ConfigError, match=message):
            pipeline.settings(changes)
    pipeline.save_pretrained(tmp_path / "exported")
    with pytest.raises(ConfigError, match="folded in"):
        Pipeline.from_pretrained(tmp_path / "exported").settings({"cfg_scale": 3})
