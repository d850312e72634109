"""What a training needs of disk and memory, checked before it starts, and what to lower where memory ends."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from artok.errors import RunError
from artok.saved import WEIGHTS
from artok.training.settings import Training
from artok.weights import available_memory, gigabytes, size_in_bytes

NUMBER = 4  # bytes of a float32


def trained_bytes(modules: Mapping[str, nn.Module]) -> int:
    return sum(NUMBER * p.numel() for module in modules.values() for p in module.parameters() if p.requires_grad)


def checkpoint_bytes(modules: Mapping[str, nn.Module], training: Training) -> int:
    """Bytes of one checkpoint: the players' weights, AdamW's two moments of the trained ones, and the EMA."""
    average = trained_bytes({"model": modules["model"]}) if training.ema else 0
    return sum(size_in_bytes(module) for module in modules.values()) + 2 * trained_bytes(modules) + average


def disk_bytes(modules: Mapping[str, nn.Module], training: Training) -> int:
    """Bytes of a run's weights at its end: the checkpoints kept and the next one, the snapshots and the model."""
    snapshots = (training.images - 1) // training.snapshot_every if training.snapshot_every else 0
    files = 1 + snapshots + (training.keep_best is not None)
    return (training.keep_last + 1) * checkpoint_bytes(modules, training) + files * size_in_bytes(modules["model"])


def check_needs(modules: Mapping[str, nn.Module], training: Training, folder: Path, device: torch.device) -> str:
    """A sentence on the disk and memory that a run needs at least. RunError: less is free."""
    disk, memory = disk_bytes(modules, training), 3 * trained_bytes(modules)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    own = [*folder.glob("checkpoints/*/*"), *folder.glob("snapshots/*"), folder / WEIGHTS]  # of an earlier start
    free = shutil.disk_usage(there).free + sum(path.stat().st_size for path in own if path.is_file())
    if disk > free:
        raise RunError(
            f"the run needs about {gigabytes(disk)} on the disk of {folder} ({training.keep_last + 1} checkpoints of "
            f"{gigabytes(checkpoint_bytes(modules, training))} at a time), and {gigabytes(free)} are free; free some, "
            "lower training.keep_last, raise training.snapshot_every, or choose another place with --out"
        )
    room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if room is not None and memory > room:
        raise RunError(
            f"gradients and optimizer states need {gigabytes(memory)} of memory on {device}, and {gigabytes(room)} are "
            "free; use a smaller model, several GPUs with FSDP, or a larger machine"
        )
    return f"needs {gigabytes(disk)} of disk, and {gigabytes(memory)} of memory beside weights and activations"


def advise_on_memory(training: Training, processes: int) -> str:
    """Which settings to change after a step for which memory did not suffice, best first. None changes the result."""
    share = training.global_batch // processes
    parts = [n for n in range(2 * training.gradient_accumulation_steps, share + 1) if share % n == 0]
    ways = [f"training.gradient_accumulation_steps={parts[0]}"] if parts else []
    ways += [] if training.gradient_checkpointing else ["training.gradient_checkpointing=true"]
    if not ways:
        return "use a smaller model, or more processes"
    return f"run the same command again with {' or '.join(ways)}, which changes no result"
