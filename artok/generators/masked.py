"""The masked encoder-decoder of MAR and MaskGIT (Li et al. 2024, section 3.4; after He et al. 2022).

A mask is given as an order of the positions and a count: the first `count` positions are masked.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artok.conditioning.base import Conditioners, Context, add_last
from artok.errors import ConfigError
from artok.nn.gradient_checkpointing import run
from artok.nn.vit import EPS, VitBlock

PUBLISHED_DEVIATION = 0.02  # of the initial embeddings and positions


class Stack(NamedTuple):
    """The sizes of a stack of blocks. hidden: width inside the feed-forward layers."""

    width: int
    depth: int
    heads: int
    hidden: int


class MaskedTransformer(nn.Module):
    """Maps embedded tokens, some of them masked, to a vector z per position.

    The encoder reads a buffer and the known tokens. The buffer is copies of a context of one entry, or the entries of a
    longer one (Fluid, Fan et al. 2024, arXiv 2410.13863). The decoder reads all positions, with a mask token at unknown
    ones. Both add the context's map, if there is one, to the positions.
    """

    def __init__(
        self, conditioner: Conditioners, length: int, encoder: Stack, decoder: Stack, copies: int, dropout: float
    ) -> None:
        """conditioner: makes contexts of the encoder's width. copies: of a context of one entry."""
        super().__init__()
        width, wide = encoder.width, decoder.width
        self.gradient_checkpointing = False
        self.length, self.buffer = length, buffer_length(conditioner, copies)
        self.conditioner = conditioner
        self.encoder_positions = nn.Parameter(torch.zeros(1, self.buffer + length, width))
        self.input_norm = nn.LayerNorm(width, eps=EPS)
        self.encoder = nn.ModuleList(
            VitBlock(width, encoder.heads, encoder.hidden, dropout) for _ in range(encoder.depth)
        )
        self.encoder_norm = nn.LayerNorm(width, eps=EPS)
        self.between = nn.Linear(width, wide)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, wide))
        self.decoder_positions = nn.Parameter(torch.zeros(1, self.buffer + length, wide))
        self.decoder = nn.ModuleList(
            VitBlock(wide, decoder.heads, decoder.hidden, dropout) for _ in range(decoder.depth)
        )
        self.decoder_norm = nn.LayerNorm(wide, eps=EPS)
        self.output_positions = nn.Parameter(torch.zeros(1, length, wide))
        self.decoder_map = nn.Linear(width, wide) if conditioner.gives_map else None

    def initialise(self, deviation: float) -> None:
        """Initialise class, mask token and the positions of encoder and decoder: normal with this deviation.

        The positions added to z keep the published deviation, since larger ones would be noise to the head.
        """
        self.conditioner.initialise(partial(nn.init.normal_, std=deviation))
        for parameter in (self.mask_token, self.encoder_positions, self.decoder_positions):
            nn.init.normal_(parameter, std=deviation)
        nn.init.normal_(self.output_positions, std=PUBLISHED_DEVIATION)

    def forward(
        self,
        embedded_BNW: Tensor,
        context: Context,
        order_BN: Tensor,
        counts: Tensor | tuple[int, ...] | int,
        room: int | None = None,
    ) -> Tensor:
        """z (B, N, W).

        order_BN: (B, N) int64 positions, the masked ones first. counts: number of masked positions, one for all rows or
        one per row. room: with counts (B,), the largest number of known tokens, which fixes the shapes.
        """
        if not isinstance(counts, Tensor | int):
            room = self.length - min(counts)
            alike = len(set(counts)) == 1
            counts = counts[0] if alike else torch.tensor(counts, device=order_BN.device)
        if isinstance(counts, int):
            kept, valid = order_BN[:, counts:], None
        else:
            room = self.length if room is None else room
            places = torch.arange(self.length - room, self.length, device=order_BN.device)
            valid = places >= counts[:, None]
            kept = torch.where(valid, order_BN[:, self.length - room :], self.length)
        return self.decode(self.encode(embedded_BNW, context, kept, valid), kept, context)

    def encode(self, embedded_BNW: Tensor, context: Context, kept_BM: Tensor, valid_BM: Tensor | None = None) -> Tensor:
        """(B, buffer + M, W) of the context and the tokens at kept positions; invalid entries are padding."""
        index = kept_BM.clamp(max=self.length - 1)[..., None].expand(-1, -1, embedded_BNW.shape[2])
        first = context.sequence.expand(-1, self.buffer, -1) + self.encoder_positions[:, : self.buffer]
        tokens = embedded_BNW + self.encoder_positions[:, self.buffer :]
        tokens = (tokens if context.places is None else tokens + context.places).gather(1, index)
        x = self.input_norm(torch.cat([first.to(tokens.dtype), tokens], dim=1))
        mask = None
        if valid_BM is not None or context.mask is not None:
            entries = torch.ones_like(first[..., 0], dtype=torch.bool) if context.mask is None else context.mask
            valid_BM = torch.ones_like(kept_BM, dtype=torch.bool) if valid_BM is None else valid_BM
            mask = torch.cat([entries, valid_BM], dim=1)[:, None, None]
        for block in self.encoder:
            x = run(block, x, mask, checkpoint=self.gradient_checkpointing)
        return self.encoder_norm(x)

    def decode(self, encoded: Tensor, kept_BM: Tensor, context: Context) -> Tensor:
        """z (B, N, W) from the output of `encode` for the tokens at the kept positions."""
        x = self.between(encoded)
        tokens = self.mask_token.to(x.dtype).repeat(len(x), self.length + 1, 1)  # one more, for padding
        tokens = tokens.scatter(1, kept_BM[..., None].expand(-1, -1, x.shape[2]), x[:, self.buffer :])
        x = torch.cat([x[:, : self.buffer], tokens[:, : self.length]], dim=1) + self.decoder_positions
        mask = None if context.mask is None else F.pad(context.mask, (0, self.length), value=True)[:, None, None]
        if self.decoder_map is not None and context.places is not None:
            x = add_last(x, self.decoder_map(context.places))
        for block in self.decoder:
            x = run(block, x, mask, checkpoint=self.gradient_checkpointing)
        return self.decoder_norm(x)[:, self.buffer :] + self.output_positions


