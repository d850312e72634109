"""Draws a sequence of codes from an autoregressive model: token by token, or in fewer passes by drafts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from artok.noise import Noise

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

    def distribution(self, logits: Tensor, places: Tensor) -> Tensor:
        """What `pick` draws from, (B, n, V)."""
        ...

    def logits_at_once(self, start: int, count: int) -> Tensor:
        """As `logits`, each without the codes from `start` on."""
        ...


def sequential(decoder: Decoder) -> Iterator[int]:
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


def speculative(decoder: Decoder, draft: Decoder, draft_length: int, noise: Noise) -> Iterator[Tensor]:
    """Speculative decoding (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1): a small model drafts `draft_length`
    codes one by one, and one pass of the large one accepts or replaces them, so that the distribution is its own. Yield
    how many codes of each row are done, (B,), after each pass of the large model.

    All random numbers are those of a place. So a sample depends on the draft model, but not on the drafts' number or on
    the batch. For this, the paper's extra code after a run of accepted ones is left out.
    """
    codes = draft.codes = decoder.codes
    (batch, length), device = codes.shape, codes.device
    uniform, again = noise.branch("accept").uniform(length), noise.branch("residual")
    done = [decoder.first] * batch
    while min(done) < length:
        count = min(draft_length, length - min(done))
        starts = [min(each, length - count) for each in done]
        own, finished = torch.tensor([starts, done], device=device)
        aligned = min(starts) == max(starts)
        places = own[:, None] + torch.arange(count, device=device)
        free, drafted = places >= finished[:, None], list[Tensor]()
        for step in range(count):
            place = places[:, step : step + 1]
            logits = draft.logits(starts[0] + step if aligned else own + step, 1)
            drawn = torch.where(free[:, step : step + 1], draft.pick(logits, place), codes.gather(1, place))
            codes.scatter_(1, place, drawn)
            drafted.append(draft.distribution(logits, place))
        small = torch.cat(drafted, dim=1)
        large = decoder.distribution(decoder.logits(starts[0] if aligned else own, count), places)
        drafts = codes.gather(1, places)
        p, q = (each.gather(2, drafts[..., None])[..., 0] for each in (large, small))
        taken = (uniform.gather(1, places) * q < p) | ~free
        right = taken.long().cumprod(1).sum(1)
        # where a draft was refused, a code of what the draft model gives too rarely
        last = right.clamp(max=count - 1)[:, None]
        at, row = places.gather(1, last), last[..., None].expand(-1, -1, large.shape[-1])
        rest = (large.gather(1, row) - small.gather(1, row)).clamp(min=0).log()
        replaced = (rest + again.gumbel(at, large.shape[-1])).argmax(-1)
        codes.scatter_(1, at, torch.where((right < count)[:, None], replaced, codes.gather(1, at)))
        now = zip(starts, right.tolist(), strict=True)
        done = [start + min(own_right + 1, count) for start, own_right in now]
        yield torch.tensor(done, device=device)


def parallel(decoder: Decoder, left: Sequence[int]) -> Iterator[int]:
    """Several codes a pass, each drawn without the others of its pass, by a model that was trained in random orders (as
    RandAR, Pang et al. 2024, arXiv 2412.01827). Yield how many codes are done.

    left: codes before the first pass and after each one.
    """
    batch, length = decoder.codes.shape
    for before, after in pairwise(left):
        places = torch.arange(length - before, length - after, device=decoder.codes.device).expand(batch, -1)
        logits = decoder.logits_at_once(length - before, before - after)
        decoder.codes[:, length - before : length - after] = decoder.pick(logits, places)
        yield length - after
