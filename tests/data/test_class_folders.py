"""What a folder of class folders leaves out, and how it is divided: links, copies, pipes, strange names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers.images import paint, values

from artok.data import folder
from artok.data.holdout import hold_out, split_stratified
from artok.errors import DataError


def fill(root: Path, counts: dict[str, int]) -> None:
    """Class folders of so many images; all values differ."""
    value = 0
    for name, count in counts.items():
        for _ in range(count):
            paint(root / name / f"{value:03}.png", value)
            value += 1


def whole(root: Path) -> folder.Config:
    return folder.Config(root=root, size=8, holdout=0)


# ---------------------------------------------------------------------------------------------- links


def test_a_loop_of_links_multiplies_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "data", {"a": 5, "b": 5})
    paint(tmp_path / "beside.png", 200)
    expected = whole(tmp_path / "data").open("train").fingerprint
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "b" / "self").symlink_to(".")
    (tmp_path / "data" / "b" / "up").symlink_to("../..")
    (tmp_path / "data" / "b" / "beside").symlink_to("../a")
    split = whole(tmp_path / "data").open("train")
    assert values(split) == list(range(10)) and split.labels.tolist() == [0] * 5 + [1] * 5
    assert split.fingerprint == expected
    assert (
        len(split.notes) == 1
        and "linked folders that are read already or hold this one (4: a/loop, b/beside, b/self, ...)" in split.notes[0]
    )
    assert "a/loop" in split.notes[0]


def test_linked_folders_and_files_are_read_once(tmp_path: Path) -> None:
    fill(tmp_path / "pool", {"x": 2, "y": 3})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").symlink_to(tmp_path / "pool" / "x")
    (tmp_path / "data" / "b").mkdir()
    for path in sorted((tmp_path / "pool" / "y").iterdir()):
        (tmp_path / "data" / "b" / path.name).symlink_to(path)
    (tmp_path / "pool" / "x" / "round").symlink_to(tmp_path / "pool" / "x")
    split = whole(tmp_path / "data").open("train")
    assert values(split) == [0, 1, 2, 3, 4] and split.classes == ("a", "b")


# ---------------------------------------------------------------------------------------------- what is left out


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 3})
    (tmp_path / "only_heic").mkdir()
    for name in ("a/1.heic", "a/2.HEIC", "only_heic/3.heic", "labels.csv", "a/README"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    split = whole(tmp_path).open("train")
    assert split.classes == ("a",)
    assert split.notes == (
        f"left out of {tmp_path}: files that end in no image format (5: .heic 3, .csv 1, none 1); "
        "class folders without images (2: empty, only_heic)",
    )
    assert whole(tmp_path / "a").open("train").notes == (
        f"left out of {tmp_path / 'a'}: files that end in no image format (3: .heic 2, none 1)",
    )


@pytest.mark.parametrize("name", ["1.gif", "2.tif", "3.TIFF", "4.jfif", "5.avif", "6.ppm"])
def test_less_usual_endings_are_images(tmp_path: Path, name: str) -> None:
    fill(tmp_path, {"a": 1})
    (tmp_path / "a" / name).write_bytes(b"")
    assert len(whole(tmp_path).open("train")) == 2


def test_pipes_and_broken_links_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 3})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "self.png").symlink_to("self.png")
    (tmp_path / "a" / "gone.png").symlink_to("nowhere.png")
    split = whole(tmp_path).open("train")
    assert values(split) == [0, 1, 2]
    assert "images that are broken links or no files (3: a/gone.png, a/pipe.png, a/self.png)" in split.notes[0]


def test_names_of_any_bytes(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 200})
    strange = os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff\xfe.png")
    Path(strange).write_bytes(b"broken")
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/1.\xff")).write_bytes(b"")
    split = whole(tmp_path).open("train")
    assert len(split.read([200]).labels) == 1
    assert split.skipped[200].startswith("a/\ufffd\ufffd.png (it is no picture")
    assert split.notes[0].endswith("files that end in no image format (1: .\ufffd 1)")
    paint(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9/1.png")), 1)
    with pytest.raises(DataError, match=r"class folder 'caf.' of .* is not in UTF-8; rename it"):
        whole(tmp_path).open("train")


def test_a_folder_that_cannot_be_listed_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"a": 3})

    def refuse(place: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "a"))

    monkeypatch.setattr(folder.os, "scandir", refuse)
    with pytest.raises(DataError, match=r"/a cannot be read \(Permission denied\)$"):
        whole(tmp_path).open("train")


# ---------------------------------------------------------------------------------------------- holding out


def test_every_class_keeps_a_training_image() -> None:
    labels = torch.arange(20).repeat_interleave(torch.tensor([1] * 19 + [21]))
    train, test = split_stratified(labels, 4, seed=0)
    assert torch.bincount(labels[train]).tolist() == [1] * 19 + [17] and labels[test].unique().tolist() == [19]
    train, test = hold_out(torch.arange(5), 0.4, 0)
    assert len(train) == 5 and len(test) == 0


def test_where_nothing_can_be_held_out_is_said(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 1, "b": 1, "c": 1})
    with pytest.raises(DataError, match=r"nothing of .* is held out: .*each class keeps one to train on"):
        folder.Config(root=tmp_path, size=8).open("test")


@pytest.mark.parametrize("seed", range(4))
def test_copies_stay_on_one_side(tmp_path: Path, seed: int) -> None:
    fill(tmp_path, {"a": 20, "b": 10})
    for index in (1, 2, 3, 4):
        shutil.copy(tmp_path / "a" / f"{index:03}.png", tmp_path / "a" / f"x{index}.png")
    os.link(tmp_path / "a" / "005.png", tmp_path / "b" / "y.png")
    settings = folder.Config(root=tmp_path, size=8, holdout=0.5, seed=seed)
    train, test = settings.open("train"), settings.open("test")
    assert not set(values(train)) & set(values(test))
    assert sorted(set(values(train)) | set(values(test))) == list(range(30))
    assert len(set(values(test))) == 15  # half of the pictures, however often each comes
    assert train.notes == test.notes and train.notes[0].startswith(f"images of {tmp_path} that repeat others: 5 of 35;")


def test_what_a_test_folder_shares_with_training_is_said(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 6})
    paint(tmp_path / "val" / "a" / "1.png", 100)
    assert whole(tmp_path).open("test").notes == ()
    shutil.copy(tmp_path / "train" / "a" / "003.png", tmp_path / "val" / "a" / "2.png")
    split = whole(tmp_path).open("test")
    assert values(split) == [100, 3]
    assert split.notes == (f"images of {tmp_path / 'val'} that are also in {tmp_path / 'train'}: 1 of 2",)
