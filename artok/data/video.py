"""Clips of videos in class folders: ROOT/<class>/..., or ROOT/train/<class>/... and ROOT/test/<class>/..."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from PIL import Image
from pydantic import Field

from artok.config import FREE
from artok.data.base import Captions, DataConfig, Split, SplitName
from artok.data.captions import templated
from artok.data.clip_files import count_windows, measure_video
from artok.data.fingerprints import digest_files, digest_parts, find_originals
from artok.data.folder import find_roots, scan
from artok.data.holdout import hold_out
from artok.data.pictures import Clip, Encoded, Unreadable, VideoLength
from artok.data.splits import DecodedSplit, keep_in_memory
from artok.errors import DataError
from artok.noise import Seed

ENDINGS = (".mp4", ".webm", ".gif", ".mkv", ".mov", ".avi", ".m4v")


class Config(DataConfig):
    """`data: {kind: video, root: DIR}`: clips (channels, frames, size, size) of video files.

    frames: of a clip. fps: frames per second that are taken, the nearest ones of the file; default every one. stride:
    frames, of those taken, from one clip's begin to the next one's in the same video; default `frames`, so that clips
    share none. Classes, folders and `holdout` are as for kind folder; all clips of a video, and of its copies, come to
    the same side. Videos that cannot be read, or are shorter than a clip, are left out and counted.

    in_memory: keep decoded clips. Default: up to 1 GiB without workers.
    """

    kind: Literal["video"] = "video"
    root: Annotated[Path, FREE]
    frames: int = Field(17, ge=1)
    fps: float | None = Field(None, gt=0)
    stride: int | None = Field(None, ge=1)
    holdout: float = Field(0.1, ge=0, lt=1)
    seed: Seed = 0
    in_memory: Annotated[bool | None, FREE] = None

    @property
    def image(self) -> tuple[int, ...]:
        return (self.channels, self.frames, self.size, self.size)

    def open(self, split: SplitName) -> Split:
        try:
            return templated(self._open(split), self.caption_templates)
        except OSError as error:
            raise DataError(f"{error.filename or self.root} cannot be read ({error.strerror})") from None

    def _open(self, split: SplitName) -> DecodedSplit:
        train_root, test_root = find_roots(self.root)
        found = training = scan(train_root, endings=ENDINGS, what="video")
        if split == "test" and test_root is not None:
            found = scan(test_root, endings=ENDINGS, what="video")
            if strange := sorted(set(found.files) - set(training.files)):
                raise DataError(f"{test_root} has the class folder '{strange[0]}', which {train_root} does not have")
        classes, paths = tuple(training.files), found.paths()
        labels = torch.tensor([classes.index(name) for name, files in found.files.items() for _ in files])
        if test_root is None:
            originals = torch.tensor(find_originals(paths)) if self.holdout else torch.arange(len(paths))
            rows = hold_out(labels, self.holdout, self.seed, originals)[0 if split == "train" else 1]
            if not len(rows):
                raise DataError(
                    f"nothing of {self.root} is held out: add a folder 'test', videos (each class keeps one to train "
                    "on, and copies of a video stay together), or data.holdout"
                )
            paths, labels = [paths[row] for row in rows.tolist()], labels[rows]
        names = [str(Path(path).relative_to(found.root)) for path in paths]
        lengths = [measure_video(path) for path in paths]
        counts, notes = self._count_clips(lengths, names)
        if not sum(counts):
            raise DataError(f"no video of {found.root} has a clip of {self.frames} frames; {'; '.join(notes)}")
        shape = (self.channels, self.frames, self.side, self.side)
        identity = digest_files(paths, names), self.fps, self.stride, counts
        clips = [(number, place) for number, count in enumerate(counts) for place in range(count)]
        return DecodedSplit(
            _Clips(self, paths, names, lengths, clips),
            labels[[number for number, _ in clips]],
            classes,
            shape,
            digest_parts("video", shape, classes, *identity),
            keep_in_memory(self.in_memory, len(clips), shape, self.workers),
            [*found.notes(), *notes],
        )

    def _count_clips(
        self, lengths: Sequence[VideoLength | Unreadable], names: Sequence[str]
    ) -> tuple[list[int], list[str]]:
        """Clips of each video, and sentences about those that have none."""
        counts, unreadable, short = [], list[str](), list[str]()
        for length, name in zip(lengths, names, strict=True):
            if isinstance(length, Unreadable):
                unreadable.append(f"{name} ({length.reason})")
                counts.append(0)
                continue
            counts.append(count_windows(length, self.frames, self.fps, self.stride or self.frames))
            if not counts[-1]:
                short.append(f"{name} ({length.frames} frames, {length.rate:.4g} per second)")
        notes = []
        for left, what in ((unreadable, "cannot be read"), (short, "are shorter than a clip")):
            if left:
                shown = "; ".join(left[:3]) + ("; ..." if len(left) > 3 else "")
                notes.append(
                    f"videos of {self.root} that {what} and are left out, {len(left)} of {len(names)}: {shown}"
                )
        return counts, notes

    @classmethod
    def tiny(cls, folder: Path) -> Config:
        for index in range(12):
            place = folder / "videos" / ("dark" if index % 2 else "light")
            place.mkdir(parents=True, exist_ok=True)
            shades = [(index * 20 + 2 * frame, 255 - 100 * (index % 2), 40 + frame) for frame in range(7)]
            first, *rest = (Image.new("RGB", (10, 8), shade) for shade in shades)
            first.save(place / f"{index:02}.gif", save_all=True, append_images=rest, duration=100)
        return cls(root=folder / "videos", size=8, frames=3, holdout=0.25)


class _Clips:
    """Clips of video files, as a `Source`. clips: the number of the video and of the clip in it."""

    def __init__(
        self,
        config: Config,
        paths: Sequence[str],
        names: Sequence[str],
        lengths: Sequence[VideoLength | Unreadable],
        clips: Sequence[tuple[int, int]],
    ) -> None:
        self._frames, self._fps, self._stride = config.frames, config.fps, config.stride or config.frames
        self._paths, self._names, self._lengths, self._clips = list(paths), list(names), list(lengths), list(clips)

    def fetch(self, indices: Sequence[int]) -> list[Encoded]:
        found: list[Encoded] = []
        for number, place in (self._clips[index] for index in indices):
            length = self._lengths[number]
            assert isinstance(length, VideoLength), "only these have clips"
            found.append(Clip(self._paths[number], place * self._stride, self._frames, self._fps, length))
        return found

    def name(self, index: int) -> str:
        number, place = self._clips[index]
        return f"{self._names[number]}, clip {place + 1}"

    def captions(self, indices: Sequence[int]) -> Captions | None:
        return None
