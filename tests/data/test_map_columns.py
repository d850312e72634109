"""Maps that come with the data, in folders and tables: each stays with its image, and mistakes are said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from helpers.images import encoded
from PIL import Image
from pyarrow import parquet
from torch import Tensor

from artok.config import validate
from artok.data import digits, folder, hub
from artok.data.base import Augment, DataConfig
from artok.data.loader import Batch, Loader, evaluation_batches
from artok.errors import ConfigError, DataError
from artok.images import to_uint8

COUNT, DEPTH = 24, {"kind": "column", "column": "depth"}
CHANGES = Augment(flip=True, shift=0.2, rotate=30, crop="random")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    yield


def picture(number: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    """An image of random pixels, whose red channel is its map."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def depth(number: int) -> Image.Image:
    return picture(number).getchannel("R")


def section(root: Path, **changes: Any) -> folder.Config:
    return validate(folder.Config, {"root": root, "size": 8, "resize": 12, "control": DEPTH} | changes, "test")


def beside(root: Path) -> folder.Config:
    for number in range(COUNT):
        place = root / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture(number).save(place / f"{number:02}.png")
        depth(number).save(place / f"{number:02}.depth.png")
    return section(root)


def listed(root: Path, column: str = "depth", where: str = "maps") -> folder.Config:
    """Loose images and a table that names their maps, which lie in another folder."""
    rows = []
    (root / where).mkdir(parents=True)
    for number in range(COUNT):
        picture(number).save(root / f"{number:02}.png")
        depth(number).save(root / where / f"{number:02}.png")
        rows.append({"file_name": f"{number:02}.png", column: f"{where}/{number:02}.png"})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return section(root)


def table(root: Path, streaming: bool = False, depths: list[Any] | None = None) -> hub.Config:
    images, maps = ([{"bytes": encoded(make(n)), "path": None} for n in range(COUNT)] for make in (picture, depth))
    root.mkdir(parents=True)
    parquet.write_table(pyarrow.table({"depth": depths or maps, "image": images}), root / "a.parquet")
    settings = {"files": str(root / "a.parquet"), "size": 8, "resize": 12, "control": DEPTH, "streaming": streaming}
    return validate(hub.Config, settings, "test")


SOURCES = {
    "beside": beside,
    "listed": listed,
    "imagefolder": lambda root: listed(root, "depth_file_name"),
    "table": table,
    "stream": lambda root: table(root, streaming=True),
}


def assert_in_register(batch: Batch) -> None:
    """Both are resampled by the same arithmetic, channel by channel, so that they agree to the bit."""
    assert batch.control is not None and batch.control.shape == (len(batch), 1, 8, 8)
    assert torch.equal(batch.control, to_uint8(batch.images)[:, :1])
    assert not torch.equal(batch.control, to_uint8(batch.images)[:, 1:2])


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_a_map_is_resized_cropped_and_mirrored_with_its_image(tmp_path: Path, source: str, in_memory: bool) -> None:
    data: DataConfig = SOURCES[source](tmp_path / "data").model_copy(update={"augment": CHANGES})
    data = data.model_copy(update={"in_memory": in_memory})
    train, test = data.open("train"), data.open("test")
    assert len(train) + len(test) == COUNT and train.shape == (3, 12, 12)
    with Loader(train, data, 8, seed=3) as loader:
        for _ in range(4):
            assert_in_register(next(loader))
    assert_in_register(next(evaluation_batches(test, data, 8)))


def test_without_control_the_maps_of_a_table_are_not_read(tmp_path: Path) -> None:
    plain = table(tmp_path / "data", depths=["no picture"] * COUNT)
    plain = plain.model_copy(update={"control": None, "image_column": "image"})
    assert plain.open("train").read([0]).maps is None


def test_changed_maps_change_the_fingerprint(tmp_path: Path) -> None:
    data = beside(tmp_path / "data")
    before = data.open("train").fingerprint
    for path in (tmp_path / "data").rglob("*.depth.png"):
        Image.new("L", (20, 16), 7).save(path)
    assert data.open("train").fingerprint != before


def test_maps_may_be_smaller_and_have_colours(tmp_path: Path) -> None:
    data = beside(tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.depth.png"):
        Image.new("RGB", (10, 8), (255, 0, 10)).save(path)
    data = data.model_copy(update={"control": validate(type(data.control), DEPTH | {"channels": 3}, "test")})
    maps = data.open("train").read([0, 1]).maps
    assert maps is not None and maps[:, :, 0, 0].tolist() == [[255, 0, 10]] * 2


# ------------------------------------------------------------------------------------------------- mistakes


def first(data: DataConfig) -> Tensor | None:
    return next(evaluation_batches(data.open("train"), data, COUNT)).control


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: path.unlink(), r"\d\d.png \(its map is missing\)"),
        (lambda path: Image.new("L", (16, 16)).save(path), "its map has 16x16 pixels and the image 20x16, which are"),
        (lambda path: path.write_bytes(b"no picture"), "its map: it is no picture of a known format"),
    ],
    ids=["missing", "proportions", "damaged"],
)
def test_a_map_that_cannot_be_used_is_said_with_its_image(tmp_path: Path, spoil: Any, message: str) -> None:
    data = beside(tmp_path / "data").model_copy(update={"holdout": 0.0})
    spoil(tmp_path / "data" / "a" / "02.depth.png")
    with pytest.raises(DataError, match=f"1 of 24 images cannot be read, more than 1%, such as .*{message}") as raised:
        first(data)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_without_a_map_is_said(tmp_path: Path, streaming: bool) -> None:
    maps: list[Any] = [{"bytes": encoded(depth(number)), "path": None} for number in range(COUNT)]
    with pytest.raises(DataError, match=r"row \d+ \(its map is missing\)"):
        first(table(tmp_path / "data", streaming, [None] * 12 + maps[12:]))


def test_data_without_the_column_are_refused(tmp_path: Path) -> None:
    data = beside(tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.depth.png"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"no image of \S+ has a map 'depth' .* no file NAME.depth.png beside a NAME.png"
    ):
        data.open("train")
    there = table(tmp_path / "table")
    control = validate(type(there.control), {"kind": "column", "column": "normals"}, "test")
    with pytest.raises(
        DataError, match=r"has no column 'normals' \(data.control.column\); its columns are depth, image"
    ):
        there.model_copy(update={"control": control}).open("train")
    shutil.rmtree(tmp_path / "table")
    numbers = table(tmp_path / "table", depths=list(range(COUNT)))
    with pytest.raises(DataError, match=r"column 'depth' of .* holds .*int64.*, not pictures"):
        numbers.open("train")


def test_data_that_hold_no_maps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"has images without maps beside them, which data.control asks for"):
        validate(digits.Config, {"kind": "digits", "control": DEPTH}, "test")
    with pytest.raises(ConfigError, match="must be the name of a column"):
        validate(
            folder.Config, {"kind": "folder", "root": "x", "size": 8, "control": DEPTH | {"column": "a/b"}}, "test"
        )
