"""Rows of tables of the `datasets` library, stored or streamed, as images with labels and captions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from artok.data.base import Captions
from artok.data.captions import read_texts
from artok.data.pictures import Clip, Encoded, Mapped
from artok.data.places import Places
from artok.data.streaming import Item, Row
from artok.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

ROWS_AT_ONCE = 32  # of a stream
TEXTS_AT_ONCE = 10_000


class Rows:
    """Chosen rows (N,) int64 of a table, as a `Source`. captions: the column of captions, if there is one."""

    def __init__(self, data: Dataset, images: Images, captions: str | None, rows: Tensor) -> None:
        self._data, self._images, self._rows = images.undecoded(data.select_columns(images.columns)), images, rows
        self._texts = None if captions is None else data.select_columns([captions])

    def fetch(self, indices: Sequence[int]) -> list[Encoded]:
        values = self._data[self._rows[list(indices)].tolist()]
        rows = zip(*(values[column] for column in self._images.columns), strict=True)
        return [self._images.stored(dict(zip(self._images.columns, row, strict=True))) for row in rows]

    def name(self, index: int) -> str:
        return f"row {int(self._rows[index])}"

    def captions(self, indices: Sequence[int]) -> Captions | None:
        if self._texts is None:
            return None
        (column,) = self._texts[self._rows[list(indices)].tolist()].values()
        return [read_texts(value) for value in column]


def find_captioned(data: Dataset, column: str) -> Tensor:
    """(N,) bool: the rows of a table that have a caption."""
    parts = data.select_columns([column]).iter(TEXTS_AT_ONCE)
    return torch.tensor([bool(read_texts(value)) for part in parts for value in part[column]], dtype=torch.bool)


@dataclass(frozen=True)
class Images:
    """The columns of a table that hold its images and, if there are some, their maps of `channels` channels.

    clip: of videos, the frames that are taken and how many of a second.
    """

    column: str
    places: Places
    maps: str | None = None
    channels: int = 0
    clip: tuple[int, float | None] | None = None

    @property
    def columns(self) -> list[str]:
        return [self.column, *([] if self.maps is None else [self.maps])]

    def stored(self, row: Row) -> Encoded:
        image = self.places.stored(row[self.column])
        if self.clip is not None:
            assert not isinstance(image, Mapped | Clip)
            return Clip(image, 0, *self.clip)
        return image if self.maps is None else Mapped(image, self.places.stored(row[self.maps]), self.channels)

    def undecoded(self, data: Any) -> Any:
        """The data with undecoded images. artok decodes them itself, so that a broken file does not end the run."""
        from datasets import Image as ImageFeature
        from datasets import Video

        for column in self.columns:
            for kind in (ImageFeature, Video):
                if isinstance((data.features or {}).get(column), kind):
                    data = data.cast_column(column, kind(decode=False))
        return data


class Opened:
    """Opens a stream at its start, with some of its columns only."""

    def __init__(self, data: IterableDataset, columns: list[str], where: str) -> None:
        self._data, self._where = data.select_columns(columns), where

    def __call__(self) -> Iterator[Row]:
        try:
            # Plain iteration divides the files among the workers of a DataLoader; iteration by batches does not.
            for batch in self._data.iter(ROWS_AT_ONCE):
                for values in zip(*batch.values(), strict=True):
                    yield dict(zip(batch, values, strict=True))
        except (ConnectionError, TimeoutError):
            raise DataError(unreachable(self._where)) from None
        except Exception as error:  # builders raise the errors of their file formats
            raise DataError(f"{self._where} cannot be read: {' '.join(str(error).split())[:200]}") from None

    def first(self) -> list[Row]:
        """The first rows."""
        return list(itertools.islice(self(), ROWS_AT_ONCE))


class Items:
    """Makes the items of a stream of its rows, from the columns of images, labels and captions."""

    def __init__(self, images: Images, labels: str | None, captions: str | None) -> None:
        self._images, self._labels, self._captions = images, labels, captions

    def __call__(self, index: int, row: Row) -> Item:
        label = None if self._labels is None else row[self._labels]
        captions = None if self._captions is None else read_texts(row[self._captions])
        return Item(index, self._images.stored(row), label, captions)


def unreachable(label: str) -> str:
    return f"{label} cannot be reached; download it and name the local files under data.files"
