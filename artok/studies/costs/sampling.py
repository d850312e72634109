"""What making a batch of images costs: the generator's own steps on the meta device, then the tokenizer's decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from artok.errors import ConfigError
from artok.layout import Condition
from artok.noise import Noise
from artok.sampling.settings import Sampling
from artok.studies.costs.design import Design
from artok.studies.costs.emulation import Chip, Emulation
from artok.studies.costs.remember import remembered
from artok.studies.costs.trace import Costs, Trace, Work

META = torch.device("meta")
SEEN = 8  # steps in a row whose costs lie on a line, after which the rest are taken to lie on it too


@dataclass(frozen=True)
class Sampled:
    """The costs of a batch. steps: the first of `passes` network passes; those that are missing go on as the last do,
    each costing as much more than the one before as there. decoding: of the finished tokens to images.

    cache: bytes of the KV cache. peak: the most bytes at any time, weights not included.
    """

    steps: tuple[Costs, ...]
    passes: int
    decoding: Costs
    cache: int
    peak: int

    def total(self, value: Callable[[Work], float]) -> float:
        """The sum of a value of each piece of work, over all passes and the decoding."""
        return extended([step.total(value) for step in self.steps], self.passes) + self.decoding.total(value)

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


@torch.no_grad()
def sample(
    design: Design, sampling: Sampling, batch: int, chip: Chip = "cpu", dtype: torch.dtype = torch.float32
) -> Sampled:
    """The costs of `batch` images. ConfigError: it cannot be sampled so."""
    generator, tokenizer = design.generator, design.tokenizer
    if generator is None:
        raise ConfigError("a tokenizer alone makes no images; name a generator's config")
    generator.eval().check(sampling)
    labels = torch.empty(batch, dtype=torch.int64, device=META)
    passes, steps, finished = generator.passes(sampling), list[Costs](), None
    with Trace() as trace, Emulation(chip, dtype) as emulation, remembered(generator, trace) as cache:
        for finished in generator.steps(Condition(labels), sampling, Noise(0, labels), tokenizer):
            emulation.end_forward()  # `Pipeline.steps` leaves autocast before each yield
            steps.append(trace.take())
            if sampling.guidance_interval == (0.0, 1.0) and on_a_line(steps):
                break
    assert finished is not None
    whole = len(steps) < passes
    with Trace() as decoding, Emulation(chip):
        tokenizer.decode(type(finished)(finished.values, finished.layout) if whole else finished)
    peak = max(trace.peak, decoding.peak)
    return Sampled(tuple(steps), max(passes, len(steps)), decoding.take(), cache[0], peak)


def on_a_line(steps: Sequence[Costs]) -> bool:
    """Whether the last steps do as many operations each, and FLOPs and bytes that grow evenly."""
    if len(steps) < SEEN + 1:
        return False
    last = steps[-SEEN:]
    rows = [(step.operators, step.flops, step.bytes) for step in last]
    changes = {tuple(b - a for a, b in zip(before, after, strict=True)) for before, after in zip(rows, rows[1:], strict=False)}
    return len(changes) == 1 and next(iter(changes))[0] == 0
