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
    expected = weights(wanted)
    for name, tensor in weights(found).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=5e-5, msg=lambda text, at=name: at + text)
    for one, other in zip(read_log(found / "log.jsonl"), read_log(wanted / "log.jsonl"), strict=True):
        assert one.keys() == other.keys() and one["event"] == other["event"]
        for key in one.keys() - LOCAL:
            if not isinstance(one[key], str):
                assert one[key] == pytest.approx(other[key], rel=2e-3, abs=1e-5), (one["event"], one["images"], key)


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", NAMES)
def test_several_processes_train_as_one(runs: Path, name: str, count: int) -> None:
    assert_alike(runs / str(count) / name, runs / "1" / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_another_number_of_processes_resumes(runs: Path, name: str) -> None:
    wanted = weights(runs / "1" / name)
    for key, tensor in weights(runs / "resumed" / name).items():
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-4, atol=5e-5, msg=lambda text, at=key: at + text)
