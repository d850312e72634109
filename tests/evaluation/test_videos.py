"""Videos as files: written frame by frame, and read back."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import artok
from helpers.videos import pipeline
from PIL import Image, ImageSequence

from artok.errors import ConfigError
from artok.evaluation import videos
from artok.evaluation.sample import Asked
from artok.evaluation.videos import has_pyav, read_clip, write_videos
from artok.generators import raster
from artok.images import GifWriter, from_uint8, to_pil
from artok.rollout import roll_out
from artok.sampling.settings import Sampling


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_written_frame_by_frame_reads_back(channels: int, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (channels, 5, 8, 12), dtype=torch.uint8, generator=random)  # 96 colours a frame
    with GifWriter(tmp_path / "clip.gif", fps=8) as writer:
        for frame in levels.unbind(1):
            writer.add(to_pil(frame))
    with Image.open(tmp_path / "clip.gif") as opened:
        assert opened.n_frames == 5  # type: ignore[attr-defined]
        assert opened.info["loop"] == 0
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(opened)] == [120] * 5  # in steps of 10 ms
    read = read_clip(tmp_path / "clip.gif", (channels, 17, 8, 12))
    assert torch.equal(read, from_uint8(levels))


@pytest.mark.skipif(not has_pyav(), reason="needs PyAV")
def test_an_mp4_reads_back_nearly(tmp_path: Path) -> None:
    down = torch.linspace(-1, 1, 32).view(1, 32, 1).expand(1, 32, 48)
    with videos.Mp4Writer(tmp_path / "clip.mp4", fps=8) as writer:
        for step in range(6):
            writer.add(to_pil(down.roll(step, 1)))
    read = read_clip(tmp_path / "clip.mp4", (1, 17, 32, 48))
    assert read.shape == (1, 6, 32, 48)
    assert (read[:, 3] - down.roll(3, 1)).abs().mean() < 0.1


def test_every_video_is_written_as_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, sampling = pipeline(raster.Config.tiny()), Sampling(overlap=2)
    given = torch.rand(3, 9, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    asked = Asked(("a", "b"), [0, 1])
    said = write_videos(made, asked, 2, sampling, 22, tmp_path, given, batch=3)
    assert "4 videos of 22 frames" in said
    names = ["00000-a", "00001-a", "00002-b", "00003-b", "videos"]
    endings = ("gif", "mp4") if has_pyav() else ("gif",)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{end}" for name in names for end in endings}
    wanted = torch.cat(list(roll_out(made, asked.condition(made, 2), 22, sampling, given.expand(4, *given.shape))), 2)
    for row, name in enumerate(names[:4]):
        read = read_clip(tmp_path / f"{name}.gif", (3, 17, 16, 16))
        assert read.shape == (3, 22, 16, 16)
        assert (read - wanted[row]).abs().mean() < 0.02  # 256 colours a frame
    with Image.open(tmp_path / "videos.gif") as sheet:
        assert sheet.size == (2 * 64 + 1, 2 * 64 + 1)

    before = [tuple(path.stat().st_size for path in [tmp_path / "00000-a.gif"] if path.exists())]
    add = GifWriter.add

    def watch(self: GifWriter, frame: Any) -> None:
        add(self, frame)
        if self.path.name == "00000-a.gif":
            before.append((self.path.stat().st_size,))

    monkeypatch.setattr(GifWriter, "add", watch)
    write_videos(made, asked, 1, sampling, 22, tmp_path, given)
    sizes = [size for (size,) in before[1:]]
    assert sizes == sorted(set(sizes))  # each frame is in the file before the next is made
    assert len(sizes) == 22


def test_the_command_writes_and_continues_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline(raster.Config.tiny()).save_pretrained(tmp_path / "run")
    assert (
        artok(
            monkeypatch, "sample", tmp_path / "run", "--frames", 20, "--labels", "a", "-n", 1, "--out", tmp_path / "out"
        )
        == 0
    )
    clip = tmp_path / "out" / "00000-a.gif"
    assert "1 videos of 20 frames" in capsys.readouterr().out
    more = ["--continue", clip, "--labels", "b", "-n", 1, "--frames", 30, "--out", tmp_path / "more", "overlap=1"]
    assert artok(monkeypatch, "sample", tmp_path / "run", *more) == 0
    first, longer = (read_clip(path, (3, 17, 16, 16)) for path in (clip, tmp_path / "more" / "00000-b.gif"))
    assert longer.shape[1] == 30
    assert (longer[:, :20] - first).abs().mean() < 0.01
    capsys.readouterr()
    for arguments, message in (
        (["--frames", 20, "overlap=9"], "overlap 9 leaves no frame"),
        (["--continue", tmp_path / "none.gif"], "cannot be read"),
        (["--continue", tmp_path / "out" / "videos.gif"], "64x64 pixels, and this model makes 16x16"),
        (["--frames", 20, "rollout=sliding"], "a raster makes no video by a sliding window"),
    ):
        assert artok(monkeypatch, "sample", tmp_path / "run", "--labels", "a", *arguments, "--out", tmp_path / "x") == 2
        assert message in capsys.readouterr().err


def test_without_pyav_gifs_are_written_and_other_clips_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ConfigError(videos.PYAV)

    monkeypatch.setattr(videos, "_pyav", absent)
    said = write_videos(pipeline(raster.Config.tiny()), Asked(("a",), [0]), 1, Sampling(), 3, tmp_path)
    assert "pip install av" in said
    assert {path.suffix for path in tmp_path.iterdir()} == {".gif"}
    with pytest.raises(ConfigError, match="pip install av"):
        read_clip(tmp_path / "clip.mp4", (3, 17, 16, 16))


def test_pyav_is_found_where_it_is() -> None:
    assert has_pyav() == (importlib.util.find_spec("av") is not None)
