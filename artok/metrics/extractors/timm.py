"""Any timm backbone as a feature extractor: its pooled features before the classification layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from artok.metrics.features import Extractor, ExtractorConfig, TrainingImages, weights_fingerprint
from artok.nn.backbone import Backbone, open_backbone


class Config(ExtractorConfig):
    """model: a timm name such as "resnet18.a1_in1k". weights: a local file; without it timm's own are downloaded."""

    kind: Literal["timm"] = "timm"
    model: str
    weights: Path | None = None

    def build(self, training: TrainingImages | None, device: torch.device | str, cache: Path | None) -> TimmFeatures:
        return TimmFeatures(self.model, open_backbone(self.model, self.weights), torch.device(device))


class TimmFeatures(Extractor):
    """Images are resized to the size that the backbone was trained at and normalised as there (timm's data config)."""

    def __init__(self, model: str, network: Backbone, device: torch.device) -> None:
        self._network = network.to(device)
        self.name, self.device = f"timm:{model}", device
        with torch.no_grad():
            self.dim = int(self._network(self._network.blank()).shape[1])
        self.fingerprint = weights_fingerprint(network.network.state_dict(), model, *network.settings)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._network(images.to(torch.float32) / 127.5 - 1).float(), None

    def maps(self, images: Tensor, layers: Sequence[int] | None) -> list[Tensor]:
        return self._network.maps(images, layers)
