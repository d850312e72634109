"""A split that is read sequentially from a stream, without storing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from artok.data.base import Captions, Examples, Split, note_skipped
from artok.data.columns import Classes
from artok.data.decoding import decode_all, decode_one
from artok.data.pictures import Encoded, Unreadable
from artok.data.splits import unstack
from artok.errors import DataError
from artok.noise import Noise, fold

BLOCK = 4096  # rows whose random numbers are drawn at once

Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """row: its index in the stored stream."""

    row: int
    encoded: Encoded
    label: object
    captions: tuple[str, ...] | None = None


def draw_held_out(rows: Tensor, fraction: float, seed: int) -> Tensor:
    """(N,) bool: the test rows of a stream without a test split; each is drawn independently."""
    return Noise(fold("stream holdout", seed), rows).uniform() < fraction


class StreamSplit(Split):
    """A split over a stream. It guarantees:

    - Index p is position p of an endless stream: place p % len of pass p // len.
    - Every row comes once per pass. A training split is shuffled by a buffer of `buffer` rows, seeded by (seed, pass),
      so the order is the same in every process and after every resume. The shuffle is local: a stream sorted by class
      stays nearly sorted. A test split keeps the stored order.
    - Positions are read in ascending order. Rows in between are read but not decoded, so resuming at position p reads
      p % len rows. Going back restarts the pass; two readers therefore need two splits.
    - An unreadable image is replaced by the next in the order; other positions do not change.

    rows: opens the stream at its start. count: rows of the stream. part: (holdout, seed, whether this is the test
    part), or None when the stream is one whole split.
    """

    decodes = True
    sequential = True

    def __init__(
        self,
        rows: Callable[[], Iterator[Row]],
        item: Callable[[int, Row], Item],
        classes: Classes,
        shape: tuple[int, ...],
        fingerprint: str,
        count: int,
        part: tuple[float, int, bool] | None,
        buffer: int,
        seed: int,
        where: str,
        captioned: bool = False,
    ) -> None:
        self.captioned = captioned
        self.shape, self.classes, self.fingerprint = shape, classes.names, fingerprint
        self.skipped, self.enlarged = {}, set()
        self._rows, self._item, self._table, self._where = rows, item, classes, where
        self._count, self._part, self._buffer, self._seed = count, part, buffer, seed
        self._length = sum(int(self._chosen(start).sum()) for start in range(0, count, BLOCK))
        if not self._length:
            raise DataError(f"none of the {count} rows of {where} fall into this split")
        self._next = 0
        self._items: Iterator[Item] | None = None
        self._ahead: dict[int, Item] = {}  # rows of the last batch, and those read to replace unreadable ones

    def __len__(self) -> int:
        return self._length

    def read(self, indices: Sequence[int]) -> Examples:
        positions = [int(index) for index in indices]
        self._ahead = {place: item for place, item in self._ahead.items() if place >= positions[0]}
        items = [self._at(position) for position in positions]
        channels, side = self.shape[0], self.shape[-1]
        images, labels = [], []
        captions: Captions = []
        pictures = decode_all([item.encoded for item in items], channels, side)
        for position, item, picture in zip(positions, items, pictures, strict=True):
            while isinstance(picture, Unreadable):
                note_skipped(self, {item.row: f"row {item.row} ({picture.reason})"})
                position, item = position + 1, self._at(position + 1)
                picture = decode_one(item.encoded, channels, side)
            if picture.enlarged:
                self.enlarged.add(item.row)
            images.append(picture.pixels)
            labels.append(self._table.labels([item.label], self._where, item.row))
            captions.append(item.captions or ())
        pixels, maps = unstack(torch.stack(images), channels)
        return Examples(pixels, torch.cat(labels), captions if self.captioned else None, maps)

    def _at(self, position: int) -> Item:
        if position in self._ahead:
            return self._ahead[position]
        epoch = position // self._length
        if self._items is None or position < self._next or epoch > self._next // self._length:
            self._items, self._next = self._mixed(epoch), epoch * self._length
        items = self._items
        for item in items:
            self._next += 1
            if self._next % self._length == 0:  # the next position begins another pass
                next(items, None)  # so that rows beyond the last one are noticed
                self._items = None
            if self._next > position:
                self._ahead[position] = item
                return item
        raise DataError(
            f"{self._where} ended before row {self._count}: data.lengths must not say more rows than there are"
        )

    def _chosen(self, start: int) -> Tensor:
        """Which rows of the block from `start` belong to this split."""
        rows = torch.arange(start, min(start + BLOCK, self._count))
        if self._part is None:
            return torch.ones(len(rows), dtype=torch.bool)
        fraction, seed, test = self._part
        return draw_held_out(rows, fraction, seed) == test

    def _stored(self) -> Iterator[Item]:
        chosen: list[bool] = []
        for index, row in enumerate(self._rows()):
            if index == self._count:
                note = (
                    f"{self._where} has more than the {self._count} rows that data.lengths says; the rest is not read"
                )
                self.notes = tuple(dict.fromkeys((*self.notes, note)))
                return
            if index % BLOCK == 0:
                chosen = self._chosen(index).tolist()
            if chosen[index % BLOCK]:
                yield self._item(index, row)

    def _mixed(self, epoch: int) -> Iterator[Item]:
        """The items of one pass. Each new item replaces a random item of the buffer, which is yielded."""
        if self._buffer < 2:
            yield from self._stored()
            return
        seed, waiting, slots = fold("stream", self._seed, epoch), list[Item](), list[int]()
        for index, item in enumerate(self._stored()):
            if index < self._buffer:
                waiting.append(item)
                continue
            if not slots:
                slots = Noise(seed, torch.arange(index, index + BLOCK)).integers(self._buffer).tolist()[::-1]
            slot = slots.pop()
            yield waiting[slot]
            waiting[slot] = item
        order = Noise(fold("rest", seed), torch.tensor([0])).permutation(len(waiting))[0]
        yield from (waiting[slot] for slot in order.tolist())
