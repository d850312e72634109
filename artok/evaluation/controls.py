"""The maps of a generator that hears control: made of pictures as in its training, read from files, or held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from artok.cascade import Cascade, low_resolution
from artok.config import find
from artok.data.base import DataConfig
from artok.data.controls.base import ControlConfig
from artok.data.loader import Batch
from artok.data.pictures import read_pictures
from artok.errors import ConfigError
from artok.layout import last
from artok.metrics.base import EvalBatch
from artok.pipeline import Pipeline


class HeldOutControls:
    """The control of held-out images by their number, kept packed from when these are first read.

    config: how maps are made; None of data without.
    """

    def __init__(self, config: ControlConfig | None) -> None:
        self.config = config
        self._packed: dict[int, Tensor] = {}

    def section(self, data: DataConfig) -> DataConfig:
        """The section to read images with: maps that come with them are read, others are made here of those wanted."""
        stored = self.config is not None and self.config.stored
        return data if stored else data.model_copy(update={"control": None})

    def missing(self, numbers: Tensor) -> Tensor:
        """(N,) bool: of which images no control is kept."""
        return torch.tensor([number not in self._packed for number in numbers.tolist()])

    def keep(self, batch: Batch, numbers: Tensor, wanted: Tensor) -> None:
        """Keep the control of those images of a batch, whose numbers (B,) are given, that are wanted (B,) bool."""
        if self.config is None or not bool(wanted.any()):
            return
        maps = self.config.compute(batch.pixels[wanted]) if batch.control is None else batch.control[wanted]
        self._packed |= zip(numbers[wanted].tolist(), self.config.pack(maps), strict=True)

    def of(self, numbers: Tensor, size: tuple[int, ...]) -> Tensor:
        """The maps (N, channels, *size) uint8 of images whose control is kept."""
        assert self.config is not None
        return self.config.unpack(torch.stack([self._packed[number] for number in numbers.tolist()]), size)


class BaseSamples(HeldOutControls):
    """Samples of a base model, which a super-resolution stage enlarges, in the place of held-out images.

    held_out: gives the labels and captions that it samples for, by number; the number is that of the sample too.
    """

    def __init__(self, cascade: Cascade, config: ControlConfig | None, held_out: Callable[[], EvalBatch]) -> None:
        super().__init__(config)
        self.base, (self.stage,), self.held_out = cascade.base, cascade.stages, held_out

    def missing(self, numbers: Tensor) -> Tensor:
        return torch.zeros(len(numbers), dtype=torch.bool)

    def keep(self, batch: Batch, numbers: Tensor, wanted: Tensor) -> None:
        return

    def of(self, numbers: Tensor, size: tuple[int, ...]) -> Tensor:
        known = self.held_out()
        assert known.labels is not None
        texts = None if known.prompts is None else [known.prompts[number] for number in numbers.tolist()]
        condition = self.base.generator.condition(known.labels[numbers], texts)
        tokens = last(self.base.steps(condition, self.base.sampling, samples=numbers.to(self.base.device)))
        return low_resolution(self.stage, self.base.decode(tokens, self.base.sampling.dtype).cpu())


def control_of(pipeline: Pipeline) -> ControlConfig:
    """How the maps of a generator's training were made. ConfigError: it hears no control, or does not say."""
    if "control" not in pipeline.generator.hears:
        hears = " and ".join(sorted(pipeline.generator.hears))
        raise ConfigError(f"this model hears {hears}, so it takes no control")
    section = pipeline.saved.facts.control
    if section is None:
        raise ConfigError("this model does not say how its maps were made; give it ready ones with --control-map")
    return cast(ControlConfig, find("data.controls", section.get("kind")).model_validate(section))


def read_controls(pipeline: Pipeline, pictures: Sequence[Path], maps: Sequence[Path]) -> Tensor | None:
    """Maps (R, channels, *size) uint8: made of `pictures`, then those of the files `maps`; None of no files.

    Files are cropped to a square and resized to the size of the model's images, as training images are.
    """
    if not pictures and not maps:
        return None
    channels, *size = pipeline.saved.facts.image
    made = []
    if pictures:
        made.append(control_of(pipeline).compute(read_pictures(pictures, channels, size[-1])))
    if maps:
        width = control_of(pipeline).count_channels(channels)
        made.append(read_pictures(maps, width, size[-1]))
    return torch.cat(made)
