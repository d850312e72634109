"""Work on held-out data that the processes of a training share out, with the results of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, distributed

from artok.quantizers.distributed import count_processes

Result = TypeVar("Result")


def own_batches(rows: Tensor, batch: int) -> list[Tensor]:
    """The batches of rows (N,) that fall to this process of N: each N-th of all."""
    rank = distributed.get_rank() if count_processes() > 1 else 0
    return list(rows.split(batch))[rank :: count_processes()]


def merge(found: Sequence[Result]) -> list[Result]:
    """The results of all batches in order, in every process, from those of `own_batches`; to be called by all of them.

    Tensors have to be on the CPU.
    """
    if count_processes() == 1:
        return list(found)
    parts: list[list[Result]] = [[] for _ in range(count_processes())]
    distributed.all_gather_object(parts, list(found))
    most = max(map(len, parts))
    return [part[index] for index in range(most) for part in parts if index < len(part)]
