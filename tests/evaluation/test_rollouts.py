"""Clips through training, evaluation and continuation: what is measured, against what, and under which names."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from helpers.commands import artok
from PIL import Image
from torch import Tensor

from artok.config import validate
from artok.data import digits, moving_digits
from artok.errors import ConfigError
from artok.evaluation import rollouts
from artok.evaluation.evaluator import Evaluator
from artok.evaluation.rollouts import add_rollouts, lengthen
from artok.images import from_uint8
from artok.metrics.results import Results
from artok.metrics.selection import MetricChoice, Rollout
from artok.pipeline import Pipeline
from artok.report.run import write_report
from artok.sampling.settings import Sampling
from artok.saved import RESULTS
from artok.training.experiment import Experiment
from artok.training.progress import Progress
from artok.training.run import train

DATA = {"kind": "moving_digits", "size": 16, "frames": 5, "train": 64, "test": 40}
ASKED = Rollout(given=3, frames=13, clips=40)
TRAINING = {"images": 64, "global_batch": 16, "log_every": 32}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = {
        "kind": "conv3d", "downsample": [2, 4, 4], "base_channels": 8, "channel_multipliers": [1, 1, 1],
        "quantizer": {"kind": "fsq", "levels": [3, 3, 3]},
    }  # fmt: skip
    section = {"name": "tok", "data": DATA, "tokenizer": tokenizer, "training": TRAINING}
    assert train(validate(Experiment, section, "test"), folder / "tok")
    generator = {"kind": "raster", "width": 16, "depth": 1, "heads": 2}
    section = {"name": "ar", "data": DATA, "tokenizer": str(folder / "tok"), "generator": generator}
    assert train(validate(Experiment, section | {"training": TRAINING}, "test"), folder / "ar")
    return folder / "ar"


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    data = validate(moving_digits.Config, DATA, "test")
    return Evaluator(data, "pixels", "cpu", 24, Progress("test", quiet=True), MetricChoice(rollout=ASKED))


@pytest.fixture
def pipeline(run: Path) -> Pipeline:
    return Pipeline.from_pretrained(run)


def true_clips(pipeline: Pipeline, condition: object, frames: int, *rest: object, first: int) -> Iterator[Tensor]:
    """A model that knows the future, and makes three frames at a time."""
    data = validate(moving_digits.Config, DATA | {"frames": frames}, "test")
    count = min(rollouts.BATCH, ASKED.clips - first)
    yield from from_uint8(data.open("test").read(range(first, first + count)).images).split(3, dim=2)


def test_a_model_that_knows_the_future_is_never_lost(evaluator: Evaluator, pipeline: Pipeline) -> None:
    with patch.object(rollouts, "roll_out", true_clips):
        results = add_rollouts(evaluator, pipeline, Sampling(), Results("run", ()))
    values = {each.name: each for each in results.measurements}
    assert values["tracked_frames/continued"].value == 10 and values["tracked_frames/continued"].n == 40
    assert values["tracked_frames/standard_error_continued"].value == 0
    assert values["trajectory_error_px/continued"].value == values["change_error/continued"].value == 0
    assert values["class_kept/continued"].value == values["class_kept/continued"].floor
    assert {name for name in values if name.startswith("fd/")} == {"fd/frames_4_8", "fd/frames_9_13"}
    assert values["fd/frames_4_8"].value == pytest.approx(0, abs=1e-6)
    assert values["speed_px/frozen"].value == 0 < values["speed_px/continued"].value
    assert values["change_error/frozen"].value > 0
    psnr = results.series["psnr_db/frozen"]
    assert (
        len(psnr) == 13 and psnr[:3] == (None,) * 3 and psnr[3] > psnr[-1]
    )  # a digit that stays is overlapped less and less by the one that goes
    assert results.series["psnr_db/continued"] == (None,) * 3 + (100.0,) * 10
    seconds = results.series["seconds/continued"]
    assert [place for place, value in enumerate(seconds) if value is not None] == [5, 8, 11, 12]


def test_each_model_is_given_the_same_first_frames_and_its_class(evaluator: Evaluator, pipeline: Pipeline) -> None:
    seen = []

    def watched(pipeline: Pipeline, condition: object, frames: int, sampling: Sampling, given: Tensor, first: int):
        seen.append((condition, frames, given, first))
        yield from true_clips(pipeline, condition, frames, first=first)

    with patch.object(rollouts, "roll_out", watched):
        add_rollouts(evaluator, pipeline, Sampling(), Results("run", ()))
    examples = validate(moving_digits.Config, DATA, "test").open("test").read(range(40))
    assert [first for *_, first in seen] == [0, 32] and {frames for _, frames, *_ in seen} == {13}
    assert torch.equal(torch.cat([given for _, _, given, _ in seen]), from_uint8(examples.images[:, :, :3]))
    assert torch.equal(torch.cat([condition.labels for condition, *_ in seen]).cpu(), examples.labels)


def test_what_cannot_be_continued_is_left_out_or_refused(evaluator: Evaluator, pipeline: Pipeline) -> None:
    said = []

    def refuses(*asked: object, **told: object) -> Iterator[Tensor]:
        raise ConfigError("a gan makes whole clips")

    with patch.object(rollouts, "roll_out", refuses), patch.object(evaluator.progress, "say", said.append):
        assert add_rollouts(evaluator, pipeline, Sampling(), Results("run", ())) == Results("run", ())
    assert said == ["clips are not continued: a gan makes whole clips"]
    with pytest.raises(ConfigError, match="continues clips, and data of kind digits have images"):
        lengthen(digits.Config(), ASKED)
    with pytest.raises(ConfigError, match="9 given frames leave none of 9"):
        lengthen(evaluator.data, Rollout(given=9, frames=9))


def test_the_command_measures_clips_and_their_continuation(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [f"evaluation.rollout.{name}" for name in ("given=3", "frames=7", "clips=8")]
    assert artok(monkeypatch, "evaluate", run, "-n", 20, "--extractor", "pixels", "--rollout", *asked) == 0
    assert "frames until lost, continued" in capsys.readouterr().out
    results = Results.load(run / RESULTS)
    assert results["class_kept"].n == 20 and results["class_kept"].floor == 1
    assert results["tracked_frames/continued"].n == 8 and len(results.series["psnr_db/continued"]) == 7
    assert artok(monkeypatch, "evaluate", run.parent / "tok", "--extractor", "pixels") == 0
    results = Results.load(run.parent / "tok" / RESULTS)
    assert {"psnr_db", "ssim", "change_error", "class_kept", "trajectory_error_px"} <= {
        each.name for each in results.measurements
    }
    assert len(results.series["psnr_db"]) == 5


def test_the_page_shows_clips_moving_and_values_over_time(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [f"evaluation.rollout.{name}" for name in ("given=3", "frames=7", "clips=8")]
    assert artok(monkeypatch, "evaluate", run, "-n", 20, "--extractor", "pixels", "--rollout", *asked) == 0
    assert artok(monkeypatch, "evaluate", run.parent / "tok", "--extractor", "pixels") == 0
    write_report(tmp_path / "page.html", [run, run.parent / "tok"])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "continued to 7 frames" in page and "the first 3 frames" in page
    assert all(title in page for title in ("trajectory error over time", "PSNR over time", "Cost over length"))
    true, made = (moving(page, text) for text in ("8 held-out clips of 7 frames", "continued by ar from frame 3 on"))
    assert true.n_frames == made.n_frames == 7
    for number, same in ((0, True), (2, True), (6, False)):
        true.seek(number)
        made.seek(number)
        assert (true.convert("RGB").tobytes() == made.convert("RGB").tobytes()) == same
    assert moving(page, "The same images after tokenizer tok").n_frames == 5


def moving(page: str, text: str) -> Image.Image:
    """The animation whose alternative text holds `text`."""
    tag = next(tag for tag in re.findall(r"<img[^>]*>", page) if text in tag and "image/gif" in tag)
    data = re.search(r'src="data:image/gif;base64,([^"]*)"', tag)
    assert data is not None
    return Image.open(io.BytesIO(base64.b64decode(data.group(1))))
