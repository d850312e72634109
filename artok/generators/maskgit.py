"""MaskGIT: parallel decoding of masked codes by confidence (Chang et al. 2022, arXiv 2202.04200).

It uses MAR's masked transformer, with codes as input and a distribution over codes at each masked position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.conditioning.base import Conditioners, Context
from artok.config import Depth
from artok.generators.base import Generator, GeneratorConfig
from artok.generators.masked import (
    MaskedTransformer,
    Stack,
    count_steps,
    even_uniforms,
    flag_masked,
    put_unknown_first,
    schedule,
    select,
)
from artok.layout import Codec, Condition, TokenLayout, Tokens
from artok.nn.vit import EPS, initialise_linear
from artok.noise import Noise
from artok.sampling.guidance import Guidance
from artok.sampling.logits import draw
from artok.sampling.settings import DRAWS, GUIDANCE, Sampling

SIZES = {"base": (768, 12, 8)}  # width, layers of the encoder and of the decoder (together MaskGIT's 24), heads


class Config(GeneratorConfig):
    """kind: maskgit.

    size: close to the published model. Or set `depth`, the layers of the encoder and of the decoder each: by default
    width is 64 * depth and there are depth heads. buffer_size: copies of the class embedding before the tokens.
    embedding_init: deviation of the initial weights of codes, class, mask token and positions; published is .02.
    label_smoothing: of the targets of the loss. steps: default number of sampling steps.
    """

    kind: Literal["maskgit"] = "maskgit"
    size: Literal["base"] | None = None
    depth: Depth | None = None
    width: int | None = Field(None, ge=2)
    heads: int | None = Field(None, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    buffer_size: int = Field(1, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    embedding_init: float = Field(0.02, gt=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    steps: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> Config:
        if (self.size is None) == (self.depth is None):
            raise ValueError("give either size (base) or depth")
        if self.size and (self.width or self.heads):
            raise ValueError("width and heads follow from size; leave them out, or give depth instead of size")
        width, _, heads = self.shape()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of the heads ({heads})")
        return self

    def shape(self) -> tuple[int, int, int]:
        """Width, layers, heads."""
        if self.size:
            return SIZES[self.size]
        assert self.depth is not None
        return self.width or 64 * self.depth, self.depth, self.heads or self.depth

    def refuse(self, layout: TokenLayout) -> str | None:
        if not layout.discrete:
            return "needs codes, since it predicts a distribution over a vocabulary"
        if len(layout.grids) != 1 or layout.codes != 1:
            return "needs a single grid with one code a position"
        return None

    def build(self, layout: TokenLayout, classes: int) -> MaskedCodes:
        return MaskedCodes(self, layout, classes)

    @classmethod
    def tiny(cls) -> Config:
        return cls(depth=1, width=32, heads=2, dropout=0.0, label_smoothing=0.0, steps=4)


class MaskedCodes(Generator):
    """p(masked codes | known codes, condition), independent for each position."""

    keeps_known = True
    reads: ClassVar = GUIDANCE | DRAWS | {"steps", "choice_temperature"}

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__(layout, classes)
        assert layout.vocab is not None
        self.config, (width, depth, heads) = config, config.shape()
        self.embedding = nn.Embedding(layout.vocab, width)
        stack = Stack(width, depth, heads, int(config.mlp_ratio * width))
        conditioner = config.conditioners(width, layout.grid, image=layout.image, classes=classes)
        self.body = MaskedTransformer(conditioner, layout.length, stack, stack, config.buffer_size, config.dropout)
        self.head = nn.Sequential(nn.LayerNorm(width, eps=EPS), nn.Linear(width, layout.vocab))
        self.apply(initialise_linear)
        self.body.initialise(config.embedding_init)
        nn.init.normal_(self.embedding.weight, std=config.embedding_init)

    @property
    def conditioner(self) -> Conditioners:  # type: ignore[override]
        return self.body.conditioner

    def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        codes, length = tokens.values[..., 0], self.layout.length
        order = noise.permutation(length)
        counts = self.masked_counts(noise.uniform())
        z = self.body(self.embedding(codes), self.context(condition), order, counts, room=length - 1)
        masked = flag_masked(order, counts)
        logits = self.head(select(z, masked, self.expected)).float()
        targets = select(codes, masked, self.expected)
        nats = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.config.label_smoothing)
        weights = select((1 / (counts * len(tokens)))[:, None].expand_as(masked), masked, self.expected)
        return {"masked_nll": (nats * weights).sum()}

    @cached_property
    def expected(self) -> float:
        """The share of tokens masked in training, on average."""
        return float(self.masked_counts(even_uniforms()).double().mean()) / self.layout.length

    def masked_counts(self, uniform: Tensor) -> Tensor:
        """Number of masked tokens per image, (B,) int64 from uniform (B,): the share cos(pi/2 u) (section 3.2)."""
        length = self.layout.length
        return (torch.cos(math.pi / 2 * uniform) * length).ceil().long().clamp(1, length)

    def steps(self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None) -> Iterator[Tokens]:
        batch, length, total = len(condition), self.layout.length, self.passes(sampling)
        guidance = Guidance(condition, sampling, total)
        context = self.context(guidance.condition)
        known, device = condition.known, condition.device
        codes = torch.zeros(batch, length, dtype=torch.int64, device=device)
        if known is not None:
            codes = torch.where(known.flags, known.values[..., 0], codes)
        order = torch.arange(length, device=device).expand(batch, -1)
        order, unknown = put_unknown_first(order, None if known is None else known.flags)
        for step in range(total):
            counts, left = (tuple(schedule(whole, total)[at] for whole in unknown) for at in (step, step + 1))
            places = order[:, : max(counts)]
            free = torch.arange(max(counts), device=device) < torch.tensor(counts, device=device)[:, None]
            inputs, told = guidance.repeat(codes, step), guidance.take(context, step)
            logits = guidance(self.logits(inputs, told, guidance.repeat(order, step), counts), step)
            uniform = noise.uniform(max(counts))
            drawn = draw(logits, uniform, sampling.temperature, sampling.top_k, sampling.top_p)
            codes = codes.scatter(1, places, torch.where(free, drawn, codes.gather(1, places)))
            ratio = (step + 1) / total
            sure = confidence(logits, drawn, noise, sampling.choice_temperature * (1 - ratio))
            surest = sure.masked_fill(~free, math.inf).argsort(1)
            order = torch.cat([places.gather(1, surest), order[:, places.shape[1] :]], dim=1)
            decided = ~flag_masked(order, torch.tensor(left, device=device))
            yield Tokens(codes[..., None].clone(), self.layout, known=decided if any(left) else None)

    def logits(self, codes: Tensor, context: Context, order: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Logits (B, n, V) float32 of the first n positions of the order, n being the largest of `counts`, the number
        of masked positions per row. The head runs on those only."""
        count, halves = max(counts), len(order) // len(counts)
        z = self.body(self.embedding(codes), context, order, counts * halves)
        return self.head(z.gather(1, order[:, :count, None].expand(-1, -1, z.shape[2]))).float()

    def check(self, sampling: Sampling) -> None:
        self.passes(sampling)

    def passes(self, sampling: Sampling) -> int:
        return count_steps(sampling.steps, self.config.steps, self.layout.length)


def confidence(logits: Tensor, drawn: Tensor, noise: Noise, temperature: float) -> Tensor:
    """Confidence (B, n) of a draw: its log probability plus Gumbel noise (section 3.3)."""
    chosen = logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
    uniform = noise.uniform(drawn.shape[1]).clamp(min=1e-9)
    return chosen - temperature * torch.log(-torch.log(uniform))
