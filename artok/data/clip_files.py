"""Decodes clips of video files: GIF by Pillow, mp4, webm and others by torchcodec where it works, else by PyAV."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from artok.data.pictures import Clip, Picture, Unreadable, VideoLength, convert, read_bytes, square
from artok.errors import ConfigError, DataError

GIF = (b"GIF87a", b"GIF89a")
MISSING = "videos other than GIF need PyAV or torchcodec; install it with: pip install 'artok[video]'"


def measure_video(file: bytes | str | Unreadable | None) -> VideoLength | Unreadable:
    """The length of a video file, without decoding it. ConfigError: nothing that could read it is installed."""
    source = _open(file)
    if isinstance(source, Unreadable):
        return source
    with _described() as problem:
        if _is_gif(source):
            with Image.open(_handle(source)) as image:
                shown = [frame.info.get("duration", 0) for frame in ImageSequence.Iterator(image)]
                return VideoLength(len(shown), 1000 * len(shown) / max(sum(shown), 1))
        if _torchcodec() is not None:
            described = _torchcodec()(source).metadata
            return VideoLength(int(described.num_frames), float(described.average_fps))
        with _pyav().open(_handle(source)) as container:
            stream = container.streams.video[0]
            frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
            return VideoLength(frames, float(stream.average_rate or stream.guessed_rate or 1))
    return problem[0]


def count_windows(length: VideoLength, frames: int, fps: float | None, stride: int) -> int:
    """Clips of so many frames, at `fps` frames per second, that a video has, each `stride` such frames later."""
    step = 1.0 if fps is None else length.rate / fps
    last = frames - 1
    count = 0
    while round((count * stride + last) * step) < length.frames:
        count += 1
    return count


def decode_clip(clip: Clip, channels: int, side: int) -> Picture | Unreadable:
    """A clip (channels, T, side, side) uint8, each frame resized and cropped as an image is."""
    length = clip.length or measure_video(clip.file)
    if isinstance(length, Unreadable):
        return length
    source = _open(clip.file)
    if isinstance(source, Unreadable):
        return source
    step = 1.0 if clip.fps is None else length.rate / clip.fps
    wanted = [round((clip.first + place) * step) for place in range(clip.frames)]
    if wanted[-1] >= length.frames:
        return Unreadable(f"it has {length.frames} frames, too few for a clip of {clip.frames}")
    pixels, size = [], (0, 0)
    with _described() as problem:
        for image in _frames(source, wanted, length.rate):
            size = image.size
            frame = np.array(square(convert(image, channels), side)).reshape(side, side, channels)
            pixels.append(torch.from_numpy(frame).permute(2, 0, 1))
        if len(pixels) < clip.frames:
            return Unreadable(f"it ends after {len(pixels)} of a clip's {clip.frames} frames")
        return Picture(torch.stack(pixels, dim=1), size, min(size) < side)
    return problem[0]


def read_clips(paths: Sequence[Path], channels: int, frames: int, side: int) -> Tensor:
    """The first frames of video files as (N, channels, frames, side, side) uint8. DataError: one is missing, no video,
    or has fewer."""
    pixels = []
    for path in paths:
        if not path.is_file():
            raise DataError(f"there is no video {path}")
        found = decode_clip(Clip(str(path), 0, frames, None), channels, side)
        if isinstance(found, Unreadable):
            raise DataError(f"{path} cannot be read as a clip of {frames} frames ({found.reason})")
        pixels.append(found.pixels)
    return torch.stack(pixels)


def _open(file: bytes | str | Unreadable | None) -> bytes | str | Unreadable:
    """A local path as it is, since a clip is a small part of a long video; the bytes of anything else."""
    if isinstance(file, str) and "://" not in file and os.path.isfile(file) and os.path.getsize(file):
        return file
    return read_bytes(file)


def _handle(source: bytes | str) -> io.BytesIO | str:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _is_gif(source: bytes | str) -> bool:
    if isinstance(source, bytes):
        return source[:6] in GIF
    with open(source, "rb") as file:
        return file.read(6) in GIF


@contextmanager
def _described() -> Iterator[list[Unreadable]]:
    """Turns whatever decoders raise on damaged bytes into a reason, which the list then holds."""
    problem: list[Unreadable] = []
    try:
        yield problem
    except (ConfigError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:120] or type(error).__name__
        problem.append(Unreadable(f"it is no video, or is damaged: {reason}"))


def _frames(source: bytes | str, wanted: list[int], rate: float) -> Iterator[Image.Image]:
    """The frames of ascending numbers, which may repeat."""
    if _is_gif(source):
        with Image.open(_handle(source)) as image:
            for number in wanted:
                image.seek(number)
                yield image.convert("RGB") if image.mode == "P" else image.copy()
    elif _torchcodec() is not None:
        decoded = _torchcodec()(source, num_ffmpeg_threads=1).get_frames_at(indices=wanted).data
        yield from (Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in decoded)
    else:
        yield from _by_pyav(source, wanted, rate)


def _by_pyav(source: bytes | str, wanted: list[int], rate: float) -> Iterator[Image.Image]:
    """Decodes from the key frame before the first one wanted. A frame's number follows from its time."""
    with _pyav().open(_handle(source)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1  # clips are decoded side by side already
        begin = stream.start_time or 0
        if wanted[0]:
            container.seek(begin + int(wanted[0] / rate / stream.time_base), stream=stream)
        place, number = 0, -1
        for frame in container.decode(stream):
            known = frame.pts is not None
            number = round(float((frame.pts - begin) * stream.time_base) * rate) if known else number + 1
            if number < wanted[place]:
                continue
            image = frame.to_image()
            while place < len(wanted) and wanted[place] <= number:
                yield image
                place += 1
            if place == len(wanted):
                return


@cache
def _torchcodec() -> Any:
    try:
        from torchcodec.decoders import VideoDecoder
    except Exception:  # it is there, but the libraries of ffmpeg are not
        return None
    return VideoDecoder


def _pyav() -> Any:
    try:
        import av
    except ImportError:
        raise ConfigError(MISSING) from None
    return av
