"""VAR: a transformer predicts all codes of a scale at once from the coarser ones (Tian et al. 2024, arXiv 2404.02905).

The input at a scale is the latent decoded from the coarser scales (the codec's `prefix`), downsampled to the scale's
grid; at the first scale it is the class. Attention covers the same and coarser scales. Training is one pass over all
scales with a block-causal mask; sampling is one pass per scale with a KV cache and no mask. A control map, shrunk to
each scale's grid, is added to the input (ControlVAR, Li et al. 2024, arXiv 2406.09750, also predicts the map). A text
is also heard by cross-attention in each block (Infinity, Han et al. 2024, arXiv 2412.04431, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.conditioning.base import Context
from artok.config import Depth
from artok.generators.base import Generator, GeneratorConfig
from artok.layout import Codec, Condition, TokenLayout, Tokens
from artok.nn.attention import KVCache, attend
from artok.nn.block_causal import block_causal_mask, flex_block_causal
from artok.nn.gradient_checkpointing import run
from artok.nn.packed import LateBiasLinear
from artok.nn.resize import shrink
from artok.nn.vit import CrossAttention
from artok.noise import Noise
from artok.sampling.guidance import Guidance
from artok.sampling.logits import draw
from artok.sampling.settings import DRAWS, GUIDANCE, Sampling

LARGEST_TEMPERATURE = math.log(100)


class Config(GeneratorConfig):
    """kind: var.

    depth: 16, 20, 24, 30 and 36 in the paper; by default width is 64 * depth and there are depth heads.
    mlp_ratio: width inside the feed-forward layers over the width outside.
    shared_adaln: one modulation by the class for all blocks, with a learned offset per block (the 512 px model).
    drop_path: rate of stochastic depth in the last block, rising linearly from 0 in the first; default as published,
        0.1 * depth / 24.
    gate_init: factor on the initial weights of the branches' gates; published are 1e-3 (d16, d20), 1e-4 (d24),
        1e-5 (d30) and 5e-6 (d36).
    attention: in training on a GPU, `masked` or FlexAttention, which skips masked blocks. A CPU always uses the mask.
    text_attention: how a context of several entries, such as a text, is heard besides its pooled vector: by
        cross-attention, or not at all.
    """

    kind: Literal["var"] = "var"
    depth: Depth = 16
    width: int | None = Field(None, ge=1)
    heads: int | None = Field(None, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    shared_adaln: bool = False
    drop_path: float | None = Field(None, ge=0, lt=1)
    gate_init: float = Field(1e-3, ge=0)
    attention: Literal["masked", "flex"] = "masked"
    text_attention: Literal["cross", "none"] = "cross"

    @model_validator(mode="after")
    def _check_sizes(self) -> Config:
        heads, width = self.shape()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of the heads ({heads})")
        return self

    def shape(self) -> tuple[int, int]:
        """Heads and width."""
        return self.heads or self.depth, self.width or 64 * self.depth

    def drop_rates(self) -> list[float]:
        """The rate of stochastic depth of each block."""
        most = 0.1 * self.depth / 24 if self.drop_path is None else self.drop_path
        return [most * layer / max(self.depth - 1, 1) for layer in range(self.depth)]

    def refuse(self, layout: TokenLayout) -> str | None:
        if not layout.discrete:
            return "needs codes, since it predicts a distribution over a vocabulary"
        if len(layout.grids) == 1:
            return "needs tokens of several scales (quantizer kind multiscale), since it predicts scale after scale"
        if layout.codes != 1:
            return "needs one code per position"
        return None

    def build(self, layout: TokenLayout, classes: int) -> Var:
        return Var(self, layout, classes)

    @classmethod
    def tiny(cls) -> Config:
        return cls(depth=2, width=32, heads=2)


class CosineAttention(nn.Module):
    """Attention of l2-normalised queries and keys with a learned temperature per head. Queries and values have biases,
    keys have none.

    sizes: tokens of each scale.
    """

    def __init__(self, width: int, heads: int, sizes: tuple[int, ...], flex: bool) -> None:
        super().__init__()
        self.heads, self.sizes, self.flex = heads, sizes, flex
        self.qkv = LateBiasLinear(width, 3 * width)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.log_temperature = nn.Parameter(torch.full((heads,), math.log(4)))
        self.out = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = rearrange(self.qkv(x_BND, bias), "b n (three h d) -> three b h n d", three=3, h=self.heads).unbind()
        temperature = self.log_temperature.clamp(max=LARGEST_TEMPERATURE).exp()[:, None, None]
        q, k = q * (temperature / norm(q)).to(q.dtype), k * (1 / norm(k)).to(k.dtype)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        if self.flex and mask is not None and q.is_cuda:
            mixed = flex_block_causal(q, k, v, self.sizes, scale=1.0)
        else:
            mixed = attend(q, k, v, mask, scale=1.0)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))


class OwnModulation(nn.Module):
    """The class vector (B, D) to a block's two gates, two scales and two shifts, (B, 6, D), in this order."""

    def __init__(self, width: int, gate_init: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 6 * width)
        initialise(self.linear, width)
        with torch.no_grad():
            self.linear.weight[: 2 * width] *= gate_init
            self.linear.weight[2 * width :] *= 0.5

    def forward(self, condition_BD: Tensor) -> Tensor:
        return self.linear(F.silu(condition_BD)).unflatten(-1, (6, -1))


