"""A learned table of codes: the search, the running means, the k-means start and the restart of dead codes.

vq and residual build on it, and multiscale uses its parts. It is not vector-quantize-pytorch's VectorQuantize, whose
forward also starts k-means in eval mode, decides once and for all at its first use whether there are several processes,
gives codebook and encoder the same weight when the codebook takes gradients, and builds a one-hot matrix of tokens x
codes (3 to 7 ms on a CPU core at 2,048 tokens and 256 codes, against 1 to 1.5). Tests hold the means and the k-means to
the library's.
"""

from __future__ import annotations

import math
from abc import ABC
from functools import reduce
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from artok.noise import fold
from artok.quantizers.base import Quantized, Quantizer, QuantizerConfig, Replacement, to_grid, to_sequence
from artok.quantizers.candidates import Candidates
from artok.quantizers.distributed import copy_from_first_process, sum_all_over_processes
from artok.quantizers.gradients import rotation_trick, straight_through
from artok.quantizers.usage import count_codes
from artok.renamed import read_dead_code_threshold, rename_tensors

SMOOTHING = 1e-5  # of the counts, against division by zero
FEWEST = 1e-3  # running choices per step of a code that still has a mean: SMOOTHING changes it by 1%
PATIENCE = 8  # choices that a code would have had in an even use before it counts as dead
START = 8  # latents per code that k-means starts from
RESTARTED = 1024  # codes replaced at one step, at most


class CodebookConfig(QuantizerConfig, ABC):
    """Settings of every learned table of codes.

    codebook_size: vectors V in the table. code_dim: length D of each.
    update: "ema" moves each code to the running mean of the latents that chose it (van den Oord 2017,
        appendix A.1; Razavi 2019, section 2.1);
        "gradient" trains the table with the codebook loss (van den Oord 2017, equation 3), as VQGAN and LlamaGen do.
    decay: of the running sums and counts, per step.
    commitment_weight: weight beta of the loss that keeps the latents near their codes.
    kmeans_init: start the table from k-means (`kmeans_iters` rounds) of the first training images.
    dead_code_threshold: a code whose running count of choices falls below this share of an even use is replaced by a
        latent of the step (dead-code restart); 0 never replaces any. A new code starts with the count of an even use,
        so it has log(threshold) / log(decay) steps, 28 by default, to be chosen. Where a step has few tokens per code
        it has longer, until an even use would have chosen it 8 times.
    rotation_trick: gradients through a rotation (Fifty 2024) instead of straight through.
    """

    codebook_size: int = Field(256, ge=2)
    code_dim: int = Field(8, ge=1)
    update: Literal["ema", "gradient"] = "ema"
    decay: float = Field(0.9, gt=0, lt=1)
    commitment_weight: float = Field(0.25, ge=0)
    kmeans_init: bool = False
    kmeans_iters: int = Field(10, ge=1)
    dead_code_threshold: Annotated[float, BeforeValidator(read_dead_code_threshold)] = Field(0.05, ge=0, lt=1)
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
        self.candidates = Candidates(1, min(config.codebook_size, RESTARTED), levels * config.code_dim)
        self.first_images = math.ceil(START * config.codebook_size / math.prod(grid)) if config.kmeans_init else 0
        self.cosine = cosine
        self.config = config
        self.estimator = rotation_trick if config.rotation_trick else straight_through

    def quantize(self, latents: Tensor) -> Quantized:
        points = self._points(latents)
        residual, total = points, torch.zeros_like(points)
        commitment, codebook = points.new_zeros(()), points.new_zeros(())
        chosen: list[Tensor] = []  # list[Tensor]() would break the graph of a compiled model
        residuals: list[Tensor] = []
        for level in self.levels:
            residuals.append(residual.detach())
            values, codes = level(residuals[-1])
            if self.config.update == "gradient":
                codebook = codebook + F.mse_loss(codes, residual.detach())
            residual, total = residual - codes.detach(), total + codes.detach()
            commitment = commitment + residual.square().mean()
            chosen.append(values)
        if self.training and self.config.dead_code_threshold:
            self.candidates.collect(0, torch.cat(residuals, dim=-1), self.draws(latents))
        losses = {"commitment": self.config.commitment_weight * commitment}
        if self.config.update == "gradient":
            losses["codebook"] = codebook
        vectors = to_grid(self.estimator(points, total), self.grids[0])
        return Quantized(vectors, torch.stack(chosen, dim=-1), losses)

    def _points(self, latents: Tensor) -> Tensor:
        """What is compared with the first table, (B, N, D)."""
        points = to_sequence(latents)
        return F.normalize(points, dim=-1) if self.cosine else points

    def settle_codes(self, counts: Tensor) -> list[Replacement]:
        books = self.books()
        if not books[0].counts_choices:
            return []
        counts, sums = sum_all_over_processes([counts, torch.stack([book.take() for book in books])])
        for index, book in enumerate(books):
            book.update(counts[0, index], sums[index])
        if not books[0].restarts:
            return []
        points, real = self.candidates.take()
        residuals = points[0].split(self.config.code_dim, dim=-1)
        return [
            Replacement(book.table, book.restart_dead_codes(residual, real[0]))
            for book, residual in zip(books, residuals, strict=True)
        ]

    @torch.no_grad()
    def start(self, latents: Tensor, seed: int, steps: float) -> list[Replacement]:
        replaced = list[Replacement]()
        if not self.config.kmeans_init:
            return replaced
        residual = self._points(latents.float()).flatten(0, 1)
        for level, book in enumerate(self.books()):
            if not book.started:
                book.start_from_kmeans(residual, fold("kmeans", seed, level), steps)
                replaced.append(Replacement(book.table, torch.ones_like(book.counts[0], dtype=torch.bool)))
            residual = residual - F.embedding(find_nearest(residual, book.vectors()), book.vectors())
        return replaced

    def dequantize(self, values: Tensor) -> Tensor:
        codes = [F.embedding(values[..., index], table) for index, table in enumerate(self.tables())]
        return to_grid(reduce(torch.add, codes), self.grids[0])  # added in the order of `quantize`, to the same bits

    def books(self) -> list[Codebook]:
        return [cast(Codebook, level) for level in self.levels]

    def tables(self) -> list[Tensor]:
        """The vectors (V, D) of each level."""
        return [book.vectors() for book in self.books()]


