"""What a training task is: what one step computes, for each of its players."""

from __future__ import annotations

import collections.abc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

from torch import Tensor, nn

from artok.data.base import Split
from artok.quantizers.base import Replacement
from artok.saved import Facts
from artok.training.experiment import Experiment

Item = TypeVar("Item")
Stream: TypeAlias = collections.abc.Generator[Item, None, None]  # endless, to be closed


@dataclass
class Step:
    """losses: weighted scalars whose sum is minimised. monitors: scalars for the log only."""

    losses: dict[str, Tensor]
    monitors: dict[str, Tensor] = field(default_factory=dict)


class Task(ABC):
    """A training task. Each of `players` has an optimizer; they take turns within a step. The first one is saved.

    images: the split that training reads, None for cached tokens.
    """

    experiment: Experiment
    facts: Facts
    players: dict[str, nn.Module]
    images: Split | None
    model: ClassVar[str]  # the attribute that holds the first player

    @property
    def calls_past_forward(self) -> bool:
        """Whether a step also calls methods of a player other than its `forward`."""
        return len(self.players) > 1

    @contextmanager
    def using(self, model: nn.Module) -> Iterator[None]:
        """Inside the context another module stands for the first player, with the same weights."""
        own = getattr(self, self.model)
        setattr(self, self.model, model)
        try:
            yield
        finally:
            setattr(self, self.model, own)

    @abstractmethod
    def batches(self, start: int, rank: int, world: int) -> Stream[Any]:
        """Endless local batches, from `start` images on."""

    @abstractmethod
    def losses(self, modules: Mapping[str, nn.Module], player: str, batch: Any, seen: int) -> Step:
        """A player's losses on a local batch. modules: the players, wrapped for training."""

    def plays(self, player: str, step: int) -> bool:
        """Whether a player takes part in this step, counted from 0."""
        return True

    def joins_after(self, player: str) -> int:
        """Images of training after which a player joins; its learning rate's schedule is counted from there."""
        return 0

    def prepare(self) -> None:
        """Once the players have their first weights, set what is made from them."""
        return

    def begin(self) -> list[Replacement]:
        """Before the first step, set what starts from data. Returns as `settle` does."""
        return []

    def settle(self, mean: Callable[[Tensor], Tensor]) -> list[Replacement]:
        """At the end of a step, bring in what its parts collected outside the gradients: a critic's score statistics,
        the running means of codes. mean: averages over processes. Returns the rows of tables that were replaced."""
        return []

    def forget(self) -> None:
        """Drop what the parts of a step left outside of the players' buffers, since the step is abandoned."""
        return

    def figures(self) -> dict[str, float]:
        """Values over a window of training, to be logged; to be called in all processes."""
        return {}

    def windows(self) -> dict[str, Tensor]:
        """What `figures` are taken from, to be kept in checkpoints; to be called in all processes."""
        return {}

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Metrics on held-out data with the current weights."""

    @abstractmethod
    def preview(self, path: Path) -> None:
        """Write a picture of the model's current outputs."""

    @abstractmethod
    def split(self, batch: Any, parts: int) -> list[Any]:
        """Split a local batch into equal parts, for gradient accumulation."""

    def measure(self) -> dict[str, float]:
        """Update statistics that are saved with the weights, such as those of the latents. Returns values to log."""
        return {}

    def monitor(self) -> dict[str, float]:
        """Diversity metrics of current samples, in the main process only; empty without a monitor."""
        return {}
