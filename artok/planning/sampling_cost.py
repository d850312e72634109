"""What making a batch of images costs: the generator's own steps on the meta device, then the tokenizer's decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from artok.errors import ConfigError
from artok.generators.base import Generator
from artok.layout import Codec, Condition
from artok.noise import Noise
from artok.planning.autocast_on_meta import Chip, Emulation
from artok.planning.cost_cache import remembered
from artok.planning.meta_model import Design
from artok.planning.op_trace import Costs, Trace, Work
from artok.planning.training_cost import META, blank_tokens
from artok.sampling.settings import Sampling

SEEN = 8  # steps in a row whose costs lie on a line, after which the rest are taken to lie on it too


@dataclass(frozen=True)
class Passes:
    """The costs of a batch's tokens. steps: the first of `count` network passes; those that are missing go on as the
    last do, each costing as much more than the one before as there.

    cache: bytes of the KV cache. peak: the most bytes at any time, weights not included.
    """

    steps: tuple[Costs, ...]
    count: int
    cache: int
    peak: int

    def total(self, value: Callable[[Work], float]) -> float:
        """The sum of a value of each piece of work."""
        return extended([step.total(value) for step in self.steps], self.count)


@dataclass(frozen=True)
class Sampled:
    """The costs of a batch of images: the passes, and the decoding of their tokens. peak: as in `Passes`."""

    passes: Passes
    decoding: Costs
    peak: int

    def total(self, value: Callable[[Work], float]) -> float:
        return self.passes.total(value) + self.decoding.total(value)

    @property
    def flops(self) -> float:
        return self.total(lambda work: work.flops)


def extended(values: Sequence[float], count: int) -> float:
    """The sum of `count` values that go on in a straight line from the last two."""
    rest = count - len(values)
    if rest <= 0:
        return sum(values)
    slope = values[-1] - values[-2]
    return sum(values) + rest * values[-1] + slope * rest * (rest + 1) / 2


def sample(
    design: Design, sampling: Sampling, batch: int, chip: Chip = "cpu", dtype: torch.dtype = torch.float32
) -> Sampled:
    """The costs of `batch` images. ConfigError: the design makes none, or not so."""
    if design.generator is None:
        raise ConfigError("a tokenizer alone makes no images; name a generator's config")
    design.generator.check(sampling)
    passes = sample_tokens(design.generator, design.tokenizer, sampling, batch, chip, dtype)
    with torch.no_grad(), Trace() as trace, Emulation(chip):
        if design.tokenizer is not None:
            design.tokenizer.decode(blank_tokens(design.layout, batch))
    return Sampled(passes, trace.take(), max(passes.peak, trace.peak))


@torch.no_grad()
def sample_tokens(
    generator: Generator,
    codec: Codec | None,
    sampling: Sampling,
    batch: int,
    chip: Chip = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Passes:
    """The costs of the tokens of `batch` images. The generator and its codec are on the meta device."""
    generator.eval()
    labels = torch.empty(batch, dtype=torch.int64, device=META)
    count, steps = generator.passes(sampling), list[Costs]()
    with Trace() as trace, Emulation(chip, dtype) as emulation, remembered(generator, trace) as cache:
        for _ in generator.steps(Condition(labels), sampling, Noise(0, labels), codec):
            emulation.end_forward()  # `Pipeline.steps` leaves autocast before each yield
            steps.append(trace.take())
            if sampling.cfg_interval == (0.0, 1.0) and on_a_line(steps):
                break
    return Passes(tuple(steps), max(count, len(steps)), cache[0], trace.peak)


def on_a_line(steps: Sequence[Costs]) -> bool:
    """Whether the last steps do as many operations each, and FLOPs and bytes that grow evenly."""
    if len(steps) < SEEN + 1:
        return False
    last = steps[-SEEN:]
    rows = [(step.operators, step.flops, step.bytes) for step in last]
    changes = {tuple(b - a for a, b in zip(*pair, strict=True)) for pair in pairwise(rows)}
    return len(changes) == 1 and next(iter(changes))[0] == 0
