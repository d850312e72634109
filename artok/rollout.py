"""Videos of any length from a model of short clips: chunks that overlap, a sliding window, or a stream from a cache.

Frames are yielded as they are decoded, and nothing is kept but the last ones, so memory does not grow with the length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from artok.errors import ConfigError
from artok.layout import Condition, TokenLayout, Tokens, last
from artok.noise import Noise, fold
from artok.pipeline import Pipeline, autocast
from artok.sampling.settings import Sampling


@dataclass(frozen=True)
class Clip:
    """The clip that a model makes at once: T frames as t frames of tokens, T = 1 + (t - 1) every."""

    frames: int
    token_frames: int
    every: int

    @classmethod
    def of(cls, layout: TokenLayout) -> Clip:
        """ConfigError: the tokens are of images, or of a video that is not divided so."""
        if len(layout.image) != 4 or len(layout.grids) != 1 or len(layout.grid) != 3 or layout.grid[0] < 2:
            raise ConfigError(
                f"videos of any length need a model of clips on one grid of frames, and this has {layout}"
            )
        frames, count = layout.image[1], layout.grid[0]
        if (frames - 1) % (count - 1):
            raise ConfigError(f"{frames} frames are not 1 + {count - 1} k, as {count} frames of tokens need")
        return cls(frames, count, (frames - 1) // (count - 1))

    def pixels(self, count: int) -> int:
        """Frames that `count` frames of tokens stand for, from the first on."""
        return 1 + (count - 1) * self.every

    def fitting(self, frames: int) -> int:
        """The most frames of tokens that so many frames give a chunk to start with, and leave it one to make."""
        return min(1 + (frames - 1) // self.every, self.token_frames - 1)


def roll_out(
    pipeline: Pipeline,
    condition: Condition,
    frames: int,
    sampling: Sampling | None = None,
    given: Tensor | None = None,
    first: int = 0,
) -> Iterator[Tensor]:
    """Yield the frames (B, C, n, H, W) float in [-1, 1] of videos of `frames` frames, on the CPU, as they are made.

    condition: without known tokens, a row for each video. sampling: `rollout`, `overlap` and what belongs to them, and
    how a clip is sampled. given: frames (B, C, n, H, W) float that the videos begin with, which come first as they are.
    first: number of the first sample. A video's beginning does not depend on `frames`.
    ConfigError: the model makes no such videos, or the frames given do not fit them.
    """
    settings, clip = sampling or pipeline.sampling, Clip.of(pipeline.generator.layout)
    if frames < 1:
        raise ConfigError(f"a video needs at least one frame, got {frames}")
    overlap = check_overlap(pipeline, settings, clip)
    if given is not None:
        check_given(given, pipeline.generator.layout, len(condition))
    return _first_frames(_endless(pipeline, condition, settings, clip, overlap, given, first), frames)


def check_overlap(pipeline: Pipeline, settings: Sampling, clip: Clip) -> int:
    """Frames of tokens that chunks share. ConfigError: there are too many, or the model keeps no known tokens."""
    generator = pipeline.generator
    if settings.rollout == "chunks" and not generator.keeps_known:
        raise ConfigError(f"a {generator.kind} makes whole clips and continues none; use another kind of generator")
    overlap = (clip.token_frames + 1) // 2 if settings.overlap is None else settings.overlap
    if overlap >= clip.token_frames:
        raise ConfigError(
            f"overlap {overlap} leaves no frame of tokens to make, of {clip.token_frames} in a clip; choose a smaller "
            "one"
        )
    return overlap


def check_given(given: Tensor, layout: TokenLayout, rows: int) -> None:
    """ConfigError: frames (B, C, n, H, W) are not of the model's size, or not as many as there are videos."""
    channels, _, *size = layout.image
    if (
        given.ndim != 5
        or len(given) != rows
        or not given.shape[2]
        or [*given.shape[1:2], *given.shape[3:]] != [channels, *size]
    ):
        raise ConfigError(
            f"the frames to continue are {tuple(given.shape)}, and these {rows} videos have {channels} channels and "
            f"{'x'.join(map(str, size))} pixels: give them as (videos, channels, frames, height, width)"
        )


def _first_frames(parts: Iterator[Tensor], frames: int) -> Iterator[Tensor]:
    left = frames
    for part in parts:
        yield part[:, :, :left]
        left -= part.shape[2]
        if left <= 0:
            return


@torch.inference_mode()
def _endless(
    pipeline: Pipeline,
    condition: Condition,
    settings: Sampling,
    clip: Clip,
    overlap: int,
    given: Tensor | None,
    first: int,
) -> Iterator[Tensor]:
    """As `roll_out`, without end."""
    streams = settings.rollout == "stream"
    generator, dtype = pipeline.prepare(settings.dtype)
    inside = settings.model_copy(update={"dtype": dtype})
    noise = Noise(fold("rollout", settings.seed), torch.arange(first, first + len(condition), device=pipeline.device))
    past: FramesBefore | TokensBefore
    past = TokensBefore(pipeline, clip) if streams or settings.history == "tokens" else FramesBefore(pipeline, clip)
    if given is not None:
        yield given.float().cpu()
        past.begin(given.to(pipeline.device, torch.float32))

    if isinstance(past, TokensBefore) and streams:
        with autocast(pipeline.device, dtype):
            parts = generator.stream(condition, inside, noise, pipeline.tokenizer, past.all_frames(len(condition)))
        while True:
            with autocast(pipeline.device, dtype):
                values = next(parts)
            yield past.add(values)

    turn = 0

    def make_chunk(most: int) -> Tensor:
        """The rest of a clip that begins with at most so many frames of tokens."""
        known = past.known(most)
        given_now = condition if known is None else replace(condition, known=known)
        seed = fold("chunk", settings.seed, turn) if turn else settings.seed
        made = last(pipeline.steps(given_now, settings.model_copy(update={"seed": seed}), first))
        begin = 0 if known is None else int(known.flags[0].sum())
        return past.add(made.values[:, begin:])

    yield make_chunk(clip.token_frames - 1)
    turn += 1
    if settings.rollout == "chunks":
        while True:
            yield make_chunk(overlap)
            turn += 1
    while past.count < overlap:
        yield make_chunk(overlap)
        turn += 1
    with autocast(pipeline.device, dtype):
        advance = generator.slide(condition, inside, noise, pipeline.tokenizer, overlap)
    area = generator.layout.length // clip.token_frames
    while True:
        known = past.known(overlap)
        assert known is not None
        with autocast(pipeline.device, dtype):
            made = advance(known)
        yield past.add(made.values[:, overlap * area : (overlap + 1) * area])


