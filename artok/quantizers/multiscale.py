"""Multi-scale residual quantization: each finer grid codes the residual of the coarser ones (VAR, Tian et al. 2024,
arXiv 2404.02905, algorithm 1).

One table of codes serves every scale. The remaining residual is shrunk by area to a scale's grid, looked up, enlarged
smoothly to the latent grid, and passed through a convolution phi, before it is taken off.
"""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.errors import ConfigError
from artok.nn.grid_layers import CONVOLUTIONS
from artok.nn.resize import enlarge, shrink
from artok.quantizers.balance import Standardisation, UsageBalancing
from artok.quantizers.base import Quantized, Quantizer, Replacement, to_grid, to_sequence
from artok.quantizers.candidates import Candidates
from artok.quantizers.codebook import RESTARTED, Codebook, CodebookConfig, find_nearest
from artok.quantizers.distributed import sum_all_over_processes
from artok.quantizers.gradients import rotation_trick, straight_through


class Config(CodebookConfig):
    """scales: the grids, coarse to fine, ending at the latent grid; a number stands for a grid of equal sides. Unless
        given, sides double from 1 to the latent grid.
    phi: number of different convolutions after enlarging, shared by the scales; at most one per scale.
    scale_dropout: share of the training images that the decoder sees through their first few scales only, so that
        unfinished images decode well.
    standardise: look residuals up less their scale's running mean and divided by its running deviation, channel by
        channel (running with `decay`), and undo it on the codes. Without it a shared table holds large codes, which
        only coarse scales choose, and small ones, which only fine scales choose.
    usage_balancing: share of an even use that each code keeps at each scale, by a bias on the distance of those that a
        scale chooses less often (DeSieno 1988); 0 has none. It keeps the coarsest scales, where tokens are fewest, from
        using a handful of codes. It needs `standardise`, which gives the bias its unit.

    VAR is `codebook_size: 4096, code_dim: 32, update: gradient, dead_code_threshold: 0` with scales [1, 2, 3, 4, 5, 6,
    8, 10, 13, 16]. There is no k-means start: without codes the later scales have no residuals to start from. Dead
    codes are replaced by residuals drawn evenly from the scales. Drawn from all residuals alike, hardly any would come
    from the coarse scales, which have few; replaced by each scale on its own, codes that others use would go.
    """

    mixes_positions: ClassVar[bool] = True

    kind: Literal["multiscale"] = "multiscale"
    scales: tuple[int | tuple[int, ...], ...] | None = Field(None, min_length=1)
    phi: int = Field(4, ge=1)
    scale_dropout: float = Field(0.0, ge=0, le=1)
    standardise: bool = False
    usage_balancing: float = Field(0.0, ge=0, lt=1)
    kmeans_init: Literal[False] = False

    @model_validator(mode="after")
    def _bias_has_a_unit(self) -> Config:
        if self.usage_balancing and not self.standardise:
            raise ValueError("usage_balancing needs standardise: true: its bias is in units of standardised residuals")
        return self

    def grids(self, grid: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The grid of each scale for a latent grid, or a ConfigError that names both."""
        if self.scales is None:
            doublings = [tuple(min(2**power, side) for side in grid) for power in range(max(grid).bit_length())]
            return (*(each for each in doublings if each != grid), grid)
        grids = tuple((scale,) * len(grid) if isinstance(scale, int) else scale for scale in self.scales)
        listed, latent = ", ".join(map(_text, grids)), _text(grid)
        for each in grids:
            if len(each) != len(grid) or min(each) < 1:
                raise ConfigError(f"the scale {_text(each)} cannot be a grid of the latent grid {latent}")
            if any(side > whole for side, whole in zip(each, grid, strict=True)):
                raise ConfigError(
                    f"the scale {_text(each)} is larger than the latent grid {latent}; take it out of the quantizer's "
                    f"scales ({listed}), or use a smaller tokenizer.downsample or larger images"
                )
        for coarse, fine in pairwise(grids):
            if coarse == fine or any(side < before for before, side in zip(coarse, fine, strict=True)):
                raise ConfigError(f"scales must grow, but {_text(coarse)} is followed by {_text(fine)} in {listed}")
        if grids[-1] != grid:
            raise ConfigError(
                f"the scales {listed} end at {_text(grids[-1])}, but the latent grid is {latent}; the last scale must "
                "be the latent grid"
            )
        return grids

    def build(self, grid: tuple[int, ...]) -> MultiScaleQuantizer:
        return MultiScaleQuantizer(self.grids(grid), self)

    @classmethod
    def tiny(cls) -> Config:
        return cls(codebook_size=16, code_dim=4)


def _text(grid: tuple[int, ...]) -> str:
    return "x".join(map(str, grid))


def assign_convolutions(scales: int, count: int) -> list[int]:
    """The phi that each scale uses: the nearest of `count` evenly spread ticks to the scale's place in [0, 1].

    The released models were trained with exactly this float64 arithmetic, whose rounding decides ties: 10 scales
    on 4 phi are 0,0,1,1,1,2,2,3,3,3.
    """
    return np.unique(find_nearest_ticks(scales, min(count, scales)), return_inverse=True)[1].tolist()  # none is idle


def find_nearest_ticks(scales: int, count: int) -> list[int]:
    """The same with numbers that no scale may use, as the released models keep them."""
    margin = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(margin, 1 - margin, count)
    return [int(np.argmin(np.abs(ticks - scale / max(scales - 1, 1)))) for scale in range(scales)]


class Phi(nn.Module):
    """.5 x + .5 convolution(x), which sharpens what enlarging blurred."""

    def __init__(self, width: int, axes: int) -> None:
        super().__init__()
        self.convolution = CONVOLUTIONS[axes](width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x + 0.5 * self.convolution(x)


class MultiScaleQuantizer(Quantizer):
    """Codes of all scales, coarse to fine, whose parts add up to the latent."""

    def __init__(self, grids: tuple[tuple[int, ...], ...], config: Config) -> None:
        super().__init__(grids, config.code_dim, config.codebook_size)
        self.config = config
        self.book = Codebook(config, cosine=False)
        self.assignment = assign_convolutions(len(grids), config.phi)
        self.phi = nn.ModuleList(Phi(config.code_dim, len(grids[-1])) for _ in range(max(self.assignment) + 1))
        self.standardisation = (
            Standardisation(len(grids), config.code_dim, config.decay) if config.standardise else None
        )
        self.balancing = (
            UsageBalancing(len(grids), config.codebook_size, config.usage_balancing) if config.usage_balancing else None
        )
        per_scale = math.ceil(min(config.codebook_size, RESTARTED) / len(grids))
        self.candidates = Candidates(len(grids), per_scale, config.code_dim)
        self.estimator = rotation_trick if config.rotation_trick else straight_through

    def quantize(self, latents: Tensor) -> Quantized:
        target, table = latents.detach(), self.book.vectors()
        residual, total = target, torch.zeros_like(target)
        commitment, codebook = target.new_zeros(()), target.new_zeros(())
        chosen: list[Tensor] = []  # list[Tensor]() would break the graph of a compiled model
        totals: list[Tensor] = []
        for scale, grid in enumerate(self.grids):
            residuals = to_sequence(shrink(residual, grid))
            points = residuals if self.standardisation is None else self.standardisation.standardise(scale, residuals)
            bias = None if self.balancing is None else self.balancing.bias[scale]
            chosen.append(find_nearest(points.flatten(0, 1), table, bias).view(points.shape[:2]))
            if self.training:
                self._collect(scale, residuals, points, chosen[-1])
            part = self._part(scale, F.embedding(chosen[-1], table))
            total, residual = total + part, residual - part.detach()
            commitment = commitment + F.mse_loss(latents, total.detach())
            codebook = codebook + F.mse_loss(total, target)
            totals.append(total.detach())
        vectors = self.estimator(to_sequence(latents), to_sequence(self._dropped(totals)))
        losses = {
            "commitment": self.config.commitment_weight * commitment / len(self.grids),
            "codebook": codebook / len(self.grids),
        }
        return Quantized(to_grid(vectors, self.grids[-1]), torch.cat(chosen, dim=1).unsqueeze(-1), losses)

    def _collect(self, scale: int, residuals: Tensor, points: Tensor, chosen: Tensor) -> None:
        """residuals, points: (B, n, D) of one scale, as they are and as they are looked up. chosen: (B, n)."""
        self.book.collect(points.flatten(0, 1), chosen.flatten())
        if self.book.restarts:
            self.candidates.collect(scale, points, self.draws(points))
        if self.standardisation is not None:
            self.standardisation.collect(scale, residuals.flatten(0, 1))

    def settle_codes(self, counts: Tensor) -> list[Replacement]:
        """Move the shared table, bring up to date what is kept of each scale, and restart dead codes from residuals
        drawn evenly from the scales."""
        moments = counts.new_zeros(0) if self.standardisation is None else self.standardisation.take()
        counts, sums, moments = sum_all_over_processes([counts[:, 0], self.book.take(), moments])
        if self.standardisation is not None:
            self.standardisation.update(moments)
        if self.balancing is not None:
            self.balancing.update(counts)
        if self.book.counts_choices:
            self.book.update(counts.sum(0), sums)
        if not self.book.restarts:
            return []
        points, real = (taken.transpose(0, 1).flatten(0, 1) for taken in self.candidates.take())
        first = (~real).to(torch.uint8).argsort(stable=True)  # coarse scales may have too few points
        replaced = self.book.restart_dead_codes(points[first], real[first])
        if self.balancing is not None:
            self.balancing.reset(replaced)
        return [Replacement(self.book.table, replaced)]

    def dequantize(self, values: Tensor) -> Tensor:
        return self.dequantize_prefixes(values)[-1]

    def dequantize_scales(self, values: Tensor, known: Tensor | None = None) -> list[Tensor]:
        codes = F.embedding(values[..., 0], self.book.vectors())
        if known is not None:
            codes = codes * known[..., None]
        ends = list(accumulate(math.prod(grid) for grid in self.grids))
        parts = codes.tensor_split(ends, dim=1)[: ends.index(codes.shape[1]) + 1]
        return [self._part(scale, part) for scale, part in enumerate(parts)]

    def _part(self, scale: int, codes: Tensor) -> Tensor:
        """What the code vectors (B, n, D) of one scale add to the latent (B, D, *grid)."""
        if self.standardisation is not None:
            codes = self.standardisation.restore(scale, codes)
        spread = enlarge(to_grid(codes, self.grids[scale]), self.grids[-1])
        return self.phi[self.assignment[scale]](spread)

    def _dropped(self, totals: list[Tensor]) -> Tensor:
        """What the decoder sees (B, D, *grid): all scales, or the first few of some images."""
        if not self.training or self.config.scale_dropout == 0 or len(totals) == 1:
            return totals[-1]
        noise = self.draws(totals[0])
        last = noise.integers(len(totals) - 1)
        kept = torch.where(noise.uniform() < self.config.scale_dropout, last, len(totals) - 1)
        return torch.stack(totals)[kept, torch.arange(len(kept), device=kept.device)]
