"""One sampling of a raster transformer: its cache, its noise and the codes so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from artok.layout import Condition, Tokens
from artok.nn.attention import KVCache
from artok.noise import Noise
from artok.sampling.guidance import Guidance
from artok.sampling.logits import draw_gumbel, probabilities
from artok.sampling.settings import Sampling

if TYPE_CHECKING:
    from artok.generators.raster import Raster

MOST_NOISE = 2**22  # numbers that are drawn at once for all codes of a batch


class RasterDecoder:
    """One sampling of a raster transformer, with its cache: a `Decoder` of `artok.sampling.decoding`.

    order: (B, N) positions in which the codes are drawn, or None for raster order.
    """

    def __init__(self, model: Raster, condition: Condition, sampling: Sampling, noise: Noise) -> None:
        batch, length = len(condition), model.layout.length * model.layout.codes
        self.model, self.sampling, self.noise = model, sampling, noise
        self.guidance = Guidance(condition, sampling, length, caches=True)
        self.context = model.prefixed(self.guidance.condition)
        device, places = condition.device, model.prefix + length - 1
        self.cache = KVCache.allocate(
            len(model.blocks),
            len(self.context),
            model.heads,
            places,
            model.width // model.heads,
            device,
            sampling.activations,
        )
        self.codes = torch.zeros(batch, length, dtype=torch.int64, device=device)
        self.given: Tensor | None = None
        self.first, known = 0, condition.known
        self.order = known_first(known) if model.target is not None else None
        if sampling.decoding == "parallel":
            self.order = known_first(known, noise.branch("order").permutation(model.layout.length))
        if known is not None:
            self.given = model.given(known, self.order)
            self.codes = torch.where(self.given, model.values(known, self.order), self.codes)
            self.first = min(int(self.given.long().cumprod(1).sum(1).min()), length - 1)
        self.read, self.latest, self.gumbel = 0, 0, None
        # read: the `start` of the next pass over a whole batch. latest: the place that all rows have reached
        if sampling.temperature and batch * length * model.vocab <= MOST_NOISE:
            every = torch.arange(length, device=device).expand(batch, -1)
            self.gumbel = noise.gumbel(every, model.vocab)

    def logits(self, start: int | Tensor, count: int) -> Tensor:
        if isinstance(start, int):
            begin = start if self.read else 0
            output = self.run(self.codes[:, max(begin - 1, 0) : start + count - 1], start, begin)
            places = torch.arange(start, start + count, device=output.device)
        else:
            places = start[:, None] + torch.arange(count, device=start.device)
            output = self.run(self.codes.gather(1, places - 1), int(start.min()), start)
        self.read = 1
        return self.guidance(output[:, -count:], places)

    def logits_at_once(self, start: int, count: int) -> Tensor:
        begin = self.read
        read, self.read = self.codes[:, max(begin - 1, 0) : start], start + 1
        output = self.run(read, start, begin, count)
        return self.guidance(output[:, -count:], torch.arange(start, start + count, device=read.device))

    def run(self, codes: Tensor, lowest: int, start: int | Tensor, ahead: int = 1) -> Tensor:
        """The model's logits, for both halves of guidance while a place from `lowest` on needs them."""
        self.latest = at = max(self.latest, lowest)
        self.context, self.cache = self.guidance.take(self.context, at), self.guidance.take(self.cache, at)
        order = None if self.order is None else self.guidance.repeat(self.order, at)
        begin = start if isinstance(start, int) else self.guidance.repeat(start, at)
        return self.model.logits(self.guidance.repeat(codes, at), self.context, begin, self.cache, order, ahead)

    def pick(self, logits: Tensor, places: Tensor) -> Tensor:
        sampling, gumbel = self.sampling, None
        if self.gumbel is not None:
            gumbel = self.gumbel.gather(1, places[..., None].expand_as(logits))
        elif sampling.temperature:
            gumbel = self.noise.gumbel(places, logits.shape[-1])
        drawn = draw_gumbel(logits, gumbel, sampling.temperature, sampling.top_k, sampling.top_p)
        if self.given is None:
            return drawn
        return torch.where(self.given.gather(1, places), self.codes.gather(1, places), drawn)

    def distribution(self, logits: Tensor, places: Tensor) -> Tensor:
        sampling = self.sampling
        if self.given is None and sampling.temperature:
            return probabilities(logits, sampling.temperature, sampling.top_k, sampling.top_p)
        certain = F.one_hot(self.pick(logits, places), logits.shape[-1]).float()
        if not sampling.temperature:
            return certain
        found = probabilities(logits, sampling.temperature, sampling.top_k, sampling.top_p)
        assert self.given is not None
        return torch.where(self.given.gather(1, places)[..., None], certain, found)


def known_first(known: Tokens | None, order: Tensor | None = None) -> Tensor | None:
    """(B, N) positions: the known ones, then the others, both in `order`, by default raster order; without known tokens
    the order itself."""
    if known is None:
        return order
    if order is None:
        return (~known.flags).long().argsort(dim=1, stable=True)
    return order.gather(1, (~known.flags).gather(1, order).long().argsort(dim=1, stable=True))


def in_order(values_BNK: Tensor, order_BN: Tensor | None) -> Tensor:
    """The values of positions in an order, unchanged when it is None."""
    return values_BNK if order_BN is None else values_BNK.gather(1, order_BN[..., None].expand_as(values_BNK))
