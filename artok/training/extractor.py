"""The features through which images of a data set are compared, in training and in evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from artok.data.base import Split
from artok.data.memory import held_in_memory
from artok.metrics.features import Extractor, TrainingImages, parse


def extractor_for(
    spec: str, train: Split, size: int, device: torch.device | str, known: tuple[Tensor, Tensor] | None = None
) -> Extractor:
    """The extractor of a name such as "classifier", trained on the training split where it is one that trains.

    size: of the images. known: what `held_in_memory` gives of that split, if it has been read already. Errors as in
    `artok.metrics.features.open_extractor`.
    """
    config = parse(spec)
    if not config.trained:
        return config.build(None, device, None)
    images, labels = known or held_in_memory(train, size)
    return config.build(TrainingImages(images, labels, len(train.classes)), device, None)
