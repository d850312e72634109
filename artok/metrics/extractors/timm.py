"""Any timm backbone as a feature extractor: its pooled features before the classification layer."""

from __future__ import annotations

import difflib
import pickle
from pathlib import Path
from typing import Literal

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional

from artok.errors import ArtokError, CheckpointError
from artok.metrics.features import (
    Extractor,
    ExtractorConfig,
    TrainingImages,
    three_channels,
    weights_fingerprint,
)


class Config(ExtractorConfig):
    """model: a timm name such as "resnet18.a1_in1k". weights: a local file; without it timm's own are downloaded."""

    kind: Literal["timm"] = "timm"
    model: str
    weights: Path | None = None

    def build(self, training: TrainingImages | None, device: torch.device | str, cache: Path | None) -> Backbone:
        architecture = self.model.split(".")[0]  # what follows the dot names the weights
        if not timm.is_model(architecture):
            near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
            hint = f"; the nearest are {', '.join(near)}" if near else ""
            raise ArtokError(f"timm has no model {self.model!r}{hint}")
        if self.weights is not None:
            network = timm.create_model(self.model, pretrained=False, num_classes=0)
            _fill(network, self.weights)
        else:
            try:
                network = timm.create_model(self.model, pretrained=True, num_classes=0)
            except Exception as error:  # whatever a download over several libraries may raise
                reason = " ".join(str(error).split())[:200]
                raise CheckpointError(
                    f"the weights of {self.model} could not be downloaded: {reason}; "
                    f"name a local file as timm:{self.model}@FILE"
                ) from None
        return Backbone(self.model, network, torch.device(device))


def _fill(network: nn.Module, path: Path) -> None:
    """Loads weights saved with or without a classification layer; a CheckpointError when others lack or are left."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path} with the backbone's weights")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        result = network.load_state_dict(state, strict=False)
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not hold weights of this backbone: {reason}") from None
    heads = network.pretrained_cfg.get("classifier") or "head"  # type: ignore[union-attr,operator]
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    left = [key for key in result.unexpected_keys if not key.startswith(heads)]
    if result.missing_keys or left:
        raise CheckpointError(
            f"{path} does not hold weights of this backbone: {len(result.missing_keys)} are missing and {len(left)} "
            f"unknown, such as {(result.missing_keys + left)[0]}"
        )


class Backbone(Extractor):
    """Images are resized to the size that the backbone was trained at and normalised as there (timm's data config)."""

    def __init__(self, model: str, network: nn.Module, device: torch.device) -> None:
        """network: a timm model with `num_classes=0`."""
        settings = resolve_model_data_config(network)
        self._size = list(settings["input_size"][1:])
        self._mean = torch.tensor(settings["mean"], device=device)[:, None, None]
        self._std = torch.tensor(settings["std"], device=device)[:, None, None]
        self._network = network.to(device).eval().requires_grad_(False)
        self.name, self.device = f"timm:{model}", device
        self.dim = int(self._network(torch.zeros(1, 3, *self._size, device=device)).shape[1])
        self.fingerprint = weights_fingerprint(
            network.state_dict(), model, self._size, settings["mean"], settings["std"]
        )

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        pixels = three_channels(images).to(torch.float32) / 255
        if list(pixels.shape[2:]) != self._size:
            pixels = functional.interpolate(pixels, self._size, mode="bicubic", antialias=True, align_corners=False)
            pixels = pixels.clamp(0, 1)
        return self._network((pixels - self._mean) / self._std).float(), None
