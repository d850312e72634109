"""The maps of a generator that hears control: made of pictures as in its training, or read from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from artok.config import find
from artok.data.controls.base import ControlConfig
from artok.data.pictures import read_pictures
from artok.errors import ConfigError
from artok.pipeline import Pipeline


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
        config = control_of(pipeline)
        if config.stored:
            raise ConfigError(
                "the maps of this model came with its images and are not made of pictures; give it ready ones with "
                "--control-map"
            )
        made.append(config.compute(read_pictures(pictures, channels, size[-1])))
    if maps:
        width = control_of(pipeline).channels(channels)
        made.append(read_pictures(maps, width, size[-1]))
    return torch.cat(made)
