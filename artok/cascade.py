"""Super-resolution in stages: each enlarges the images of the one before (Ho et al. 2021, arXiv 2106.15282)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from artok.errors import ConfigError
from artok.images import to_uint8
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling

Told = TypeVar("Told")


@dataclass
class Cascade:
    """images = cascade(labels, n, seed=0), as of the pipeline `base`, and as large as those of the last stage.

    stages: models of any family that were trained with `data.control: {kind: low_resolution}`; each makes one image for
    each image before it, with its own sampling settings. ConfigError: a stage does not enlarge the images before it.
    """

    base: Pipeline
    stages: Sequence[Pipeline]

    def __post_init__(self) -> None:
        for before, stage in zip([self.base, *self.stages], self.stages, strict=False):
            check_stage(before, stage)

    def __call__(
        self,
        labels: Sequence[int] | Tensor | int | None = None,
        n: int = 1,
        *,
        prompts: Sequence[str] | str | None = None,
        negative: Sequence[str] | str | None = None,
        seed: int | None = None,
        sampling: Sampling | None = None,
        batch: int = 64,
    ) -> Tensor:
        """As `Pipeline.__call__`. negative, sampling: of the base. seed: of all."""
        images = self.base(labels, n, prompts=prompts, negative=negative, seed=seed, sampling=sampling, batch=batch)
        asked = None if labels is None else torch.as_tensor(labels).reshape(-1).tolist()
        texts = [prompts] if isinstance(prompts, str) else prompts
        for stage in self.stages:
            images = stage(**tell(stage, images, asked, texts), seed=seed, batch=batch)
        return images


def tell(
    stage: Pipeline, images: Tensor, labels: Sequence[int] | None, prompts: Sequence[str] | None
) -> dict[str, Any]:
    """What a stage that enlarges images (B, C, *size) in [-1, 1] is conditioned on, as `Pipeline.condition` takes it.

    labels, prompts: what the images were made for, each of as many of them in turn.
    """
    rows, hears = len(images), stage.generator.hears
    return {
        "labels": spread(labels, rows) if "labels" in hears else None,
        "prompts": spread(prompts, rows) if "text" in hears else None,
        "control": low_resolution(stage, images),
    }


def spread(values: Sequence[Told] | None, rows: int) -> list[Told] | None:
    """Each value for as many rows in turn."""
    return None if values is None else [value for value in values for _ in range(rows // len(values))]


def low_resolution(stage: Pipeline, images: Tensor) -> Tensor:
    """The control of a stage, uint8: images (B, C, *size) in [-1, 1] with each pixel as many times as they grow."""
    maps, size = to_uint8(images), stage.saved.facts.image[1:]
    for axis, side in enumerate(size, 2):
        maps = maps.repeat_interleave(side // images.shape[axis], dim=axis)
    return maps


def check_stage(before: Pipeline, stage: Pipeline) -> None:
    """Raise a ConfigError for a stage that does not enlarge the images of the model before it."""
    control = stage.saved.facts.control
    if "control" not in stage.generator.hears or control is None or control.get("kind") != "low_resolution":
        raise ConfigError(
            "a stage enlarges images, and this model was not trained to; train one with "
            "data.control={kind: low_resolution} and a generator that hears control"
        )
    (channels, *own), (wanted, *size) = before.saved.facts.image, stage.saved.facts.image
    if channels != wanted or [side * control["factor"] for side in own] != size:
        given, needed = ("x".join(map(str, each)) for each in ((channels, *own), (wanted, *size)))
        raise ConfigError(
            f"the stage makes {needed} (channels, size) of images {control['factor']} times smaller, and those before "
            f"it are {given}; name a model of that size"
        )
    if "labels" in before.generator.hears & stage.generator.hears and len(before.classes) != len(stage.classes):
        raise ConfigError(
            f"the stage knows {len(stage.classes)} classes and the model before it {len(before.classes)}; "
            "train both on the same data"
        )
