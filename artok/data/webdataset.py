"""WebDataset shards on a disk: tar files whose members with one name make an image, its label and its captions."""

from __future__ import annotations

import glob
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from artok.config import FREE
from artok.data.base import Captions, DataConfig, Split, SplitName
from artok.data.captions import read_texts, templated
from artok.data.fingerprints import digest_parts, digest_tensor
from artok.data.holdout import hold_out
from artok.data.manifest import Manifest
from artok.data.pictures import ENDINGS, Encoded, Unreadable
from artok.data.splits import DecodedSplit, keep_in_memory
from artok.errors import DataError
from artok.noise import Seed

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # as in shard-{000000..000146}.tar
LABELS = ("label", "cls", "class")  # keys of a .json member
BLOCK = tarfile.BLOCKSIZE


class Config(DataConfig):
    """`data: {kind: webdataset, shards: "DIR/train-{000000..000146}.tar"}`.

    shards, test_shards: local files, with `*` or a range in braces. Without test shards, `holdout` of each class is
    held out, drawn by `seed`. In a shard, members that differ in their ending only belong together: an image, .cls with
    its label (a number or a name), .json with a `label`, .txt with captions, one a line. classes: their names, where
    labels are numbers.

    The shards are read by place, from an index that is made at the first start: so training images are shuffled as a
    whole, a resumed training reads no image again, and every process reads its own images only. Shards elsewhere are
    streamed by kind hub.
    """

    kind: Literal["webdataset"] = "webdataset"
    shards: Annotated[str, FREE]
    test_shards: Annotated[str | None, FREE] = None
    classes: list[str] | None = Field(None, min_length=1)
    holdout: float = Field(0.1, ge=0, lt=1)
    seed: Seed = 0
    in_memory: Annotated[bool | None, FREE] = None

    def open(self, split: SplitName) -> Split:
        return templated(self._open(split), self.caption_templates)

    def _open(self, split: SplitName) -> DecodedSplit:
        train = _Index.of(find_shards(self.shards), self.verify)
        classes = self.classes or name_classes(train.labels)
        part = train
        if split == "test" and self.test_shards is not None:
            part = _Index.of(find_shards(self.test_shards), self.verify)
        labels = number_labels(part.labels, classes, part.shards[0])
        rows = torch.arange(len(labels))
        if self.test_shards is None:
            rows = hold_out(labels, self.holdout, self.seed)[0 if split == "train" else 1]
            if not len(rows):
                raise DataError(f"nothing of {self.shards} is held out: set data.test_shards or data.holdout")
        places = part.places[rows]
        captioned = bool(places[:, 4].any()) and not self.caption_templates
        shape = (self.channels, self.side, self.side)
        names = [Path(shard).name for shard in part.shards]
        return DecodedSplit(
            _Members(part.shards, places),
            labels[rows],
            classes,
            shape,
            digest_parts("webdataset", shape, classes, names, digest_tensor(places), digest_tensor(labels[rows])),
            keep_in_memory(self.in_memory, len(rows), shape, self.workers),
            [f"the bytes of {self.shards} have changed since they were verified before"] if part.changed else [],
            int((places[:, 4] == 0).sum()) if captioned else None,
        )

    @classmethod
    def tiny(cls, folder: Path) -> Config:
        folder.mkdir(parents=True, exist_ok=True)
        for shard in range(2):
            with tarfile.open(folder / f"tiny-{shard}.tar", "w") as tar:
                for index in range(12 * shard, 12 * shard + 12):
                    file = io.BytesIO()
                    Image.new("RGB", (10, 8), (index * 10, 255 - index * 9, 40)).save(file, "PNG")
                    members = {"png": file.getvalue(), "cls": b"%d" % (index % 3)}
                    for ending, content in members.items():
                        member = tarfile.TarInfo(f"{index:04}.{ending}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        return cls(shards=str(folder / "tiny-{0..1}.tar"), size=8, holdout=0.25)


def find_shards(pattern: str) -> list[str]:
    """The files of a pattern, sorted where it has a `*`. DataError: there are none."""
    if "://" in pattern:
        raise DataError(f"{pattern} is not on this machine; stream it with data kind hub, files and streaming=true")
    found = RANGE.search(pattern)
    if found is None:
        names = sorted(glob.glob(pattern))
    else:
        first, last = found.groups()
        numbers = range(int(first), int(last) + 1)
        names = [pattern.replace(found.group(), f"{number:0{len(first)}}") for number in numbers]
    missing = next((name for name in names if not os.path.isfile(name)), None if names else pattern)
    if missing is not None:
        raise DataError(f"there is no shard {missing} (data.shards, data.test_shards)")
    return names


def name_classes(labels: Sequence[str | None]) -> list[str]:
    """Names of the classes that labels stand for: themselves, or all numbers up to the largest."""
    known = {label for label in labels if label is not None}
    if not known:
        return ["all"]
    if all(label.isdecimal() for label in known):
        return [str(number) for number in range(max(map(int, known)) + 1)]
    return sorted(known)


def number_labels(labels: Sequence[str | None], classes: Sequence[str], where: str) -> Tensor:
    """(N,) int64. DataError: an image has no label, or one that is no class."""
    if list(classes) == ["all"]:
        return torch.zeros(len(labels), dtype=torch.int64)
    numbers = {name: number for number, name in enumerate(classes)}
    numbers |= {str(number): number for number in range(len(classes)) if str(number) not in numbers}
    strange = next((label for label in labels if label is None or label not in numbers), "")
    if strange != "":
        what = "no label" if strange is None else f"the label '{strange[:40]}', which is no class"
        raise DataError(f"an image of {where} or a shard after it has {what}; see data.classes")
    return torch.tensor([numbers[label] for label in labels if label is not None])


@dataclass
class _Index:
    """What shards hold. labels: of the images, as they are written.

    places: (N, 5) int64: number of the shard, start and bytes of the image, start and bytes of the captions, or 0.
    """

    shards: list[str]
    labels: list[str | None]
    places: Tensor
    changed: bool

    @classmethod
    def of(cls, shards: list[str], verify: bool) -> _Index:
        """DataError: a shard is damaged, or none has images."""

        def list_all() -> tuple[dict[str, Any], dict[str, int], int]:
            times = {shard: os.stat(shard).st_mtime_ns for shard in shards}
            found = [sample for number, shard in enumerate(shards) for sample in read_samples(number, shard)]
            labels, places = [label for label, _ in found], [place for _, place in found]
            return {"labels": labels, "places": places}, times, len(places)

        manifest = Manifest(("webdataset", *shards), list_all, lambda _: shards, verify)
        listed = manifest.listed
        if not listed["places"]:
            raise DataError(f"{shards[0]} and the other shards hold no images ({', '.join(ENDINGS)})")
        manifest.remember("listed", lambda: True)
        return cls(shards, listed["labels"], torch.tensor(listed["places"]), manifest.changed)


def read_samples(number: int, shard: str) -> Iterator[tuple[str | None, list[int]]]:
    """The label and the place of each image of a shard. DataError: it is no tar file, or its end is missing."""
    name, label, image, text = None, None, [0, 0], [0, 0]
    try:
        with open(shard, "rb") as file:
            for member, start, size in read_members(file):
                stem, ending = _split_name(member)
                if stem != name:
                    if image[1]:
                        yield label, [number, *image, *text]
                    name, label, image, text = stem, None, [0, 0], [0, 0]
                if f".{ending.rpartition('.')[2]}" in ENDINGS:
                    image = [start, size]
                elif ending == "txt":
                    text = [start, size]
                elif ending in ("cls", "json"):
                    file.seek(start)
                    label = _read_label(ending, file.read(size)) or label
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DataError(f"the shard {shard} cannot be read ({error})") from None
    if image[1]:
        yield label, [number, *image, *text]


def read_members(file: Any) -> Iterator[tuple[str, int, int]]:
    """Name, start and bytes of each regular file of a tar. tarfile.TarError: it is damaged."""
    end = os.fstat(file.fileno()).st_size
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
            if member.isreg():
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError("its end is missing")
                yield member.name, member.offset_data, member.size


def _split_name(member: str) -> tuple[str, str]:
    """A member's name up to its first dot, with its folders, and the ending after it."""
    folder, _, file = member.rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}/{stem}", ending.lower()


