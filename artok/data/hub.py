"""Anything that the Hugging Face `datasets` library loads: a hub name, local parquet files, a stream."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field, PositiveInt, field_validator, model_validator
from typing_extensions import Self

from artok.config import FREE
from artok.data.base import DataConfig, Split, SplitName
from artok.data.captions import describe_missing, read_texts, templated
from artok.data.columns import (
    Classes,
    find_caption_column,
    find_image_column,
    find_label_column,
    find_map_column,
    read_classes,
)
from artok.data.controls.column import Config as Column
from artok.data.fingerprints import digest_files, digest_parts, digest_tensor
from artok.data.holdout import hold_out
from artok.data.places import Places
from artok.data.rows import Images, Items, Opened, Rows, find_captioned, unreachable
from artok.data.splits import DecodedSplit, keep_in_memory
from artok.data.streaming import StreamSplit
from artok.errors import DataError
from artok.noise import Seed

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

TEST_SPLITS = ("test", "validation", "valid", "val")
FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}  # by the ending of files
LOCAL = "ARTOK_DATA"  # an environment variable: a folder of local copies, one folder for each data set


class Config(DataConfig):
    """`data: {kind: hub, path: cifar10}`, or `data: {kind: hub, files: {train: a.parquet, test: b.parquet}}`.

    path: name on the hub, a local folder, or the format of `files` if it does not follow from their ending.
    name, revision: configuration and version of a hub data set. files: local files or URLs by split, `*` allowed;
    without splits all are training files. local: a folder of copies, <split>.parquet, read instead of the hub;
    default $ARTOK_DATA/<name of the data set>. image_column, label_column, caption_column: default by type and usual
    name; a caption is a text or a list of several. classes: their names, for data that hold only numbers. Without a
    test split that has labels, `holdout` of the training split is held out, drawn by `seed`. Images that are paths or
    URLs must lie beside the data's own files (see `Places`).

    frames: rows are videos, in a column of type Video or the one that image_column names, and a sample is the first
    `frames` frames of one, at `fps` frames per second, or as the file has them.

    streaming: read sequentially without storing (see `StreamSplit`). shuffle_buffer: rows in a stream's shuffle buffer.
    lengths: rows per streamed split, where the source does not say.

    in_memory: keep decoded images. Default: up to 1 GiB without workers (each worker would keep its own copy).
    """

    holds_maps: ClassVar[bool] = True

    kind: Literal["hub"] = "hub"
    path: Annotated[str | None, FREE] = None
    name: Annotated[str | None, FREE] = None
    revision: Annotated[str | None, FREE] = None
    files: Annotated[str | list[str] | dict[str, str | list[str]] | None, FREE] = None
    local: Annotated[str | None, FREE] = None
    train_split: str = "train"
    test_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    frames: int | None = Field(None, ge=1)
    fps: float | None = Field(None, gt=0)
    classes: list[str] | None = Field(None, min_length=1)
    holdout: float = Field(0.1, ge=0, lt=1)
    seed: Seed = 0
    streaming: bool = False
    shuffle_buffer: int = Field(1000, ge=1)
    lengths: dict[str, PositiveInt] = Field({})
    in_memory: Annotated[bool | None, FREE] = None

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: list[str] | None) -> list[str] | None:
        twice = [name for name in classes or () if (classes or ()).count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is named twice; each class needs a name of its own")
        return classes

    @model_validator(mode="before")
    @classmethod
    def _use_local_copies(cls, section: object) -> object:
        if not isinstance(section, dict) or section.get("files"):
            return section
        local, name = section.get("local"), section.get("path")
        if local is None and LOCAL in os.environ and isinstance(name, str):
            local = str(Path(os.environ[LOCAL]) / name.rpartition("/")[2])
        copies = sorted(Path(local).glob("*.parquet")) if isinstance(local, str) else []
        files = {path.stem: str(path) for path in copies}
        return section | {"path": "parquet", "local": local, "files": files} if files else section

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.fps is not None and self.frames is None:
            raise ValueError("fps is of videos; say in `frames` how many of each make a clip")
        if self.frames is not None and isinstance(self.control, Column):
            raise ValueError("clips have no maps beside them")
        if self.path is None and self.files is None:
            raise ValueError("needs `path` (a name on the hub) or `files` (local files)")
        return self

    @property
    def image(self) -> tuple[int, ...]:
        return (*self._before, self.size, self.size)

    @property
    def _before(self) -> tuple[int, ...]:
        return (self.channels,) if self.frames is None else (self.channels, self.frames)

    @property
    def label(self) -> str:
        """The name of the data set in messages."""
        if self.files is None:
            return f"'{self.path}'"
        first = next(iter(_files(self.files).values()))[0]
        return f"'{first}'"

    def open(self, split: SplitName) -> Split:
        files = _expand(_files(self.files)) if self.files is not None else None
        loaded = _load(self, files)
        train = self.train_split
        if train not in loaded:
            raise DataError(f"{self.label} has no split '{train}'; it has {', '.join(loaded)}: see data.train_split")
        if self.test_split is not None and self.test_split not in loaded:
            raise DataError(f"{self.label} has no split '{self.test_split}'; it has {', '.join(loaded)}")
        test, notes = self._find_test(loaded)
        source = test if split == "test" and test is not None else train
        if split == "test" and test is None and self.holdout == 0:
            raise DataError(f"{self.label} has no test split: set data.holdout or data.test_split")
        opened = (self._stream if self.streaming else self._table)(loaded, files, source, split, test is not None)
        opened.notes = (*notes, *opened.notes)
        return templated(opened, self.caption_templates)

    def _find_test(self, loaded: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
        """The test split, if there is one, and a sentence about those that have no labels.

        Competitions publish their test images with a label of -1, or without the column.
        """
        if self.test_split is not None:
            return self.test_split, ()
        candidates = [name for name in TEST_SPLITS if name in loaded and name != self.train_split]
        bare = []
        for name in candidates:
            if self._has_labels(loaded, name):
                break
            bare.append(name)
        found = next((name for name in candidates if name not in bare), None)
        instead = f"'{found}' is the test split" if found else f"a part of '{self.train_split}' is held out"
        return found, tuple(f"{self.label} has no labels in its split '{name}', so {instead}" for name in bare)

    def _has_labels(self, loaded: Mapping[str, Any], name: str) -> bool:
        """Whether a split has labels, if the training split has; of a stream the first rows are looked at."""
        train, where = loaded[self.train_split], f"{self.label}, split '{self.train_split}'"
        column = find_label_column(_features(train, where), self.label_column, where)
        if column is None:
            return True
        if column not in _features(loaded[name], f"{self.label}, split '{name}'"):
            return False
        if self.streaming:
            labels = [row[column] for row in Opened(loaded[name], [column], f"{self.label}, split '{name}'").first()]
        else:
            labels = _values(loaded[name], column)
        return not all(label is None or label == -1 for label in labels)

    def _table(
        self, loaded: Mapping[str, Dataset], files: _Paths | None, source: str, split: SplitName, whole: bool
    ) -> DecodedSplit:
        data, where = loaded[source], f"{self.label}, split '{source}'"
        images = self._find_images(data.features, files, where)
        first = loaded[self.train_split]  # both splits must use the same classes
        column = find_label_column(first.features, self.label_column, f"{self.label}, split '{self.train_split}'")
        if column is None:
            classes, labels = self._one_class(where), torch.zeros(len(data), dtype=torch.int64)
        else:
            find_label_column(data.features, column, where)
            known = read_classes(first.features[column], self.classes, _values(first, column), column, where)
            classes, labels = known, known.labels(_values(data, column), where)
        rows = torch.arange(len(data))
        if not whole:
            if len(data) < 2:
                raise DataError(f"{where} has {len(data)} rows, too few to hold any out")
            rows = hold_out(labels, self.holdout, self.seed)[0 if split == "train" else 1]
        if not len(rows):
            raise DataError(f"{where} has no rows")
        captions = self._find_captions(data.features, (*images.columns, column), where)
        uncaptioned, notes = None, []
        if captions is not None:
            uncaptioned = int((~find_captioned(data, captions)[rows]).sum())
            if uncaptioned == len(rows):
                self._refuse_empty(captions, where)
                captions = uncaptioned = None
            elif uncaptioned:
                notes.append(describe_missing(uncaptioned, len(rows), where))
        shape = (*self._before, self.side, self.side)
        identity = _identity(data, files, source)
        told: list[object] = [captions] if captions else []
        told += [] if self.fps is None else [self.fps]
        parts = (identity, shape, classes.names, images.column, column, digest_tensor(rows), *told)
        keep = keep_in_memory(self.in_memory, len(rows), shape, self.workers)
        stored, fingerprint = Rows(data, images, captions, rows), digest_parts("hub", *parts)
        return DecodedSplit(
            stored, labels[rows], classes.names, shape, fingerprint, keep, notes, uncaptioned, images.channels
        )

    def _find_images(self, features: Any, files: _Paths | None, where: str) -> Images:
        places, control = Places.of(self.path, files), self.control
        if not isinstance(control, Column):
            clip = None if self.frames is None else (self.frames, self.fps)
            return Images(find_image_column(features, self.image_column, where, clip is not None), places, clip=clip)
        maps = find_map_column(features, control.column, where)
        others = type(features)({name: feature for name, feature in features.items() if name != maps})
        return Images(find_image_column(others, self.image_column, where), places, maps, control.channels)

    def _find_captions(self, features: Any, taken: Sequence[str | None], where: str) -> str | None:
        return None if self.caption_templates else find_caption_column(features, self.caption_column, taken, where)

    def _refuse_empty(self, column: str, where: str) -> None:
        """Raise a DataError for a column of captions without any, if the config names it."""
        if self.caption_column is not None:
            raise DataError(f"column '{column}' of {where} is empty: name another column in data.caption_column")

    def _stream(
        self, loaded: Mapping[str, IterableDataset], files: _Paths | None, source: str, split: SplitName, whole: bool
    ) -> StreamSplit:
        data, where = loaded[source], f"{self.label}, split '{source}'"
        features = _features(data, where)
        images = self._find_images(features, files, where)
        column = find_label_column(features, self.label_column, where)
        if column is None:
            classes = self._one_class(where)
        else:
            classes = read_classes(features[column], self.classes, None, column, where)
        captions = self._find_captions(features, (*images.columns, column), where)
        if captions and not any(read_texts(row[captions]) for row in Opened(data, [captions], where).first()):
            self._refuse_empty(captions, where)
            captions = None
        told = [] if captions is None else [captions]
        paced = [] if self.fps is None else [self.fps]
        columns = [name for name in (*images.columns, column, *told) if name is not None]
        count = self.lengths.get(source) or _rows(data, files, source)
        if count is None:
            raise DataError(f"{where} does not say how many rows it streams: set data.lengths.{source}")
        shape = (*self._before, self.side, self.side)
        part = None if whole else (self.holdout, self.seed, split == "test")
        identity = _identity(data, files, source)
        return StreamSplit(
            Opened(images.undecoded(data), columns, where),
            Items(images, column, captions),
            classes,
            shape,
            digest_parts(
                "stream", identity, shape, classes.names, images.column, column, count, part, split, *told, *paced
            ),
            count,
            part,
            self.shuffle_buffer if split == "train" else 1,
            self.seed,
            where,
            captions is not None,
        )

    def _one_class(self, where: str) -> Classes:
        if self.classes is not None and len(self.classes) > 1:
            raise DataError(f"data.classes names {len(self.classes)} classes, but {where} has no label column")
        return Classes(tuple(self.classes or ("all",)), {None: 0})

    @classmethod
    def tiny(cls, folder: Path) -> Config:
        import pyarrow
        from pyarrow import parquet

        images = [Image.new("RGB", (9, 8), (index * 8, 200 - index, 255 - index * 9)) for index in range(24)]
        table = {"img": [_png(image) for image in images], "label": [index % 3 for index in range(24)]}
        folder.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(table), folder / "pictures.parquet")
        return cls(files=str(folder / "pictures.parquet"), size=8, holdout=0.25)


def _png(image: Image.Image) -> dict[str, object]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


# ---------------------------------------------------------------------------------------------- files and loading

_Paths = dict[str, list[str]]


def _files(files: str | Sequence[str] | Mapping[str, str | list[str]]) -> _Paths:
    by_split = files if isinstance(files, Mapping) else {"train": files}
    return {split: [paths] if isinstance(paths, str) else list(paths) for split, paths in by_split.items()}


def _expand(files: _Paths) -> _Paths:
    """Expand the patterns of files; URLs are unchanged. DataError: a file does not exist."""
    found: _Paths = {}
    for split, paths in files.items():
        found[split] = []
        for path in paths:
            matches = [path] if "://" in path else sorted(glob.glob(path))
            if not matches:
                raise DataError(f"there is no file {path} (data.files, split '{split}')")
            if other := [match for match in matches if "://" not in match and not os.path.isfile(match)]:
                raise DataError(f"{other[0]} is no file (data.files, split '{split}')")
            found[split].extend(matches)
        if not found[split]:
            raise DataError(f"data.files lists no file for the split '{split}'")
    return found


def _load(config: Config, files: _Paths | None) -> DatasetDict | IterableDatasetDict:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    path = config.path
    if path is None:
        ending = Path(next(iter(files.values()))[0]).suffix if files else ""
        if ending not in FORMATS:
            raise DataError(f"files ending in '{ending}' need data.path to name their format, such as parquet")
        path = FORMATS[ending]
    elif files is None and path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise DataError(f"there is no folder {path} (data.path)")
    try:
        return datasets.load_dataset(
            path, config.name, data_files=files, revision=config.revision, streaming=config.streaming
        )
    except DatasetNotFoundError:
        raise DataError(f"there is no data set {config.label} on the hub, or it needs a login") from None
    except ConnectionError:
        raise DataError(unreachable(config.label)) from None
    except Exception as error:  # builders raise the errors of their file formats
        raise DataError(f"{config.label} cannot be loaded: {' '.join(str(error).split())[:200]}") from None


def _identity(data: Dataset | IterableDataset, files: _Paths | None, source: str) -> str:
    """Digest of a split's source: its local files, or its version on the hub."""
    local = [Path(path) for path in files[source]] if files is not None else []
    if local and all(path.is_file() for path in local):
        return digest_files(local, [path.name for path in local])
    info = data.info
    checksums = sorted(info.download_checksums or {})
    fingerprint = getattr(data, "_fingerprint", "") if not checksums else ""
    return digest_parts(
        info.builder_name, info.config_name, info.version, info.dataset_size, checksums, fingerprint, source
    )


def _rows(data: IterableDataset, files: _Paths | None, source: str) -> int | None:
    """Rows of a streamed split, from the hub's metadata or the footers of local parquet files."""
    from pyarrow import parquet

    known = (data.info.splits or {}).get(source)
    if known is not None and known.num_examples:
        return int(known.num_examples)
    local = files[source] if files is not None else []
    if local and all(path.endswith(".parquet") and Path(path).is_file() for path in local):
        return sum(parquet.read_metadata(path).num_rows for path in local)
    return None


def _features(data: Any, where: str) -> Any:
    features = data.features or data._resolve_features().features
    if features is None:
        raise DataError(f"{where} streams nothing")
    return features


def _values(data: Dataset, column: str) -> list[object]:
    return list(data.select_columns([column])[:][column])