class FramesBefore:
    """What came before, as frames: the last ones, encoded anew as the beginning of a clip. So a clip's first frame is
    alone in its frame of tokens, as in training, and the errors of tokens do not add up (as CausVid does, Yin et al.
    2024, arXiv 2412.07772)."""

    def __init__(self, pipeline: Pipeline, clip: Clip) -> None:
        self.pipeline, self.tokenizer, self.clip = pipeline, pipeline.tokenizer, clip
        self.frames: Tensor | None = None
        self.encoded: Tensor | None = None  # of the frames that `known` took last

    @property
    def count(self) -> int:
        """Frames of tokens that the kept frames give."""
        return 0 if self.frames is None else self.clip.fitting(self.frames.shape[2])

    def begin(self, frames: Tensor) -> None:
        self.frames = frames[:, :, -self.clip.pixels(self.clip.token_frames - 1) :]

    def known(self, most: int) -> Tokens | None:
        """A clip's tokens of which at most `most` frames are known; None where nothing came before."""
        if self.frames is None:
            return None
        frames = self.clip.pixels(min(most, self.count))
        self.encoded = self.tokenizer.encode(self.frames[:, :, -frames:]).values
        return window_of(self.encoded, self.pipeline.generator.layout)

    def add(self, values: Tensor) -> Tensor:
        """The frames (B, C, n, H, W) of the tokens that follow those of `known`."""
        whole = values if self.encoded is None else torch.cat([self.encoded, values], dim=1)
        area = self.pipeline.generator.layout.length // self.clip.token_frames
        layout = self.tokenizer.layout_of(self.clip.pixels(whole.shape[1] // area))
        before = 0 if self.encoded is None else self.clip.pixels(self.encoded.shape[1] // area)
        made = self.pipeline.decode(Tokens(whole, layout), self.pipeline.sampling.dtype)[:, :, before:]
        kept = made if self.frames is None else torch.cat([self.frames, made], dim=2)
        self.begin(kept)
        return made.cpu()


class TokensBefore:
    """What came before, as tokens: the last ones as they were made. All tokens are decoded as one video, in parts."""

    def __init__(self, pipeline: Pipeline, clip: Clip) -> None:
        self.pipeline, self.tokenizer, self.clip = pipeline, pipeline.tokenizer, clip
        self.area = pipeline.generator.layout.length // clip.token_frames
        self.values: Tensor | None = None
        self.parts: deque[Tokens] = deque()
        self.decoded = self.tokenizer.decode_chunks(self._parts())

    def _parts(self) -> Iterator[Tokens]:
        while True:
            yield self.parts.popleft()

    @property
    def count(self) -> int:
        return 0 if self.values is None else self.values.shape[1] // self.area

    def begin(self, frames: Tensor) -> None:
        if (frames.shape[2] - 1) % self.clip.every:
            raise ConfigError(
                f"{frames.shape[2]} frames cannot be continued as tokens, which need 1 + {self.clip.every} k of them; "
                "give other ones, or take history frames"
            )
        self.add(self.tokenizer.encode(frames).values)

    def all_frames(self, rows: int) -> Tensor:
        """The kept tokens as (B, frames, positions of a frame, K)."""
        layout = self.pipeline.generator.layout
        if self.values is None:
            return torch.zeros(rows, 0, self.area, layout.codes, dtype=torch.int64, device=self.pipeline.device)
        return self.values.unflatten(1, (-1, self.area))

    def known(self, most: int) -> Tokens | None:
        if self.values is None:
            return None
        return window_of(self.values[:, -min(most, self.count) * self.area :], self.pipeline.generator.layout)

    def add(self, values: Tensor) -> Tensor:
        """The frames (B, C, n, H, W) of the next tokens."""
        begins, count = self.values is None, values.shape[1] // self.area
        self.parts.append(Tokens(values, self.tokenizer.part_layout(count, begins)))
        kept = values if self.values is None else torch.cat([self.values, values], dim=1)
        self.values = kept[:, -(self.clip.token_frames - 1) * self.area :]
        return next(self.decoded).float().clamp(-1, 1).cpu()


def window_of(values: Tensor, layout: TokenLayout) -> Tokens:
    """A clip's tokens that begin with known values (B, n, K); the others are undecided."""
    length, count = layout.length, values.shape[1]
    whole = torch.cat([values, values.new_zeros(len(values), length - count, values.shape[2])], dim=1)
    known = torch.arange(length, device=values.device) < count
    return Tokens(whole, layout, known.expand(len(values), -1))
