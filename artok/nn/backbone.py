"""A frozen timm backbone: pooled features, or the maps of several of its layers, of images in [-1, 1]."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional

from artok.errors import ArtokError, CheckpointError, ConfigError


class Backbone(nn.Module):
    """Images are resized to `size` and normalised as the weights expect (timm's data config); grey is repeated.

    It stays frozen and in evaluation mode whatever holds it; gradients pass through it to the images.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int] | None = None) -> None:
        """network: a timm model with `num_classes=0`. size: height and width; those it was trained at unless given."""
        super().__init__()
        settings = resolve_model_data_config(network)
        self.size: tuple[int, int] = size or tuple(settings["input_size"][1:])
        self.settings = (self.size, settings["mean"], settings["std"])
        self.network = network.requires_grad_(False)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(settings["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(settings["std"])[:, None, None], persistent=False)
        self.train()

    def train(self, mode: bool = True) -> Backbone:
        return super().train(False)

    def blank(self) -> Tensor:
        """An image to try the network with, (1, 3, H, W)."""
        return torch.zeros(1, 3, *self.size, device=self.mean.device)

    def prepared(self, images: Tensor) -> Tensor:
        pixels = ((images + 1) / 2).expand(-1, 3, -1, -1)
        if tuple(pixels.shape[2:]) != self.size:
            pixels = functional.interpolate(
                pixels, list(self.size), mode="bicubic", antialias=True, align_corners=False
            )
            pixels = pixels.clamp(0, 1)
        return (pixels - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features (B, D)."""
        return self.network(self.prepared(images))

    def maps(self, images: Tensor, layers: Sequence[int] | None) -> list[Tensor]:
        """The output of each of `layers`, as timm numbers them, or of all: (B, C, h, w)."""
        try:
            return self.network.forward_intermediates(  # type: ignore[operator]
                self.prepared(images),
                indices=None if layers is None else list(layers),
                intermediates_only=True,
                output_fmt="NCHW",
            )
        except AttributeError:
            name = type(self.network).__name__
            raise ConfigError(f"timm's {name} does not give its intermediate layers; use another model") from None
        except AssertionError as error:
            raise ConfigError(f"layers {list(layers or ())} are not all there in this backbone: {error}") from None


def open_backbone(
    model: str, weights: Path | None, size: tuple[int, int] | None = None, random: bool = False
) -> Backbone:
    """A timm model such as "resnet18.a1_in1k" with weights from a file, or timm's own, downloaded.

    size: height and width of the images, where they are not those it was trained at. random: leave the weights as they
    start, as always on the meta device. ArtokError: timm has no such model. CheckpointError: the weights cannot be had,
    or are not this model's.
    """
    architecture = model.split(".")[0]  # what follows the dot names the weights
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise ArtokError(f"timm has no model {model!r}{hint}")
    options: dict[str, Any] = {"num_classes": 0}
    if size and "vit" in architecture:
        options["img_size"] = size  # position embeddings are fitted to it
    shapes = torch.get_default_device().type == "meta"
    if weights is not None or random or shapes:
        network = timm.create_model(model, pretrained=False, **options)
        if weights is not None and not shapes:
            _fill(network, weights)
        return Backbone(network, size)
    try:
        network = timm.create_model(model, pretrained=True, **options)
    except Exception as error:  # whatever a download over several libraries may raise
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the weights of {model} could not be downloaded: {reason}; name a local file as timm:{model}@FILE"
        ) from None
    return Backbone(network, size)


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
