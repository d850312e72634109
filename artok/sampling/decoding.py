"""Draws a sequence of codes from an autoregressive model: token by token, or in fewer passes by drafts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol, get_args

import torch
from torch import Tensor

from artok.sampling.settings import Decoding

LEAST_DRAFTS = 8  # of a pass
DRAFTS_PER_CODE = 4  # drafts of a pass over the codes that one gives: a draft takes several passes to come right


class Decoder(Protocol):
    """One sampling of a batch. codes: (B, n) int64, the first `first` of each row given, the others free to write."""

    codes: Tensor
    first: int

    def logits(self, start: int | Tensor, count: int) -> Tensor:
        """One pass: logits (B, count, V) of the codes from `start` on, of all rows or of each (B,), given those before.

        Every code before `start` was there in an earlier pass, and the rows of the first one start at `first`.
        """
        ...

    def pick(self, logits: Tensor, places: Tensor) -> Tensor:
        """The codes (B, n) at places (B, n) of a sample under logits (B, n, V). A pure function of both."""
        ...


def sequential(decoder: Decoder, draft_length: int | None) -> Iterator[int]:
    """One code a pass. Yield how many codes are done."""
    batch, length = decoder.codes.shape
    for place in range(decoder.first, length):
        places = torch.full((batch, 1), place, device=decoder.codes.device)
        decoder.codes[:, place : place + 1] = decoder.pick(decoder.logits(place, 1), places)
        yield place + 1


def jacobi(decoder: Decoder, draft_length: int | None) -> Iterator[Tensor]:
    """Coupled Jacobi decoding (Song et al. 2021, arXiv 2002.03629; drafts and verification sharing their noise as in
    Speculative Coupled Decoding, arXiv 2510.24211). Yield how many codes of each row are done, (B,), after each pass.

    A pass draws the codes of a window after the finished ones, each under the drafts before it, with the noise of its
    place. The first one is right. So is the next one, if the first was drafted right, and so on. All are the next
    pass's drafts. The sample is the one of `sequential`: rounding aside, no draft has a part in it.

    draft_length: places of the window; by default a multiple of the codes that the passes before gave.
    """
    codes = decoder.codes
    (batch, length), device = codes.shape, codes.device
    done, drafted, pace = [decoder.first] * batch, decoder.first, 1.0  # pace: codes that a pass gives
    latest: Tensor | None = None
    while min(done) < length:
        left = length - min(done)
        count = min(draft_length or max(LEAST_DRAFTS, math.ceil(DRAFTS_PER_CODE * pace)), left)
        starts = [min(each, length - count) for each in done]  # a row near its end draws some finished codes again
        end = max(starts) + count
        if latest is not None and end > drafted:
            # new places are drafted under the latest logits, with their own noise
            fresh = torch.arange(drafted, end, device=device).expand(batch, -1)
            codes[:, drafted:end] = decoder.pick(latest.expand(-1, end - drafted, -1), fresh)
        drafted = max(drafted, end)
        own, finished = torch.tensor([starts, done], device=device)
        logits = decoder.logits(starts[0] if min(starts) == max(starts) else own, count)
        latest = logits[:, -1:]
        places = own[:, None] + torch.arange(count, device=device)
        drafts = codes.gather(1, places)
        drawn = torch.where(places < finished[:, None], drafts, decoder.pick(logits, places))
        codes.scatter_(1, places, drawn)
        right = (drafts == drawn).long().cumprod(1).sum(1).tolist()
        now = [start + min(own_right + 1, count) for start, own_right in zip(starts, right, strict=True)]
        gained = [after - before for after, before in zip(now, done, strict=True) if before < length]
        pace, done = 0.5 * (pace + sum(gained) / len(gained)), now
        yield torch.tensor(done, device=device)


DECODINGS: dict[Decoding, Callable[[Decoder, int | None], Iterator[int] | Iterator[Tensor]]] = {
    "sequential": sequential,
    "jacobi": jacobi,
}
assert set(DECODINGS) == set(get_args(Decoding))
