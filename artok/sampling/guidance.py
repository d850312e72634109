"""Classifier-free guidance (Ho and Salimans 2022) under artok's one convention, and its schedules."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from artok.layout import Condition, ConditionPart
from artok.sampling.settings import Sampling

DROPPED: tuple[ConditionPart, ...] = ("labels", "text")  # of the unconditional half


class Guidance:
    """The guidance of one sample: both halves as one batch, and the scale at each step.

    condition: B rows, or 2B where it guides, in the second half of which what is guided is dropped.
    """

    def __init__(self, condition: Condition, sampling: Sampling, steps: int) -> None:
        self.sampling, self.steps, self.guides = sampling, steps, sampling.guides
        self.condition = append_unconditional(condition) if self.guides else condition

    def repeat(self, x: Tensor) -> Tensor:
        """What both halves have alike, (B, ...) to (2B, ...); unchanged where nothing is guided."""
        return x.repeat(2, *[1] * (x.ndim - 1)) if self.guides else x

    def scale(self, step: int, share: float | None = None) -> float:
        """As `scale_at`."""
        return scale_at(self.sampling, step, self.steps, share)

    def __call__(self, output: Tensor, step: int) -> Tensor:
        """The guided output (B, ...) of what a model gave for `condition`; unchanged where nothing is guided."""
        return guide(output, self.scale(step)) if self.guides else output


def append_unconditional(condition: Condition) -> Condition:
    """The rows of a condition (B), then the same rows with what is guided dropped: 2B."""
    rows = torch.arange(2 * len(condition), device=condition.device)
    both = condition[rows % len(condition)]
    for part in DROPPED:
        both = both.dropped(part, rows >= len(condition))
    return both


def guide(output: Tensor, scale: float, width: int | None = None) -> Tensor:
    """unconditional + scale * (conditional - unconditional): 1 is no guidance, 0 ignores the condition.

    output: (2B, ...), the unconditional half behind the other. width: how many of the last axis' numbers are guided,
    all unless given; the others stay the conditional ones.
    """
    conditional, unconditional = output.chunk(2)
    if width is None:
        return unconditional + scale * (conditional - unconditional)
    rest = conditional[..., width:]
    conditional, unconditional = conditional[..., :width], unconditional[..., :width]
    return torch.cat([unconditional + scale * (conditional - unconditional), rest], dim=-1)


def scale_at(sampling: Sampling, step: int, steps: int, share: float | None = None) -> float:
    """The guidance scale at step 0..steps-1 of a generation.

    linear and cosine rise from 1 at the first step to `cfg_scale` at the last (the cosine with its power, as RAR's,
    Yu et al. 2024); outside `cfg_interval` (Kynkaanniemi et al. 2024) there is none. share: how far on the way
    from 0 to 1 the step is, where a family measures that otherwise than by its steps.
    """
    if share is None:
        share = step / max(steps - 1, 1)
    low, high = sampling.cfg_interval
    if not low * steps <= step < high * steps:
        return 1.0
    if sampling.cfg_schedule == "linear":
        return 1 + (sampling.cfg_scale - 1) * share
    if sampling.cfg_schedule == "cosine":
        return 1 + (sampling.cfg_scale - 1) * (1 - math.cos(math.pi * share**sampling.cfg_power)) / 2
    return sampling.cfg_scale
