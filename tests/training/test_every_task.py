"""One, two and four processes train alike, whatever is trained: every task that the registry finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.every_task import experiments, train_first
from helpers.processes import in_processes
from helpers.training import weights

from artok.training.log import read_log
from artok.training.run import train
from artok.training.tasks import GeneratorTask

COUNTS = (2, 4)
NAMES = list(experiments(Path("runs")))
RESUMED = ("conv-vq-restarts", "klgan-patch-batch", "raster")  # stopped half-way and resumed by fewer processes
LOCAL = {"time", "images_per_second", "core_seconds", "device", "threads", "processes"}


def train_all(rank: int, count: int, folder: Path) -> None:
    """Train every task in this process, and some of them to half their length only."""
    GeneratorTask.preview = lambda self, path: None  # type: ignore[method-assign]
    for name, experiment in experiments(folder).items():
        assert train(experiment, folder / str(count) / name)
    for name in RESUMED:
        whole = experiments(folder)[name]
        if count == max(COUNTS):
            half = whole.model_copy(update={"training": whole.training.model_copy(update={"images": 16})})
            train(half, folder / "resumed" / name)
        if count == min(COUNTS):
            train(whole, folder / "resumed" / name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train_first(folder)
    for count in sorted(COUNTS, reverse=True):
        in_processes(train_all, count, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneratorTask, "preview", lambda self, path: None)
        for name, experiment in experiments(folder).items():
            assert train(experiment, folder / "1" / name)
    return folder


def assert_alike(found: Path, wanted: Path) -> None:
    """Weights and all logged figures, up to the roundings of float32 sums in another order, over four steps.

    A weight moves by about a rate of 1e-3 in each step, and by several times the tolerance where a gradient is wrong.
    """
    assert_same_weights(found, wanted)
    for one, other in zip(read_log(found / "log.jsonl"), read_log(wanted / "log.jsonl"), strict=True):
        assert one.keys() == other.keys() and one["event"] == other["event"]
        for key in one.keys() - LOCAL:
            if not isinstance(one[key], str):
                told = found, one["event"], one["images"], key
                assert one[key] == pytest.approx(other[key], rel=2e-3, abs=1e-5), told


def assert_same_weights(found: Path, wanted: Path) -> None:
    expected = weights(wanted)
    for name, tensor in weights(found).items():
        at = f"{found}, {name}: "
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=5e-5, msg=lambda text, at=at: at + text)


@pytest.mark.slow
def test_several_processes_train_as_one_and_others_resume(runs: Path) -> None:
    """One test for all tasks: test processes that share its cases would each train all of them."""
    for name in NAMES:
        for count in COUNTS:
            assert_alike(runs / str(count) / name, runs / "1" / name)
    for name in RESUMED:
        assert_same_weights(runs / "resumed" / name, runs / "1" / name)
