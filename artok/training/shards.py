"""Checkpoints of sharded models: each process writes its part in the background (`torch.distributed.checkpoint`).

Any number of processes can load them, sharded or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from artok.training.ema import Ema

SHARDS = "shards"  # folder of a checkpoint


@dataclass
class Shards:
    """The state of a training in parts, each process with its own."""

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    ema: Ema | None
    windows: Callable[[], dict[str, Tensor]]
    _group: Any = None
    _writing: Future[Any] | None = None

    def write(self, folder: Path, done: Callable[[], None]) -> None:
        """Begin to write, from a copy of the state. done: called in the main process when all parts are on the disk."""
        if self._group is None:  # of its own, lest its messages mix with those of the steps
            self._group = distributed.new_group(backend="gloo")
        writing = dcp.async_save(self._collect(), checkpoint_id=str(folder / SHARDS), process_group=self._group)
        self._writing = cast("Future[Any]", writing)
        if distributed.get_rank() == 0:
            self._writing.add_done_callback(lambda written: done() if written.exception() is None else None)

    def wait(self) -> None:
        """Wait for the end of the writing under way. What it raised is raised here."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def read(self, folder: Path) -> None:
        state = self._collect()
        dcp.load(state, checkpoint_id=str(folder / SHARDS))
        for player, module in self.modules.items():
            set_state_dict(
                module,
                self._optimizer(player),
                model_state_dict=state[player],
                optim_state_dict=state[f"{player} optimizer"],
            )

    def _collect(self) -> dict[str, Any]:
        state: dict[str, Any] = {"windows": self.windows()}
        for player, module in self.modules.items():
            state[player], state[f"{player} optimizer"] = get_state_dict(module, self._optimizer(player))
        if self.ema is not None:
            state["average"] = self.ema.state_dict()
        return state

    def _optimizer(self, player: str) -> torch.optim.Optimizer:
        optimizer = self.optimizers[player]
        return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
