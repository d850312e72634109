"""Classifier-free guidance (Ho and Salimans 2022) under artok's one convention, and its schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from artok.errors import ConfigError
from artok.layout import Condition, Text
from artok.sampling.settings import GuidedPart, Sampling


class Rows(Protocol):
    """A tensor, a context, a cache: what has rows."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Any: ...


R = TypeVar("R", bound=Rows)


class Guidance:
    """Guidance in one sampling: both halves as one batch where a step needs them, and the scale at each step.

    condition: B rows, or with guidance 2B, the second half of which is unconditional: without the parts
    `sampling.cfg_parts`, and with the negative texts, where there are some. ConfigError: as in `append_unconditional`.
    """

    def __init__(
        self,
        condition: Condition,
        sampling: Sampling,
        steps: int,
        shares: Sequence[float | None] | None = None,
        caches: bool = False,
    ) -> None:
        """shares: of `scale_at`, one for each step. caches: whether a step reads what the model kept of both halves at
        all steps before, so that the second half is left out after the last guided step only."""
        self.guides, parts = sampling.guides, sampling.cfg_parts
        self.condition = append_unconditional(condition, parts) if self.guides else condition
        self.half = len(condition)
        self.scales = [scale_at(sampling, step, steps, share) for step, share in enumerate(shares or [None] * steps)]
        guided = [self.guides and scale != 1 for scale in self.scales]
        ended = max((step + 1 for step, needed in enumerate(guided) if needed), default=0)
        self.doubled = [step < ended for step in range(steps)] if caches else guided

    def repeat(self, x: Tensor, step: int) -> Tensor:
        """Repeat (B, ...) for both halves, (2B, ...), if the step takes both."""
        return x.repeat(2, *[1] * (x.ndim - 1)) if self.doubled[step] else x

    def take(self, rows: R, step: int) -> R:
        """Of 2B rows those that a step takes: all, or the first half."""
        whole = self.doubled[step] or len(rows) == self.half
        taken: R = rows if whole else rows[: self.half]
        return taken

    def __call__(self, output: Tensor, step: int | Tensor) -> Tensor:
        """The guided output (B, ...) from a model's output for the rows that the step takes.

        step: of all, or (n,) or (B, n) int64 of each vector of an output (B or 2B, n, D).
        """
        if len(output) == self.half:
            return output
        if isinstance(step, int):
            return guide(output, self.scales[step])
        return guide(output, self._scale_of_step[step][..., None])

    @cached_property
    def _scale_of_step(self) -> Tensor:
        return torch.tensor(self.scales, device=self.condition.device)


def append_unconditional(condition: Condition, parts: Sequence[GuidedPart]) -> Condition:
    """The rows of a condition (B), then the same rows with `parts` dropped: 2B. The second half hears the negative
    texts, where there are some.

    ConfigError: there are negative texts, and `parts` keep the text.
    """
    negative = condition.negative
    if negative is not None and "text" not in parts:
        raise ConfigError("negative prompts take the place of the text that guidance drops; name text in cfg_parts")
    rows = torch.arange(2 * len(condition), device=condition.device)
    both = replace(condition, negative=None)[rows % len(condition)]
    for part in parts:
        both = both.dropped(part, rows >= len(condition))
    if negative is None:
        return both
    told = condition.text or Text(torch.zeros_like(negative.values), torch.zeros_like(negative.mask))
    values, mask = torch.cat([told.values, negative.values]), torch.cat([told.mask, negative.mask])
    return replace(both, text=Text(values, mask))


def guide(output: Tensor, scale: float | Tensor, width: int | None = None) -> Tensor:
    """unconditional + scale * (conditional - unconditional): 1 is no guidance, 0 ignores the condition.

    output: (2B, ...), the unconditional half second. width: number of leading entries of the last axis that are guided,
    default all; the others keep the conditional values.
    """
    conditional, unconditional = output.chunk(2)
    if width is None:
        return unconditional + scale * (conditional - unconditional)
    rest = conditional[..., width:]
    conditional, unconditional = conditional[..., :width], unconditional[..., :width]
    return torch.cat([unconditional + scale * (conditional - unconditional), rest], dim=-1)


def scale_at(sampling: Sampling, step: int, steps: int, share: float | None = None) -> float:
    """The guidance scale at step 0..steps-1 of a generation.

    linear and cosine rise from 1 at the first step to `cfg_scale` at the last (the power cosine of RAR, Yu et al.
    2024). Outside `cfg_interval` (Kynkaanniemi et al. 2024) the scale is 1. share: progress from 0 to 1 of the
    schedule, default by the steps.
    """
    if share is None:
        share = step / max(steps - 1, 1)
    low, high = (round(end * steps, 6) for end in sampling.cfg_interval)  # .55 of 100 is above 55 before rounding
    if not low <= step < high:
        return 1.0
    if sampling.cfg_schedule == "linear":
        return 1 + (sampling.cfg_scale - 1) * share
    if sampling.cfg_schedule == "cosine":
        return 1 + (sampling.cfg_scale - 1) * (1 - math.cos(math.pi * share**sampling.cfg_power)) / 2
    return sampling.cfg_scale
