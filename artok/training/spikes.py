"""What happens at a step whose gradients are not finite, or far larger than those of the steps before.

Large trainings meet such steps now and then, whatever the data of the step (Chowdhery et al. 2022, "PaLM", arXiv
2204.02311, section 5.1, who went back to a checkpoint and on with other data).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from artok.training.settings import Training

WINDOW, LEAST = 100, 20  # steps whose gradient norms are compared with, at most and at least
SKIPS, ROLLBACKS = 10, 3  # steps skipped in a row, and returns to a checkpoint, after which the run stops


class Spike(Exception):
    """A step that `training.on_spike` does not let pass. The message names the numbers."""


class Watch:
    """Judges the gradient norm of each player's step, which is the same in every process.

    counts: (3,) int64, steps skipped, the last of them in a row, and returns to a checkpoint. scaled: fp16's scaler
    skips steps that are not finite itself.
    """

    def __init__(self, training: Training, players: Iterable[str], scaled: bool) -> None:
        self.policy, self.spike, self.scaled = training.on_spike, training.spike, scaled
        self.norms = {player: torch.full((WINDOW,), math.nan) for player in players}
        self.counts = torch.zeros(3, dtype=torch.int64)

    @property
    def active(self) -> bool:
        return self.policy != "stop" or self.spike is not None

    def check(self, player: str, norm: float) -> None:
        """Take the norm of a step that passes. Spike: it does not pass."""
        if not math.isfinite(norm):
            if self.scaled:
                return
            raise Spike(f"the gradient norm of the {player} is no finite number")
        norms = self.norms[player]
        known = norms[norms.isfinite()]
        usual = float(known.median()) if len(known) >= LEAST else math.inf
        if self.spike is not None and norm > self.spike * usual:
            raise Spike(
                f"the gradient norm of the {player} is {norm:.3g}, over {self.spike:g} times the median of the last "
                f"{len(known)} steps, {usual:.3g}"
            )
        norms.copy_(norms.roll(-1))
        norms[-1] = norm

    def skip(self) -> bool:
        """Count a skipped step. Returns whether there are too many in a row."""
        self.counts[:2] += 1
        return int(self.counts[1]) > SKIPS

    def windows(self) -> dict[str, Tensor]:
        """What decisions are made of, to be kept in checkpoints."""
        if not self.active:
            return {}
        return {"spikes.counts": self.counts} | {f"spikes.{name}": norms for name, norms in self.norms.items()}


class Kept:
    """The buffers of modules as they were before a step, to be given back when it is skipped.

    What the passes of a step collect for its end stands in buffers, such as the sums of codes.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        found = {id(buffer): buffer for module in modules.values() for buffer in module.buffers()}
        self.before = [(buffer, buffer.clone()) for buffer in found.values()]

    @torch.no_grad()
    def give_back(self) -> None:
        for buffer, before in self.before:
            buffer.copy_(before)
