"""The features through which images of a data set are compared, in training and in evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from artok.data.base import Split
from artok.data.memory import read_into_memory
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
    """An extractor with its weights, trained on the training split where it is one that trains.

    Where each channel of the images is an image of its own, that is trained on those and sees one channel at a time.
    size: of the images. known: what `read_into_memory` gives of that split, if it has been read already. watch: told of
    the progress of its training. Errors as in `ExtractorConfig.build`.
    """
    if not config.trained:
        return config.build(None, device, None)
    if train.single is not None:
        return PerChannel(build_extractor(config, train.single, size, device, watch=watch), train.shape[0])
    images, labels = known or read_into_memory(train, size)
    return config.build(TrainingImages(images, labels, len(train.classes), watch), device, None)


def find_modes(train: Split, size: int) -> Tensor | None:
    """Probabilities of the data's modes, (M,) float64, where its channels are labelled images of their own."""
    if train.single is None:
        return None
    _, labels = read_into_memory(train.single, size)
    return of_stacks(labels, len(train.single.classes), train.shape[0])
