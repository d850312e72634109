"""Images in class folders: ROOT/<class>/..., or ROOT/train/<class>/... and ROOT/test/<class>/..."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from pydantic import Field

from artok.data.base import DataConfig, SplitName
from artok.data.fingerprints import digest_files, digest_parts
from artok.data.holdout import hold_out
from artok.data.pictures import Encoded
from artok.data.splits import DecodedSplit, keep_in_memory
from artok.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TEST_FOLDERS = ("test", "val", "valid", "validation")


class Config(DataConfig):
    """`data: {kind: folder, root: DIR}`.

    A class is a folder in ROOT, or in ROOT/train and ROOT/test (val, valid and validation mean test too), with all
    images below it. Images without class folders form one class, "all". Without a test folder, `holdout` of each class
    is held out, drawn by `seed`.

    in_memory: keep decoded images. Default: up to 1 GiB without workers (each worker would keep its own copy).
    """

    kind: Literal["folder"] = "folder"
    root: Path
    holdout: float = Field(0.1, ge=0, lt=1)
    seed: int = 0
    in_memory: bool | None = None

    def open(self, split: SplitName) -> DecodedSplit:
        if not self.root.is_dir():
            raise DataError(f"there is no folder {self.root}; data.root names the folder that holds the class folders")
        train_root = self.root / "train" if (self.root / "train").is_dir() else self.root
        test_root = next((self.root / name for name in TEST_FOLDERS if (self.root / name).is_dir()), None)
        if train_root == self.root and test_root is not None:
            raise DataError(f"{self.root} has a folder '{test_root.name}' but no folder 'train' beside it")
        found = _class_files(train_root)
        classes = tuple(found)
        if split == "test" and test_root is not None:
            found, root = _class_files(test_root), test_root
            if strange := sorted(set(found) - set(classes)):
                raise DataError(f"{test_root} has the class folder '{strange[0]}', which {train_root} does not have")
        else:
            root = train_root
        paths = [path for files in found.values() for path in files]
        labels = torch.tensor([classes.index(name) for name, files in found.items() for _ in files])
        if test_root is None:
            if split == "test" and (self.holdout == 0 or len(paths) < 2):
                raise DataError(f"nothing of {self.root} is held out: add a folder 'test', images, or data.holdout")
            train, test = hold_out(labels, self.holdout, self.seed)
            rows = train if split == "train" else test
            paths, labels = [paths[row] for row in rows.tolist()], labels[rows]
        shape = (self.channels, self.side, self.side)
        names = [path.relative_to(root).as_posix() for path in paths]
        return DecodedSplit(
            _Files(paths, names),
            labels,
            classes,
            shape,
            digest_parts("folder", shape, classes, digest_files(paths, names)),
            keep_in_memory(self.in_memory, len(paths), shape, self.workers),
        )

    @classmethod
    def tiny(cls, folder: Path) -> Config:
        for index in range(24):
            place = folder / "pictures" / ("dark" if index % 2 else "light")
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (10, 8), (index * 10, 255 - 100 * (index % 2), 40)).save(place / f"{index:02}.png")
        return cls(root=folder / "pictures", size=8, holdout=0.25)


class _Files:
    def __init__(self, paths: Sequence[Path], names: Sequence[str]) -> None:
        self._paths, self._names = [str(path) for path in paths], list(names)

    def fetch(self, indices: Sequence[int]) -> list[Encoded]:
        return [self._paths[index] for index in indices]

    def name(self, index: int) -> str:
        return self._names[index]


def _class_files(root: Path) -> dict[str, list[Path]]:
    """The images of each class folder of `root`, all sorted by name."""
    loose = _images(root, deep=False)
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    found = {folder.name: files for folder in folders if (files := _images(folder, deep=True))}
    if loose and found:
        raise DataError(
            f"{root} holds both images (such as {loose[0].name}) and class folders (such as {next(iter(found))}); "
            "move the images into class folders"
        )
    if loose:
        return {"all": loose}
    if not found:
        raise DataError(f"{root} holds no images ({', '.join(ending[1:] for ending in ENDINGS)})")
    return found


def _images(folder: Path, deep: bool) -> list[Path]:
    found: list[Path] = []
    for place, subfolders, files in os.walk(folder, followlinks=True):
        found.extend(Path(place, name) for name in files if name.lower().endswith(ENDINGS) and not name.startswith("."))
        subfolders[:] = [name for name in subfolders if deep and not name.startswith(".")]
    return sorted(found)
