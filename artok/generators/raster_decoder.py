"""One sampling of a raster transformer: its cache, its noise and the codes so far."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artok.conditioning.base import Context
from artok.layout import Condition, TokenLayout, Tokens
from artok.nn.attention import KVCache
from artok.nn.grid_layers import PastFrames
from artok.noise import Noise
from artok.sampling.guidance import Guidance
from artok.sampling.logits import draw_gumbel, probabilities
from artok.sampling.settings import AT_ONCE, Decoding, Sampling

MOST_NOISE = 2**22  # numbers that are drawn at once for all codes of a batch


class CodeModel(Protocol):
    """What a decoder uses of a `Raster`. ordered: each image has an order of its own."""

    layout: TokenLayout
    vocab: int
    width: int
    heads: int
    prefix: int
    rotary: Tensor
    blocks: nn.ModuleList
    past: PastFrames | None
    ordered: bool

    def prefixed(self, condition: Condition) -> Context: ...

    def recall(self, context: Context, codes: Tensor) -> Context: ...

    def logits(
        self,
        codes: Tensor,
        context: Context,
        start: int | Tensor = 0,
        cache: KVCache | None = None,
        order: Tensor | None = None,
        ahead: int = 1,
    ) -> Tensor: ...


class RasterDecoder:
    """One sampling of a raster transformer, with its cache: a `Decoder` of `artok.sampling.decoding`.

    order: (B, N) positions in which the codes are drawn, or None for raster order.
    """

    def __init__(self, model: CodeModel, condition: Condition, sampling: Sampling, noise: Noise) -> None:
        batch, length = len(condition), model.layout.length * model.layout.codes
        self.model, self.sampling, self.noise = model, sampling, noise
        self.guidance = Guidance(condition, sampling, length, caches=True)
        self.context = model.prefixed(self.guidance.condition)
        self.cache, device = make_cache(model, self.context, sampling), condition.device
        self.codes = torch.zeros(batch, length, dtype=torch.int64, device=device)
        self.given: Tensor | None = None
        self.first, known = 0, condition.known
        self.order = known_first(known) if model.ordered else None
        if sampling.decoding == "parallel":
            self.order = known_first(known, noise.branch("order").permutation(model.layout.length))
        elif sampling.decoding in AT_ONCE:
            order, _ = in_waves(model.layout.grid, sampling.decoding)
            self.order = known_first(known, order.to(device).expand(batch, -1))
        if known is not None:
            self.given = given_codes(known, self.order)
            self.codes = torch.where(self.given, in_order(known.values, self.order).flatten(1), self.codes)
            self.first = min(int(self.given.long().cumprod(1).sum(1).min()), length - 1)
        self.gumbel: Tensor | None = None
        self.recalled: tuple[Tensor, Context] | None = None  # and the codes that it was computed from
        self.begun, self.latest = False, 0  # latest: the place that all rows have reached
        if sampling.temperature and batch * length * model.vocab <= MOST_NOISE:
            every = torch.arange(length, device=device).expand(batch, -1)
            self.gumbel = noise.gumbel(every, model.vocab)

    def logits(self, start: int | Tensor, count: int) -> Tensor:
        if isinstance(start, int):
            begin = start if self.begun else 0
            read, places = self.codes[:, max(begin - 1, 0) : start + count - 1], self._places(start, count)
            return self.guidance(self._pass(read, start, begin, start + count)[:, -count:], places)
        places = start[:, None] + torch.arange(count, device=start.device)
        end = int(start.max()) + count
        return self.guidance(self._pass(self.codes.gather(1, places - 1), int(start.min()), start, end), places)

    def logits_at_once(self, start: int, count: int) -> Tensor:
        begin = self.latest + 1 if self.begun else 0  # the codes of the pass before are read in this one
        read = self.codes[:, max(begin - 1, 0) : start]
        made = self._pass(read, start, begin, start + count, ahead=count)
        return self.guidance(made[:, -count:], self._places(start, count))

    def _places(self, start: int, count: int) -> Tensor:
        return torch.arange(start, start + count, device=self.codes.device)

    def _pass(self, read: Tensor, reached: int, begin: int | Tensor, end: int, ahead: int = 1) -> Tensor:
        """The model's logits, up to the place before `end`, for the halves of guidance that the places from `reached`
        on take."""
        self.begun, self.latest = True, max(self.latest, reached)
        take, repeat, at = self.guidance.take, self.guidance.repeat, self.latest
        self.context, self.cache = take(self.context, at), take(self.cache, at)
        begin = begin if isinstance(begin, int) else repeat(begin, at)
        order = None if self.order is None else repeat(self.order, at)
        context = self.context if self.model.past is None else self._recalled(repeat(self.codes, at), end)
        return self.model.logits(repeat(read, at), context, begin, self.cache, order, ahead)

    def _recalled(self, codes: Tensor, end: int) -> Context:
        """The context with what the frames before tell, computed anew only where a pass reads other ones."""
        per_frame = codes.shape[1] // self.model.layout.grid[0]
        read = codes[:, : (end - 1) // per_frame * per_frame]
        same = self.recalled is not None and self.recalled[0].shape == read.shape
        if not same or self.recalled is None or not (read.is_meta or torch.equal(self.recalled[0], read)):
            self.recalled = read.clone(), self.model.recall(self.context, codes)
        return self.recalled[1]

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


def make_cache(model: CodeModel, context: Context, sampling: Sampling) -> KVCache:
    """An empty cache for the prefix and all codes but the last, with a row for each of the context."""
    places, head = model.prefix + model.layout.length * model.layout.codes - 1, model.width // model.heads
    device, dtype = context.sequence.device, sampling.activations
    return KVCache.allocate(len(model.blocks), len(context), model.heads, places, head, device, dtype)


def in_waves(grid: tuple[int, ...], decoding: Decoding) -> tuple[Tensor, list[int]]:
    """The positions (N,) of a grid in the order in which they are drawn, and how many are left after each pass.

    next_neighbour: those of one distance from the first position, along the axes, in a pass (NAR, He et al. 2025, arXiv
    2503.10696, section 3). row_parallel: those of a row.
    """
    places = torch.cartesian_prod(*(torch.arange(side, device="cpu") for side in grid)).view(-1, len(grid))
    rows = torch.arange(len(places), device="cpu") // grid[-1]
    waves = rows if decoding == "row_parallel" else places.sum(1)
    return waves.argsort(stable=True), (len(places) - waves.bincount().cumsum(0)).tolist()


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


def given_codes(known: Tokens, order: Tensor | None) -> Tensor:
    """(B, codes) bool: whether each code, in order, is known."""
    return in_order(known.flags[..., None], order).expand(-1, -1, known.layout.codes).flatten(1)
