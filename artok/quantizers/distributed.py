"""Sums and rows of all processes of a training run; with one process they are its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


def count_processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if count_processes() > 1:
        distributed.all_reduce(values)
    return values


def sum_all_over_processes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums of several tensors over all processes, in one call."""
    total = sum_over_processes(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = total.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def gather_over_processes(values: Tensor, dim: int) -> Tensor:
    """The values of all processes, put together along an axis, the same in each."""
    if count_processes() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(count_processes())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts, dim)


def copy_from_first_process(values: Tensor) -> None:
    """Overwrite by the values of process 0, which rounds as no other."""
    if count_processes() > 1:
        distributed.broadcast(values, src=0)
