"""The interface of quantizers, the bottleneck between encoder and decoder, and what they share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from itertools import accumulate, chain
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from artok.config import Part
from artok.errors import LayoutError
from artok.noise import Drawing
from artok.quantizers.usage import Usage, split_scales


@dataclass
class Replacement:
    """rows: (V,) bool, those of a table (..., V, D), a parameter or buffer, that no longer are what they were."""

    table: Tensor
    rows: Tensor


@dataclass
class Quantized:
    """vectors: (B, D, *grid) what the decoder receives, with gradients to the encoder (straight-through).
    values: (B, N, K) int64 codes, or (B, N, D) float vectors of a continuous bottleneck.
    losses: scalars, already weighted, to be added to the training loss.
    monitors: scalars to be logged, no part of the loss; in eval mode with the batch's usage and perplexity.
    sums: like losses, but sums per image, to be added to a reconstruction error that is a sum per image too.
    """

    vectors: Tensor
    values: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    monitors: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)


class Quantizer(Drawing, ABC):
    """Latents (B, input_channels, *grid) to codes and back to vectors (B, width, *grid).

    grids, width, vocab, codes: as in TokenLayout; a single grid of three axes may have any number of frames in a pass.
    input_channels: what the encoder must deliver; it differs from the
    width only where a bottleneck reads more than it passes on (the mean and variance of a Gaussian).
    Quantizers run in float32 also under autocast: bfloat16 represents no index above 256 exactly and halves FSQ's
    usage.

    What is learned without gradients (running means of codes, dead-code restart, usage) is collected by the forward
    passes of a training step, of which there may be several, and changes only when `settle` is called at its end.

    first_images: training images whose latents `start` wants; 0 for none.
    noise: random numbers of the images of the next training pass, used up by it, so that no draw depends on how a step
    is split; without it torch's generator seeds them. usage: of the codes in training; None for continuous values.
    """

    first_images = 0

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
        self.noise = None
        self.usage = Usage(grids, codes, vocab) if vocab is not None else None

    def forward(self, latents: Tensor) -> Quantized:
        with full_precision(latents.device):
            out = self.quantize(latents.float())
        self.noise = None
        if self.usage is not None and self.training:
            self.usage.collect(out.values)
        elif self.usage is not None:
            out.monitors |= self.usage.batch_monitors(out.values)
        return out

    @torch.no_grad()
    def settle(self) -> list[Replacement]:
        """At the end of a training step, bring in what its passes collected, over all processes.

        Returns which rows of which tables were replaced and not moved.
        """
        return [] if self.usage is None else self.settle_codes(self.usage.settle())

    def settle_codes(self, counts: Tensor) -> list[Replacement]:
        """`settle` of a quantizer that learns from its codes. counts: (S, K, V) of the step's codes in this process."""
        return []

    def start(self, latents: Tensor, seed: int, steps: float) -> list[Replacement]:
        """Before the first step, start from latents (B, input_channels, *grid), the same in all processes.

        seed: of draws among them. steps: how many training steps show as many latents. Returns as `settle` does.
        """
        return []

    def lookup(self, values: Tensor, known: Tensor | None = None) -> Tensor:
        """Vectors (B, D, *grid) of codes (B, N, K), or of continuous values (B, N, D).

        known: (B, N) bool. An unknown position is a zero vector, and its scale adds zero over its area.
        """
        with full_precision(values.device):
            if known is None:
                return self.dequantize(values)
            parts = self.dequantize_scales(torch.where(known[..., None], values, 0), known)
            flags = split_scales(known, [math.prod(grid) for grid in self.grids])
            for scale, (grid, own) in enumerate(zip(self.grids, flags, strict=True)):
                mask = to_grid(own[..., None], grid).to(parts[scale].dtype)
                parts[scale] = parts[scale] * F.interpolate(mask, size=parts[scale].shape[2:], mode="nearest")
            return reduce(torch.add, parts)

    def prefixes(self, values: Tensor) -> list[Tensor]:
        """Vectors (B, D, *grid) of the first 1, 2, ... scales in `values`; of all scales the last is `lookup`."""
        with full_precision(values.device):
            return self.dequantize_prefixes(values)

    def codebook(self) -> Tensor:
        """The vectors (V, D) of all codes, for a quantizer with one grid and one code per position.

        Raises LayoutError for continuous tokens, for several codes per position and for several grids, where no single
        table of vectors exists.
        """
        if self.vocab is None or self.codes != 1 or len(self.grids) != 1:
            raise LayoutError("only a quantizer with one grid and one code per position has a single table of vectors")
        length = math.prod(self.grids[0])
        rows = math.ceil(self.vocab / length)
        device = next((tensor.device for tensor in chain(self.parameters(), self.buffers())), None)
        values = torch.arange(rows * length, device=device).clamp(max=self.vocab - 1)
        return to_sequence(self.lookup(values.view(rows, length, 1))).flatten(0, 1)[: self.vocab]

    @abstractmethod
    def quantize(self, latents: Tensor) -> Quantized:
        """`forward` in float32. In training mode it may collect what `settle_codes` brings in."""

    @abstractmethod
    def dequantize(self, values: Tensor) -> Tensor:
        """`lookup` in float32."""

    def dequantize_scales(self, values: Tensor, known: Tensor | None = None) -> list[Tensor]:
        """What each scale adds (B, D, *grid), in float32; quantizers of several scales define it.

        known: as in `lookup`, which masks the result. Here unknown positions must not affect others.
        """
        return [self.dequantize(values)]

    def dequantize_prefixes(self, values: Tensor) -> list[Tensor]:
        """`prefixes` in float32."""
        return list(accumulate(self.dequantize_scales(values)))


class QuantizerConfig(Part, ABC):
    """The `quantizer:` section. mixes_positions: whether the code of a position depends on latents beside it."""

    mixes_positions: ClassVar[bool] = False

    @abstractmethod
    def build(self, grid: tuple[int, ...]) -> Quantizer:
        """The quantizer of a latent grid such as (16, 16)."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> QuantizerConfig:
        """The smallest sensible setting, which the contract tests run."""


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast; on the meta device, which has none, it does nothing."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def to_sequence(latents: Tensor) -> Tensor:
    """(B, D, *grid) to (B, N, D), row-major. Copied: norms and sums of a transposed view are ten times slower."""
    return rearrange(latents, "b d ... -> b (...) d").contiguous()


def to_grid(vectors: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, N, D) to (B, D, *grid), the inverse of `to_sequence`. The first side may be another, such as more frames."""
    return vectors.transpose(1, 2).unflatten(2, (-1, *grid[1:]))
