"""Captions of data: files beside images, columns of tables, streams, and templates of class names."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from helpers.images import encoded, paint
from PIL import Image
from pyarrow import parquet

from artok.config import find, kinds, validate
from artok.data import digits, folder, hub
from artok.data.base import Captions, DataConfig, Split
from artok.data.captions import StoredCaptions
from artok.data.loader import Loader
from artok.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    yield


def told(split: Split) -> dict[int, tuple[str, ...]]:
    """The captions of each image by its shade of grey."""
    read = split.read(range(len(split)))
    assert read.captions is not None
    return dict(zip(read.images[:, 0, 0, 0].tolist(), read.captions, strict=True))


def images_in(root: Path, names: list[str]) -> Path:
    for value, name in enumerate(names):
        paint(root / name, value)
    return root


def whole(root: Path, **settings: Any) -> Split:
    return folder.Config(root=root, size=8, holdout=0, **settings).open("train")


def test_stored_captions_are_any_texts() -> None:
    captions: Captions = [("a", 'b "c"\n'), (), ("日本 €", ""), ("\ud800",)]
    stored = StoredCaptions.join([StoredCaptions.of(captions[:2]), StoredCaptions.of(captions[2:])])
    assert stored[torch.tensor([3, 1, 0, 2])] == [("?",), (), captions[0], captions[2]]
    assert stored.distinct() == ["a", 'b "c"\n', "日本 €", "", "?"]


# ---------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("names", [["0.png", "1.jpg", "2.png"], ["x/0.png", "x/deep/1.jpg", "y/2.png"]])
def test_text_files_beside_images(tmp_path: Path, names: list[str]) -> None:
    root = images_in(tmp_path, names)
    plain = whole(root)
    assert not plain.captioned and plain.read([0]).captions is None
    (root / names[0]).with_suffix(".txt").write_text("a cat\n\n  a black cat \n")
    (root / names[1]).with_suffix(".txt").write_text("\ufeffein Hund, groß", encoding="utf-8")
    (root / names[1]).with_name("notes.txt").write_text("of no image")
    split = whole(root)
    assert split.captioned and split.uncaptioned == 1
    assert told(split) == {0: ("a cat", "a black cat"), 1: ("ein Hund, groß",), 2: ()}
    assert any(f"1 of 3 images of {root} have no caption" in note for note in split.notes)
    assert any("no image format (1: .txt 1)" in note for note in split.notes)
    before = split.fingerprint
    assert before not in (plain.fingerprint, "") and whole(root).fingerprint == before
    (root / names[0]).with_suffix(".txt").write_text("a dog\n\n  a black dog \n")
    assert whole(root).fingerprint != before


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_tables_beside_images(tmp_path: Path, kind: str) -> None:
    root = images_in(tmp_path, ["train/a/0.png", "train/b/1.png", "test/a/2.png"])
    rows = [
        {"file_name": "train/a/0.png", "score": 1, "text": 'one, "quoted"\nand a second line'},
        {"file_name": "./train/b/1.png", "score": 2, "text": ""},
        {"file_name": "test/a/2.png", "score": 3, "text": "three"},
    ]
    write_table(root / f"metadata.{kind}", rows)
    (root / "train/b/1.txt").write_text("from the text file")
    settings = folder.Config(root=root, size=8)
    assert told(settings.open("train")) == {0: (rows[0]["text"],), 1: ("from the text file",)}
    assert told(settings.open("test")) == {2: ("three",)}
    write_table(root / "test" / "a" / f"metadata.{kind}", [{"file_name": "2.png", "prompt": "nearer"}])
    assert told(settings.open("test")) == {2: ("nearer",)}


def test_a_table_may_hold_several_captions_and_a_named_column(tmp_path: Path) -> None:
    root = images_in(tmp_path, ["0.png", "1.png"])
    rows = [{"file_name": "0.png", "text": "x", "long": ["a", "b"]}, {"file_name": "1.png", "text": "y", "long": ["c"]}]
    write_table(root / "metadata.jsonl", rows)
    assert told(whole(root)) == {0: ("x",), 1: ("y",)}
    assert told(whole(root, caption_column="long")) == {0: ("a", "b"), 1: ("c",)}
    assert whole(root).fingerprint != whole(root, caption_column="long").fingerprint


def test_held_out_images_keep_their_captions(tmp_path: Path) -> None:
    root = images_in(tmp_path, [f"{value}.png" for value in range(12)])
    for value in range(12):
        (root / f"{value}.txt").write_text(f"number {value}")
    settings = folder.Config(root=root, size=8, holdout=0.25)
    both = told(settings.open("train")) | told(settings.open("test"))
    assert both == {value: (f"number {value}",) for value in range(12)}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metadata.jsonl", '{"file_name": "0.png"\n', "line 1 of .* is no JSON object"),
        ("metadata.jsonl", '{"text": "a"}\n', "row 1 of .* has no 'file_name'"),
        ("metadata.csv", "file_name,text\nelse.png,a\n", "no file that .* names is there, such as else.png"),
        ("0.txt", b"\xff\xfe\x00", "not in UTF-8"),
        ("metadata.csv", b"\xff\xfe\x00", "not in UTF-8"),
    ],
)
def test_damaged_captions_are_sentences(tmp_path: Path, file: str, content: str | bytes, message: str) -> None:
    root = images_in(tmp_path, ["0.png", "1.png"])
    (root / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        whole(root)


def test_a_column_that_no_table_has(tmp_path: Path) -> None:
    root = images_in(tmp_path, ["0.png", "1.png"])
    with pytest.raises(DataError, match=r"no column 'words' \(data.caption_column\): it has no metadata.jsonl or"):
        whole(root, caption_column="words")
    write_table(root / "metadata.jsonl", [{"file_name": "0.png", "text": "a"}])
    with pytest.raises(DataError, match=r"no column 'words' .*; its columns are file_name, text"):
        whole(root, caption_column="words")


def test_a_pipe_is_no_caption(tmp_path: Path) -> None:
    root = images_in(tmp_path, ["0.png", "1.png"])
    os.mkfifo(root / "0.txt")
    os.mkfifo(root / "metadata.csv")
    assert not whole(root).captioned


# ---------------------------------------------------------------------------------------------- tables


def table(path: Path, columns: dict[str, Any], rows: int = 12) -> str:
    pictures = [{"bytes": encoded(Image.new("RGB", (8, 8), (i, i, i))), "path": None} for i in range(rows)]
    parquet.write_table(pyarrow.table({"img": pictures, **columns}), path)
    return str(path)


def opened(path: str, streaming: bool = False, **settings: Any) -> Split:
    files = {"train": path, "test": path}
    return hub.Config(files=files, size=8, streaming=streaming, shuffle_buffer=1, **settings).open("train")


LISTS = [["a", "b"], [], None, ["c", " "], *[["d"]] * 8]
WORDS = ["a", "", None, " c ", *["d"] * 8]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_columns_of_texts_and_of_lists(tmp_path: Path, streaming: bool, labelled: bool) -> None:
    labels = {"label": [value % 2 for value in range(12)]} if labelled else {}
    path = table(tmp_path / "a.parquet", {"caption": WORDS, "long": LISTS, **labels})
    more: dict[str, Any] = {"classes": ["x", "y"]} if labelled else {}
    split = opened(path, streaming, **more)
    assert split.captioned and list(told(split).values())[:5] == [("a",), (), (), ("c",), ("d",)]
    longer = opened(path, streaming, caption_column="long", **more)
    assert list(told(longer).values())[:5] == [("a", "b"), (), (), ("c",), ("d",)]
    without = table(tmp_path / "b.parquet", {"words": WORDS, **labels})
    assert len({each.fingerprint for each in (split, longer, opened(without, streaming, **more))}) == 3
    if not streaming:
        assert split.uncaptioned == 2 and any("2 of 12 images" in note for note in split.notes)


def test_captions_stay_with_their_images_when_one_is_broken(tmp_path: Path) -> None:
    pictures = [{"bytes": encoded(Image.new("RGB", (8, 8), (i, i, i))), "path": None} for i in range(200)]
    pictures[5] = {"bytes": b"broken", "path": None}
    columns = {"image": pictures, "text": [f"number {value}" for value in range(200)]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    for streaming in (False, True):
        split = opened(str(tmp_path / "a.parquet"), streaming)
        read = split.read(list(range(4, 7)))
        assert read.captions is not None
        shades = read.images[:, 0, 0, 0].tolist()
        assert [caption for (caption,) in read.captions] == [f"number {value}" for value in shades]
        assert 5 not in shades


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_that_hold_no_captions(tmp_path: Path, streaming: bool) -> None:
    path = table(tmp_path / "a.parquet", {"caption": [1] * 12, "text": [""] * 12, "prompt": [None, *["a"] * 11]})
    with pytest.raises(DataError, match=r"has no column 'words' .*its columns are img, caption, text, prompt"):
        opened(path, streaming, caption_column="words")
    with pytest.raises(DataError, match=r"column 'caption' of .* not texts or lists of texts"):
        opened(path, streaming, caption_column="caption")
    with pytest.raises(DataError, match=r"column 'text' of .* is empty"):
        opened(path, streaming, caption_column="text")
    assert not opened(path, streaming).captioned  # numbers are passed over, and an empty column is none
    assert opened(path, streaming, caption_column="prompt").captioned


def test_a_folder_of_the_datasets_library(tmp_path: Path) -> None:
    root = images_in(tmp_path / "data", [f"{value}.png" for value in range(4)])
    write_table(root / "metadata.jsonl", [{"file_name": f"{v}.png", "text": f"number {v}"} for v in range(4)])
    split = hub.Config(path=str(root), size=8, holdout=0.25).open("train")
    assert split.captioned and all(text == (f"number {value}",) for value, text in told(split).items())


def test_worker_processes_bring_captions(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", {"text": [f"number {value}" for value in range(12)]})
    settings = hub.Config(files={"train": path, "test": path}, size=8, workers=1)
    with Loader(settings.open("train"), settings, 4, seed=0) as loader:
        batch = next(loader)
    shades = ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert batch.captions == [(f"number {value}",) for value in shades]


# ---------------------------------------------------------------------------------------------- class names


@pytest.mark.parametrize("kind", kinds("data"))
def test_every_kind_makes_captions_of_class_names(kind: str, tmp_path: Path) -> None:
    found = find("data", kind)
    assert issubclass(found, DataConfig)
    tiny = found.tiny(tmp_path)
    plain = tiny.open("train")
    templates = ("a photo of a {}", "{}!")
    split = tiny.model_copy(update={"caption_templates": templates}).open("train")
    assert split.captioned and len({split.fingerprint, plain.fingerprint}) == 2
    read, before = split.read([0, 1]), plain.read([0, 1])
    assert torch.equal(read.images, before.images) and torch.equal(read.labels, before.labels)
    names = [split.classes[label] for label in read.labels.tolist()]
    assert read.captions == [(f"a photo of a {name}", f"{name}!") for name in names]
    assert split.classes == plain.classes and len(split) == len(plain) and split.sequential == plain.sequential


def test_a_template_needs_a_place_for_the_name() -> None:
    with pytest.raises(ConfigError, match=r"'a photo' has no \{\}"):
        validate(digits.Config, {"caption_templates": ["a {}", "a photo"]}, "test")
    read = validate(digits.Config, {"caption_templates": ["a {}, {} {"]}, "test").open("test").read([0])
    label = int(read.labels[0])
    assert read.captions == [(f"a {label}, {label} {{",)]
