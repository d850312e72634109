"""`artok sample`: images as files, as a sheet, and as a GIF of their generation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from artok.errors import ConfigError, RunError, shorten
from artok.images import grid, save_gif, to_pil
from artok.layout import Tokens
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling
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


def sample(
    pipeline: Pipeline,
    labels: Sequence[int],
    n: int,
    sampling: Sampling,
    folder: Path,
    batch: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """`n` images for each label into `folder`: one PNG each, `grid.png` with a row a label, `generation.gif`.

    The GIF shows the first image of every label, up to 64 labels. Returns the images (n * labels, C, H, W) in [-1, 1].
    """
    condition = pipeline.condition(labels, n)
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
                images.append(pipeline.decode(tokens).cpu())
        made = torch.cat(images)
        for index, image in enumerate(made):
            name = pipeline.classes[labels[index // n]].replace("/", "-")
            to_pil(image).save(folder / f"{index:05d}-{name}.png")
        scale = max(1, 64 // made.shape[-1])
        grid(made, columns=n if len(labels) > 1 else None, scale=scale).save(folder / "grid.png")
        save_gif(generation_frames(pipeline, list(labels)[:64], sampling, n, scale), folder / "generation.gif")
    except OSError as error:
        raise RunError(f"could not write to {folder}: {error.strerror or error}") from None
    return made


def generation_frames(
    pipeline: Pipeline, labels: Sequence[int], sampling: Sampling, stride: int = 1, scale: int = 1
) -> list[Image.Image]:
    """Pictures of one image per label while it is generated.

    stride: the number of samples from one label's first to the next's, so that the frames end in those very images.
    """
    condition = pipeline.condition(labels)
    samples = torch.arange(len(labels), device=pipeline.device) * stride
    kept, _ = thinned(pipeline.steps(condition, sampling, samples=samples), FRAMES)
    return [grid(pipeline.decode(tokens).cpu(), scale=scale) for _, tokens in kept]


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
