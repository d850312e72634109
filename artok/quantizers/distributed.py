"""Sums and draws that all processes of a training run share; with one process they are its own."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if several_processes():
        distributed.all_reduce(values)
    return values


def draw_indices(total: int, count: int, device: torch.device) -> Tensor:
    """`count` random numbers below `total`, (count,) int64, the same in all processes.

    They differ from one another, unless fewer than `count` exist.
    """
    if total >= count:
        drawn = torch.randperm(total, device=device)[:count]
    else:
        drawn = torch.randint(total, (count,), device=device)
    if several_processes():
        distributed.broadcast(drawn, src=0)
    return drawn


def count_rows(points: Tensor) -> list[int]:
    """The number of rows of the points (M, D) in each process."""
    if not several_processes():
        return [len(points)]
    rows = torch.zeros(distributed.get_world_size(), dtype=torch.int64, device=points.device)
    rows[distributed.get_rank()] = len(points)
    return sum_over_processes(rows).tolist()


def sample_rows(points: Tensor, count: int) -> Tensor:
    """`count` rows, (count, D), drawn from the points (M, D) of all processes, the same in all processes."""
    rows = count_rows(points)
    drawn = draw_indices(sum(rows), count, points.device)
    if len(rows) == 1:
        return points[drawn]
    first = sum(rows[: distributed.get_rank()])
    own = (drawn >= first) & (drawn < first + len(points))
    sampled = points.new_zeros(count, points.shape[1])
    sampled[own] = points[drawn[own] - first]
    return sum_over_processes(sampled)
