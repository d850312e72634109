"""What every bottleneck between encoder and decoder keeps to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from artok.config import Part


@dataclass
class Quantized:
    """vectors: (B, D, *grid) what the decoder receives, with gradients to the encoder (straight-through).
    values: (B, N, K) int64 codes, or (B, N, D) float vectors of a continuous bottleneck.
    losses: scalars, already weighted, to be added to the training loss.
    monitors: scalars to be logged, no part of the loss.
    """

    vectors: Tensor
    values: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    monitors: dict[str, Tensor] = field(default_factory=dict)


class Quantizer(nn.Module, ABC):
    """Latents (B, input_channels, *grid) to codes and back to vectors (B, width, *grid).

    grids, width, vocab, codes: as in TokenLayout. input_channels: what the encoder must deliver; it differs from the
    width only where a bottleneck reads more than it passes on (the mean and variance of a Gaussian).
    Quantizers run in float32 whatever the autocast: bfloat16 holds no index above 256 and halves FSQ's usage.
    """

    def __init__(
        self,
        grids: tuple[tuple[int, ...], ...],
        width: int,
        vocab: int | None,
        codes: int = 1,
        input_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.grids = grids
        self.width = width
        self.vocab = vocab
        self.codes = codes
        self.input_channels = input_channels or width

    def forward(self, latents: Tensor) -> Quantized:
        with torch.autocast(latents.device.type, enabled=False):
            return self.quantize(latents.float())

    def lookup(self, values: Tensor) -> Tensor:
        """Vectors (B, D, *grid) of codes (B, N, K), or of continuous values (B, N, D)."""
        with torch.autocast(values.device.type, enabled=False):
            return self.dequantize(values)

    @abstractmethod
    def quantize(self, latents: Tensor) -> Quantized:
        """`forward` in float32. In training mode it may update its codebook."""

    @abstractmethod
    def dequantize(self, values: Tensor) -> Tensor:
        """`lookup` in float32."""


class QuantizerConfig(Part, ABC):
    """The `quantizer:` section."""

    @abstractmethod
    def build(self, grid: tuple[int, ...]) -> Quantizer:
        """The quantizer of a latent grid such as (16, 16)."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> QuantizerConfig:
        """The smallest sensible setting, which the contract tests run."""


def to_sequence(latents: Tensor) -> Tensor:
    """(B, D, *grid) to (B, N, D), row-major."""
    return latents.flatten(2).transpose(1, 2)


def to_grid(vectors: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, N, D) to (B, D, *grid), the inverse of `to_sequence`."""
    return vectors.transpose(1, 2).unflatten(2, grid)
