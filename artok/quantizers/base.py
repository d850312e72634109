"""The interface of quantizers, the bottleneck between encoder and decoder, and what they share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from itertools import accumulate, chain

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from artok.config import Part
from artok.errors import LayoutError


@dataclass
class Quantized:
    """vectors: (B, D, *grid) what the decoder receives, with gradients to the encoder (straight-through).
    values: (B, N, K) int64 codes, or (B, N, D) float vectors of a continuous bottleneck.
    losses: scalars, already weighted, to be added to the training loss.
    monitors: scalars to be logged, no part of the loss.
    sums: like losses, but sums per image, to be added to a reconstruction error that is a sum per image too.
    """

    vectors: Tensor
    values: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    monitors: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)


class Quantizer(nn.Module, ABC):
    """Latents (B, input_channels, *grid) to codes and back to vectors (B, width, *grid).

    grids, width, vocab, codes: as in TokenLayout. input_channels: what the encoder must deliver; it differs from the
    width only where a bottleneck reads more than it passes on (the mean and variance of a Gaussian).
    Quantizers run in float32 also under autocast: bfloat16 represents no index above 256 exactly and halves FSQ's
    usage.
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
        with full_precision(latents.device):
            return self.quantize(latents.float())

    def lookup(self, values: Tensor, known: Tensor | None = None) -> Tensor:
        """Vectors (B, D, *grid) of codes (B, N, K), or of continuous values (B, N, D).

        known: (B, N) bool. An unknown position is a zero vector, and its scale adds zero over its area.
        """
        with full_precision(values.device):
            if known is None:
                return self.dequantize(values)
            parts = self.dequantize_scales(torch.where(known[..., None], values, 0), known)
            lengths = [math.prod(grid) for grid in self.grids]
            for scale, (grid, own) in enumerate(zip(self.grids, known.split(lengths, dim=1), strict=True)):
                mask = own.unflatten(1, grid)[:, None].to(parts[scale].dtype)
                parts[scale] = parts[scale] * F.interpolate(mask, size=self.grids[-1], mode="nearest")
            return reduce(torch.add, parts)

    def prefixes(self, values: Tensor) -> list[Tensor]:
        """Vectors (B, D, *grid) of the first 1, 2, ... scales; the last is `lookup`."""
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
        """`forward` in float32. In training mode it may update its codebook."""

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
    """The `quantizer:` section."""

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
    """(B, N, D) to (B, D, *grid), the inverse of `to_sequence`."""
    return vectors.transpose(1, 2).unflatten(2, grid)


@torch.no_grad()
def code_usage(values: Tensor, vocab: int) -> dict[str, Tensor]:
    """How a batch of codes (B, N, K) fills the codebook, as monitors: two scalars, each the mean over the K levels.

    usage: share of the codes that occur. perplexity: exp of the entropy of their frequencies, in [1, vocab].
    Both are bounded by the number of positions in the batch; the metrics give them for a whole data set.
    """
    counts = count_codes(values, vocab)
    frequencies = counts * (len(counts) / values.numel())
    return {"usage": (counts > 0).float().mean(), "perplexity": perplexity(frequencies).mean()}


@torch.no_grad()
def count_codes(values: Tensor, vocab: int) -> Tensor:
    """How often each level K of codes (B, N, K) has each code, (K, vocab)."""
    levels = values.shape[-1]
    slots = (values + vocab * torch.arange(levels, device=values.device)).flatten()
    # scatter_add_ and not bincount, which makes the host wait for a GPU to learn the largest value
    counts = torch.zeros(levels * vocab, device=values.device)
    counts.scatter_add_(0, slots, torch.ones((), device=values.device).expand(slots.shape))
    return counts.view(levels, vocab)


def perplexity(frequencies: Tensor) -> Tensor:
    """exp of the entropy of frequencies (..., V) that sum to 1."""
    return torch.special.entr(frequencies).sum(-1).exp()
