"""`artok sample`: images as files, as a sheet, and as a GIF of their generation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from artok.cascade import spread, tell
from artok.errors import ConfigError, RunError, shorten
from artok.images import grid, put_first, save_gif, to_pil
from artok.layout import Condition, Tokens
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling
from artok.saved import write_text
from artok.training.progress import Progress

FRAMES = 64  # at most so many pictures of unfinished images: a GIF of 4,096 tokens must stay small


def parse_labels(text: str, classes: Sequence[str]) -> list[int]:
    """Labels from "0,3" or "cat,dog"; all of them from an empty text.

    ConfigError: a word is no class, or there are only commas.
    """
    labels = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        if word in classes:
            labels.append(classes.index(word))
        elif word.isdecimal() and len(word) < 10 and int(word) < len(classes):
            labels.append(int(word))
        else:
            known = ", ".join(classes[:12]) + (" ..." if len(classes) > 12 else "")
            raise ConfigError(f"label {shorten(word)} is none of the {len(classes)} classes: {known}")
    if text and not labels:
        raise ConfigError(f"labels {shorten(repr(text))} name no class; leave --labels out for all classes")
    return labels or list(range(len(classes)))


@dataclass(frozen=True)
class Asked:
    """What to sample for. names: of each row, for its files. Others: as in `Pipeline.condition`."""

    names: tuple[str, ...]
    labels: Sequence[int] | None = None
    prompts: Sequence[str] | None = None
    negative: str | None = None
    control: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def condition(self, pipeline: Pipeline, n: int = 1) -> Condition:
        return pipeline.condition(self.labels, n, self.prompts, self.negative, self.control)

    def enlarged(self, stage: Pipeline, images: Tensor) -> Asked:
        """The same of a stage that enlarges their images (n * rows, C, H, W), with a row for each."""
        names = spread(self.names, len(images)) or ()
        return Asked(tuple(names), **tell(stage, images, self.labels, self.prompts))


def read_prompts(path: Path) -> list[str]:
    """The prompts in a text file, one on each line. ConfigError: it cannot be read, or has none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the prompts in {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    if not any(lines):
        raise ConfigError(f"{path} has no prompts; write one on each line")
    return [line for line in lines if line]


def file_name(text: str) -> str:
    """A short name for files from a class or a prompt."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text).split())[:60] or "text"


def sample(
    pipeline: Pipeline,
    asked: Asked,
    n: int,
    sampling: Sampling,
    folder: Path,
    batch: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """`n` images for each row of `asked` into `folder`: one PNG each, `grid.png` with a row each, its control first,
    and `generation.gif`; prompts also as `prompts.txt`.

    The GIF shows the first image of every row, up to 64. Returns the images (n * rows, C, H, W) in [-1, 1].
    """
    condition = asked.condition(pipeline, n)
    total = pipeline.generator.passes(sampling)
    images = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        progress = progress or Progress("sample", quiet=True)
        with progress.over(0, len(condition) * total):
            for start in range(0, len(condition), batch):
                part = condition[start : start + batch]
                for step, tokens in enumerate(pipeline.steps(part, sampling, first=start), 1):  # noqa: B007
                    progress.advance(start * total + len(part) * step)
                images.append(pipeline.decode(tokens, sampling.dtype).cpu())
        made = torch.cat(images)
        for index, image in enumerate(made):
            to_pil(image).save(folder / f"{index:05d}-{file_name(asked.names[index // n])}.png")
        scale = max(1, 64 // made.shape[-1])
        if condition.control is not None:
            sheet = grid(put_first(condition.control[::n].cpu(), made), columns=n + 1, scale=scale)
        else:
            sheet = grid(made, columns=n if len(asked) > 1 else None, scale=scale)
        sheet.save(folder / "grid.png")
        save_gif(generation_frames(pipeline, condition[::n][:64], sampling, n, scale), folder / "generation.gif")
        if asked.prompts is not None:
            write_text(folder / "prompts.txt", "".join(f"{prompt}\n" for prompt in asked.prompts))
    except OSError as error:
        raise RunError(f"could not write to {folder}: {error.strerror or error}") from None
    return made


def generation_frames(
    pipeline: Pipeline, condition: Condition, sampling: Sampling, stride: int = 1, scale: int = 1
) -> list[Image.Image]:
    """Pictures of one image per row of a condition while it is generated.

    stride: the number of samples from one row's first to the next's, so that the frames end in those very images.
    """
    samples = torch.arange(len(condition), device=pipeline.device) * stride
    kept, _ = thinned(pipeline.steps(condition, sampling, samples=samples), FRAMES)
    return [grid(pipeline.decode(tokens, sampling.dtype).cpu(), scale=scale) for _, tokens in kept]


def thinned(steps: Iterable[Tokens], most: int) -> tuple[list[tuple[int, Tokens]], int]:
    """About `most` of the steps, with their numbers from 1 and always the first and the last; and the number of steps.

    Keeping all of a long sequence's unfinished images would take memory that grows with its square.
    """
    kept: list[tuple[int, Tokens]] = []
    every, last = 1, None
    for step, tokens in enumerate(steps, 1):
        last = (step, tokens)
        if (step - 1) % every == 0:
            kept.append(last)
        if len(kept) > most:
            kept, every = kept[::2], 2 * every
    assert last is not None, "a generator yields at least its finished sample"
    return (kept if kept[-1][0] == last[0] else [*kept, last]), last[0]
