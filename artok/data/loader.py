"""Batches of images for training and for evaluation.

Position p, the number of images seen before, decides the image and its augmentation. So resuming needs only that number
and is bit-exact, and the numbers of workers and processes do not change the batches.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import multiprocessing.connection
import queue
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import Self

from artok.data.base import Augment, Captions, DataConfig, Split, note_skipped
from artok.data.controls.base import ControlConfig
from artok.data.order import Order, check_shares, choose_rows, rank_positions
from artok.data.transforms import augment_stored, split_maps, stack_maps
from artok.errors import ArtokError, RunError
from artok.images import from_uint8
from artok.noise import Noise, fold

AHEAD = 2  # batches prefetched while a step runs
DEATHS = 3  # of worker processes, with fewer than CALM batches between them, after which reading is given up
CALM = 1000


@dataclass
class Batch:
    """pixels: (B, C, *size), uint8 where they may be, which moves a quarter of the bytes, or float in [-1, 1].

    labels: (B,) int64. positions: (B,) int64, images seen before. captions: where the data have them. control: (B, ...,
    *size) uint8, where data.control asks for it.
    """

    pixels: Tensor
    labels: Tensor
    positions: Tensor
    captions: Captions | None = None
    control: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """(B, C, *size) float in [-1, 1]."""
        return self.images_on(self.pixels.device)

    def images_on(self, device: torch.device | str) -> Tensor:
        """The images on a device, moved while it works where `pin` was called."""
        pixels = self.pixels.to(device, non_blocking=True)
        return from_uint8(pixels) if pixels.dtype == torch.uint8 else pixels

    def pin(self) -> Batch:
        """The batch in memory that a GPU reads by itself, where a GPU is in use."""
        return replace(self, pixels=self.pixels.pin_memory()) if torch.cuda.is_initialized() else self

    def split(self, parts: int) -> list[Batch]:
        """Equal parts, in order."""
        size = len(self) // parts
        return [self[first : first + size] for first in range(0, len(self), size)]

    def __getitem__(self, rows: slice) -> Batch:
        captions = None if self.captions is None else self.captions[rows]
        control = None if self.control is None else self.control[rows]
        return Batch(self.pixels[rows], self.labels[rows], self.positions[rows], captions, control)


@dataclass
class _Reader:
    """Reads the batch of given positions. It is pickled for worker processes.

    order: None reads in the order of the split. seed: of the augmentation. control: maps to make with the images.
    """

    split: Split
    size: int
    changes: Augment
    order: Order | None
    seed: int
    control: ControlConfig | None = None

    def __call__(self, positions: Tensor) -> Batch:
        indices = positions
        if not self.split.sequential:
            indices = self.order(positions) if self.order is not None else positions % len(self.split)
        examples = self.split.read(indices.tolist())
        noise = Noise(self.seed, positions)
        changed = augment_stored(stack_maps(examples), self.changes, self.size, noise)
        pixels, control = split_maps(changed, examples.images.shape[1], self.control)
        pixels = pixels.contiguous()  # a view would carry its whole image along
        control = None if control is None else control.contiguous()
        return Batch(pixels, examples.labels, positions, examples.captions, control)


class Loader:
    """An iterator of endless training batches of a split. Close it, or use it as a context manager.

    batch: images over all processes; this process gets the contiguous share of `rank` of `world`.
    start: images seen before, to resume from. train: random order and augmentation; if False, images come in order,
    centre-cropped and unchanged.
    `data.workers` processes decode ahead; with 0, a thread does if there are files to decode.
    """

    def __init__(
        self,
        split: Split,
        config: DataConfig,
        batch: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        train: bool = True,
    ) -> None:
        check_shares(batch, world)
        order = Order(len(split), seed) if train else None
        reader = _Reader(
            split, config.size, config.augment if train else Augment(), order, fold("augment", seed), config.control
        )
        steps = (rank_positions(step, batch, start, rank, world) for step in itertools.count())
        self._batches = _batches(reader, steps, config.workers)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread or the worker processes."""
        self._batches.close()


def evaluation_batches(split: Split, config: DataConfig, batch: int, limit: int | None = None) -> Iterator[Batch]:
    """All images of a split, or a fixed random subset of `limit`, in order, centre-cropped and unchanged."""
    return read_rows(split, config, choose_of(split, limit).split(batch))


def choose_of(split: Split, limit: int | None = None) -> Tensor:
    """Ascending indices of all images of a split, or of a fixed random subset of `limit`.

    Of a stream the first ones, since all before the last one wanted have to be read.
    """
    return choose_rows(min(limit or len(split), len(split)) if split.sequential else len(split), limit)