def _read_label(ending: str, content: bytes) -> str | None:
    text = content.decode("utf-8", errors="replace").strip()
    if ending == "cls":
        return text
    told = json.loads(text)
    found = next((told[key] for key in LABELS if key in told), None) if isinstance(told, dict) else None
    return str(found) if isinstance(found, int | str) else None


class _Members:
    """Images in shards, by their places (N, 5)."""

    def __init__(self, shards: list[str], places: Tensor) -> None:
        self._shards, self._places = shards, places

    def fetch(self, indices: Sequence[int]) -> list[Encoded]:
        return [self._read(index, 1) for index in indices]

    def name(self, index: int) -> str:
        shard, start = self._places[index, :2].tolist()
        return f"the image at byte {start} of {Path(self._shards[shard]).name}"

    def captions(self, indices: Sequence[int]) -> Captions | None:
        texts = (self._read(index, 3) if self._places[index, 4] else b"" for index in indices)
        lines = (
            text.decode("utf-8", errors="replace").splitlines() if isinstance(text, bytes) else [] for text in texts
        )
        return [read_texts(each) for each in lines]

    def _read(self, index: int, column: int) -> bytes | Unreadable:
        shard, (start, size) = int(self._places[index, 0]), self._places[index, column : column + 2].tolist()
        try:
            with open(self._shards[shard], "rb", buffering=0) as file:
                file.seek(start)
                return file.read(size) or b""
        except OSError as error:
            return Unreadable(str(error.strerror or error), transient=True)
