"""The raster autoregressive transformer: Llama blocks read an image's codes row by row (LlamaGen, Sun et al. 2024).

The sequence is [prefix, code 0, code 1, ...], the prefix being the context's sequence: a class, or a text with its
padding on the left. The output at the prefix's end and at each code predicts the next code. With several codes at a
position (residual quantizers), a position's codes follow one another, coarse to fine. The control at the position that
is predicted, if there is one, is added to the input (ControlAR, Li et al. 2024, arXiv 2410.02705, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.conditioning.base import Context, add_last
from artok.config import Depth
from artok.generators.base import Generator, GeneratorConfig
from artok.layout import Codec, Condition, TokenLayout, Tokens
from artok.nn.attention import KVCache, causal_mask
from artok.nn.gradient_checkpointing import run
from artok.nn.rotary import rotary_table
from artok.nn.transformer import LlamaBlock
from artok.noise import Noise
from artok.sampling.guidance import Guidance
from artok.sampling.logits import draw
from artok.sampling.settings import DRAWS, GUIDANCE, Sampling

SIZES = {  # layers, heads, width: the published LlamaGen models
    "B": (12, 12, 768),
    "L": (24, 16, 1024),
    "XL": (36, 20, 1280),
    "XXL": (48, 24, 1536),
    "3B": (24, 32, 3200),
}


class Config(GeneratorConfig):
    """kind: raster.

    size: a published model. Or set `depth`: by default width is 64 * depth and there are depth heads.
    hidden: width inside SwiGLU; default 8/3 of the width, rounded up to a multiple of `multiple_of`.
    class_position: the rotary entry of the prefix. Zeros are published, and make attention weigh its entries alike. The
        grid's origin lets it tell the words of a text apart.
    order: of the tokens in training: raster; random, another order for each image (RAR, Yu et al. 2024, arXiv
        2411.00776; sigma-GPT, Pannatier et al. 2024, arXiv 2404.09562); or known_first, those that an editing mask
        leaves and then the hidden ones, for which tokens are encoded at each step. Beyond raster, the model is told the
        position that it predicts next, and sampling takes known tokens first.
    target_init: deviation of the initial weights that tell this position.
    """

    kind: Literal["raster"] = "raster"
    size: Literal["B", "L", "XL", "XXL", "3B"] | None = None
    depth: Depth | None = None
    width: int | None = Field(None, ge=4)
    heads: int | None = Field(None, ge=1)
    hidden: int | None = Field(None, ge=1)
    multiple_of: int = Field(256, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    qk_norm: bool = False
    tied_head: bool = Field(False, description="share the output weights with the token embedding")
    rope_base: float = Field(10000.0, gt=1)
    class_position: Literal["zero", "origin"] = "zero"
    order: Literal["raster", "random", "known_first"] = "raster"
    target_init: float = Field(0.02, gt=0)

    @model_validator(mode="after")
    def _check_sizes(self) -> Config:
        if (self.size is None) == (self.depth is None):
            raise ValueError("give either size (B, L, XL, XXL, 3B) or depth")
        if self.size and (self.width or self.heads):
            raise ValueError("width and heads follow from size; leave them out, or give depth instead of size")
        _, heads, width = self.shape()
        if width % (2 * heads):
            raise ValueError(f"width {width} must be a multiple of twice the heads ({heads})")
        return self

    def shape(self) -> tuple[int, int, int]:
        """Layers, heads, width."""
        if self.size:
            return SIZES[self.size]
        assert self.depth is not None
        return self.depth, self.heads or self.depth, self.width or 64 * self.depth

    def hidden_width(self) -> int:
        """LlamaGen's rule: two thirds of 4 * width, rounded down, then up to a multiple of `multiple_of`."""
        wanted = int(2 * (4 * self.shape()[2]) / 3)
        return self.hidden or self.multiple_of * math.ceil(wanted / self.multiple_of)

    def refuse(self, layout: TokenLayout) -> str | None:
        if not layout.discrete:
            return "needs codes, since it predicts a distribution over a vocabulary"
        if len(layout.grids) != 1:
            return "needs a single grid, since it reads tokens row by row"
        if self.tied_head and layout.codes != 1:
            return "with tied_head needs one code per position, since each level has its own embeddings"
        return None

    def build(self, layout: TokenLayout, classes: int) -> Raster:
        return Raster(self, layout, classes)

    @classmethod
    def tiny(cls) -> Config:
        return cls(depth=2, width=32, heads=2, multiple_of=8)