def read_rows(split: Split, config: DataConfig, steps: Sequence[Tensor]) -> Iterator[Batch]:
    """The images at these batches of indices, centre-cropped and unchanged. A batch's positions are the indices."""
    reader = _Reader(split, config.size, Augment(), None, 0, config.control)
    workers = min(config.workers, len(steps) // 4)  # starting a process takes as long as reading a few batches
    with contextlib.closing(_batches(reader, steps, workers)) as batches:
        yield from batches


def _batches(reader: _Reader, steps: Iterable[Tensor], workers: int) -> Generator[Batch, None, None]:
    if workers > 0 and not reader.split.sequential:  # each worker would read the whole stream
        return _from_workers(reader, steps, workers)
    if reader.split.decodes:
        return _from_thread(reader, steps)
    return (reader(positions) for positions in steps)


# ---------------------------------------------------------------------------------------------- a thread


def _from_thread(reader: _Reader, steps: Iterable[Tensor]) -> Generator[Batch, None, None]:
    """Batches read by one thread, at most `AHEAD` ahead."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(AHEAD)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(reader, steps, ready, stop), daemon=True, name="artok-reader")

    def end() -> None:
        stop.set()
        thread.join()

    atexit.register(end)  # a thread inside torch at interpreter shutdown would crash
    thread.start()
    try:
        while (batch := ready.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield batch
    finally:
        end()
        atexit.unregister(end)


def _fill(
    reader: _Reader, steps: Iterable[Tensor], ready: queue.Queue[Batch | BaseException | None], stop: threading.Event
) -> None:
    def hand_over(item: Batch | BaseException | None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    try:
        for positions in steps:
            if stop.is_set():
                return
            hand_over(reader(positions).pin())
    except BaseException as error:  # re-raised in the consumer
        hand_over(error)
    else:
        hand_over(None)


# ---------------------------------------------------------------------------------------------- processes


@dataclass
class _Answer:
    """A worker's result: a batch or an error message, and the newly found unreadable and enlarged images."""

    batch: Batch | ArtokError
    skipped: dict[int, str]
    enlarged: set[int]


class _Batched(Dataset[_Answer]):
    """A reader as a torch Dataset whose items are whole batches, with positions as keys."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._told: set[int] = set()
        self._told_enlarged: set[int] = set()

    def __getitem__(self, positions: Tensor) -> _Answer:
        batch: Batch | ArtokError
        try:
            batch = self._reader(positions)
        except ArtokError as error:  # returned as a value, since torch would wrap the message in a traceback
            batch = error
        split = self._reader.split
        skipped = {index: reason for index, reason in split.skipped.items() if index not in self._told}
        enlarged = split.enlarged - self._told_enlarged
        self._told.update(skipped)
        self._told_enlarged |= enlarged
        return _Answer(batch, skipped, enlarged)


def _from_workers(reader: _Reader, steps: Iterable[Tensor], workers: int) -> Generator[Batch, None, None]:
    """Batches from worker processes, in order. Those of which one dies are replaced and read again what had not come.

    RunError: they die again and again.
    """
    owed = deque[Tensor]()  # positions that were handed out, whose batches have not come
    rest, deaths, since = iter(steps), 0, 0
    while True:
        others = set(multiprocessing.active_children())
        answers = _start_workers(reader, _noted(rest, owed), workers)
        started = set(multiprocessing.active_children()) - others

        def end(started: set[Any] = started) -> None:
            while started:  # empty where the interpreter that shuts down calls this again
                started.pop().kill()  # also one that waits for the lock of a dead one

        atexit.register(end)
        try:
            for answer in answers:
                owed.popleft()
                since += 1
                reader.split.enlarged |= answer.enlarged
                if answer.skipped:
                    note_skipped(reader.split, answer.skipped)
                if isinstance(answer.batch, ArtokError):
                    raise answer.batch
                yield answer.batch.pin()
            return
        except (RuntimeError, OSError, EOFError) as error:  # the second and third of a batch that was on its way
            if not multiprocessing.connection.wait([process.sentinel for process in started], timeout=1):
                raise
            deaths, since = (deaths + 1 if since < CALM else 1), 0
            if deaths > DEATHS:
                raise RunError(
                    f"processes that read images died {deaths} times in a short while ({error}); is there too little "
                    "memory for them? Lower data.workers"
                ) from None
            reader.split.notes = (*reader.split.notes, f"a process that reads images was replaced: {error}")
        finally:
            del answers  # torch ends the processes when their iterator is freed
            end()
            atexit.unregister(end)
        rest = itertools.chain(tuple(owed), rest)
        owed.clear()


def _noted(steps: Iterable[Tensor], owed: deque[Tensor]) -> Iterator[Tensor]:
    for positions in steps:
        owed.append(positions)
        yield positions


def _start_workers(reader: _Reader, steps: Iterator[Tensor], workers: int) -> Iterator[_Answer]:
    loader = DataLoader(
        _Batched(reader),
        sampler=steps,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_parent,
        prefetch_factor=AHEAD,
        generator=torch.Generator(),  # so that torch's global generator does not advance
    )
    ended: Any = getattr(signal, "SIGCHLD", None)  # not on Windows
    before = ended and signal.getsignal(ended)
    answers = iter(loader)
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(ended, before)  # torch's handler raises for a dead worker wherever the program is then
    return answers


def _as_it_is(answer: Any) -> Any:
    return answer


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ignore the signals that reach a whole job: the trainer saves first, then ends its workers."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
