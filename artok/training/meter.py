"""Running means of what training steps give, and the images that were skipped."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from artok.data.base import Split, note_skipped
from artok.training.progress import Progress


@dataclass
class Meter:
    """Running means of scalars, kept on the device until they are read, since reading synchronises a GPU."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    images: int = 0
    started: float = field(default_factory=time.perf_counter)

    def add(self, values: dict[str, Tensor], share: float) -> None:
        """share: of a step, of which the values are means."""
        for name, value in values.items():
            scaled = value.detach().float() * share
            self.sums[name] = self.sums[name] + scaled if name in self.sums else scaled
            self.counts[name] = self.counts.get(name, 0.0) + share

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over processes and the steps that had a value, and images per second; then resets."""
        names, means = sorted(self.sums), list[float]()
        if names:  # none where all steps were skipped
            stacked = torch.stack([self.sums[name] / self.counts[name] for name in names])
            means = accelerator.reduce(stacked, "mean").tolist()
        speed = self.images / max(time.perf_counter() - self.started, 1e-9)
        self.sums, self.counts, self.steps, self.images = {}, {}, 0, 0
        self.restart_clock()
        return dict(zip(names, means, strict=True)) | {"images_per_second": round(speed, 2)}

    def restart_clock(self) -> None:
        self.started = time.perf_counter()


def count_skipped(split: Split | None, accelerator: Accelerator, progress: Progress) -> list[str]:
    """The unreadable images that any process met, with reasons. DataError: there are too many."""
    if split is None:
        return []
    progress.notes(split)
    if accelerator.num_processes > 1:
        for met in gather_object([dict(split.skipped)]):
            note_skipped(split, met)
    return list(split.skipped.values())
