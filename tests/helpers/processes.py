"""Several gloo processes on the CPU, in which a test trains or computes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed, multiprocessing


def in_processes(work: Callable[[int, int, Path], object], count: int, folder: Path) -> list[object]:
    """What `work(rank, count, folder)` returns in each of several processes, started as torchrun starts them.

    work: a function of a module, which new processes import.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    multiprocessing.spawn(_work, (count, port, work, folder), nprocs=count)
    return [torch.load(folder / f"result-{rank}-of-{count}.pt", weights_only=True) for rank in range(count)]


def _work(rank: int, count: int, port: str, work: Callable[[int, int, Path], object], folder: Path) -> None:
    torch.set_num_threads(1)
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | {k: str(v) for k, v in environment.items()}
    torch.save(work(rank, count, folder), folder / f"result-{rank}-of-{count}.pt")
    if distributed.is_initialized():
        distributed.destroy_process_group()
