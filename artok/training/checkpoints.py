"""Checkpoints to resume from, and snapshots of the weights during training.

A checkpoint is written under a temporary name and renamed, so a kill leaves the last whole one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from artok.errors import CheckpointError, RunError
from artok.files import move
from artok.saved import CONFIG, STATE, TOKENIZER, WEIGHTS, write_weights
from artok.training.best import BEST
from artok.training.ema import Ema
from artok.training.log import LOG
from artok.training.sharding import is_sharded, local
from artok.training.shards import SHARDS, Shards

WINDOWS = "windows.safetensors"
AVERAGES, EARLIER_AVERAGES = "ema.safetensors", "custom_checkpoint_0.pkl"  # the second before 0.3
SNAPSHOTS, BEFORE = "snapshots", "moments"  # a run's folder of snapshots; its name before 0.2


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first. A folder's name is the images seen by then."""
    found = (path for path in folder.glob("[0-9]*") if path.name.isdecimal())
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def find_latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return next((path for path in list_checkpoints(folder) if (path / STATE).exists()), None)


def list_snapshots(run: Path) -> list[Path]:
    """The snapshots of a run's weights, earliest first. A file's name is the images seen by then."""
    return sorted(path for name in (BEFORE, SNAPSHOTS) for path in (run / name).glob("*.safetensors"))


@dataclass
class Trained:
    """What a checkpoint holds. The accelerator knows the modules' optimizers and the scaler of fp16."""

    accelerator: Accelerator
    modules: Mapping[str, nn.Module]
    ema: Ema | None
    shards: Shards | None = None

    @property
    def sharded(self) -> bool:
        return any(is_sharded(module) for module in self.modules.values())

    def find_nonfinite(self) -> str | None:
        """The name of a tensor that holds numbers that are not finite, the same in every process, or None."""
        states = {player: module.state_dict() for player, module in self.modules.items()}
        states |= {"average": self.ema.state_dict()} if self.ema else {}
        named = {
            f"{name} of the {player}": tensor.detach()
            for player, state in states.items()
            for name, tensor in state.items()
            if tensor.is_floating_point() and tensor.numel()
        }
        finite = torch.stack([local(tensor).isfinite().all() for tensor in named.values()])
        wrong = self.accelerator.reduce((~finite).float(), "sum").tolist()
        return next((name for name, count in zip(named, wrong, strict=True) if count), None)


def save(trained: Trained, folder: Path, seen: int, keep: int, announce: Callable[[], None]) -> None:
    """Write a checkpoint after `seen` images, then delete all but the newest `keep`.

    announce: called by the main process before the renaming, so that a kill never leaves a checkpoint without its line
    in the log. RunError: writing failed, such as on a full disk. Earlier checkpoints stay.
    """
    accelerator = trained.accelerator
    aside, final = folder / f".{seen:012d}.tmp", folder / f"{seen:012d}"

    def complete() -> None:
        (aside / STATE).write_text(json.dumps({"images": seen, "processes": accelerator.num_processes}))
        shutil.rmtree(final, ignore_errors=True)
        move(aside, final)
        for old in list_checkpoints(folder)[keep:]:
            shutil.rmtree(old, ignore_errors=True)

    try:
        if trained.shards is not None:
            trained.shards.wait()
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        accelerator.wait_for_everyone()
        if trained.sharded and trained.shards is not None:
            if accelerator.is_main_process:
                announce()
            trained.shards.write(aside, complete)
            return
        accelerator.save_state(str(aside))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for path in aside.glob("random_states_*.pkl"):  # each step seeds its own numbers
                path.unlink()
            if trained.ema:
                averages = trained.ema.state_dict()
                write_weights({name: tensor.contiguous() for name, tensor in averages.items()}, aside / AVERAGES)
            announce()
            complete()
    except Exception as error:  # torch, safetensors and the system raise different errors on a failed write
        shutil.rmtree(aside, ignore_errors=True)
        newest = find_latest(folder)
        kept = f"the last whole checkpoint is {newest}" if newest else "there is no earlier checkpoint"
        raise RunError(
            f"could not write a checkpoint after {seen} images ({_reason(error)}); {kept}. Is the disk full? "
            "Free some space and run the same command again"
        ) from None
    accelerator.wait_for_everyone()


def finish(trained: Trained) -> None:
    """Wait until a checkpoint that is written in the background is whole. RunError: writing failed."""
    try:
        if trained.shards is not None:
            trained.shards.wait()
    except Exception as error:  # of the background, with the error of any process
        raise RunError(f"could not write the last checkpoint ({_reason(error)}); is the disk full?") from None
    trained.accelerator.wait_for_everyone()