def buffer_length(conditioner: Conditioners, copies: int) -> int:
    """Positions of the buffer: `copies` of a context of one entry, or the entries of a longer one."""
    return copies if conditioner.length == 1 else conditioner.length


def count_steps(asked: int | None, usual: int, length: int) -> int:
    """The number of sampling steps: `asked`, or by default `usual`, at most one per token.

    ConfigError: `asked` is more than the number of tokens.
    """
    if asked is not None and asked > length:
        raise ConfigError(
            f"{asked} sampling steps are more than the {length} tokens, of which each step decides at least one; "
            "ask for fewer"
        )
    return asked or min(usual, length)


def count_masked(length: int, steps: int, step: int, now: int) -> int:
    """Tokens still masked after step 0..steps-1, of `now` before it.

    It is MaskGIT's cosine schedule (Chang et al. 2022, arXiv 2202.04200, section 3.3). Each step decides at least one
    token and leaves at least one for the last step.
    """
    if step == steps - 1:
        return 0
    return max(1, min(now - 1, math.floor(length * math.cos(math.pi / 2 * (step + 1) / steps))))


@cache
def schedule(length: int, steps: int) -> tuple[int, ...]:
    """Tokens still masked before the first step and after each step, of `length` in total."""
    left = [length]
    for step in range(steps):
        left.append(min(left[-1], count_masked(length, steps, step, left[-1])))
    return tuple(left)


def put_unknown_first(order_BN: Tensor, known_BN: Tensor | None) -> tuple[Tensor, list[int]]:
    """The order with all known positions last, and the number of unknown positions in each row."""
    if known_BN is None:
        return order_BN, [order_BN.shape[1]] * len(order_BN)
    behind = known_BN.gather(1, order_BN).long().argsort(dim=1, stable=True)
    return order_BN.gather(1, behind), (~known_BN).sum(1).tolist()


def flag_masked(order_BN: Tensor, counts_B: Tensor) -> Tensor:
    """(B, N) bool: whether a position is among the first `counts` of the order."""
    return order_BN.argsort(1) < counts_B[:, None]


def select(values: Tensor, flags_BN: Tensor, expected: float) -> Tensor:
    """Select values (B, N, ...) where the flag is set: (R, ...).

    On the meta device flags have no values; there R is `expected` * B * N, the average in training.
    """
    if flags_BN.is_meta:
        return values.flatten(0, 1)[: max(1, round(expected * flags_BN.numel()))]
    return values[flags_BN]


def even_uniforms(count: int = 1000) -> Tensor:
    """(count,) midpoints of equal parts of [0, 1], to average a function of a uniform number."""
    return (torch.arange(count, device="cpu") + 0.5) / count
