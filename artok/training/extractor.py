"""Builds the feature extractor of a data set, for training and evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from artok.data.base import Split
from artok.data.memory import read_into_memory
from artok.metrics.extractors import classifier, motion
from artok.metrics.features import Extractor, ExtractorConfig, TrainingImages, Watch
from artok.metrics.modes import of_stacks
from artok.metrics.per_channel import PerChannel


def build_extractor(
    config: ExtractorConfig,
    train: Split,
    size: int,
    device: torch.device | str,
    known: tuple[Tensor, Tensor] | None = None,
    watch: Watch | None = None,
) -> Extractor:
    """An extractor with its weights; a `trained` one is trained on the training split.

    For images whose channels are separate images, it is trained on those and applied per channel. For clips the motion
    network stands in the place of the classifier.
    size: of the images. known: the result of `read_into_memory` for the split, if it was read already. watch: called
    with the progress of training. Errors as in `ExtractorConfig.build`.
    """
    if isinstance(config, classifier.Config) and len(train.shape) == 4:
        config = motion.Config()
    if not config.trained:
        return config.build(None, device, None)
    if train.single is not None:
        return PerChannel(build_extractor(config, train.single, size, device, watch=watch), train.shape[0])
    images, labels = known or read_into_memory(train, size)
    return config.build(TrainingImages(images, labels, len(train.classes), watch), device, None)


def build_frame_extractor(config: ExtractorConfig, train: Split, size: int, device: torch.device | str) -> Extractor:
    """An extractor of images for the frames of clips; a `trained` one learns from one frame of each training clip."""
    if not config.trained:
        return config.build(None, device, None)
    clips, labels = read_into_memory(train, size)
    rows = torch.arange(len(clips))
    frames = clips[rows, :, rows % clips.shape[2]]
    return config.build(TrainingImages(frames, labels, len(train.classes), None), device, None)


def find_modes(train: Split, size: int) -> Tensor | None:
    """Probabilities (M,) float64 of the modes of images whose channels are separate labelled images, else None."""
    if train.single is None:
        return None
    _, labels = read_into_memory(train.single, size)
    return of_stacks(labels, len(train.single.classes), train.shape[0])
