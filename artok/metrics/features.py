"""Feature extractors: what a metric looks at images through, found by name.

    classifier            a small CNN, trained on the training split and cached          FD[classifier]
    pixels                the pixels, of 8x8 means; nothing is trained                   FD[pixels]
    inception             torch-fidelity's Inception, as the published FID needs         FID
    timm:NAME             a timm backbone, its weights from the hub                      FD[timm:NAME]
    timm:NAME@FILE        the same with weights from a file (`inception@FILE` likewise)

The kind is the name of a file in `artok/metrics/extractors`. Values of two extractors, or of one name with other
weights, are not comparable, so each carries the fingerprint of its weights into the results.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Protocol, TypeAlias

import torch
from pydantic import AfterValidator
from torch import Tensor

from artok.config import Part, find, validate
from artok.errors import ArtokError, ConfigError

ROOM = "metrics.extractors"

Maps: TypeAlias = Callable[[Tensor, Sequence[int] | None], list[Tensor]]


class Watch(Protocol):
    """What shows how far a training has come, in images."""

    def say(self, text: str) -> None: ...

    def over(self, done: int, total: int) -> AbstractContextManager[None]: ...

    def advance(self, done: int) -> None: ...


@dataclass(frozen=True)
class TrainingImages:
    """What an extractor may be trained on: the training split, never held-out images.

    images: (N, C, H, W) uint8, or clips (N, C, T, H, W). labels: (N,) int64 below `classes`. watch: told of a
    training's progress.
    """

    images: Tensor
    labels: Tensor
    classes: int
    watch: Watch | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim not in (4, 5) or len(self.images) != len(self.labels):
            raise ArtokError(
                f"training images must be uint8 (N, C, H, W) with N labels, got {self.images.dtype} "
                f"{tuple(self.images.shape)} with {len(self.labels)} labels"
            )
        if len(self.images) == 0:
            raise ArtokError("there are no training images to train a feature extractor on")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= self.classes:
            raise ArtokError(
                f"labels from {int(self.labels.min())} to {int(self.labels.max())} are outside the {self.classes} "
                "classes of the training images"
            )

    @property
    def fingerprint(self) -> str:
        """Changes with any pixel, label or the number of classes."""
        digest = hashlib.sha256(f"{tuple(self.images.shape)} {self.classes} ".encode())
        for tensor in (self.images, self.labels.to(torch.int64)):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]


class Extractor(ABC):
    """Images to vectors, deterministic on one machine.

    name: as in metric names, `FD[name]`. fingerprint: of its weights and of everything else that changes its features.
    dim: width D of a feature vector. device: where images are taken and features are given.
    """

    name: str
    fingerprint: str
    dim: int
    device: torch.device

    @abstractmethod
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, D) float32 of images (B, C, H, W) uint8 with C 1 or 3, and logits (B, classes) or None."""

    def maps(self, images: Tensor, layers: Sequence[int] | None) -> list[Tensor]:
        """Feature maps (B, C, h, w) of layers, or of all, of images in [-1, 1]; gradients pass through to the images.

        An ArtokError from an extractor that has none to give.
        """
        raise ArtokError(f"the extractor {self.name!r} gives no maps to train on; use classifier or timm:NAME")


class ExtractorConfig(Part, ABC):
    """The `extractor:` section; `kind` is a file in `artok/metrics/extractors`.

    trained: whether it is trained on the training images, which others do without.
    """

    trained: ClassVar[bool] = False

    @abstractmethod
    def build(self, training: TrainingImages | None, device: torch.device | str, cache: Path | None) -> Extractor:
        """The extractor with its weights.

        training: what to train on, for a kind that trains; an ArtokError when it is None there. cache: directory of
        trained and downloaded weights; None means `cache_directory()`.
        """

    def blank_maps(self, image: tuple[int, ...]) -> Maps:
        """`Extractor.maps` of images of (channels, height, width) with weights that mean nothing, to count its cost."""
        raise ArtokError(f"the extractor {self.kind!r} gives no maps to train on; use classifier or timm:NAME")


def parse(spec: str) -> ExtractorConfig:
    """`kind`, `kind:model`, `kind@file` or `kind:model@file` as a validated config; a ConfigError names mistakes."""
    head, _, weights = spec.partition("@")
    kind, _, model = head.partition(":")
    section = {"kind": kind} | ({"model": model} if model else {}) | ({"weights": weights} if weights else {})
    config = validate(find(ROOM, kind), section, f"extractor {spec!r}")
    assert isinstance(config, ExtractorConfig)
    return config


def _known(spec: str) -> str:
    try:
        parse(spec)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return spec


ExtractorName: TypeAlias = Annotated[str, AfterValidator(_known)]  # a setting that `parse` understands


def open_extractor(
    spec: str,
    training: TrainingImages | None = None,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
) -> Extractor:
    """The extractor of a name such as "classifier", ready to be called. Errors as in `parse` and `build`."""
    return parse(spec).build(training, device, cache)


@torch.no_grad()
def extract(extractor: Extractor, images: Tensor, batch: int = 256) -> tuple[Tensor, Tensor | None]:
    """Features (N, D) float32 and logits (N, classes) or None of images (N, C, H, W) or clips (N, C, T, H, W) uint8, on
    the CPU.

    batch: images passed at once; it bounds the memory and changes features by rounding only.
    """
    if images.dtype != torch.uint8 or images.ndim not in (4, 5) or images.shape[1] not in (1, 3):
        raise ArtokError(
            f"features are taken of uint8 images (B, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if len(images) == 0:
        return torch.zeros(0, extractor.dim), None
    parts = [extractor(part.to(extractor.device)) for part in images.split(batch)]
    logits = [part.cpu() for _, part in parts if part is not None]
    return torch.cat([part.cpu() for part, _ in parts]), torch.cat(logits) if logits else None


def weights_fingerprint(weights: Mapping[str, Tensor], *settings: object) -> str:
    """Of named tensors, to the bit, and of whatever else decides what is computed with them."""
    digest = hashlib.sha256(repr(settings).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def three_channels(images: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) to (B, 3, H, W): grey is repeated, as networks of colour images expect."""
    return images.expand(-1, 3, -1, -1)
