"""A learned table of codes: the search, the running means, the k-means start and the restart of dead codes.

vq and residual build on it, and multiscale uses its parts. It is not vector-quantize-pytorch's VectorQuantize, whose
forward also starts k-means in eval mode, decides once and for all at its first use whether there are several processes,
gives codebook and encoder the same weight when the codebook takes gradients, and builds a one-hot matrix of tokens x
codes (3 to 7 ms on a CPU core at 2,048 tokens and 256 codes, against 1 to 1.5). Tests hold the means and the k-means to
the library's.
"""

from __future__ import annotations

from abc import ABC
from functools import reduce
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.quantizers.base import Quantized, Quantizer, QuantizerConfig, code_usage, to_grid, to_sequence
from artok.quantizers.distributed import count_rows, draw_indices, sample_rows, sum_over_processes
from artok.quantizers.gradients import rotation_trick, straight_through
from artok.renamed import rename_tensors

SMOOTHING = 1e-5  # of the counts, against division by zero
SHORTEST = 1e-6  # length of a mean that still has a direction


class CodebookConfig(QuantizerConfig, ABC):
    """Settings of every learned table of codes.

    codebook_size: vectors V in the table. code_dim: length D of each.
    update: "ema" moves each code to the running mean of the latents that chose it (van den Oord 2017,
        appendix A.1; Razavi 2019, section 2.1);
        "gradient" trains the table with the codebook loss (van den Oord 2017, equation 3), as VQGAN and LlamaGen do.
    decay: of the running sums and counts, per step.
    commitment_weight: weight beta of the loss that keeps the latents near their codes.
    kmeans_init: start the table from k-means (`kmeans_iters` rounds) of the first training batch.
    dead_code_threshold: a code whose running count of choices per step falls below this is replaced by a latent of the
        batch (dead-code restart); 0 never replaces any.
    rotation_trick: gradients through a rotation (Fifty 2024) instead of straight through.
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
            raise ValueError("rotation_trick needs a code_dim of at least 2")
        return self


class CodebookQuantizer(Quantizer):
    """One table of codes, or several in a row, each of which codes the residual of those before (Lee 2022).

    With one table the losses are those of van den Oord 2017, equation 3. With several, the latents are compared with
    the sum of the codes after each level (Lee 2022, section 3.1).
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
    """A table of V vectors of length D, and how often and by what each has been chosen.

    In training mode, each call also moves the table towards what it was shown. All processes keep the same table.

    table: (1, V, D). counts: (1, V), running number of choices per step. sums: (1, V, D), running sum per step of the
    vectors that chose each code. started: whether k-means has been run, if it was asked for. The leading axis is that
    of saved models.
    """

    table: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(self, config: CodebookConfig, cosine: bool) -> None:
        super().__init__()
        self.config = config
        self.cosine = cosine
        self.follows_means = config.update == "ema"
        self.restarts = config.dead_code_threshold > 0
        self.means_on_sphere = cosine and self.follows_means  # a table that takes gradients is normalised when read
        table = torch.empty(1, config.codebook_size, config.code_dim)
        nn.init.kaiming_uniform_(table)
        if self.means_on_sphere:
            table = F.normalize(table, dim=-1)
        self.register_buffer("started", torch.tensor(not config.kmeans_init))
        self.register_buffer("counts", torch.ones(1, config.codebook_size))
        self.register_buffer("sums", table.clone())
        if self.follows_means:
            self.register_buffer("table", table)
        else:
            self.table = nn.Parameter(table)
        self.register_load_state_dict_pre_hook(rename_tensors)

    @property
    def counts_choices(self) -> bool:
        return self.follows_means or self.restarts

    def vectors(self) -> Tensor:
        """The table (V, D) in float32, on the unit sphere when similarity is cosine."""
        vectors = self.table[0].float()
        return F.normalize(vectors, dim=-1) if self.cosine else vectors

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest code of each of the points (B, N, D): its number (B, N) int64 and its vector (B, N, D).

        The vectors are those from before this call's update, with gradients to the table if it takes any. k-means and
        the restart come before the search, so that no code changes after this batch has chosen it.
        """
        flat = points.flatten(0, 1)
        if self.training and self.config.kmeans_init and not self.started:
            self.start_from_kmeans(flat)
        if self.training and self.restarts:
            self.restart_dead_codes(flat)
        vectors = self.vectors()
        values = find_nearest(flat, vectors)
        codes = F.embedding(values, vectors)
        if self.training and self.counts_choices:
            self.update(self.collect(flat, values))
        return values.view(points.shape[:2]), codes.view(points.shape)

    @torch.no_grad()
    def collect(self, points: Tensor, values: Tensor) -> Tensor:
        """For each code the sum of the points (M, D) whose value (M,) it is, then their number: (V, D + 1)."""
        totals = points.new_zeros(self.config.codebook_size, points.shape[1] + 1)
        return totals.index_add_(0, values, F.pad(points, (0, 1), value=1.0))

    @torch.no_grad()
    def update(self, totals: Tensor) -> None:
        """Bring the totals (V, D + 1) of a step, as `collect` gives them, into the running counts and sums.

        With update "ema" the codes then move to the means (van den Oord 2017, appendix A.1).
        """
        sum_over_processes(totals)
        self.sums.lerp_(totals[None, :, :-1], 1 - self.config.decay)
        self.counts.lerp_(totals[None, :, -1], 1 - self.config.decay)
        if self.follows_means:
            self._move_to_means()

    def _move_to_means(self) -> None:
        """Each code becomes its sum over its count, the latter with Laplace smoothing (Razavi 2019, section 2.1)."""
        total = self.counts.sum(-1, keepdim=True)
        counts = (self.counts + SMOOTHING) / (total + self.config.codebook_size * SMOOTHING) * total
        means = self.sums / counts[..., None]
        if self.means_on_sphere:  # a code that nothing chooses for long has no mean any more, and stays in its place
            lasting = means.norm(dim=-1, keepdim=True) > SHORTEST
            means = torch.where(lasting, F.normalize(means, dim=-1), self.table)
        self.table.data.copy_(means)

    @torch.no_grad()
    def start_from_kmeans(self, points: Tensor) -> None:
        """Place the codes by k-means on the points (M, D) of all processes, from codes drawn among these."""
        means = sample_rows(points, self.config.codebook_size)
        for _ in range(self.config.kmeans_iters):
            totals = sum_over_processes(self.collect(points, find_nearest(points, means)))
            counts = totals[:, -1:]
            moved = totals[:, :-1] / counts.clamp(min=1)
            if self.means_on_sphere:
                moved = F.normalize(moved, dim=-1)
            means = torch.where(counts > 0, moved, means)
        self.counts.copy_(counts.T)
        self.sums.copy_(means * counts)
        self.table.data.copy_(means)
        self._move_to_means()
        self.started.fill_(True)

    @torch.no_grad()
    def restart_dead_codes(self, points: Tensor, spared: Tensor | None = None) -> Tensor:
        """Replace codes whose running count is below the threshold by some of the points (M, D) of all processes.

        spared: (V,) bool, codes to leave as they are. Returns which codes were replaced, (V,) bool: at most as many as
        there are points, the others wait for a later step.
        """
        threshold = self.config.dead_code_threshold
        dead = self.counts[0] < threshold
        if spared is not None:
            dead &= ~spared
        rows = dead.nonzero()[:, 0]
        if len(rows) == 0:
            return dead
        available = sum(count_rows(points))
        if len(rows) > available:
            rows = rows[draw_indices(len(rows), available, points.device)].sort().values
        drawn = sample_rows(points, len(rows))
        if self.means_on_sphere:
            drawn = F.normalize(drawn, dim=-1)
        self.table.data[0, rows] = drawn
        self.counts[0, rows] = threshold
        self.sums[0, rows] = drawn * threshold
        return torch.zeros_like(dead).index_fill_(0, rows, True)


@torch.no_grad()
def find_nearest(points: Tensor, vectors: Tensor, bias: Tensor | None = None) -> Tensor:
    """For each of the points (M, D) the number (M,) of the nearest of the vectors (V, D), in Euclidean distance.

    bias: (V,), taken off the squared distances.

    |p - v|^2 = |p|^2 - (2 p.v - |v|^2): one matrix product and no square root; on CPU max is faster than argmax. The
    M x V products are taken in blocks, for the cache of a CPU (3 times faster at 16,384 codes) and a GPU's memory.
    """
    squares = vectors.square().sum(1)
    if bias is not None:
        squares = squares - bias
    if torch.onnx.is_in_onnx_export():  # a graph cannot loop over blocks, whose number the batch decides
        return torch.addmm(squares, points, vectors.T, beta=-1, alpha=2).max(1).indices
    block = max(1, (2**28 if points.is_cuda else 2**22) // len(vectors))
    parts = [torch.addmm(squares, part, vectors.T, beta=-1, alpha=2).max(1).indices for part in points.split(block)]
    return torch.cat(parts)
