"""The masked encoder-decoder that MAR and MaskGIT share (Li et al. 2024, section 3.4; after He et al. 2022).

Which tokens are masked is told by an order of the positions and a count: the first `count` positions are masked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from artok.nn.recompute import run
from artok.nn.vit import EPS, VitBlock

PUBLISHED_DEVIATION = 0.02  # of the first embeddings and positions


class MaskedTransformer(nn.Module):
    """Embedded tokens, some of them masked, to a vector z for every position.

    The encoder sees the class, as `buffer` copies of its embedding, and the known tokens only; the decoder sees all
    positions, with a mask token where nothing is known.
    """

    def __init__(
        self,
        length: int,
        classes: int,
        width: int,
        heads: int,
        hidden: int,
        encoder_depth: int,
        decoder_depth: int,
        buffer: int,
        dropout: float,
        decoder_shape: tuple[int, int, int] | None = None,
    ) -> None:
        """decoder_shape: width, heads and hidden width of the decoder, the encoder's unless given."""
        super().__init__()
        wide, decoder_heads, decoder_hidden = decoder_shape or (width, heads, hidden)
        self.recompute = False
        self.length, self.buffer = length, buffer
        self.class_embedding = nn.Embedding(classes + 1, width)
        self.encoder_positions = nn.Parameter(torch.zeros(1, buffer + length, width))
        self.input_norm = nn.LayerNorm(width, eps=EPS)
        self.encoder = nn.ModuleList(VitBlock(width, heads, hidden, dropout) for _ in range(encoder_depth))
        self.encoder_norm = nn.LayerNorm(width, eps=EPS)
        self.between = nn.Linear(width, wide)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, wide))
        self.decoder_positions = nn.Parameter(torch.zeros(1, buffer + length, wide))
        self.decoder = nn.ModuleList(
            VitBlock(wide, decoder_heads, decoder_hidden, dropout) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(wide, eps=EPS)
        self.output_positions = nn.Parameter(torch.zeros(1, length, wide))

    def initialise(self, deviation: float) -> None:
        """First weights of the class, the mask token and the positions read by encoder and decoder: normal.

        Those added to z stay at the published deviation: larger ones would be noise to the head that reads z.
        """
        for parameter in (self.class_embedding.weight, self.mask_token, self.encoder_positions, self.decoder_positions):
            nn.init.normal_(parameter, std=deviation)
        nn.init.normal_(self.output_positions, std=PUBLISHED_DEVIATION)

    def forward(
        self, embedded_BNW: Tensor, labels: Tensor, order_BN: Tensor, counts: Tensor | int, room: int | None = None
    ) -> Tensor:
        """z (B, N, W).

        order_BN: (B, N) int64 positions, the masked ones first. counts: how many are masked, one number or (B,) int64.
        room: the most tokens that any image may keep, needed when counts differ; keeps the shapes fixed.
        """
        if isinstance(counts, int):
            kept, valid = order_BN[:, counts:], None
        else:
            room = self.length if room is None else room
            places = torch.arange(self.length - room, self.length, device=order_BN.device)
            valid = places >= counts[:, None]
            kept = torch.where(valid, order_BN[:, self.length - room :], self.length)
        return self.decode(self.encode(embedded_BNW, labels, kept, valid), kept)

    def encode(self, embedded_BNW: Tensor, labels: Tensor, kept_BM: Tensor, valid_BM: Tensor | None = None) -> Tensor:
        """(B, buffer + M, W) of the class and the tokens at kept positions; entries that are not valid are room."""
        index = kept_BM.clamp(max=self.length - 1)[..., None].expand(-1, -1, embedded_BNW.shape[2])
        first = (
            self.class_embedding(labels)[:, None].expand(-1, self.buffer, -1) + self.encoder_positions[:, : self.buffer]
        )
        tokens = (embedded_BNW + self.encoder_positions[:, self.buffer :]).gather(1, index)
        x = self.input_norm(torch.cat([first.to(tokens.dtype), tokens], dim=1))
        mask = None
        if valid_BM is not None:
            mask = torch.cat([valid_BM.new_ones(len(valid_BM), self.buffer), valid_BM], dim=1)[:, None, None]
        for block in self.encoder:
            x = run(block, x, mask, recompute=self.recompute)
        return self.encoder_norm(x)

    def decode(self, encoded: Tensor, kept_BM: Tensor) -> Tensor:
        """z (B, N, W) of what `encode` made of the tokens at the kept positions."""
        x = self.between(encoded)
        tokens = self.mask_token.to(x.dtype).repeat(len(x), self.length + 1, 1)  # one more, where room is put
        tokens = tokens.scatter(1, kept_BM[..., None].expand(-1, -1, x.shape[2]), x[:, self.buffer :])
        x = torch.cat([x[:, : self.buffer], tokens[:, : self.length]], dim=1) + self.decoder_positions
        for block in self.decoder:
            x = run(block, x, recompute=self.recompute)
        return self.decoder_norm(x)[:, self.buffer :] + self.output_positions


def still_masked(length: int, steps: int, step: int, now: int) -> int:
    """Tokens left to decide after step 0..steps-1 when `now` are: the cosine schedule of MaskGIT (Chang et al. 2022,
    arXiv 2202.04200, section 3.3), at least one decided in every step, and one left for the last."""
    if step == steps - 1:
        return 0
    return max(1, min(now - 1, math.floor(length * math.cos(math.pi / 2 * (step + 1) / steps))))


def masked_flags(order_BN: Tensor, counts_B: Tensor) -> Tensor:
    """(B, N) bool: whether a position is among the first counts of the order."""
    return order_BN.argsort(1) < counts_B[:, None]


def picked(values: Tensor, flags_BN: Tensor, expected: float) -> Tensor:
    """values (B, N, ...) where flagged, (R, ...).

    On the meta device flags have no numbers, and R is `expected` of B N, the share that training flags on average.
    """
    if flags_BN.is_meta:
        return values.flatten(0, 1)[: max(1, round(expected * flags_BN.numel()))]
    return values[flags_BN]


def evenly_spread(count: int = 1000) -> Tensor:
    """(count,) numbers in the middle of equal parts of [0, 1], to average a function of a uniform number over."""
    return (torch.arange(count, device="cpu") + 0.5) / count
