"""RePaint: hidden tokens by a diffusion that was trained without masks (Lugmayr et al. 2022, arXiv 2201.09865).

The known part of the state follows the forward process of the known tokens: each prediction of the clean tokens is
replaced there by the known ones, so every solver takes that part along its own path. To make the hidden part fit, the
chain goes back `jump_length` steps by the forward process and down again, `jump_n_sample` times in all (section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from artok.sampling.schedules import Level, Levels
from artok.sampling.solvers import Draw, States
from artok.sampling.targets import transition

Solve = Callable[[Tensor, Levels, Draw, int], States]


def jumps(steps: int, length: int, times: int) -> list[tuple[int, int, bool]]:
    """The runs (first level, last level, whether it is a repetition) of a chain of `steps` levels, in order.

    It is the schedule of the published code: a jump back to each multiple of `length` below steps - length.
    """
    ends = range(0, steps - length, length)
    top = ends[-1] + length if ends else 0
    runs = [(steps - 1, top, False)]
    for end in reversed(ends):
        runs += [(end + length - 1, end, time > 0) for time in range(times)]
    return runs


def noised(x: Tensor, s: Level, t: Level, noise: Tensor) -> Tensor:
    """x moved by the forward process from level s to a noisier level t (eq. 1; on the straight path the same Gaussian).

    The noise has the root of the added variance as its factor: algorithm 1 of the paper has the variance itself, which
    its code does not.
    """
    return math.sqrt(t.signal_squared / s.signal_squared) * x + math.sqrt(transition(t, s).added) * noise


def repaint(
    solve: Solve, x: Tensor, levels: Levels, length: int, times: int, draw: Draw, again: Draw, rows: Tensor
) -> States:
    """Yield states and predicted clean tokens as a solver does.

    solve(x, levels, draw, done): the solver's steps over a part of the levels, `done` being the number before it. draw:
    noise of the first runs. again: of the repetitions. rows: (B, 1, ...) bool, which samples repeat; the others are
    left as the first runs made them.
    """
    clean = x
    for high, low, repeats in jumps(len(levels), length, times):
        start = torch.where(rows, noised(x, levels[low - 1], levels[high], again()), x) if repeats else x
        for state, predicted in solve(
            start, levels.part(low, high), again if repeats else draw, len(levels) - 1 - high
        ):
            reached = torch.where(rows, state, x) if repeats else state
            clean = torch.where(rows, predicted, clean) if repeats else predicted
            yield reached, clean
        x = reached
