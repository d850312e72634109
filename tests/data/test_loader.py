"""Batches and cached tokens: exact under resuming, processes and workers."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from artok import images
from artok.data import digits, folder, hub
from artok.data.base import Augment, DataConfig
from artok.data.loader import AHEAD, Batch, Loader, evaluation_batches
from artok.data.order import Order
from artok.data.transforms import augment
from artok.errors import DataError, RunError
from artok.images import from_uint8
from artok.noise import Noise, fold

CHANGES = Augment(flip=True, rotate=10, shift=0.1)


def take(loader: Iterator[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(loader, count))


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.positions, other.positions)


@pytest.fixture(params=["digits", "folder", "stream"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> DataConfig:
    """One source of each way of reading: in memory, decoded, streamed."""
    if request.param == "digits":
        return digits.Config(size=8, augment=CHANGES)
    if request.param == "folder":
        return folder.Config(**{**folder.Config.tiny(tmp_path).model_dump(), "augment": CHANGES, "resize": 10})
    made = hub.Config.tiny(tmp_path).model_dump()
    names = ["a", "b", "c"]
    return hub.Config(**{**made, "augment": CHANGES, "streaming": True, "classes": names, "shuffle_buffer": 5})


# ---------------------------------------------------------------------------------------------- images


def test_resume_is_exact(source: DataConfig) -> None:
    with Loader(source.open("train"), source, 8, seed=1) as loader:
        whole = take(loader, 6)
    with Loader(source.open("train"), source, 8, seed=1, start=16) as loader:
        assert_same(take(loader, 4), whole[2:])
    assert whole[2].positions.tolist() == list(range(16, 24))
    assert whole[0].images.shape == (8, source.channels, 8, 8) and whole[0].images.dtype == torch.float32


def test_two_processes_draw_what_one_would(source: DataConfig) -> None:
    with Loader(source.open("train"), source, 8, seed=1, start=4) as loader:
        whole = take(loader, 4)
    parts = []
    for rank in range(2):
        with Loader(source.open("train"), source, 8, seed=1, start=4, rank=rank, world=2) as loader:
            parts.append(take(loader, 4))
    joined = [
        Batch(*(torch.cat([getattr(part, name) for part in pair]) for name in ("images", "labels", "positions")))
        for pair in zip(*parts, strict=True)
    ]
    for one, other in zip(joined, whole, strict=True):
        assert torch.equal(one.labels, other.labels) and torch.equal(one.positions, other.positions)
        assert torch.allclose(one.images, other.images, atol=1e-4)  # a hundredth of a grey level: float32 coordinates


def test_workers_change_nothing(source: DataConfig) -> None:
    with Loader(source.open("train"), source, 8, seed=1, start=4) as loader:
        alone = take(loader, 5)
    helped = source.model_copy(update={"workers": 2})
    with Loader(helped.open("train"), helped, 8, seed=1, start=4) as loader:
        assert_same(take(loader, 5), alone)


def test_workers_leave_the_global_random_numbers_alone() -> None:
    settings = digits.Config(size=8, workers=1)
    state = torch.get_rng_state()
    with Loader(settings.open("train"), settings, 4, seed=0) as loader:
        next(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pass_shows_every_image_once_in_another_order_each_time() -> None:
    order = Order(10, seed=0)
    passes = order(torch.arange(30)).view(3, 10)
    assert [sorted(row.tolist()) for row in passes] == [list(range(10))] * 3
    assert len({tuple(row.tolist()) for row in passes}) == 3
    assert not torch.equal(Order(10, seed=1)(torch.arange(10)), passes[0])


def test_seed_changes_order_and_augmentation() -> None:
    settings = digits.Config(size=8)
    split = settings.open("train")
    first, second = next(Loader(split, settings, 32, seed=0)), next(Loader(split, settings, 32, seed=1))
    assert not torch.equal(first.images, second.images)
    plain = next(Loader(split, settings, 32, seed=0, train=False))
    assert torch.equal(plain.images, from_uint8(split.images[:32]))


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    settings = digits.Config(size=8)
    with pytest.raises(DataError, match="batch of 7 cannot be shared equally by 2"):
        Loader(settings.open("train"), settings, 7, seed=0, world=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_reads_everything_once_in_order(workers: int, tmp_path: Path) -> None:
    settings = folder.Config(**{**folder.Config.tiny(tmp_path).model_dump(), "augment": CHANGES, "workers": workers})
    split = settings.open("train")
    batches = list(evaluation_batches(split, settings, 4))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 2]
    assert torch.equal(torch.cat([batch.positions for batch in batches]), torch.arange(18))
    assert torch.equal(torch.cat([batch.images for batch in batches]), from_uint8(split.read(range(18)).images))
    assert [len(batch) for batch in evaluation_batches(split, settings, 4, limit=6)] == [4, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_counted_wherever_they_are_decoded(workers: int, tmp_path: Path) -> None:
    made = folder.Config.tiny(tmp_path)
    picture = next(made.root.rglob("*.png")).read_bytes()
    for index in range(190):
        (made.root / "dark" / f"x{index:03}.png").write_bytes(picture)
    (made.root / "dark" / "x050.png").write_bytes(picture[:30])
    settings = made.model_copy(update={"holdout": 0, "workers": workers})
    split = settings.open("train")
    assert sum(len(batch) for batch in evaluation_batches(split, settings, 10)) == 214
    assert [reason.split()[0] for reason in split.skipped.values()] == ["dark/x050.png"]
    for index in range(60, 63):
        (made.root / "dark" / f"x{index:03}.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"^4 of 214 images cannot be read, more than 1%, such as dark/x050.png \(it is no picture"
    ):
        for _ in evaluation_batches(settings.open("train"), settings, 10):
            pass


def test_closing_ends_thread_and_processes(tmp_path: Path) -> None:
    settings = folder.Config.tiny(tmp_path)
    with Loader(settings.open("train"), settings, 4, seed=0) as loader:
        next(loader)
        assert [thread for thread in threading.enumerate() if thread.name == "artok-reader"]
    assert not [thread for thread in threading.enumerate() if thread.name == "artok-reader"]
    helped = settings.model_copy(update={"workers": 2})
    with Loader(helped.open("train"), helped, 4, seed=0) as loader:
        next(loader)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


def end_workers(number: int) -> None:
    for child in multiprocessing.active_children():
        assert child.pid is not None
        os.kill(child.pid, number)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_workers_that_die_are_replaced_and_no_batch_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = folder.Config.tiny(tmp_path)
    with Loader(settings.open("train"), settings, 4, seed=0) as loader:
        whole = take(loader, 12)
    helped = settings.model_copy(update={"workers": 2})
    split = helped.open("train")
    with Loader(split, helped, 4, seed=0) as loader:
        batches = take(loader, 3)
        end_workers(signal.SIGKILL)  # as for want of memory
        assert_same(batches + take(loader, 9), whole)
        assert ["was replaced" in note for note in split.notes] == [True]
        monkeypatch.setattr("artok.data.loader.DEATHS", 1)
        end_workers(signal.SIGKILL)
        with pytest.raises(RunError, match=r"died 2 times in a short while .*Lower data.workers"):
            take(loader, 2 * AHEAD + 1)  # more than may wait already
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_signals_to_a_whole_job_leave_the_workers_alone(tmp_path: Path) -> None:
    settings = folder.Config.tiny(tmp_path).model_copy(update={"workers": 1})
    split = settings.open("train")
    with Loader(split, settings, 4, seed=0) as loader:
        next(loader)
        (child,) = multiprocessing.active_children()
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            end_workers(number)
        child.join(0.5)
        assert child.is_alive() and len(take(loader, 4)) == 4 and not split.notes
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_program_that_forgets_to_close_still_ends(workers: int, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from artok.data import folder\nfrom artok.data.loader import Loader\n"
        f"made = folder.Config.tiny(Path({str(tmp_path)!r})).model_copy(update={{'workers': {workers}}})\n"
        "loader = Loader(made.open('train'), made, 4, seed=0)\nnext(loader)\nprint('done')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_stay_uint8_until_they_are_used(workers: int) -> None:
    for changes, stored in (
        (Augment(), torch.uint8),
        (Augment(flip=True, crop="random"), torch.uint8),
        (CHANGES, torch.float32),
    ):
        settings = digits.Config(size=8, resize=10, augment=changes, workers=workers)
        split = settings.open("train")
        with Loader(split, settings, 16, seed=3) as loader:
            batch = next(loader)
        assert batch.pixels.dtype == stored and batch.pixels.is_contiguous()
        assert batch.pixels.untyped_storage().nbytes() == batch.pixels.nbytes
        examples = split.read(Order(len(split), 3)(batch.positions).tolist())
        expected = augment(examples.images, changes, 8, Noise(fold("augment", 3), batch.positions))
        assert torch.equal(batch.images, expected) and torch.equal(batch.images_on("cpu"), expected)
        joined = torch.cat([part.images for part in batch.split(4)])
        assert torch.equal(joined, expected) and len(batch.split(4)[0]) == 4


def test_a_device_gives_the_same_floats_as_a_processor() -> None:
    """A meta tensor takes the way of a GPU as far as its shapes; the values are those of a table."""
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(images._levels(torch.device("cpu"))[pixels.long()], from_uint8(pixels))
    assert from_uint8(pixels.to("meta")).shape == pixels.shape
