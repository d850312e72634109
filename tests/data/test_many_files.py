"""Sources of many images: the cached manifest of a tree, and tar shards that are read by place."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from artok.data import folder, manifest, webdataset
from artok.data.base import Split
from artok.data.loader import Loader
from artok.errors import DataError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> folder.Config:
    monkeypatch.setenv("ARTOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest, "MANY", 10)
    return folder.Config.tiny(tmp_path)


def opened(config: folder.Config, **changes: Any) -> tuple[Split, Split]:
    changed = config.model_copy(update=changes)
    return changed.open("train"), changed.open("test")


def test_a_manifest_spares_listing_and_asking_each_file(tree: folder.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(tree)
    calls = {"scandir": 0, "stat": 0}

    def counted(name: str) -> Any:
        plain = getattr(os, name)

        def call(*given: Any, **options: Any) -> Any:
            place = str(getattr(given[0], "path", given[0]))
            calls[name] += place.endswith(".png") if name == "stat" else "pictures" in place
            return plain(*given, **options)

        return call

    monkeypatch.setattr(manifest, "SAMPLE", 3)
    (tree.root / "dark" / "new.png").write_bytes((tree.root / "dark" / "01.png").read_bytes())
    (tree.root / "dark" / "new.png").unlink()  # the folder has changed, so all is listed once more
    opened(tree)
    for name in calls:
        monkeypatch.setattr(os, name, counted(name))
    again = opened(tree)
    assert calls == {"scandir": 0, "stat": 2 * 3}  # of each split three files of the sample
    for one, other in zip(first, again, strict=True):
        assert one.fingerprint == other.fingerprint and one.notes == other.notes
        assert torch.equal(one.read([0, 3]).images, other.read([0, 3]).images)
        assert one.labels is not None and other.labels is not None and torch.equal(one.labels, other.labels)


def test_a_file_that_comes_goes_or_changes_is_noticed(tree: folder.Config) -> None:
    marks = [opened(tree)[0].fingerprint]
    Image.new("RGB", (10, 8), (1, 2, 3)).save(tree.root / "dark" / "new.png")
    marks.append(opened(tree)[0].fingerprint)
    (tree.root / "dark" / "new.png").rename(tree.root / "light" / "new.png")
    marks.append(opened(tree)[0].fingerprint)
    for index, path in enumerate(sorted(tree.root.rglob("*.png"))):  # whichever is held out
        Image.new("RGB", (12, 12), (index, 2, 3)).save(path)  # in place: no folder changes
    marks.append(opened(tree)[0].fingerprint)
    assert len(set(marks)) == 4


def test_verifying_reads_what_the_sample_misses(tree: folder.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "SAMPLE", 0)
    monkeypatch.setattr(manifest, "choose_rows", lambda count, most: torch.arange(1))  # one file is looked at
    careful = tree.model_copy(update={"verify": True})
    before = careful.open("train")
    for path in sorted(tree.root.rglob("*.png"))[1:]:
        path.write_bytes(path.read_bytes() + b" ")
    assert tree.open("train").fingerprint == before.fingerprint
    found = careful.open("train")
    assert found.fingerprint != before.fingerprint and any("have changed" in note for note in found.notes)
    assert not any("have changed" in note for note in careful.open("train").notes)


def test_a_damaged_manifest_and_a_cache_that_cannot_be_written_cost_a_listing(tree: folder.Config) -> None:
    first = opened(tree)[0].fingerprint
    place = Path(os.environ["ARTOK_CACHE"]) / "manifests"
    for file in place.iterdir():
        file.write_text(file.read_text()[:50])
    assert opened(tree)[0].fingerprint == first
    for file in place.iterdir():
        file.unlink()
    place.rmdir()
    place.write_text("")
    assert opened(tree)[0].fingerprint == first


# ---------------------------------------------------------------------------------------------- shards


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("folder/"))
        for name, members in samples.items():
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_shards_are_read_by_place_with_labels_and_captions(tmp_path: Path) -> None:
    long = "folder/" + "a" * 150  # its name takes a header of its own
    first = {
        long: {"png": picture(10), "cls": b"2", "txt": b"a cat\n\na dog\n"},
        "b": {"cls": b"0\n", "jpg": picture(20)},
    }
    second = {"c": {"json": b'{"label": 1, "x": []}', "png": picture(30)}, "none": {"txt": b"x"}}
    for number, samples in enumerate((first, second)):
        write_shard(tmp_path / f"s-{number}.tar", samples)
    config = webdataset.Config(shards=str(tmp_path / "s-{0..1}.tar"), size=8, holdout=0)
    split = config.open("train")
    assert split.classes == ("0", "1", "2") and len(split) == 3
    found = split.read([2, 0, 1])
    assert found.images[:, 0, 0, 0].tolist() == [30, 10, 20] and found.labels.tolist() == [1, 2, 0]
    assert found.captions == [(), ("a cat", "a dog"), ()]
    assert split.uncaptioned == 2
    named = config.model_copy(update={"classes": ["x", "y", "z"], "shards": str(tmp_path / "*.tar")}).open("train")
    assert named.classes == ("x", "y", "z") and named.read([0]).labels.tolist() == [2]
    assert split.fingerprint != named.fingerprint


def test_a_resumed_training_reads_no_image_of_a_shard_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = webdataset.Config.tiny(tmp_path)
    read: list[int] = []
    plain = webdataset._Members._read

    def counted(self: Any, index: int, column: int) -> Any:
        read.append(index)
        return plain(self, index, column)

    monkeypatch.setattr(webdataset._Members, "_read", counted)
    whole = config.model_copy(update={"in_memory": False}).open("train")
    for rank in range(2):
        read.clear()
        with Loader(whole, config, 4, 0, start=8, rank=rank, world=2) as loader:
            positions = next(loader).positions.tolist()
        assert positions == [8 + 2 * rank, 9 + 2 * rank]
        assert len(read) <= 2 * 4  # the thread reads a few batches ahead, all of this process


def test_damaged_missing_and_remote_shards_are_named(tmp_path: Path) -> None:
    config = webdataset.Config.tiny(tmp_path)
    shard = tmp_path / "tiny-1.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    for pattern, words in (
        (config.shards, "tiny-1.tar cannot be read"),
        (str(tmp_path / "tiny-{0..2}.tar"), "no shard .*tiny-2.tar"),
        (str(tmp_path / "none-*.tar"), "no shard"),
        ("https://host/a.tar", "stream it"),
    ):
        with pytest.raises(DataError, match=words):
            config.model_copy(update={"shards": pattern}).open("train")
    write_shard(tmp_path / "odd.tar", {"a": {"png": picture(1), "cls": b"cat"}, "b": {"png": picture(2)}})
    with pytest.raises(DataError, match="has no label"):
        config.model_copy(update={"shards": str(tmp_path / "odd.tar")}).open("train")
    write_shard(tmp_path / "empty.tar", {"a": {"txt": b""}})
    with pytest.raises(DataError, match="hold no images"):
        config.model_copy(update={"shards": str(tmp_path / "empty.tar")}).open("train")
