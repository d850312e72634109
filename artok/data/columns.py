"""Finds the image, label and caption columns of a table, and its classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from artok.errors import DataError

if TYPE_CHECKING:
    from datasets import Features

IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "jpg;png;webp")
VIDEO_NAMES = ("video", "videos", "clip", "clips", "mp4", "webm", "gif")
CAPTION_NAMES = (
    "caption", "captions", "text", "texts", "txt", "prompt", "prompts", "description", "descriptions", "sentences"
)  # fmt: skip
LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "target", "y")


def find_image_column(features: Features, named: str | None, where: str, videos: bool = False) -> str:
    """The named column, else one of type Image (usual names first), else one of bytes with a usual name.

    videos: of type Video, with usual names of videos.
    """
    from datasets import Image, Video

    if named is not None:
        return _named(features, named, where, "data.image_column")
    kind, names = (Video, VIDEO_NAMES) if videos else (Image, IMAGE_NAMES)
    typed = [name for name, feature in features.items() if isinstance(feature, kind)]
    usual = [name for name in names if name in features and (name in typed or _holds_files(features[name]))]
    found = [name for name in usual if name in typed] + typed + usual
    if not found:
        what = "videos" if videos else "images"
        raise DataError(
            f"no column of {where} holds {what}; its columns are {', '.join(features)}: name one in data.image_column"
        )
    return found[0]


def find_map_column(features: Features, named: str, where: str) -> str:
    """The named column, which must hold pictures, or paths of them."""
    from datasets import Image

    feature = features[_named(features, named, where, "data.control.column")]
    if not (isinstance(feature, Image) or _holds_files(feature) or _holds_texts(feature)):
        raise DataError(f"column '{named}' of {where} holds {feature}, not pictures (data.control.column)")
    return named


def find_label_column(features: Features, named: str | None, where: str) -> str | None:
    """The named column, else one with a usual name, else the first of type ClassLabel, else None (one class)."""
    from datasets import ClassLabel

    if named is not None:
        return _named(features, named, where, "data.label_column")
    typed = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    return next((name for name in [*LABEL_NAMES, *typed] if name in features), None)


def find_caption_column(features: Features, named: str | None, taken: Sequence[str | None], where: str) -> str | None:
    """The named column, else one of texts, or of lists of texts, with a usual name, else None. taken: other columns."""
    if named is None:
        return next((name for name in CAPTION_NAMES if name not in taken and _holds_texts(features.get(name))), None)
    if not _holds_texts(features[_named(features, named, where, "data.caption_column")]):
        raise DataError(f"column '{named}' of {where} holds {features[named]}, not texts or lists of texts")
    return named


def _holds_texts(feature: object) -> bool:
    inside = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
    return getattr(inside, "dtype", None) in ("string", "large_string")


def _named(features: Features, name: str, where: str, key: str) -> str:
    if name not in features:
        raise DataError(f"{where} has no column '{name}' ({key}); its columns are {', '.join(features)}")
    return name


def _holds_files(feature: object) -> bool:
    """Whether a column is binary or pairs of bytes and path, the storage of images without type Image."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


@dataclass(frozen=True)
class Classes:
    """names: of the classes. table: stored label to class index."""

    names: tuple[str, ...]
    table: Mapping[object, int]

    def labels(self, values: Iterable[object], where: str, start: int = 0) -> Tensor:
        """Class indices (N,) int64. DataError: a label is outside the classes; the message names the first."""
        labels = []
        for index, value in enumerate(values, start):
            label = self.table.get(value, -1)
            if label < 0:
                shown = ", ".join(self.names[:3]) + (", ..." if len(self.names) > 3 else "")
                raise DataError(
                    f"label {value!r} at index {index} of {where} is outside the {len(self.names)} classes ({shown})"
                )
            labels.append(label)
        return torch.tensor(labels, dtype=torch.int64)


def read_classes(
    feature: object, given: Sequence[str] | None, values: Iterable[object] | None, column: str, where: str
) -> Classes:
    """The classes of a label column.

    given: names from the config. They replace the names of a ClassLabel column. In other columns integers are indices
    into them; without them, the classes are the sorted distinct `values`. values: None for a stream.
    """
    from datasets import ClassLabel

    dtype = str(getattr(feature, "dtype", "list"))
    if not isinstance(feature, ClassLabel) and not dtype.startswith(("int", "uint", "string", "large_string", "bool")):
        raise DataError(f"column '{column}' of {where} holds {dtype}, not class labels")
    if isinstance(feature, ClassLabel):
        names = feature.names
        if given is not None and len(given) != len(names):
            raise DataError(f"data.classes names {len(given)} classes, but {where} has {len(names)}")
        return Classes(tuple(given or names), {index: index for index in range(len(names))})
    if given is not None:
        by_name = "string" in dtype
        return Classes(tuple(given), {name if by_name else index: index for index, name in enumerate(given)})
    if values is None:
        raise DataError(f"column '{column}' of {where} does not name its classes: list their names in data.classes")
    distinct = sorted({value for value in values if value is not None}, key=lambda value: (str(type(value)), value))
    return Classes(tuple(map(str, distinct)), {value: index for index, value in enumerate(distinct)})
