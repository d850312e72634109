"""MAR: masked autoregression over continuous tokens with a diffusion head (Li et al. 2024, arXiv 2406.11838)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from artok.conditioning.base import Conditioners
from artok.config import Depth
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
from artok.generators.patched import PatchedConfig, PatchedGenerator
from artok.layout import Codec, Condition, TokenLayout, Tokens
from artok.nn.vit import initialise_linear
from artok.noise import Noise
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.guidance import Guidance
from artok.sampling.settings import Sampling


class Config(PatchedConfig):
    """kind: mar.

    depth, width, heads: of the encoder; decoder_depth, decoder_width, decoder_heads: default the same.
    mask_ratio_min, mask_ratio_std: the share of masked tokens in training is a normal number around 1, truncated to
        [mask_ratio_min, 1].
    steps: default number of sampling steps.
    order: of the tokens: random; or frames, of a video: frame by frame, each in sets in random order, given the frames
        before it (NOVA, Deng et al. 2024, arXiv 2412.14169). The steps are shared out to the frames.
    """

    kind: Literal["mar"] = "mar"
    decoder_depth: Depth | None = None
    decoder_width: int | None = Field(None, ge=2)
    decoder_heads: int | None = Field(None, ge=1)
    mask_ratio_min: float = Field(0.7, ge=0, lt=1)
    mask_ratio_std: float = Field(0.25, gt=0)
    steps: int = Field(64, ge=1)
    order: Literal["random", "frames"] = "random"

    @model_validator(mode="after")
    def _check_decoder(self) -> Config:
        width, _, heads = self.decoder_shape()
        if width % heads:
            raise ValueError(f"the decoder's width {width} must be a multiple of its heads ({heads})")
        return self

    def decoder_shape(self) -> tuple[int, int, int]:
        """Width, layers and heads of the decoder."""
        width, depth, heads, _, _ = self.shape()
        return self.decoder_width or width, self.decoder_depth or depth, self.decoder_heads or heads

    def refuse(self, layout: TokenLayout) -> str | None:
        if self.order == "frames" and len(layout.grid) != 3:
            return "with order frames needs the tokens of a video, in frames, rows and columns"
        return self.refuse_tokens(layout)

    def build(self, layout: TokenLayout, classes: int) -> Mar:
        return Mar(self, layout, classes)

    @classmethod
    def tiny(cls) -> Config:
        diffusion = DiffusionConfig(schedule="cosine", variance="learned", timesteps=50, steps=10)
        return cls(depth=1, width=32, heads=2, buffer_size=2, dropout=0.0, steps=4, diffusion=diffusion)


class Mar(PatchedGenerator):
    """Sets of tokens in random order, each drawn by the head given the tokens so far."""

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        wide, layers, decoder_heads = config.decoder_shape()
        super().__init__(config, layout, classes, wide)
        self.config, (width, depth, heads, _, _) = config, config.shape()
        encoder = Stack(width, depth, heads, int(config.mlp_ratio * width))
        decoder = Stack(wide, layers, decoder_heads, int(config.mlp_ratio * wide))
        conditioner = config.conditioners(width, self.grid, image=layout.image, classes=classes)
        self.body = MaskedTransformer(conditioner, self.length, encoder, decoder, config.buffer_size, config.dropout)
        self.apply(initialise_linear)
        self.body.initialise(config.embedding_init)
        self.initialise_input()

    @property
    def conditioner(self) -> Conditioners:  # type: ignore[override]
        return self.body.conditioner

    def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        x_BND, draws = self.patches(tokens), self.draws
        order, counts = self.draw_order(noise), self.masked_counts(noise.uniform())
        least = math.ceil(self.config.mask_ratio_min * self.set_length)
        later = torch.zeros_like(counts)  # tokens of the frames after the one that is learned
        if self.frames > 1:
            later = noise.integers(self.frames) * self.set_length
        z_BNW = self.body(self.input(x_BND), self.context(condition), order, counts + later, self.length - least)
        if self.head.objective is not None:
            # as many masked tokens of each image, so that parts of a batch add up to the whole
            places = order.gather(1, later[:, None] + torch.arange(max(1, least), device=order.device))
            x, z = (each.gather(1, places[..., None].expand(-1, -1, each.shape[2])) for each in (x_BND, z_BNW))
            return self.objective_losses(self.head.objective, x, z, noise)
        masked = flag_masked(order, counts + later) & ~flag_masked(order, later)
        uniform, normal = noise.uniform(self.length, draws), noise.normal(self.length, draws, self.dimension)
        # a mean over each image's masked tokens, then over images, so that processes share a batch exactly
        weights = (1 / (counts * len(tokens)))[:, None].expand_as(masked)
        columns = (x_BND, z_BNW, uniform, normal, weights)
        *given, weights = (select(column, masked, self.expected) for column in columns)
        terms = self.head.losses(*given)
        return {name: (term * weights).sum() for name, term in terms.items()}

    @cached_property
    def expected(self) -> float:
        """The share of tokens masked in training, on average."""
        return float(self.masked_counts(even_uniforms()).double().mean()) / self.length

    @property
    def frames(self) -> int:
        """Parts of the tokens that are made one after the other."""
        return self.grid[0] if self.config.order == "frames" else 1

    @property
    def set_length(self) -> int:
        """Tokens that are made in random order."""
        return self.length // self.frames

    def draw_order(self, noise: Noise) -> Tensor:
        """(B, N) positions, those made last first: random, but later frames before earlier ones."""
        order = noise.permutation(self.length)
        if self.frames == 1:
            return order
        return order.gather(1, (-(order // self.set_length)).argsort(dim=1, stable=True))

    def masked_counts(self, uniform: Tensor) -> Tensor:
        """Number of masked tokens per image, (B,) int64 from uniform (B,), or of the frame that is learned: a truncated
        normal share, rounded up.

        The published code draws one share per batch.
        """
        normal = torch.distributions.Normal(1.0, self.config.mask_ratio_std)
        low = float(normal.cdf(torch.tensor(self.config.mask_ratio_min)))
        share = 1 + self.config.mask_ratio_std * torch.special.ndtri((low + (0.5 - low) * uniform).double())
        length = self.set_length
        count = (share.clamp(self.config.mask_ratio_min, 1) * length).ceil().long()
        return count.clamp(math.ceil(self.config.mask_ratio_min * length), length).clamp(min=1)

    def steps(self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None) -> Iterator[Tokens]:
        total = self.passes(sampling)
        shares = [(self.length - max(left, 1)) / self.length for left in self.left(self.length, total)[1:]]
        guidance, order = Guidance(condition, sampling, total, shares), self.draw_order(noise)
        context = self.context(guidance.condition)
        x_BND, known = self.known_patches(condition)
        order, unknown = put_unknown_first(order, known)
        whole_noise = noise
        for step in range(total):
            counts, left = (tuple(self.left(whole, total)[at] for whole in unknown) for at in (step, step + 1))
            if self.frames > 1:
                if counts == left and any(left):  # known frames take no step
                    continue
                noise = whole_noise.branch(f"step {step}")  # a row's numbers do not depend on the others' steps
            places = take_positions(order, left, counts)
            z, told = guidance.repeat(self.input(x_BND), step), guidance.take(context, step)
            z = self.body(z, told, guidance.repeat(order, step), counts * (len(z) // len(counts)))
            index = guidance.repeat(places.clamp(max=self.length - 1), step)
            z = z.gather(1, index[..., None].expand(-1, -1, z.shape[2]))
            x_BND = put(x_BND, places, self.head.sample(z, guidance.scales[step], sampling, noise))
            decided = ~flag_masked(order, torch.tensor(left, device=order.device))
            yield self.to_tokens(x_BND, decided if any(left) else None)

    def left(self, unknown: int, steps: int) -> tuple[int, ...]:
        """Tokens still to be made before the first step and after each one, of `unknown` in total."""
        if self.frames == 1:
            return schedule(unknown, steps)
        own = schedule(self.set_length, steps // self.frames)
        later = range((self.frames - 1) * self.set_length, -1, -self.set_length)
        whole = [self.length, *(behind + left for behind in later for left in own[1:])]
        return tuple(min(left, unknown) for left in whole)

    def passes(self, sampling: Sampling) -> int:
        steps = count_steps(sampling.steps, self.config.steps, self.length)
        return max(1, steps // self.frames) * self.frames


def take_positions(order_BN: Tensor, first: Sequence[int], end: Sequence[int]) -> Tensor:
    """Positions (B, n) at first, first + 1, ... end - 1 of each row's order, padded to the longest row with N."""
    if len({*first}) == len({*end}) == 1:
        return order_BN[:, first[0] : end[0]]
    length, device = order_BN.shape[1], order_BN.device
    most = max(b - a for a, b in zip(first, end, strict=True))
    at = torch.tensor(first, device=device)[:, None] + torch.arange(most, device=device)
    positions = order_BN.gather(1, at.clamp(max=length - 1))
    return torch.where(at < torch.tensor(end, device=device)[:, None], positions, length)


def put(x_BND: Tensor, places_Bn: Tensor, new_BnD: Tensor) -> Tensor:
    """x with new vectors at the given places; place N is padding."""
    length, dimension = x_BND.shape[1:]
    room = torch.cat([x_BND, x_BND[:, :1]], dim=1)
    return room.scatter(1, places_Bn[..., None].expand(-1, -1, dimension), new_BnD)[:, :length]
