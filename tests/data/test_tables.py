"""Tables of images: which split is the test split, and which files a row may name."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from helpers.images import encoded, paint, values
from PIL import Image
from pyarrow import parquet

from artok.data import hub
from artok.data.loader import AHEAD, Loader
from artok.data.pictures import Unreadable
from artok.data.places import Places
from artok.data.streaming import Row, StreamSplit
from artok.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    yield


def write(path: Path, images: list[Any], labels: list[Any] | None) -> str:
    columns = {"image": images} | ({} if labels is None else {"label": labels})
    parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def grey(count: int, first: int = 0) -> list[dict[str, object]]:
    shades = range(first, first + count)
    return [{"bytes": encoded(Image.new("RGB", (8, 8), (each,) * 3)), "path": None} for each in shades]


# ---------------------------------------------------------------------------------------------- test splits


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("missing", [[-1] * 4, [None] * 4, None])
def test_a_test_split_without_labels_is_passed_over(tmp_path: Path, missing: list[Any] | None, streaming: bool) -> None:
    files = {
        "train": write(tmp_path / "a.parquet", grey(40), [index % 2 for index in range(40)]),
        "test": write(tmp_path / "b.parquet", grey(4, 100), missing),
        "validation": write(tmp_path / "c.parquet", grey(3, 200), [1, 0, 1]),
    }
    settings = hub.Config(files=files, size=8, streaming=streaming, classes=["x", "y"])
    test = settings.open("test")
    assert values(test) == [200, 201, 202] and test.read(range(3)).labels.tolist() == [1, 0, 1]
    (note,) = test.notes
    assert note.endswith("has no labels in its split 'test', so 'validation' is the test split")
    del files["validation"]
    settings = hub.Config(files=files, size=8, streaming=streaming, classes=["x", "y"])
    train, test = settings.open("train"), settings.open("test")
    assert sorted(values(train) + values(test)) == list(range(40)) and len(test) > 0
    assert test.notes[0].endswith("so a part of 'train' is held out") and train.notes == test.notes
    with pytest.raises(DataError, match=r"(label (-1|None) at index 0 of .*'test'|no column 'label')"):
        hub.Config(files=files, size=8, classes=["x", "y"], test_split="test").open("test")


def test_an_unlabelled_table_needs_no_labels_in_its_test_split(tmp_path: Path) -> None:
    files = {
        "train": write(tmp_path / "a.parquet", grey(10), None),
        "test": write(tmp_path / "b.parquet", grey(4, 100), None),
    }
    split = hub.Config(files=files, size=8).open("test")
    assert values(split) == [100, 101, 102, 103] and split.notes == ()


# ---------------------------------------------------------------------------------------------- files that rows name


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_may_name_files_beside_their_table_only(tmp_path: Path, streaming: bool) -> None:
    data = tmp_path / "data"
    for index in range(4):
        paint(data / "pictures" / f"{index}.png", index)
    paint(tmp_path / "secret.png", 99)
    places = [str(data / "pictures" / "0.png"), "pictures/1.png", "./pictures/2.png", "pictures/3.png"]
    table = write(data / "a.parquet", [{"bytes": None, "path": place} for place in places], None)
    settings = hub.Config(files=table, size=8, holdout=0, streaming=streaming)
    assert sorted(values(settings.open("train"))) == [0, 1, 2, 3]
    outside = [
        str(tmp_path / "secret.png"),
        "../secret.png",
        f"{data}/pictures/../../secret.png",
        f"file://{tmp_path}/secret.png",
        f"zip://secret.png::{tmp_path}/secret.zip",
        f"http://127.0.0.1:9/x::{data}/a.parquet",
        "http://127.0.0.1:9/secret.png",
    ]
    for place in outside:
        stored = [{"bytes": None, "path": place}] * 2
        split = hub.Config(files=write(data / "b.parquet", stored, None), size=8, holdout=0, streaming=streaming)
        with pytest.raises(DataError, match=r"row \d \(it names .*, which is not one of the data's own files\)"):
            split.open("train").read([0])


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_and_archives_of_pictures_still_open(tmp_path: Path, streaming: bool) -> None:
    for index in range(3):
        paint(tmp_path / "plain" / "train" / "a" / f"{index}.png", index)
    (tmp_path / "packed").mkdir()
    with zipfile.ZipFile(tmp_path / "packed" / "train.zip", "w") as archive:
        for path in sorted((tmp_path / "plain" / "train" / "a").iterdir()):
            archive.write(path, f"a/{path.name}")
    for name in ("plain", "packed"):
        settings = hub.Config(
            path=str(tmp_path / name), size=8, holdout=0, streaming=streaming, classes=["a"], lengths={"train": 3}
        )
        assert sorted(values(settings.open("train"))) == [0, 1, 2]
    shutil.move(tmp_path / "plain", tmp_path / "moved")
    (tmp_path / "plain").symlink_to(tmp_path / "moved")
    settings = hub.Config(path=str(tmp_path / "plain"), size=8, holdout=0, streaming=streaming, classes=["a"])
    assert sorted(values(settings.model_copy(update={"lengths": {"train": 3}}).open("train"))) == [0, 1, 2]


def test_addresses_of_the_data_set_itself_are_its_own() -> None:
    own = Places.of("someone/pictures", None)
    for place in (
        "hf://datasets/someone/pictures@main/a.png",
        "hf://datasets/someone/pictures/a.png",
        "zip://a/0.png::hf://datasets/someone/pictures@main/a.zip",
        "https://huggingface.co/datasets/someone/pictures/resolve/main/a.png",
    ):
        assert own.stored({"bytes": None, "path": place}) == place
    for place in (
        "hf://datasets/someone/pictures2/a.png",
        "hf://datasets/someone/pictures/../../other/a.png",
        "https://example.org/a.png",
        "/etc/passwd",
    ):
        assert isinstance(own.stored({"bytes": None, "path": place}), Unreadable)
    remote = Places.of(None, {"train": ["https://example.org/data/a.parquet"]})
    assert remote.stored("https://example.org/data/1.png") == "https://example.org/data/1.png"
    assert isinstance(remote.stored("https://example.org/other/1.png"), Unreadable)
    assert isinstance(remote.stored("https://example.org.evil/data/1.png"), Unreadable)
    assert remote.stored({"bytes": b"x", "path": "/etc/passwd"}) == b"x" and remote.stored(None) is None


# ---------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_reads_a_stream_once_whatever_its_workers(tmp_path: Path, workers: int) -> None:
    table = write(tmp_path / "a.parquet", grey(120), [0] * 120)
    settings = hub.Config(
        files=table, size=8, holdout=0, streaming=True, classes=["a"], shuffle_buffer=10, workers=workers
    )
    split = settings.open("train")
    assert isinstance(split, StreamSplit)
    rows, count = split._rows, multiprocessing.Value("i", 0)

    def counted() -> Iterator[Row]:
        for row in rows():
            with count.get_lock():
                count.value += 1
            yield row

    split._rows = counted
    with Loader(split, settings, 8, seed=0) as loader:
        shown = torch.cat([next(loader).pixels[:, 0, 0, 0] for _ in range(10)])
    assert len(shown.unique()) == 80
    assert 80 <= count.value <= 80 + 10 + 8 * (AHEAD + 2)  # what was shown, the buffer, and what was read ahead


def test_rows_beyond_the_given_length_are_said(tmp_path: Path) -> None:
    table = write(tmp_path / "a.parquet", grey(30), [0] * 30)
    settings = hub.Config(
        files=table, size=8, holdout=0, streaming=True, classes=["a"], shuffle_buffer=1, lengths={"train": 20}
    )
    split = settings.open("train")
    split.read(range(19))
    assert split.notes == ()
    assert split.read([19]).images[0, 0, 0, 0] == 19
    assert len(split.notes) == 1 and "more than the 20 rows that data.lengths says" in split.notes[0]
    whole = settings.model_copy(update={"lengths": {"train": 30}}).open("train")
    whole.read(range(61))
    assert whole.notes == ()


def test_a_pipe_in_place_of_a_table_is_a_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet is no file \(data.files, split 'train'\)"):
        hub.Config(files=str(tmp_path / "*.parquet"), size=8).open("train")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_pipe_in_a_folder_of_pictures_is_no_picture(tmp_path: Path, streaming: bool) -> None:
    paint(tmp_path / "train" / "a" / "0.png", 0)
    os.mkfifo(tmp_path / "train" / "a" / "1.png")
    settings = hub.Config(
        path=str(tmp_path), size=8, holdout=0, streaming=streaming, classes=["a"], lengths={"train": 2}
    )
    with pytest.raises(DataError):
        settings.open("train").read([0, 1])


def test_a_batch_over_the_end_of_a_pass_replaces_unreadable_images_without_going_back(tmp_path: Path) -> None:
    images = grey(120)
    images[118] = {"bytes": b"broken", "path": None}
    table = write(tmp_path / "a.parquet", images, [0] * 120)
    settings = hub.Config(files=table, size=8, holdout=0, streaming=True, classes=["a"], shuffle_buffer=1)
    split = settings.open("train")
    assert isinstance(split, StreamSplit)
    opened, rows = itertools.count(), split._rows
    split._rows = lambda: (next(opened), rows())[1]
    assert split.read(range(116, 124)).images[:, 0, 0, 0].tolist() == [116, 117, 119, 119, 0, 1, 2, 3]
    assert split.read(range(124, 128)).images[:, 0, 0, 0].tolist() == [4, 5, 6, 7]
    assert next(opened) == 2
