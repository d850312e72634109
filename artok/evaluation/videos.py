"""Videos as files, written frame by frame while they are made; and clips read from files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageSequence, UnidentifiedImageError
from torch import Tensor
from typing_extensions import Self

from artok.errors import ConfigError, RunError
from artok.evaluation.sample import Asked, file_name
from artok.images import GifWriter, from_uint8, grid, to_pil
from artok.pipeline import Pipeline
from artok.rollout import roll_out
from artok.sampling.settings import Sampling
from artok.training.progress import Progress

MOST_VIDEOS = 16  # made and written at once: each has files open
PYAV = "PyAV reads and writes mp4, and is not installed: pip install av"


class Writer(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def add(self, frame: Image.Image) -> None: ...


class Mp4Writer:
    """An mp4 (H.264) written frame by frame; to be used in a `with`. Sides are made even, as the format needs."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, Fraction(fps).limit_denominator(1000)

    def __enter__(self) -> Self:
        self._container = _pyav().open(str(self.path), "w")
        self._stream: Any = None
        return self

    def add(self, frame: Image.Image) -> None:
        width, height = (side + side % 2 for side in frame.size)
        if self._stream is None:
            self._stream = self._container.add_stream("h264", rate=self.fps)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        even = Image.new("RGB", (width, height))
        even.paste(frame)
        self._container.mux(self._stream.encode(_pyav().VideoFrame.from_image(even)))

    def __exit__(self, *error: object) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()


def _pyav() -> Any:
    try:
        import av
    except ModuleNotFoundError:
        raise ConfigError(PYAV) from None
    return av


def has_pyav() -> bool:
    try:
        _pyav()
    except ConfigError:
        return False
    return True


def write_videos(
    pipeline: Pipeline,
    asked: Asked,
    n: int,
    sampling: Sampling,
    frames: int,
    folder: Path,
    given: Tensor | None = None,
    fps: float = 8.0,
    batch: int = MOST_VIDEOS,
    progress: Progress | None = None,
) -> str:
    """`n` videos of `frames` frames for each row of `asked` into `folder`: a GIF each, and an mp4 where PyAV is there;
    also `videos.gif` and `videos.mp4`, which show the first `batch` of them side by side. Says what was written.

    given: (C, n, H, W) float, frames that each begins with. Frames are written as they are made, and none are kept.
    """
    condition = asked.condition(pipeline, n)
    progress = progress or Progress("sample", quiet=True)
    endings = ("gif", "mp4") if has_pyav() else ("gif",)
    scale = max(1, 64 // pipeline.generator.layout.image[-1])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with progress.over(0, len(condition) * frames):
            for start in range(0, len(condition), batch):
                part = condition[start : start + batch]
                names = [f"{start + row:05d}-{file_name(asked.names[(start + row) // n])}" for row in range(len(part))]
                before = None if given is None else given.expand(len(part), *given.shape)
                made = roll_out(pipeline, part, frames, sampling, before, first=start)
                with ExitStack() as stack:
                    each = [_writers(stack, folder / name, endings, fps) for name in names]
                    sheet = [] if start else _writers(stack, folder / "videos", endings, fps)
                    for number, frame in enumerate(_single(made), 1):
                        for writers, image in zip(each, frame, strict=True):
                            _add(writers, to_pil(image))
                        _add(sheet, grid(frame, scale=scale))
                        progress.advance(start * frames + number * len(part))
    except OSError as error:
        raise RunError(f"could not write to {folder}: {error.strerror or error}") from None
    kinds = " and ".join(endings)
    left_out = "" if len(endings) > 1 else f" ({PYAV})"
    return f"{len(condition)} videos of {frames} frames as {kinds}{left_out}, and videos.gif with all side by side,"


def _writers(stack: ExitStack, path: Path, endings: tuple[str, ...], fps: float) -> list[Writer]:
    kinds: dict[str, Any] = {"gif": GifWriter, "mp4": Mp4Writer}
    return [stack.enter_context(kinds[ending](path.with_suffix(f".{ending}"), fps)) for ending in endings]


def _add(writers: list[Writer], image: Image.Image) -> None:
    for writer in writers:
        writer.add(image)


def _single(parts: Iterator[Tensor]) -> Iterator[Tensor]:
    """Frames (B, C, H, W) one by one."""
    for part in parts:
        yield from part.unbind(2)


def read_clip(path: Path, image: tuple[int, ...]) -> Tensor:
    """The frames of a file (GIF, or with PyAV mp4, webm, ...) as (C, n, H, W) float in [-1, 1], for a model of samples
    (channels, frames, height, width).

    ConfigError: it cannot be read, or its frames have another size than the model's.
    """
    channels, _, height, width = image
    mode = "L" if channels == 1 else "RGB"
    try:
        if path.suffix.lower() in (".gif", ".png", ".webp"):
            with Image.open(path) as opened:
                frames = [frame.convert(mode) for frame in ImageSequence.Iterator(opened)]
        else:
            with _pyav().open(str(path)) as container:
                frames = [frame.to_image().convert(mode) for frame in container.decode(video=0)]
    except (OSError, UnidentifiedImageError, ValueError, EOFError, IndexError) as error:
        raise ConfigError(f"the clip {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not frames:
        raise ConfigError(f"the clip {path} has no frames")
    if frames[0].size != (width, height):
        size = "x".join(map(str, frames[0].size))
        raise ConfigError(f"the clip {path} has {size} pixels, and this model makes {width}x{height}; resize it first")
    pixels = np.stack([np.asarray(frame).reshape(height, width, channels) for frame in frames])
    return from_uint8(torch.from_numpy(pixels).permute(3, 0, 1, 2))
