"""Images in class folders: ROOT/<class>/..., or ROOT/train/<class>/... and ROOT/test/<class>/..."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field

from artok.config import FREE
from artok.data.base import Captions, DataConfig, Split, SplitName
from artok.data.captions import BESIDE, TABLES, StoredCaptions, describe_missing, read_beside, templated
from artok.data.controls.column import Config as Column
from artok.data.fingerprints import digest_files, digest_parts, digest_tensor, find_originals
from artok.data.holdout import hold_out
from artok.data.manifest import Manifest
from artok.data.map_files import find_maps, is_map
from artok.data.pictures import ENDINGS, Encoded, Mapped
from artok.data.splits import DecodedSplit, keep_in_memory
from artok.errors import DataError, shorten
from artok.noise import Seed

TEST_FOLDERS = ("test", "val", "valid", "validation")


class Config(DataConfig):
    """`data: {kind: folder, root: DIR}`.

    A class is a folder in ROOT, or in ROOT/train and ROOT/test (val, valid and validation mean test too), with all
    images below it. Images without class folders form one class, "all". Without a test folder, `holdout` of each class
    is held out, drawn by `seed`; copies of a picture come to the same side, and each class keeps a training image.
    Linked folders are read, once each. What is left out is said: other files, classes without images, links in a loop.

    Captions: image.txt beside image.png, one a line, or a metadata.jsonl or metadata.csv with the columns file_name and
    `caption_column`, by default one with a usual name such as text or caption. An image without one has the empty text.

    Maps, for data.control={kind: column, column: depth}: image.depth.png beside image.png, or a column depth of
    metadata.jsonl or metadata.csv with the paths of files.

    in_memory: keep decoded images. Default: up to 1 GiB without workers (each worker would keep its own copy).
    """

    holds_maps: ClassVar[bool] = True

    kind: Literal["folder"] = "folder"
    root: Annotated[Path, FREE]
    holdout: float = Field(0.1, ge=0, lt=1)
    seed: Seed = 0
    caption_column: str | None = None
    in_memory: Annotated[bool | None, FREE] = None

    def open(self, split: SplitName) -> Split:
        try:
            return templated(self._open(split), self.caption_templates)
        except OSError as error:
            raise DataError(f"{shorten(str(error.filename or self.root))} cannot be read ({error.strerror})") from None

    def _open(self, split: SplitName) -> DecodedSplit:
        train_root, test_root = find_roots(self.root)
        found, manifest = training, trained_on = self._scan(train_root)
        classes = tuple(training.files)
        if split == "test" and test_root is not None:
            found, manifest = self._scan(test_root)
            if strange := sorted(set(found.files) - set(classes)):
                raise DataError(f"{test_root} has the class folder '{strange[0]}', which {train_root} does not have")
        paths, captions = found.paths(), None
        if not self.caption_templates:
            captions = read_beside(self.root, paths, found.texts, found.tables, self.caption_column)
        notes = found.notes()
        if manifest.changed:
            notes.append(f"the bytes of files of {found.root} have changed since they were verified before")
        number = {name: index for index, name in enumerate(classes)}
        labels = torch.tensor([number[name] for name, files in found.files.items() for _ in files])
        if test_root is None:
            originals = torch.arange(len(paths))
            if self.holdout:
                listed = paths
                originals = torch.tensor(manifest.remember("originals", lambda: find_originals(listed)))
            train, test = hold_out(labels, self.holdout, self.seed, originals)
            if split == "test" and not len(test):
                raise DataError(
                    f"nothing of {self.root} is held out: add a folder 'test', images (each class keeps one to train "
                    "on, and copies of a picture stay together), or data.holdout"
                )
            if copies := int((originals != torch.arange(len(paths))).sum()):
                repeated = f"images of {self.root} that repeat others: {copies} of {len(paths)}"
                notes.append(f"{repeated}; copies come to the same side of the split")
            rows = train if split == "train" else test
            paths, labels = [paths[row] for row in rows.tolist()], labels[rows]
            captions = captions and [captions[row] for row in rows.tolist()]
        elif split == "test":
            known = training.paths()
            both = known + paths
            shared = manifest.remember(
                f"shared with {trained_on.stamp}",
                lambda: sum(original < len(known) for original in find_originals(both)[len(known) :]),
            )
            if shared:
                notes.append(f"images of {test_root} that are also in {train_root}: {shared} of {len(paths)}")
        part = f"{split} {self.holdout} {self.seed}" if test_root is None else "all"
        shape = (self.channels, self.side, self.side)
        start = len(os.path.join(found.root, ""))
        names = [path[start:] for path in paths]
        stored = None if captions is None else StoredCaptions.of(captions)
        uncaptioned = None if captions is None else sum(not each for each in captions)
        if uncaptioned:
            notes.append(describe_missing(uncaptioned, len(paths), str(found.root)))
        told = [] if stored is None else [digest_tensor(stored.text), digest_tensor(stored.ends)]
        maps = [found.maps.get(path) for path in paths] if isinstance(self.control, Column) else None
        if maps is not None:
            there = [path for path in maps if path is not None and os.path.isfile(path)]
            relative = [os.path.relpath(path, self.root) for path in there]
            told.append(manifest.remember(f"maps of {part}", lambda: digest_files(there, relative)))
        channels = 0 if maps is None or self.map is None else self.map[0]
        digest = manifest.remember(f"digest of {part}", lambda: digest_files(paths, names))
        return DecodedSplit(
            _Files(paths, names, stored, maps, channels),
            labels,
            classes,
            shape,
            digest_parts("folder", shape, classes, digest, *told),
            keep_in_memory(self.in_memory, len(paths), shape, self.workers),
            notes,
            uncaptioned,
            channels,
        )

    def _scan(self, root: Path) -> tuple[Found, Manifest]:
        above = [str(path) for name in TABLES if (path := self.root / name).is_file()] if root != self.root else []
        column = self.control.column if isinstance(self.control, Column) else None
        key = ("folder", os.path.realpath(root), root, column, *above)

        def list_all() -> tuple[dict[str, Any], dict[str, int], int]:
            found = scan(root, above, column)
            return vars(found) | {"root": str(root), "folders": {}}, found.folders, len(found.paths())

        manifest = Manifest(
            key, list_all, lambda listed: [path for each in listed["files"].values() for path in each], self.verify
        )
        listed = manifest.listed | {"root": root, "endings": tuple(manifest.listed["endings"])}
        return Found(**listed | {"other": Counter(listed["other"])}), manifest

    @classmethod
    def tiny(cls, folder: Path) -> Config:
        for index in range(24):
            place = folder / "pictures" / ("dark" if index % 2 else "light")
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (10, 8), (index * 10, 255 - 100 * (index % 2), 40)).save(place / f"{index:02}.png")
        return cls(root=folder / "pictures", size=8, holdout=0.25)


class _Files:
    def __init__(
        self,
        paths: Sequence[str],
        names: Sequence[str],
        captions: StoredCaptions | None,
        maps: Sequence[str | None] | None,
        channels: int,
    ) -> None:
        """maps: of the images, of so many channels; None of data without."""
        self._paths, self._names, self._captions = list(paths), list(names), captions
        self._maps, self._channels = maps, channels

    def fetch(self, indices: Sequence[int]) -> list[Encoded]:
        paths, maps = self._paths, self._maps
        if maps is None:
            return [paths[index] for index in indices]
        return [Mapped(paths[index], maps[index], self._channels) for index in indices]

    def name(self, index: int) -> str:
        return _shown(self._names[index])

    def captions(self, indices: Sequence[int]) -> Captions | None:
        return None if self._captions is None else self._captions[torch.as_tensor(indices, dtype=torch.int64)]


# ---------------------------------------------------------------------------------------------- scanning


def find_roots(root: Path) -> tuple[Path, Path | None]:
    """The folders of training and of test, if there is one. DataError: there is no folder, or only one of test."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; data.root names the folder that holds the class folders")
    train = root / "train" if (root / "train").is_dir() else root
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if train == root and test is not None:
        raise DataError(f"{root} has a folder '{test.name}' but no folder 'train' beside it")
    return train, test


