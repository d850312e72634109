"""Classifier-free guidance (Ho and Salimans 2022) under artok's one convention, and its schedules."""

from __future__ import annotations

import math

from torch import Tensor

from artok.sampling.settings import Sampling


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """uncond + scale * (cond - uncond): 1 is no guidance, 0 ignores the condition."""
    return unconditional + scale * (conditional - unconditional)


def scale_at(sampling: Sampling, step: int, steps: int, share: float | None = None) -> float:
    """The guidance scale at step 0..steps-1 of a generation.

    linear and cosine rise from 1 at the first step to `guidance` at the last (the cosine with its power, as RAR's,
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
