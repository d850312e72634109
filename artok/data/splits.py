"""Splits with random access: all in memory, or decoded from files as they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from artok.data.base import Captions, Examples, Split, note_skipped
from artok.data.decoding import decode_all
from artok.data.pictures import Encoded, Unreadable

IN_MEMORY = 2**30  # bytes of decoded pixels that are kept by default


class MemorySplit(Split):
    """images: (N, channels, *size) uint8. labels: (N,) int64."""

    labels: Tensor

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str], fingerprint: str) -> None:
        self.images, self.labels = images, labels
        self.shape = tuple(images.shape[1:])
        self.classes = tuple(classes)
        self.fingerprint = fingerprint
        self.skipped = {}
        self.enlarged = set()

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Sequence[int]) -> Examples:
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return Examples(self.images[rows], self.labels[rows])


class Source(Protocol):
    """Encoded images, with their maps where there are some, and their captions by index."""

    def fetch(self, indices: Sequence[int]) -> list[Encoded]: ...

    def name(self, index: int) -> str:
        """The name of an image in messages."""
        ...

    def captions(self, indices: Sequence[int]) -> Captions | None: ...


class DecodedSplit(Split):
    """Images decoded when they are read, and then kept in memory if `in_memory`.

    labels: (N,) int64, known without decoding. uncaptioned: images without a caption; None where none has one.
    map_channels: of the maps that come with the images; 0 without.
    """

    decodes = True
    labels: Tensor

    def __init__(
        self,
        source: Source,
        labels: Tensor,
        classes: Sequence[str],
        shape: tuple[int, ...],
        fingerprint: str,
        in_memory: bool,
        notes: Sequence[str] = (),
        uncaptioned: int | None = None,
        map_channels: int = 0,
    ) -> None:
        self.source, self.labels = source, labels
        self.captioned, self.uncaptioned = uncaptioned is not None, uncaptioned or 0
        self.shape = shape
        self.classes = tuple(classes)
        self.fingerprint = fingerprint
        self.skipped = {}
        self.enlarged = set()
        self.notes = tuple(notes)
        self._lost: set[int] = set()  # unreadable for good
        stacked = (len(labels), shape[0] + map_channels, *shape[1:])
        self._memory = torch.empty(stacked, dtype=torch.uint8) if in_memory else None
        self._filled = torch.zeros(len(labels), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Sequence[int]) -> Examples:
        wanted = torch.as_tensor(indices, dtype=torch.int64)
        if self._memory is not None and bool(self._filled[wanted].all()):
            return self._examples(self._memory[wanted], wanted.tolist())
        found: dict[int, Tensor | None] = {}
        rows = [self._readable(index, found) for index in wanted.tolist()]
        while missing := [row for row in dict.fromkeys(rows) if row not in found]:
            found |= dict.fromkeys(missing) | self._load(missing)
            rows = [self._readable(row, found) for row in rows]
        return self._examples(torch.stack([pixels for row in rows if (pixels := found[row]) is not None]), rows)

    def _examples(self, stacked: Tensor, rows: list[int]) -> Examples:
        captions = self.source.captions(rows) if self.captioned else None
        images, maps = unstack(stacked, self.shape[0])
        return Examples(images, self.labels[rows], captions, maps)

    def _readable(self, index: int, found: Mapping[int, Tensor | None]) -> int:
        """The next index that is not known to be unreadable. found: of this read, None where it failed."""
        while index in self._lost or (index in found and found[index] is None):
            index = (index + 1) % len(self)
        return index

    def _load(self, indices: list[int]) -> dict[int, Tensor]:
        """Pixels of the readable images, by index."""
        found = {}
        if self._memory is not None:
            found = {index: self._memory[index] for index in indices if self._filled[index]}
        fresh = [index for index in indices if index not in found]
        channels, side = self.shape[0], self.shape[-1]
        broken = {}
        for index, picture in zip(fresh, decode_all(self.source.fetch(fresh), channels, side), strict=True):
            if isinstance(picture, Unreadable):
                broken[index] = f"{self.source.name(index)} ({picture.reason})"
                if not picture.transient:
                    self._lost.add(index)
                continue
            found[index] = picture.pixels
            if picture.enlarged:
                self.enlarged.add(index)
            if self._memory is not None:
                self._memory[index] = picture.pixels
                self._filled[index] = True
        if broken:
            note_skipped(self, broken)
        return found


def unstack(stacked: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Images (B, channels, R, R) and the maps whose channels follow, if there are any."""
    return stacked[:, :channels], stacked[:, channels:] if stacked.shape[1] > channels else None


def keep_in_memory(wish: bool | None, count: int, shape: tuple[int, ...], workers: int) -> bool:
    """The wish; by default whether `count` images of `shape` take less than 1 GiB and there are no workers."""
    if wish is not None:
        return wish
    return workers == 0 and count * math.prod(shape) <= IN_MEMORY
