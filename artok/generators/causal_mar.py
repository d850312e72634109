"""MAR's causal variant: continuous tokens in raster order, each drawn by the diffusion head (Li et al. 2024, 4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from artok.conditioning.base import Context, add_last
from artok.errors import ConfigError
from artok.generators.masked import PUBLISHED_DEVIATION, buffer_length
from artok.generators.patched import PatchedConfig, PatchedGenerator
from artok.layout import Codec, Condition, TokenLayout, Tokens
from artok.nn.attention import KVCache, causal_mask
from artok.nn.gradient_checkpointing import run
from artok.nn.vit import EPS, VitBlock, initialise_linear
from artok.noise import Noise
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.guidance import Guidance
from artok.sampling.settings import Sampling


class Config(PatchedConfig):
    """kind: causal_mar. As many layers as MAR's encoder and decoder together, 2 * depth."""

    kind: Literal["causal_mar"] = "causal_mar"

    def build(self, layout: TokenLayout, classes: int) -> CausalMar:
        return CausalMar(self, layout, classes)

    @classmethod
    def tiny(cls) -> Config:
        diffusion = DiffusionConfig(schedule="cosine", variance="learned", timesteps=50, steps=10)
        return cls(depth=1, width=32, heads=2, buffer_size=2, dropout=0.0, diffusion=diffusion)


class CausalMar(PatchedGenerator):
    """The sequence is [buffer, token 0, token 1, ...]. The buffer is `buffer_size` copies of a context of one entry, or
    the entries of a longer one, with its padding on the left.

    The output at the end of the buffer and at each token is the z of the next token.
    """

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        width, depth, heads, _, _ = config.shape()
        super().__init__(config, layout, classes, width)
        self.config, self.heads = config, heads
        self.conditioner = config.conditioners(width, self.grid, image=layout.image, classes=classes)
        hidden = int(config.mlp_ratio * width)
        self.gradient_checkpointing = False
        self.buffer = buffer_length(self.conditioner, config.buffer_size)
        self.positions = nn.Parameter(torch.zeros(1, self.buffer + self.length - 1, width))
        self.input_norm = nn.LayerNorm(width, eps=EPS)
        self.blocks = nn.ModuleList(VitBlock(width, self.heads, hidden, config.dropout) for _ in range(2 * depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.output_positions = nn.Parameter(torch.zeros(1, self.length, width))
        self.apply(initialise_linear)
        self.conditioner.initialise(partial(nn.init.normal_, std=config.embedding_init))
        nn.init.normal_(self.positions, std=config.embedding_init)
        nn.init.normal_(self.output_positions, std=PUBLISHED_DEVIATION)
        self.initialise_input()

    def conditions(self, x_BnD: Tensor, context: Context, start: int = 0, cache: KVCache | None = None) -> Tensor:
        """z (B, m, W) of tokens start, start + 1, ...

        x_BnD: the tokens before: 0 .. n - 1 at start 0, else the one token start - 1. cache: of earlier positions.
        """
        buffer, x = self.buffer, self.input(x_BnD)
        place = 0 if start == 0 else buffer + start - 1
        if start == 0:
            x = torch.cat([context.sequence.expand(-1, buffer, -1).to(x.dtype), x], dim=1)
        if context.places is not None:
            x = add_last(x, context.places[:, start : start + x_BnD.shape[1] + (start == 0)])
        length = x.shape[1]
        x = self.input_norm(x + self.positions[:, place : place + length])
        mask = causal_mask(length, x.device, place, context.mask)
        for layer, block in enumerate(self.blocks):
            x = run(block, x, mask, cache, layer, checkpoint=self.gradient_checkpointing)
        if cache is not None:
            cache.filled += length
        skipped = buffer - 1 if start == 0 else 0
        z = self.norm(x)[:, skipped:]
        return z + self.output_positions[:, start : start + z.shape[1]]

    def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        x_BND, draws = self.patches(tokens), self.draws
        z_BNW = self.conditions(x_BND[:, :-1], self.context(condition).left_padded())
        if self.head.objective is not None:
            return self.objective_losses(self.head.objective, x_BND, z_BNW, noise)
        uniform, normal = noise.uniform(self.length, draws), noise.normal(self.length, draws, self.dimension)
        terms = self.head.losses(x_BND.flatten(0, 1), z_BNW.flatten(0, 1), uniform.flatten(0, 1), normal.flatten(0, 1))
        return {name: term.mean() for name, term in terms.items()}

    def steps(self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None) -> Iterator[Tokens]:
        """One step per token; known tokens replace the drawn ones, which are drawn without those that follow them."""
        batch, total = len(condition), self.passes(sampling)
        guidance = Guidance(condition, sampling, total, caches=True)
        context = self.context(guidance.condition).left_padded()
        x_BND, given = self.known_patches(condition)
        cache = KVCache.allocate(
            len(self.blocks),
            len(context),
            self.heads,
            self.buffer + self.length - 1,
            self.input.out_features // self.heads,
            condition.device,
            sampling.activations,
        )
        for step in range(total):
            latest, cache = guidance.repeat(x_BND[:, max(step - 1, 0) : step], step), guidance.take(cache, step)
            z, scale = self.conditions(latest, guidance.take(context, step), step, cache), guidance.scales[step]
            drawn = self.head.sample(z if scale != 1 else z[:batch], scale, sampling, noise)
            if given is not None:
                drawn = torch.where(given[:, step : step + 1, None], x_BND[:, step : step + 1], drawn)
            x_BND = torch.cat([x_BND[:, :step], drawn, x_BND[:, step + 1 :]], dim=1)
            known = (torch.arange(self.length, device=condition.device) <= step).expand(batch, -1)
            known = known if given is None else known | given
            yield self.to_tokens(x_BND, None if step == total - 1 else known)

    def passes(self, sampling: Sampling) -> int:
        if sampling.steps is not None and sampling.steps != self.length:
            raise ConfigError(
                f"causal MAR samples its {self.length} tokens one by one, so it takes {self.length} steps and not "
                f"{sampling.steps}; leave sampling.steps out"
            )
        return self.length
