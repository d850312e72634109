"""Captions of images: stored compactly, read from files beside the images, or made from the names of classes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from artok.data.base import Captions, Examples, Split
from artok.data.columns import CAPTION_NAMES
from artok.data.fingerprints import digest_parts
from artok.errors import DataError

TABLES = ("metadata.jsonl", "metadata.csv")  # beside images, as the imagefolder of `datasets` has them
FILE_COLUMN = "file_name"
BESIDE = ".txt"


def read_texts(value: object) -> tuple[str, ...]:
    """The captions in a cell of a table: a text, a list of texts, or nothing. Empty ones are left out."""
    texts = value if isinstance(value, list | tuple) else [value]
    return tuple(stripped for text in texts if isinstance(text, str) and (stripped := text.strip()))


def pick_captions(captions: Captions, numbers: Iterable[int]) -> list[str]:
    """One caption of each image, by a number of any size; the empty text of one without captions."""
    return [each[number % len(each)] if each else "" for each, number in zip(captions, numbers, strict=True)]


def first_captions(captions: Captions) -> list[str]:
    """The first caption of each image; the empty text of one without captions."""
    return pick_captions(captions, [0] * len(captions))


def describe_missing(count: int, total: int, where: str) -> str:
    return f"{count:,} of {total:,} images of {where} have no caption, which stands for the empty text"


@dataclass
class StoredCaptions:
    """The captions of many images in one tensor.

    text: (bytes,) uint8, for each image a JSON list of its captions. ends: (images,) int64, where each list ends.
    """

    text: Tensor
    ends: Tensor

    @classmethod
    def of(cls, captions: Captions) -> StoredCaptions:
        lists = [json.dumps(each, ensure_ascii=False).encode(errors="replace") for each in captions]
        ends = torch.tensor([len(each) for each in lists], dtype=torch.int64).cumsum(0)
        return cls(torch.frombuffer(bytearray(b"".join(lists)), dtype=torch.uint8), ends)

    @staticmethod
    def join(parts: Sequence[StoredCaptions]) -> StoredCaptions:
        starts = torch.tensor([0, *[len(part.text) for part in parts]]).cumsum(0)[:-1].tolist()
        ends = [part.ends + start for part, start in zip(parts, starts, strict=True)]
        return StoredCaptions(torch.cat([part.text for part in parts]), torch.cat(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, indices: Tensor) -> Captions:
        ends = self.ends[indices]
        starts = torch.where(indices > 0, self.ends[indices - 1], 0)
        text, places = self.text.numpy(), zip(starts.tolist(), ends.tolist(), strict=True)
        return [tuple(json.loads(text[start:end].tobytes())) for start, end in places]

    def distinct(self) -> list[str]:
        """All captions, each once."""
        parts = torch.arange(len(self)).split(1000)
        return list(dict.fromkeys(text for part in parts for texts in self[part] for text in texts))


# ---------------------------------------------------------------------------------------------- files beside images


def read_beside(
    root: Path, images: Sequence[str], texts: Iterable[str], tables: Iterable[str], column: str | None
) -> Captions | None:
    """The captions of images in the files of a folder, or None where it has none.

    texts: paths of text files; the one of an image's own name holds its captions, one a line. tables: paths of
    metadata.jsonl and metadata.csv, whose rows name images by FILE_COLUMN relative to the table. column: of their
    captions; by default one with a usual name. A table goes before a text file.
    DataError: a file cannot be read, or no table has the column.
    """
    beside = {path.removesuffix(BESIDE): path for path in texts}
    found: dict[str, tuple[str, ...]] = {}
    if beside:
        found = {image: _lines(beside[stem]) for image in images if (stem := os.path.splitext(image)[0]) in beside}
    known, columns = {os.path.normpath(image) for image in images}, set[str]()
    for path in sorted(tables):
        rows = read_table(path)
        named = {key for row in rows for key in row}
        columns |= named
        use = column if column in named else next((name for name in CAPTION_NAMES if name in named), None)
        if use is None or (column is not None and use != column):
            continue
        told = _of_images(path, rows, use)
        if told and not told.keys() & known and not any(map(os.path.exists, told)):
            raise DataError(
                f"no file that {path} names is there, such as {rows[0][FILE_COLUMN]}; names are relative to its folder"
            )
        found |= {image: told[place] for image in images if (place := os.path.normpath(image)) in told and told[place]}
    if column is not None and column not in columns:
        has = f"; its columns are {', '.join(sorted(columns))}" if columns else f": it has no {' or '.join(TABLES)}"
        raise DataError(f"{root} has no column '{column}' (data.caption_column){has}")
    captions = [found.get(image, ()) for image in images]
    return captions if any(captions) else None


def _of_images(path: str, rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, tuple[str, ...]]:
    return {place: read_texts(row.get(column)) for place, row in name_rows(path, rows)}


def name_rows(path: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row of a metadata file with the path of its image. DataError: a row names none."""
    folder = os.path.dirname(path)
    for number, row in enumerate(rows, 1):
        name = row.get(FILE_COLUMN)
        if not isinstance(name, str):
            raise DataError(f"row {number} of {path} has no '{FILE_COLUMN}', which says whose it is")
        yield os.path.normpath(os.path.join(folder, name)), row


def _lines(path: str) -> tuple[str, ...]:
    return read_texts(_content(path).splitlines())


def _content(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"the captions in {path} are not in UTF-8; convert the file") from None


def read_table(path: str) -> list[dict[str, Any]]:
    """The rows of a metadata file. DataError: it is damaged."""
    content = _content(path)
    if path.endswith(".csv"):
        return list(csv.DictReader(content.splitlines(keepends=True)))
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise DataError(f'line {number} of {path} is no JSON object, such as {{"{FILE_COLUMN}": "1.png"}}')
            rows.append(row)
    return rows


# ---------------------------------------------------------------------------------------------- names of classes


def templated(split: Split, templates: Sequence[str]) -> Split:
    """The split, with captions by `data.caption_templates` where there are any."""
    return TemplatedSplit(split, templates) if templates else split


class TemplatedSplit(Split):
    """A split whose captions are made from the names of classes, one by each template, instead of its own."""

    captioned = True

    def __init__(self, split: Split, templates: Sequence[str]) -> None:
        self._split, self._templates = split, tuple(templates)
        self.shape, self.classes = split.shape, split.classes
        self.fingerprint = digest_parts("captions", split.fingerprint, *templates)
        self.skipped, self.enlarged = split.skipped, split.enlarged
        self.decodes, self.sequential = split.decodes, split.sequential
        self.labels, self.single, self.notes = split.labels, split.single, split.notes

    def __len__(self) -> int:
        return len(self._split)

    def read(self, indices: Sequence[int]) -> Examples:
        read = self._split.read(indices)
        self.notes = self._split.notes
        names = [self.classes[label] for label in read.labels.tolist()]
        captions = [tuple(template.replace("{}", name) for template in self._templates) for name in names]
        return Examples(read.images, read.labels, captions, read.maps)
