"""Checkpoints to resume from, and snapshots of the weights during training.

A checkpoint is written under a temporary name and renamed, so a kill leaves the last whole one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from artok.errors import CheckpointError, RunError

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE, WINDOWS = "state.json", "windows.safetensors"
SNAPSHOTS, BEFORE = "snapshots", "moments"  # a run's folder of snapshots; its name before 0.2


def find_latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    whole = [path for path in folder.glob("[0-9]*") if (path / STATE).exists()]
    return max(whole, key=lambda path: int(path.name), default=None)


def list_snapshots(run: Path) -> list[Path]:
    """The snapshots of a run's weights, earliest first. A file's name is the images seen by then."""
    return sorted(path for name in (BEFORE, SNAPSHOTS) for path in (run / name).glob("*.safetensors"))


def save(accelerator: Accelerator, folder: Path, seen: int, keep: int) -> None:
    """Write a checkpoint after `seen` images, then delete all but the newest `keep`.

    RunError: writing failed, such as on a full disk. Earlier checkpoints stay.
    """
    aside, final = folder / f".{seen:012d}.tmp", folder / f"{seen:012d}"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(aside))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (aside / STATE).write_text(json.dumps({"images": seen, "processes": accelerator.num_processes}))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(aside, final)
            for old in sorted(folder.glob("[0-9]*"), key=lambda path: int(path.name))[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
    except Exception as error:  # torch, safetensors and the system raise different errors on a failed write
        shutil.rmtree(aside, ignore_errors=True)
        newest = find_latest(folder)
        kept = f"the last whole checkpoint is {newest}" if newest else "there is no earlier checkpoint"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(
            f"could not write a checkpoint after {seen} images ({reason}); {kept}. Is the disk full? "
            "Free some space and run the same command again"
        ) from None
    accelerator.wait_for_everyone()


def restore(accelerator: Accelerator, checkpoint: Path) -> int:
    """Load a checkpoint into prepared models and optimizers. Returns the images seen by then."""
    try:
        accelerator.load_state(str(checkpoint))
        return int(json.loads((checkpoint / STATE).read_text())["images"])
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"the checkpoint {checkpoint} does not fit this run or is damaged ({reason}); delete that folder to resume "
            "from an earlier one, or start anew with --fresh"
        ) from None


def keep_windows(accelerator: Accelerator, windows: Callable[[], dict[str, Tensor]]) -> None:
    """Keep tensors in the checkpoints that are no weights, such as windows of usage; `windows` gives them by name.

    A checkpoint without them, of an earlier version, starts them anew.
    """

    def write(models: list[Any], weights: list[Any], folder: str) -> None:
        tensors = windows()
        if tensors and accelerator.is_main_process:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(folder) / WINDOWS)

    def read(models: list[Any], folder: str) -> None:
        if (Path(folder) / WINDOWS).exists():
            kept = load_file(Path(folder) / WINDOWS)
            for name, tensor in windows().items():
                tensor.copy_(kept[name])

    accelerator.register_save_state_pre_hook(write)
    accelerator.register_load_state_pre_hook(read)