@dataclass
class Found:
    """What a folder of class folders holds. files: paths of each class, sorted by name. texts, tables: of captions.

    column: of maps, if they are asked for. endings: of files that are taken, which are `what`. beside: maps by their
    names. maps: of each image. folders: when each of them changed last, in ns.

    What is left out: other, files with other endings, by ending; empty classes; broken, what has the ending of an image
    and is no file, such as a dangling link; again, linked folders that are read elsewhere or hold the folder itself.
    """

    root: Path
    column: str | None = None
    endings: tuple[str, ...] = ENDINGS
    what: str = "image"
    folders: dict[str, int] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    beside: list[str] = field(default_factory=list)
    maps: dict[str, str] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)

    def paths(self) -> list[str]:
        return [path for files in self.files.values() for path in files]

    def notes(self) -> list[str]:
        """One sentence about what is left out, if anything is."""
        parts = []
        if self.other:
            most = sorted(self.other.items(), key=lambda pair: (-pair[1], pair[0]))[:5]
            shown = ", ".join(f"{ending} {count}" for ending, count in most)
            parts.append(f"files that end in no {self.what} format ({self.other.total()}: {shown})")
        for names, what in (
            (self.empty, f"class folders without {self.what}s"),
            (self.broken, f"{self.what}s that are broken links or no files"),
            (self.again, "linked folders that are read already or hold this one"),
        ):
            if names:
                shown = ", ".join(map(_shown, sorted(names)[:3]))
                parts.append(f"{what} ({len(names)}: {shown}{', ...' if len(names) > 3 else ''})")
        return [f"left out of {self.root}: {'; '.join(parts)}"] if parts else []

    def takes(self, entry: os.DirEntry[str]) -> bool:
        """Whether a file is an image. Notes what is left out; hidden files are not worth a note."""
        if entry.name.startswith("."):
            return False
        ending = os.path.splitext(entry.name)[1].lower()
        if (entry.name in TABLES or ending == BESIDE) and _is(entry, folder=False):
            (self.tables if entry.name in TABLES else self.texts).append(entry.path)
        elif ending not in self.endings:
            self.other[_shown(ending) or "none"] += 1
        elif not _is(entry, folder=False):
            self.broken.append(os.path.relpath(entry.path, self.root))
        elif is_map(entry.name, self.column):
            self.beside.append(entry.path)
        else:
            return True
        return False