class Codebook(nn.Module):
    """A table of V vectors of length D, and how often and by what each has been chosen.

    All processes keep the same table, which changes at the end of a step only, in `settle`, where gradients are off.

    table: (1, V, D). counts: (1, V), running number of choices per step. sums: (1, V, D), running sum per step of the
    vectors that chose each code, if the table follows their means. started: whether k-means has been run, if it was
    asked for. The leading axis is that of saved models. step_sums: (V, D), of the step so far in this process, with no
    rows where none are needed.
    """

    table: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor
    step_sums: Tensor
    averaged = ("table",)

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
        rows = config.codebook_size if self.follows_means else 0
        self.register_buffer("step_sums", torch.zeros(rows, config.code_dim), persistent=False)
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

        The vectors have gradients to the table if it takes any.
        """
        flat, vectors = points.flatten(0, 1), self.vectors()
        values = find_nearest(flat, vectors)
        if self.training:
            self.collect(flat, values)
        return values.view(points.shape[:2]), F.embedding(values, vectors).view(points.shape)

    def collect(self, points: Tensor, values: Tensor) -> None:
        """Add the points (M, D) of a part of a step, whose values are (M,), to the sums of their codes."""
        if self.follows_means:
            self.step_sums.index_add_(0, values, points)

    def take(self) -> Tensor:
        """The sums (V, D) of the step in this process, which then start anew."""
        sums = self.step_sums.clone()
        self.step_sums.zero_()
        return sums

    def update(self, counts: Tensor, sums: Tensor) -> None:
        """Bring the counts (V,) and sums (V, D) of a step, over all processes, into the running ones.

        With update "ema" the codes then move to the means (van den Oord 2017, appendix A.1).
        """
        self.counts.lerp_(counts[None], 1 - self.config.decay)
        if self.follows_means:
            self.sums.lerp_(sums[None], 1 - self.config.decay)
            self._move_to_means()

    def _move_to_means(self) -> None:
        """Each code becomes its sum over its count, the latter with Laplace smoothing (Razavi 2019, section 2.1).

        A code that nothing has chosen for long has no mean any more, and stays where it was.
        """
        total = self.counts.sum(-1, keepdim=True)
        counts = (self.counts + SMOOTHING) / (total + self.config.codebook_size * SMOOTHING) * total
        means = self.sums / counts[..., None]
        if self.means_on_sphere:
            means = F.normalize(means, dim=-1)
        self.table.copy_(torch.where(self.counts[..., None] > FEWEST, means, self.table))

    def start_from_kmeans(self, points: Tensor, seed: int, steps: float) -> None:
        """Place the codes by k-means on the points (M, D) of `steps` steps, from codes drawn among these."""
        size, rng = self.config.codebook_size, torch.Generator().manual_seed(seed)
        if len(points) >= size:
            drawn = torch.randperm(len(points), generator=rng)[:size]
        else:
            drawn = torch.randint(len(points), (size,), generator=rng)
        means = points[drawn.to(points.device)]
        for _ in range(self.config.kmeans_iters):
            values = find_nearest(points, means)
            counts = count_codes(values[None, :, None], size)[0, :, None]
            moved = torch.zeros_like(means).index_add_(0, values, points) / counts.clamp(min=1)
            if self.means_on_sphere:
                moved = F.normalize(moved, dim=-1)
            means = torch.where(counts > 0, moved, means)
        self.counts.copy_(counts.T / steps)
        self.sums.copy_(means * counts / steps)
        self.table.copy_(means)
        if self.follows_means:
            self._move_to_means()
        self.started.fill_(True)
        for tensor in (self.counts, self.sums, self.table):
            copy_from_first_process(tensor.detach())

    def restart_dead_codes(self, points: Tensor, real: Tensor) -> Tensor:
        """Replace codes that are hardly used by the points (M, D), the least used first. All processes give the same.

        real: (M,) bool, which of the points may be taken; these come first. Returns which codes were replaced, (V,)
        bool. There may be fewer points than dead codes; the others wait for a later step.
        """
        counts, even = self.counts[0], self.counts.mean()
        share = (self.config.decay ** (PATIENCE / even)).clamp(max=self.config.dead_code_threshold)
        dead = counts < share * even
        rows = torch.where(dead, counts, torch.inf).argsort(stable=True)[: len(points)]
        points, taken = points[: len(rows)], dead[rows] & real[: len(rows)]
        if self.means_on_sphere:
            points = F.normalize(points, dim=-1)
        # chosen by `where`, since to learn how many there are would make the host wait for a GPU
        self.table[0, rows] = torch.where(taken[:, None], points, self.table[0, rows])
        self.sums[0, rows] = torch.where(taken[:, None], points * even, self.sums[0, rows])
        self.counts[0, rows] = torch.where(taken, even, counts[rows])
        return torch.zeros_like(dead).scatter(0, rows, taken)


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