def clear_leftovers(run: Path, keep: int) -> None:
    """Delete what a kill left in a run: partial files of a training, and checkpoints beyond the newest `keep`.

    To be called by the process that holds the run's lock.
    """
    for folder, name in ((run, LOG), (run, CONFIG), (run, WEIGHTS), (run / TOKENIZER, ""), (run / SNAPSHOTS, "")):
        for path in folder.glob(f".{name}*.tmp"):
            path.unlink(missing_ok=True)
    for path in (run / BEST).rglob(".*.tmp"):
        path.unlink(missing_ok=True)
    for folder in (run, run / TOKENIZER, run / SNAPSHOTS, run / BEST, run / BEST / TOKENIZER):
        for path in folder.glob(".tmp??????"):  # of safetensors, from 0.8 on
            path.unlink(missing_ok=True)
    saved = run / "checkpoints"
    for old in (*saved.glob(".*.tmp"), *list_checkpoints(saved)[keep:]):
        shutil.rmtree(old, ignore_errors=True)


def restore(trained: Trained, folder: Path, say: Callable[[str], None]) -> int | None:
    """Load the newest checkpoint that is whole and finite. Returns the images seen by then; None without checkpoints.

    Damaged ones after it are set aside as `damaged-*`. CheckpointError: there are checkpoints, and none can be used,
    or a process cannot read what the first one reads.
    """
    found = [list_checkpoints(folder)]
    broadcast_object_list(found)  # on a file system of a network, processes may see different ones
    problems = dict[Path, str]()
    for checkpoint in found[0]:
        problem = _load(trained, checkpoint)
        if problem is None:
            break
        problems[checkpoint] = problem
    else:
        if problems:
            newest, problem = next(iter(problems.items()))
            raise CheckpointError(
                f"the checkpoint {newest} does not fit this run or is damaged ({problem}), and no earlier one can be "
                "used; start anew with --fresh"
            )
        return None
    for damaged, problem in problems.items():
        say(f"the checkpoint {damaged} is damaged ({problem}); the one before it is used")
        if trained.accelerator.is_main_process:
            kept = damaged.with_name(f"damaged-{damaged.name}")
            shutil.rmtree(kept, ignore_errors=True)
            damaged.rename(kept)
    trained.accelerator.wait_for_everyone()
    return int(checkpoint.name)


def _load(trained: Trained, checkpoint: Path) -> str | None:
    """Load a checkpoint in every process. Returns what is wrong with it, or None."""
    problem = None
    if trained.sharded and not (checkpoint / SHARDS).exists():
        raise CheckpointError(f"{checkpoint} was written by a training that was not sharded; resume without FSDP")
    try:
        if json.loads((checkpoint / STATE).read_text())["images"] != int(checkpoint.name):
            raise ValueError(f"{STATE} names other images")
        if trained.shards is not None and (checkpoint / SHARDS).exists():
            trained.shards.read(checkpoint)
        else:
            trained.accelerator.load_state(str(checkpoint))
            if trained.ema:
                _load_averages(trained.ema, checkpoint)
    except Exception as error:  # torch, safetensors and the system raise different errors on a damaged file
        if isinstance(error, MemoryError | PermissionError) or "memory" in str(error).lower():
            raise  # no fault of the checkpoint
        problem = _reason(error)
    problems: list[str | None] = gather_object([problem])
    if problems[0] is None and any(problems):
        raise CheckpointError(
            f"a process cannot read the checkpoint {checkpoint} that the first process reads "
            f"({next(filter(None, problems))}); all processes need the same folder"
        )
    if problems[0] is None and (wrong := trained.find_nonfinite()):
        return f"{wrong} is not finite"
    return problems[0]


def _load_averages(ema: Ema, checkpoint: Path) -> None:
    whole = ema.state_dict()
    if (checkpoint / AVERAGES).exists() or not (checkpoint / EARLIER_AVERAGES).exists():
        state = load_file(checkpoint / AVERAGES)
        if set(state) != set(whole):
            raise CheckpointError(f"{AVERAGES} holds the averages of another model")
    else:
        state = torch.load(checkpoint / EARLIER_AVERAGES, map_location="cpu", weights_only=True)
    if any(tensor.shape != whole[name].shape for name, tensor in state.items()):
        raise CheckpointError("the averages are of another model")
    ema.load_state_dict(state)


def _reason(error: Exception) -> str:
    lines: Iterable[str] = str(error).strip().splitlines()
    return next(iter(lines), type(error).__name__)


def keep_windows(accelerator: Accelerator, windows: Callable[[], dict[str, Tensor]]) -> None:
    """Keep tensors in the checkpoints that are no weights, such as windows of usage; `windows` gives them by name.

    A checkpoint without them, of an earlier version, starts them anew.
    """

    def write(models: list[Any], weights: list[Any], folder: str) -> None:
        tensors = windows()
        if tensors and accelerator.is_main_process:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(folder) / WINDOWS)

    def read(models: list[Any], folder: str) -> None:
        tensors = windows()  # in all processes, whatever each of them finds
        if (Path(folder) / WINDOWS).exists():
            kept = load_file(Path(folder) / WINDOWS)
            for name, tensor in tensors.items():
                tensor.copy_(kept[name])

    accelerator.register_save_state_pre_hook(write)
    accelerator.register_load_state_pre_hook(read)