class SharedModulation(nn.Module):
    """The modulation (B, 6, D) that all blocks share, with this block's offset."""

    undecayed = ("offset",)

    def __init__(self, width: int, gate_init: float) -> None:
        super().__init__()
        factors = torch.tensor([gate_init, gate_init, 0.5, 0.5, 0.5, 0.5])
        self.offset = nn.Parameter(torch.randn(6, width) * width**-0.5 * factors[:, None])

    def forward(self, shared_B6D: Tensor) -> Tensor:
        return shared_B6D + self.offset


class Block(nn.Module):
    """x + gate * attention(modulated norm(x)), then the same with a feed-forward layer (Peebles and Xie 2023).

    cross: with cross-attention to the entries of a context between them.
    """

    def __init__(self, config: Config, sizes: tuple[int, ...], cross: bool) -> None:
        super().__init__()
        heads, width = config.shape()
        hidden = round(config.mlp_ratio * width)
        self.attention = CosineAttention(width, heads, sizes, config.attention == "flex")
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        for linear in (self.attention.qkv, self.attention.out, self.expand, self.contract):
            initialise(linear, width)
        with torch.no_grad():  # so that the sum of 2 * depth branches keeps its variance (Radford et al. 2019)
            self.attention.out.weight /= math.sqrt(2 * config.depth)
            self.contract.weight /= math.sqrt(2 * config.depth)
        modulation = SharedModulation if config.shared_adaln else OwnModulation
        self.modulation = modulation(width, config.gate_init)
        self.cross = CrossAttention(width, width, heads) if cross else None
        if self.cross is not None:
            initialise(self.cross.query, width)
            initialise(self.cross.key_value, width)

    def forward(
        self,
        x_BND: Tensor,
        condition: Tensor,
        keep_B2: Tensor | None,
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
        changes_B6D: Tensor | None = None,
        *heard: Tensor | None,
    ) -> Tensor:
        """condition: (B, D) class vectors, or (B, 6, D) under shared modulation. keep_B2: factors on both branches.
        changes_B6D: `modulation(condition)`, where it is known. heard: what the cross-attention reads."""
        changes_B6D = self.modulation(condition) if changes_B6D is None else changes_B6D
        gate1, gate2, scale1, scale2, shift1, shift2 = changes_B6D[:, :, None].unbind(1)
        if keep_B2 is not None:
            gate1, gate2 = gate1 * keep_B2[:, 0, None, None], gate2 * keep_B2[:, 1, None, None]
        x_BND = torch.addcmul(x_BND, gate1, self.attention(modulate(x_BND, scale1, shift1), mask, cache, layer))
        if self.cross is not None:
            x_BND = x_BND + self.cross(x_BND, *heard)
        hidden = F.gelu(self.expand(modulate(x_BND, scale2, shift2)), approximate="tanh")
        return torch.addcmul(x_BND, gate2, self.contract(hidden))


