"""Perceptual losses: the distance of images in the features of a trained network (Johnson et al. 2016; LPIPS, Zhang et
al. 2018).
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.errors import CheckpointError, ConfigError
from artok.images import frames_of
from artok.losses.base import Loss, LossConfig, Setting
from artok.metrics.features import Maps, parse
from artok.metrics.per_channel import maps_of_channels
from artok.noise import SEEDS

LPIPS = "lpips"


class Config(LossConfig):
    """kind: perceptual. weight: of the distance. A late `start` saves the time that the features of blurs would take.

    features: "lpips" (VGG16 with LPIPS's learned weights, `pip install artok[lpips]`), "classifier" (artok's own,
    trained on the training split, offline), or timm:NAME or timm:NAME@FILE, any timm backbone. layers: of the
    classifier or backbone, as it numbers them; all unless given. weights: for lpips, a local file of torchvision's
    VGG16, which is downloaded otherwise. seed: of the classifier; any but 0, which is the one that evaluates: a
    tokenizer must not be trained on its own metric.
    """

    kind: Literal["perceptual"] = "perceptual"
    features: str = "classifier"
    weight: float = Field(1.0, gt=0)
    layers: tuple[int, ...] | None = Field(None, min_length=1)
    weights: Path | None = None
    seed: int = Field(1, ge=1, lt=SEEDS)

    @model_validator(mode="after")
    def _options_belong_to_their_features(self) -> Config:
        if self.features == LPIPS and self.layers is not None:
            raise ValueError("the layers of lpips are part of it; leave layers out")
        if self.features != LPIPS and self.weights is not None:
            raise ValueError("weights are for features lpips; name those of a backbone as timm:NAME@FILE")
        return self

    def build(self, setting: Setting) -> Perceptual:
        if setting.extractor is None:
            return Perceptual(self, self.shapes(setting))
        if self.features == LPIPS:
            return Perceptual(self, open_lpips(self.weights))
        extractor = parse(self.features)
        if extractor.trained:
            extractor = extractor.model_copy(update={"seed": self.seed})
        return Perceptual(self, FeatureDistance(setting.extractor(extractor).maps, self.layers))

    def shapes(self, setting: Setting) -> nn.Module:
        """The network with no weights, to count what it costs."""
        if self.features == LPIPS:
            return Lpips(import_lpips().LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False))
        extractor, (channels, *size) = parse(self.features), setting.image
        if setting.channels_apart and extractor.trained:
            return FeatureDistance(maps_of_channels(extractor.blank_maps((1, *size))), self.layers)
        return FeatureDistance(extractor.blank_maps((channels, *size[-2:])), self.layers)

    @classmethod
    def tiny(cls) -> Config:
        return cls(weight=0.1)


class FeatureDistance(nn.Module):
    """Mean over layers and places of |f(x) - f(y)|^2, each f a place's features scaled to length 1 (Zhang et al. 2018,
    eq. 1 with all channels weighted alike).
    """

    def __init__(self, maps: Maps, layers: Sequence[int] | None) -> None:
        super().__init__()
        self.maps, self.layers = maps, layers

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,)."""
        pairs = zip(self.maps(x, self.layers), self.maps(y, self.layers), strict=True)
        distances = [(unit(a.float()) - unit(b.float())).square().sum(1).flatten(1).mean(1) for a, b in pairs]
        return torch.stack(distances).mean(0)


def unit(features: Tensor) -> Tensor:
    return features / features.norm(dim=1, keepdim=True).clamp(min=1e-6)


class Perceptual(Loss):
    """weight times the mean distance of reconstructions and images; of clips, frame by frame."""

    def __init__(self, config: Config, distance: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.distance = distance.requires_grad_(False).eval()

    def forward(self, reconstructions: Tensor, images: Tensor) -> dict[str, Tensor]:
        distance = self.distance(frames_of(reconstructions), frames_of(images))
        return {"perceptual": self.config.weight * distance.mean()}


class Lpips(nn.Module):
    """LPIPS 0.1 of the package of its authors, of images in [-1, 1]; grey is repeated."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = (images.expand(-1, 3, -1, -1) for images in (x, y))
        return self.network(x, y).flatten()


def import_lpips() -> Any:
    try:
        import lpips  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise ConfigError("features lpips need its package: pip install artok[lpips]; or use classifier") from None
    return lpips


def open_lpips(weights: Path | None) -> Lpips:
    """LPIPS with VGG16. ConfigError: the package is missing. CheckpointError: VGG16's weights cannot be had."""
    lpips = import_lpips()
    try:
        network = lpips.LPIPS(net="vgg", pnet_rand=weights is not None, verbose=False)
    except Exception as error:  # whatever a download may raise
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the weights of VGG16 could not be downloaded: {reason}; give torchvision's file as 'weights'"
        ) from None
    if weights is not None:
        fill_vgg(network.net, weights)
    return Lpips(network)


def fill_vgg(network: nn.Module, path: Path) -> None:
    """Bring torchvision's VGG16 into LPIPS's slices of it, whose layers keep their numbers."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path} with the weights of VGG16")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict({name: state[f"features.{name.split('.', 1)[1]}"] for name in network.state_dict()})
    except (RuntimeError, KeyError, TypeError, pickle.UnpicklingError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not hold torchvision's VGG16: {reason}") from None