class Raster(Generator):
    """p(codes | condition) as a product in raster order, or in any order if it was trained on others."""

    keeps_known = True
    reads: ClassVar = GUIDANCE | DRAWS

    def __init__(self, config: Config, layout: TokenLayout, classes: int, ahead: int = 0) -> None:
        """ahead: entries of the prefix ahead of the context's."""
        super().__init__(layout, classes)
        depth, self.heads, width = config.shape()
        assert layout.vocab is not None
        self.config, self.width, self.vocab, self.gradient_checkpointing = config, width, layout.vocab, False
        self.conditioner = config.conditioners(width, layout.grid, image=layout.image, classes=classes)
        self.token_embedding = nn.Embedding(layout.codes * layout.vocab, width)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.blocks = nn.ModuleList(
            LlamaBlock(width, self.heads, config.hidden_width(), config.dropout, config.qk_norm) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.target = None if config.order == "raster" else nn.Embedding(layout.length, width)
        self.head = nn.Linear(width, layout.vocab, bias=False)
        table = rotary_table(layout.grid, width // self.heads, config.rope_base)
        first = torch.zeros_like(table[:1]) if config.class_position == "zero" else table[:1]
        self.prefix = ahead + self.conditioner.length
        table = torch.cat([first.expand(self.prefix, -1, -1), table.repeat_interleave(layout.codes, 0)])
        self.rotary: Tensor
        self.level_offset: Tensor
        self.register_buffer("rotary", table, persistent=False)
        self.register_buffer("level_offset", torch.arange(layout.codes) * layout.vocab, persistent=False)
        for name, module in self.named_children():
            if name == "conditioner":
                self.conditioner.initialise(partial(nn.init.normal_, std=0.02))
            else:
                module.apply(self._initialise)
        if config.tied_head:
            self.head.weight = self.token_embedding.weight
        else:
            nn.init.zeros_(self.head.weight)
        if self.target is not None:
            nn.init.normal_(self.target.weight, std=config.target_init)

    @property
    def trains_known(self) -> bool:
        return self.config.order == "known_first"

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    # ------------------------------------------------------------------------------------------ one pass

    def logits(
        self,
        codes: Tensor,
        context: Context,
        start: int = 0,
        cache: KVCache | None = None,
        order: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, n, V) float32 of codes start, start + 1, ...

        codes: (B, n - 1), codes 0, 1, ... when `start` is 0, else (B, n), codes start - 1, start, ... order: (B, N)
        positions, in which the codes are given; raster order unless given. context: of `prefixed`.
        """
        x_BND = self.states(codes, context, start, cache, order)
        return self.head(self.norm(x_BND[:, self.prefix - 1 if start == 0 else 0 :])).float()

    def states(
        self,
        codes: Tensor,
        context: Context,
        start: int = 0,
        cache: KVCache | None = None,
        order: Tensor | None = None,
    ) -> Tensor:
        """The last block's output at the codes, (B, n, D), after that at the prefix when `start` is 0. As `logits`."""
        parts = [context.sequence] if start == 0 else []
        first = max(start - 1, 0)  # of `codes`, among all codes of the image
        places = torch.arange(first, first + codes.shape[1], device=codes.device)
        levels = self.level_offset[places % self.layout.codes]
        parts.append(self.token_embedding(codes + levels))
        x_BND = torch.cat(parts, dim=1)
        length = x_BND.shape[1]
        place = self.prefix + first if start else 0
        rotary = self.rotary[place : place + length]
        predicted = torch.arange(start, start + codes.shape[1] + (start == 0), device=codes.device)
        aims = (predicted // self.layout.codes)[None] if order is None else order[:, predicted // self.layout.codes]
        if context.places is not None:
            at = aims.expand(len(x_BND), -1)[..., None].expand(-1, -1, self.width)
            x_BND = add_last(x_BND, context.places.gather(1, at))
        if self.target is not None:
            x_BND = add_last(x_BND, self.target(aims))
        if order is not None:
            own = self.prefix + order[:, places // self.layout.codes] * self.layout.codes
            before = self.rotary[: length - len(places)].expand(len(own), -1, -1, -1)
            rotary = torch.cat([before, self.rotary[own]], dim=1)
        return self.transform(x_BND, rotary, causal_mask(length, x_BND.device, place, context.mask), cache)

    def transform(self, x_BND: Tensor, rotary: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """All blocks."""
        x_BND = self.dropout(x_BND)
        for layer, block in enumerate(self.blocks):
            x_BND = run(block, x_BND, rotary, mask, cache, layer, checkpoint=self.gradient_checkpointing)
        return x_BND

    def prefixed(self, condition: Condition) -> Context:
        """The context whose sequence is the prefix."""
        return self.context(condition).left_padded()

    def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        return {"nll": self.nll(tokens, condition, noise)[0]}

    def nll(self, tokens: Tokens, condition: Condition, noise: Noise) -> tuple[Tensor, Tensor]:
        """The mean over the codes, and the `states` that predict them.

        Given known tokens, they are read in place of the image's own and not predicted.
        """
        known = condition.known if self.target is not None else None
        order = noise.permutation(self.layout.length) if self.config.order == "random" else known_first(known)
        codes = in_order(tokens.values, order).flatten(1)
        read = codes if known is None else torch.where(self.given(known, order), self.values(known, order), codes)
        states = self.states(read[:, :-1], self.prefixed(condition), order=order)
        logits = self.head(self.norm(states[:, self.prefix - 1 :])).float()
        nats = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none")
        if known is None:
            return nats.mean(), states
        hidden = ~self.given(known, order)
        return (nats.view_as(hidden) * hidden).sum(1).div(hidden.sum(1).clamp(min=1)).mean(), states

    def log_likelihood(
        self, tokens: Tokens, condition: Condition, codec: Codec | None, order: Tensor | None = None
    ) -> Tensor:
        """order: (B, N) positions in which the codes are predicted; raster order unless given."""
        codes = in_order(tokens.values, order).flatten(1)
        context = self.prefixed(condition)
        log_probability = self.logits(codes[:, :-1], context, order=order).log_softmax(-1)
        return log_probability.gather(-1, codes[..., None])[..., 0].double().sum(1)

    def given(self, known: Tokens, order: Tensor | None) -> Tensor:
        """(B, codes) bool: whether each code, in order, is known."""
        return in_order(known.flags[..., None], order).expand(-1, -1, self.layout.codes).flatten(1)

    def values(self, known: Tokens, order: Tensor | None) -> Tensor:
        """(B, codes): known codes in order."""
        return in_order(known.values, order).flatten(1)

    # ------------------------------------------------------------------------------------------ token by token

    def steps(self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None) -> Iterator[Tokens]:
        """One step per code; known codes replace the drawn ones. The known codes that all rows begin with take no step.

        In raster order a code is drawn without those known ones that follow it.
        """
        batch, length = len(condition), self.layout.length * self.layout.codes
        guidance = Guidance(condition, sampling, length, caches=True)
        context = self.prefixed(guidance.condition)
        device, dtype = condition.device, sampling.activations
        head_width = self.width // self.heads
        places = self.prefix + length - 1
        cache = KVCache.allocate(len(self.blocks), len(context), self.heads, places, head_width, device, dtype)
        uniform = noise.uniform(length)
        codes = torch.zeros(batch, length, dtype=torch.int64, device=device)
        known, given, first = condition.known, None, 0
        order = known_first(known) if self.target is not None else None
        if known is not None:
            given = self.given(known, order)
            codes = torch.where(given, self.values(known, order), codes)
            first = min(int(given.long().cumprod(1).sum(1).min()), length - 1)
        latest, start = codes[:, :first], 0
        for step in range(first, length):
            told, cache = guidance.take(context, step), guidance.take(cache, step)
            orders = None if order is None else guidance.repeat(order, step)
            output = self.logits(guidance.repeat(latest, step), told, start, cache, orders)[:, -1]
            cache.filled, start = self.prefix + step, step + 1
            logits = guidance(output, step)
            drawn = draw(logits, uniform[:, step], sampling.temperature, sampling.top_k, sampling.top_p)
            codes[:, step] = drawn if given is None else torch.where(given[:, step], codes[:, step], drawn)
            latest = codes[:, step : step + 1]
            yield self._unfinished(codes, step + 1, order, known)

    def _unfinished(self, codes: Tensor, done: int, order: Tensor | None, known: Tokens | None) -> Tokens:
        values = codes.unflatten(1, self.layout.value_shape())
        whole = torch.arange(self.layout.length, device=codes.device) < done // self.layout.codes
        whole = whole.expand(len(codes), -1)
        if order is not None:
            places = order.argsort(1)
            values, whole = in_order(values, places), whole.gather(1, places)
        if done == codes.shape[1]:
            return Tokens(values.clone(), self.layout)
        return Tokens(values.clone(), self.layout, known=whole if known is None else whole | known.flags)

    def passes(self, sampling: Sampling) -> int:
        return self.layout.length * self.layout.codes


def known_first(known: Tokens | None) -> Tensor | None:
    """(B, N) positions: the known ones, then the others, both in raster order; None without known tokens."""
    return None if known is None else (~known.flags).long().argsort(dim=1, stable=True)


def in_order(values_BNK: Tensor, order_BN: Tensor | None) -> Tensor:
    """The values of positions in an order, unchanged when it is None."""
    return values_BNK if order_BN is None else values_BNK.gather(1, order_BN[..., None].expand_as(values_BNK))