def scan(
    root: Path,
    above: Sequence[str] = (),
    column: str | None = None,
    endings: tuple[str, ...] = ENDINGS,
    what: str = "image",
) -> Found:
    """The images of each class folder of `root`, all sorted by name, with their maps. above: tables of folders above.

    Linked folders are read after all others, so that what lies in two places is read in its own; and once each, so that
    a loop of links ends.
    """
    found, base = Found(root, column, endings, what, tables=list(above)), os.path.realpath(root)
    found.folders[str(root)] = os.stat(root).st_mtime_ns  # before it is listed, lest a change meanwhile be missed
    entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    folders = [entry for entry in entries if _is(entry, folder=True) and not entry.name.startswith((".", "__"))]
    loose = [entry.path for entry in entries if not _is(entry, folder=True) and found.takes(entry)]
    files: dict[str, list[str]] = {entry.name: [] for entry in folders}
    waiting = deque((entry.name, entry) for entry in sorted(folders, key=lambda entry: entry.is_symlink()))
    seen = {base}
    while waiting:
        name, place = waiting.popleft()
        real = os.path.realpath(place)
        if real in seen or base.startswith(os.path.join(real, "")):
            found.again.append(os.path.relpath(place, root))
            continue
        seen.add(real)
        found.folders[place.path] = os.stat(place).st_mtime_ns
        for entry in os.scandir(place):
            if not _is(entry, folder=True):
                if found.takes(entry):
                    files[name].append(entry.path)
            elif not entry.name.startswith("."):
                (waiting.append if entry.is_symlink() else waiting.appendleft)((name, entry))
    for name in files:
        if name != _shown(name):
            raise DataError(f"the name of the class folder '{_shown(name)}' of {root} is not in UTF-8; rename it")
    found.files = {name: sorted(paths, key=_parts) for name, paths in files.items() if paths}
    found.empty = [name for name, paths in files.items() if not paths]
    if column is not None:
        found.maps = find_maps(root, [*loose, *found.paths()], found.beside, found.tables, column)
        maps = set(found.maps.values())
        loose = [path for path in loose if os.path.normpath(path) not in maps]
        without = (
            (name, [path for path in paths if os.path.normpath(path) not in maps])
            for name, paths in found.files.items()
        )
        found.files = {name: paths for name, paths in without if paths}
    named = {os.path.splitext(path)[0] for path in (*loose, *found.paths())}
    beside = [path for path in found.texts if os.path.splitext(path)[0] in named]
    if others := len(found.texts) - len(beside):
        found.other[BESIDE] += others
    found.texts = beside
    if loose and found.files:
        raise DataError(
            f"{root} holds both {what}s (such as {os.path.basename(loose[0])}) and class folders (such as "
            f"{next(iter(found.files))}); move the {what}s into class folders"
        )
    if loose:
        found.files = {"all": loose}
    if not found.files:
        raise DataError(f"{root} holds no {what}s ({', '.join(ending[1:] for ending in endings)})")
    return found


def _is(entry: os.DirEntry[str], folder: bool) -> bool:
    try:
        return entry.is_dir() if folder else entry.is_file()
    except OSError:  # a link to itself
        return False


def _shown(name: str) -> str:
    """A name for messages; bytes that are not in UTF-8 are replaced."""
    return os.fsencode(name).decode(errors="replace")


def _parts(path: str) -> list[str]:
    return path.split(os.sep)
