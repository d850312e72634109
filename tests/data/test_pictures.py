"""Which pictures are opened, from where, and what a failing disk does to them."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from helpers.images import encoded, paint, values
from PIL import EpsImagePlugin, Image
from pyarrow import parquet

from artok.data import folder, hub, pictures
from artok.data.base import Augment, DataConfig
from artok.data.loader import Loader
from artok.data.pictures import ENDINGS, FORMATS, Picture, Unreadable, decode
from artok.errors import DataError
from artok.evaluation.reconstruct import reconstruct
from artok.tokenizers.conv import Config as ConvConfig

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{} loop\n"


def grey(value: int, side: int = 8) -> Image.Image:
    return Image.new("RGB", (side, side), (value, value, value))


def test_odd_metadata_of_a_picture_print_nothing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 40
    data = bytearray(encoded(grey(7), "JPEG", exif=exif.tobytes()[:-30]))  # says more than there is
    (tmp_path / "a.jpg").write_bytes(data)
    script = f"from artok.data.pictures import decode; print(decode({str(tmp_path / 'a.jpg')!r}, 3, 8).size)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(8, 8)\n", "")


# ---------------------------------------------------------------------------------------------- formats


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ghostscript that leaves a mark when it is run."""
    mark, command = tmp_path / "ran", tmp_path / "bin" / "gs"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\ntouch {mark}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return mark


def test_the_planted_ghostscript_would_be_run(mark: Path) -> None:
    with pytest.raises(OSError), Image.open(io.BytesIO(POSTSCRIPT)) as image:
        image.load()
    assert mark.exists()


def write_table(path: Path, stored: list[dict[str, object]]) -> str:
    parquet.write_table(pyarrow.table({"image": stored}), path)
    return str(path)


def test_postscript_is_never_run(mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    for name in ("1.png", "2.jpg"):
        (tmp_path / "pictures" / "a" / name).write_bytes(POSTSCRIPT)
    table = write_table(tmp_path / "a.parquet", [{"bytes": POSTSCRIPT, "path": "1.png"}] * 2)
    typed = datasets.Features({"image": datasets.Image()})  # a type that the library would decode by itself
    stored = [{"bytes": POSTSCRIPT, "path": None}] * 2
    datasets.Dataset.from_dict({"image": stored}, typed).to_parquet(tmp_path / "typed.parquet")
    sources: list[DataConfig] = [
        hub.Config(files=str(tmp_path / "typed.parquet"), size=8, holdout=0),
        hub.Config(files=str(tmp_path / "typed.parquet"), size=8, holdout=0, streaming=True),
        hub.Config(
            path=str(tmp_path / "pictures"), size=8, holdout=0, streaming=True, classes=["a"], lengths={"train": 2}
        ),
        folder.Config(root=tmp_path / "pictures", size=8, holdout=0),
        hub.Config(files=table, size=8, holdout=0),
        hub.Config(path=str(tmp_path / "pictures"), size=8, holdout=0),
        hub.Config(files=table, size=8, holdout=0, streaming=True),
    ]
    for source in sources:
        with pytest.raises(DataError, match=r"of 2 images cannot be read.*it is no picture of a known format"):
            source.open("train").read([0, 1])
    tokenizer = ConvConfig.tiny().build((3, 8, 8)).eval()
    with pytest.raises(DataError, match=r"1.png cannot be read as a picture \(it is no picture of a known format"):
        reconstruct(tokenizer, [tmp_path / "pictures" / "a" / "1.png"], tmp_path / "out")
    assert not mark.exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_known_format_is_read_and_has_an_ending(kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip("this Pillow does not write it")
    assert {ending for ending, name in Image.EXTENSION.items() if name == kind} & set(ENDINGS)
    picture = decode(encoded(grey(100), kind), 3, 8)
    assert isinstance(picture, Picture) and abs(int(picture.pixels[1, 4, 4]) - 100) <= 1


def test_every_ending_is_one_of_a_known_format() -> None:
    Image.init()
    assert {Image.EXTENSION[ending] for ending in ENDINGS if ending in Image.EXTENSION} == set(FORMATS) & set(
        Image.OPEN
    )


def test_an_animation_shows_its_first_frame() -> None:
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        data = encoded(grey(10), kind, save_all=True, append_images=[grey(200)])
        picture = decode(data, 1, 8)
        assert isinstance(picture, Picture) and abs(int(picture.pixels.float().mean()) - 10) <= 1, kind


def test_pixels_without_a_fixed_range_are_refused() -> None:
    for array in (np.full((8, 8), 200, np.int32), np.full((8, 8), 0.5, np.float32)):
        failure = decode(encoded(Image.fromarray(array), "TIFF"), 3, 8)
        assert isinstance(failure, Unreadable) and "32 bits have no fixed range" in failure.reason
    array = np.full((8, 8), 1000, np.uint16)
    for kind in ("TIFF", "PNG", "PPM"):
        picture = decode(encoded(Image.fromarray(array), kind), 3, 8)
        assert isinstance(picture, Picture) and picture.pixels.unique().tolist() == [round(1000 / 257)], kind


# ---------------------------------------------------------------------------------------------- failing reads


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the read of a file still fails, by its name."""
    left: dict[str, int] = {}
    read = pictures._read_once

    def flaky(place: str) -> bytes:
        name = Path(place).name
        if left.get(name, 0) > 0:
            left[name] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return read(place)

    monkeypatch.setattr(pictures, "_read_once", flaky)
    monkeypatch.setattr(pictures, "WAITS", (0.0, 0.0, 0.0))
    return left


@pytest.fixture
def many(tmp_path: Path) -> folder.Config:
    for index in range(200):
        paint(tmp_path / "a" / f"{index:03}.png", index)
    return folder.Config(root=tmp_path, size=8, holdout=0, augment=Augment(flip=True))


def test_a_read_that_fails_for_a_moment_changes_nothing(many: folder.Config, failing: dict[str, int]) -> None:
    with Loader(many.open("train"), many, 20, seed=0) as loader:
        expected = torch.cat([next(loader).images for _ in range(20)])
    failing |= {"007.png": 3, "090.png": 1}
    split = many.open("train")
    with Loader(split, many, 20, seed=0) as loader:
        assert torch.equal(torch.cat([next(loader).images for _ in range(20)]), expected)
    assert split.skipped == {} and failing == {"007.png": 0, "090.png": 0}


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_read_that_fails_longer_is_counted_and_tried_again(
    many: folder.Config, failing: dict[str, int], in_memory: bool
) -> None:
    failing["007.png"] = 4  # one read with its three repetitions
    split = many.model_copy(update={"in_memory": in_memory}).open("train")
    assert split.read([6, 7, 8]).images[:, 0, 0, 0].tolist() == [6, 8, 8]
    assert split.skipped == {7: "a/007.png (Input/output error)"}
    assert values(split) == list(range(200)) and len(split.skipped) == 1


def test_a_failing_disk_ends_the_run(many: folder.Config, failing: dict[str, int]) -> None:
    failing |= {f"{index:03}.png": 10_000 for index in range(200)}
    with pytest.raises(DataError, match=r"20 of 200 images cannot be read.*Input/output error"):
        many.open("train").read(range(20))


def test_a_missing_file_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures.time, "sleep", lambda seconds: pytest.fail("waited"))
    for place in ("none.png", "a\0b.png", "nosuchprotocol://host/a.png"):
        failure = decode(place, 3, 8)
        assert isinstance(failure, Unreadable) and not failure.transient


def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert decode(str(tmp_path / "pipe.png"), 3, 8) == Unreadable("it is no file")
