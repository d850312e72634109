"""Counts the cost of sampling a batch: the generator's steps and the tokenizer's decoder, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from artok.errors import ConfigError
from artok.generators.base import Generator
from artok.layout import Codec
from artok.noise import Noise
from artok.planning.autocast_on_meta import AutocastOnMeta, Chip
from artok.planning.cost_cache import cache_costs
from artok.planning.meta_model import Design
from artok.planning.op_trace import OpCost, OpCounts, Trace
from artok.planning.training_cost import META, blank_tokens
from artok.sampling.settings import Sampling

SEEN = 8  # steps in a row whose costs grow evenly, after which the rest are extrapolated


@dataclass(frozen=True)
class Passes:
    """The cost of a batch's tokens. steps: the first of `count` network passes; the others are extrapolated linearly.

    cache: bytes of the KV cache. peak: the most bytes at any time, without the weights.
    """

    steps: tuple[OpCounts, ...]
    count: int
    cache: int
    peak: int

    def total(self, value: Callable[[OpCost], float]) -> float:
        """The sum of a value of each operator."""
        return extrapolate([step.total(value) for step in self.steps], self.count)


@dataclass(frozen=True)
class SamplingCost:
    """The cost of a batch of images: network passes, and decoding of the tokens. peak: as in `Passes`."""

    passes: Passes
    decoding: OpCounts
    peak: int

    def total(self, value: Callable[[OpCost], float]) -> float:
        return self.passes.total(value) + self.decoding.total(value)

    @property
    def flops(self) -> float:
        return self.total(lambda op: op.flops)


def extrapolate(values: Sequence[float], count: int) -> float:
    """The sum of `count` values that continue on the straight line through the last two."""
    rest = count - len(values)
    if rest <= 0:
        return sum(values)
    slope = values[-1] - values[-2]
    return sum(values) + rest * values[-1] + slope * rest * (rest + 1) / 2


def sample(
    design: Design, sampling: Sampling, batch: int, chip: Chip = "cpu", dtype: torch.dtype = torch.float32
) -> SamplingCost:
    """The cost of `batch` images. Raises ConfigError for a tokenizer or for settings that the family refuses."""
    if design.generator is None:
        raise ConfigError("a tokenizer alone generates no images; give a generator's config")
    design.generator.check(sampling)
    passes = sample_tokens(design.generator, design.tokenizer, sampling, batch, chip, dtype)
    with torch.no_grad(), Trace() as trace, AutocastOnMeta(chip):
        if design.tokenizer is not None:
            design.tokenizer.decode(blank_tokens(design.layout, batch))
    return SamplingCost(passes, trace.take(), max(passes.peak, trace.peak))


@torch.no_grad()
def sample_tokens(
    generator: Generator,
    codec: Codec | None,
    sampling: Sampling,
    batch: int,
    chip: Chip = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Passes:
    """The cost of the tokens of `batch` images. The generator and its codec are on the meta device."""
    generator.eval()
    labels = torch.empty(batch, dtype=torch.int64, device=META)
    count, steps = generator.passes(sampling), list[OpCounts]()
    with Trace() as trace, AutocastOnMeta(chip, dtype) as autocast, cache_costs(generator, trace) as cache:
        condition = generator.conditioner.example(batch, META)
        for _ in generator.steps(condition, sampling, Noise(0, labels), codec):
            autocast.end_forward()  # `Pipeline.steps` leaves autocast before each yield
            steps.append(trace.take())
            if sampling.cfg_interval == (0.0, 1.0) and grow_evenly(steps):
                break
    return Passes(tuple(steps), max(count, len(steps)), cache[0], trace.peak)


def grow_evenly(steps: Sequence[OpCounts]) -> bool:
    """Whether the last steps have equally many operators, and FLOPs and bytes that grow evenly."""
    if len(steps) < SEEN + 1:
        return False
    last = steps[-SEEN:]
    rows = [(step.operators, step.flops, step.bytes) for step in last]
    changes = {tuple(b - a for a, b in zip(*pair, strict=True)) for pair in pairwise(rows)}
    return len(changes) == 1 and next(iter(changes))[0] == 0
