"""Codebooks that are learned as a table of vectors: the search, the updates and the revival that vq and residual share.

The state, its k-means start, its smoothed means and the revival of dead codes are vector-quantize-pytorch's. The
search and the counting are here, because the library's forward also starts k-means in eval mode, decides once and for
all at its first use whether there are several processes, gives codebook and encoder the same weight when the codebook
takes gradients, and builds a one-hot matrix of tokens x codes (3 to 7 ms on a CPU core at 2,048 tokens and 256 codes,
against 1 to 1.5).
"""

from __future__ import annotations

from abc import ABC
from functools import reduce
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, distributed, nn
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import batched_sample_vectors, sample_vectors_distributed

from artok.quantizers.base import Quantized, Quantizer, QuantizerConfig, code_usage, to_grid, to_sequence
from artok.quantizers.gradients import rotation_trick, straight_through


class CodebookConfig(QuantizerConfig, ABC):
    """What every learned table of codes can be told.

    codebook_size: vectors V in the table. code_dim: length D of each.
    update: "ema" moves each code to the running mean of the latents that chose it (van den Oord 2017,
        appendix A.1; Razavi 2019, section 2.1);
        "gradient" trains the table with the codebook loss (van den Oord 2017, equation 3), as VQGAN and LlamaGen do.
    decay: of the running means and counts, a step.
    commitment_weight: weight beta of the loss that keeps the latents near their codes.
    kmeans_init: start the table from k-means (`kmeans_iters` rounds) of the first training batch.
    dead_code_threshold: a code whose running count of choices a step falls below this is replaced by a latent of the
        batch; 0 never does.
    rotation_trick: gradients through a rotation (Fifty 2024) and not straight through.
    """

    codebook_size: int = Field(256, ge=2)
    code_dim: int = Field(8, ge=1)
    update: Literal["ema", "gradient"] = "ema"
    decay: float = Field(0.9, gt=0, lt=1)
    commitment_weight: float = Field(0.25, ge=0)
    kmeans_init: bool = False
    kmeans_iters: int = Field(10, ge=1)
    dead_code_threshold: float = Field(1.0, ge=0)
    rotation_trick: bool = False

    @model_validator(mode="after")
    def _can_rotate(self) -> CodebookConfig:
        if self.code_dim == 1 and self.rotation_trick:
            raise ValueError("rotation_trick needs a width of at least 2")
        return self


class CodebookQuantizer(Quantizer):
    """One table of codes, or several in a row, each of which codes what the ones before left over (Lee 2022).

    With one table the losses are those of van den Oord 2017, equation 3; with several, the latents are held to the sum
    of the codes after each level (Lee 2022, section 3.1).
    """

    def __init__(self, grid: tuple[int, ...], config: CodebookConfig, levels: int = 1, cosine: bool = False) -> None:
        super().__init__((grid,), config.code_dim, config.codebook_size, codes=levels)
        self.levels = nn.ModuleList(Codebook(config, cosine) for _ in range(levels))
        self.cosine = cosine
        self.config = config
        self.estimator = rotation_trick if config.rotation_trick else straight_through

    def quantize(self, latents: Tensor) -> Quantized:
        points = to_sequence(latents)
        if self.cosine:
            points = F.normalize(points, dim=-1)
        residual, total = points, torch.zeros_like(points)
        commitment, codebook = points.new_zeros(()), points.new_zeros(())
        chosen: list[Tensor] = []
        for level in self.levels:
            values, codes = level(residual.detach())
            if self.config.update == "gradient":
                codebook = codebook + F.mse_loss(codes, residual.detach())
            residual, total = residual - codes.detach(), total + codes.detach()
            commitment = commitment + residual.square().mean()
            chosen.append(values)
        losses = {"commitment": self.config.commitment_weight * commitment}
        if self.config.update == "gradient":
            losses["codebook"] = codebook
        stacked = torch.stack(chosen, dim=-1)
        vectors = to_grid(self.estimator(points, total), self.grids[0])
        return Quantized(vectors, stacked, losses, code_usage(stacked, self.config.codebook_size))

    def dequantize(self, values: Tensor) -> Tensor:
        codes = [F.embedding(values[..., index], table) for index, table in enumerate(self.tables())]
        return to_grid(reduce(torch.add, codes), self.grids[0])  # added in the order of `quantize`, to the same bits

    def tables(self) -> list[Tensor]:
        """The vectors (V, D) of each level."""
        return [cast(Codebook, level).vectors() for level in self.levels]