def norm(x_BHND: Tensor) -> Tensor:
    """Lengths (B, H, N, 1) of vectors, in float32."""
    return torch.linalg.vector_norm(x_BHND, dim=-1, keepdim=True, dtype=torch.float32).clamp(min=1e-12)


def modulate(x_BND: Tensor, scale_B1D: Tensor, shift_B1D: Tensor) -> Tensor:
    """Layer norm with the gain and bias given."""
    return torch.addcmul(shift_B1D, F.layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6), 1 + scale_B1D)


def initialise(module: nn.Linear, width: int) -> None:
    """Truncated normal of variance 1 / (3 width), and no bias: as published."""
    nn.init.trunc_normal_(module.weight, std=(3 * width) ** -0.5)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


class Var(Generator):
    """p(codes | condition) as a product over scales. Codes of a scale are independent given the coarser scales."""

    keeps_known = True
    reads: ClassVar = GUIDANCE | DRAWS

    undecayed = ("start", "position", "level")  # the published recipe does not decay them

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__(layout, classes)
        self.heads, self.width = config.shape()
        assert layout.vocab is not None
        self.config, self.gradient_checkpointing = config, False
        self.parts = list(layout.scales())
        sizes = tuple(part.stop - part.start for part in self.parts)
        self.conditioner = config.conditioners(self.width, layout.grid, image=layout.image, classes=classes)
        self.word = nn.Linear(layout.width, self.width)
        self.start = nn.Parameter(torch.empty(sizes[0], self.width))
        self.position = nn.Parameter(torch.empty(layout.length, self.width))
        self.level = nn.Parameter(torch.empty(len(sizes), self.width))
        self.shared_modulation = OwnModulation(self.width, config.gate_init) if config.shared_adaln else None
        cross = config.text_attention == "cross" and self.conditioner.length > 1
        self.blocks = nn.ModuleList(Block(config, sizes, cross) for _ in range(config.depth))
        self.head_modulation = nn.Linear(self.width, 2 * self.width)
        self.head = nn.Linear(self.width, layout.vocab)
        self.levels: Tensor
        self.mask: Tensor
        self.drop_rates: Tensor
        levels = torch.tensor([level for level, size in enumerate(sizes) for _ in range(size)])
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("mask", block_causal_mask(levels), persistent=False)
        self.register_buffer("drop_rates", torch.tensor(config.drop_rates()), persistent=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for embedding in (self.start, self.position, self.level):
            nn.init.trunc_normal_(embedding, std=(3 * self.width) ** -0.5)
        self.conditioner.initialise(partial(nn.init.trunc_normal_, std=(3 * self.width) ** -0.5))
        for module in (self.word, self.head_modulation, self.head):
            initialise(module, self.width)
        self.head_modulation.weight *= 0.5
        self.head.weight *= 0.02

    # ------------------------------------------------------------------------------------------ one pass

    def words(self, scale: int, prefix: Tensor) -> Tensor:
        """The input (B, n, D) at a scale after the first, from the latent (B, D, *grid) of the coarser scales."""
        return self.word(rearrange(shrink(prefix, self.layout.grids[scale]), "b d ... -> b (...) d"))

    def run(
        self,
        inputs: Sequence[Tensor],
        context: Context,
        first: int = 0,
        keep: Tensor | None = None,
        cache: KVCache | None = None,
        changes: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Logits (B, n, V) float32 of the codes of successive scales from `first` on.

        inputs: the `words` of those scales, without those of scale 0, whose input is `context.pooled`.
        keep: (B, layers, 2) factors on the branches. Without a cache all scales are required.
        changes: `modulations(context)`, where they are known.
        """
        condition_BD = context.pooled
        start = [condition_BD[:, None] + self.start] if first == 0 else []
        x_BND = torch.cat([*start, *inputs], dim=1)
        places = slice(self.parts[first].start, self.parts[first].start + x_BND.shape[1])
        x_BND = x_BND + self.position[places] + self.level[self.levels[places]]
        if context.spatial is not None:
            grids = self.layout.grids[first : first + len(start) + len(inputs)]
            x_BND = x_BND + torch.cat([shrink(context.spatial, grid).flatten(2) for grid in grids], 2).transpose(1, 2)
        condition = self.block_condition(condition_BD)
        mask, checkpoint = self.mask if cache is None else None, self.gradient_checkpointing
        for layer, block in enumerate(self.blocks):
            factors = None if keep is None else keep[:, layer]
            known = None if changes is None else changes[layer]
            heard = context.heard(block.cross)  # type: ignore[arg-type]
            x_BND = run(block, x_BND, condition, factors, mask, cache, layer, known, *heard, checkpoint=checkpoint)
        scale, shift = self.head_modulation(F.silu(condition_BD))[:, None].chunk(2, dim=-1)
        return self.head(modulate(x_BND, scale, shift)).float()

    def block_condition(self, condition_BD: Tensor) -> Tensor:
        """What the blocks' modulations read."""
        return condition_BD if self.shared_modulation is None else self.shared_modulation(condition_BD)

    def modulations(self, context: Context) -> list[Tensor]:
        """The changes (B, 6, D) of each block. They depend on the condition alone, so all scales share them."""
        condition = self.block_condition(context.pooled)
        return [block.modulation(condition) for block in self.blocks]  # type: ignore[operator]

    def logits(self, tokens: Tokens, context: Context, codec: Codec | None, keep: Tensor | None = None) -> Tensor:
        """Teacher-forced logits (B, N, V) of all scales in one pass."""
        prefixes = _require(codec).prefixes(tokens)[:-1]
        return self.run([self.words(scale, prefix) for scale, prefix in enumerate(prefixes, 1)], context, keep=keep)

    def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        logits = self.logits(tokens, self.context(condition), codec, self._drop_factors(noise))
        return {"nll": F.cross_entropy(logits.flatten(0, 1), tokens.values.flatten())}

    def _drop_factors(self, noise: Noise) -> Tensor | None:
        """Stochastic depth (Huang et al. 2016): (B, layers, 2), 0 for a skipped branch, else 1 / (1 - rate)."""
        if not self.training or not any(self.config.drop_rates()):
            return None
        rates = self.drop_rates[:, None]
        return (noise.uniform(len(self.blocks), 2) >= rates) / (1 - rates)

    def log_likelihood(self, tokens: Tokens, condition: Condition, codec: Codec | None) -> Tensor:
        log_probability = self.logits(tokens, self.context(condition), codec).log_softmax(-1)
        return log_probability.gather(-1, tokens.values)[..., 0].double().sum(1)

    # ------------------------------------------------------------------------------------------ scale by scale

    def steps(self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None) -> Iterator[Tokens]:
        """One step per scale; known codes replace the drawn ones.

        Published settings: cfg_scale 2.5 (in VAR's convention 1.5) with the linear schedule, top_k 900, top_p 0.96.
        """
        batch, layout, lent = len(condition), self.layout, _require(codec)
        known, guidance = condition.known, Guidance(condition, sampling, len(self.parts), caches=True)
        context = self.context(guidance.condition).project(self)
        changes = self.modulations(context)
        device, dtype = condition.device, sampling.activations
        head_width = self.width // self.heads
        cache = KVCache.allocate(len(self.blocks), len(context), self.heads, layout.length, head_width, device, dtype)
        uniform = noise.uniform(layout.length)
        values = torch.zeros(batch, layout.length, 1, dtype=torch.int64, device=device)
        for scale, part in enumerate(self.parts):
            inputs = []
            if scale > 0:
                words = self.words(scale, lent.prefix(Tokens(values, layout), scale))
                inputs = [guidance.repeat(words, scale)]
            told, cache = guidance.take(context, scale), guidance.take(cache, scale)
            changes = [guidance.take(each, scale) for each in changes]
            logits = guidance(self.run(inputs, told, first=scale, cache=cache, changes=changes), scale)
            cache.filled = part.stop
            codes = draw(logits, uniform[:, part], sampling.temperature, sampling.top_k, sampling.top_p)
            if known is not None:
                codes = torch.where(known.flags[:, part], known.values[:, part, 0], codes)
            values[:, part, 0] = codes
            yield Tokens(values.clone(), layout).first_scales(scale + 1)

    def passes(self, sampling: Sampling) -> int:
        return len(self.parts)


def _require(codec: Codec | None) -> Codec:
    if codec is None:
        raise ValueError("VAR reads partly decoded images, so it needs the tokenizer's codec")
    return codec