class Codebook(nn.Module):
    """A table of V vectors of length D. In training mode, each call also moves the table towards what it was shown.

    Among processes the counts, the sums, k-means and the samples that revive codes are shared, so all keep one table.
    """

    def __init__(self, config: CodebookConfig, cosine: bool) -> None:
        super().__init__()
        self.cosine = cosine
        self.follows_means = config.update == "ema"
        self.decay = config.decay
        self.revives = config.dead_code_threshold > 0
        library = VectorQuantize(
            dim=config.code_dim,
            codebook_size=config.codebook_size,
            decay=config.decay,
            kmeans_iters=config.kmeans_iters,
            threshold_ema_dead_code=config.dead_code_threshold,
            use_cosine_sim=cosine and self.follows_means,  # it knows no gradients on the sphere; `vectors` does
            learnable_codebook=not self.follows_means,
            ema_update=self.follows_means,
            rotation_trick=False,
            sync_codebook=False,  # decided at each step by `_share`
        )
        self.state = library._codebook
        # not through the constructor's kmeans_init, which would leave the table all zeros until the first batch
        self.state.initted.fill_(not config.kmeans_init)
        self.starts_from_means = config.kmeans_init

    def vectors(self) -> Tensor:
        """The table (V, D) in float32, on the unit sphere when similarity is cosine."""
        vectors = self.state.embed[0].float()
        return F.normalize(vectors, dim=-1) if self.cosine else vectors

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest code of each of the points (B, N, D): its number (B, N) int64 and its vector (B, N, D).

        The vectors are those from before this call's update, with gradients to the table if it takes any.
        """
        flat = points.flatten(0, 1)
        if self.training:
            self._prepare(flat)
        vectors = self.vectors()
        values = nearest(flat, vectors)
        codes = F.embedding(values, vectors)
        if self.training:
            self.count(flat, values)
        return values.view(points.shape[:2]), codes.view(points.shape)

    @torch.no_grad()
    def _prepare(self, points: Tensor) -> None:
        """The k-means start and the revival of dead codes: before the search, so that no code chosen by this batch
        changes under it."""
        if not (self.starts_from_means or self.revives):
            return
        self._choose_samplers()
        if self.starts_from_means:
            self.state.init_embed_(points.unsqueeze(0))
        if self.revives:
            self.state.expire_codes_(points.unsqueeze(0))

    @torch.no_grad()
    def revive(self, points: Tensor, spared: Tensor) -> Tensor:
        """The revival alone, for a caller that searches by itself: dead codes, but for those `spared` (V,), are
        replaced by some of the points (M, D). Which were replaced, (V,) bool."""
        dead = (self.state.cluster_size < self.state.threshold_ema_dead_code) & ~spared
        if dead.any():
            self._choose_samplers()
            self.state.replace(points.unsqueeze(0), batch_mask=dead)
        return dead[0]

    def _choose_samplers(self) -> None:
        """At each use, for there may be several processes by now."""
        shared = several_processes()
        self.state.sample_fn = sample_vectors_distributed if shared else batched_sample_vectors
        self.state.replace_sample_fn = self.state.sample_fn
        self.state.kmeans_all_reduce_fn = distributed.all_reduce if shared else _keep

    @torch.no_grad()
    def count(self, points: Tensor, values: Tensor) -> Tensor | None:
        """Running counts n and sums m of the latents at each code, and the code m/n (van den Oord 2017, A.1).

        points: (M, D). values: (M,). Returns how often this step chose each code, (V,), over all processes; None where
        nothing is counted.
        """
        if not (self.follows_means or self.revives):
            return None
        totals = points.new_zeros(self.state.codebook_size, points.shape[1] + 1)
        totals.index_add_(0, values, F.pad(points, (0, 1), value=1.0))
        summed(totals)
        self.state.embed_avg.lerp_(totals[None, :, :-1].to(self.state.embed_avg), 1 - self.decay)
        self.state.cluster_size.lerp_(totals[None, :, -1].to(self.state.cluster_size), 1 - self.decay)
        if self.follows_means:
            self.state.update_ema()
        return totals[:, -1]


@torch.no_grad()
def nearest(points: Tensor, vectors: Tensor, discounts: Tensor | None = None) -> Tensor:
    """For each of the points (M, D) the number (M,) of the nearest of the vectors (V, D), in Euclidean distance.

    discounts: (V,), taken off the squared distances.

    |p - v|^2 = |p|^2 - (2 p.v - |v|^2): one matrix product and no square root; on CPU max is faster than argmax. The
    M x V products are taken in blocks, for the cache of a CPU (3 times faster at 16,384 codes) and a GPU's memory.
    """
    squares = vectors.square().sum(1)
    if discounts is not None:
        squares = squares - discounts
    if torch.onnx.is_in_onnx_export():  # a graph cannot loop over blocks, whose number the batch decides
        return torch.addmm(squares, points, vectors.T, beta=-1, alpha=2).max(1).indices
    block = max(1, (2**28 if points.is_cuda else 2**22) // len(vectors))
    parts = [torch.addmm(squares, part, vectors.T, beta=-1, alpha=2).max(1).indices for part in points.split(block)]
    return torch.cat(parts)


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if several_processes():
        distributed.all_reduce(values)
    return values


def several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _keep(_: Tensor) -> None:
    """Stands where the library reduces over processes, when there is one."""
