"""Shortcut models: a step of any length equals two steps of half the length (Frans et al. 2024, arXiv 2410.12557).

In a share of the rows the average velocity over a step is drawn to the mean of two steps of half the length by a moving
average of the student (eq. 5); the others learn the velocity, which is the step of no length.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from artok.distillation.base import Method, MethodConfig, MovingAverage, Teacher, fit_times
from artok.generators.diffusion import LatentDiffusion
from artok.layout import Codec, Condition
from artok.noise import Noise
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.schedules import TIME_SCALE


class Config(MethodConfig):
    """kind: shortcut. With a teacher, the velocity is its own; without one, noise - clean.

    halvings: of the whole way, down to the shortest step, 2^-halvings; as published 7.
    bootstrap_share: rows that learn from two half steps. target_ema: decay of the average that takes these.
    """

    kind: Literal["shortcut"] = "shortcut"
    halvings: int = Field(7, ge=1, le=12)
    bootstrap_share: float = Field(0.25, gt=0, lt=1)
    target_ema: float = Field(0.99, ge=0, lt=1)

    @property
    def needs_teacher(self) -> bool:
        return False

    @property
    def most_steps(self) -> int:
        return 2**self.halvings

    def refuse(self, student: DiffusionConfig) -> str | None:
        return None if student.averages else "needs schedule straight and prediction_type average_velocity"

    def build(self, student: LatentDiffusion, teacher: Teacher | None) -> Shortcut:
        return Shortcut(self, student, teacher)

    @classmethod
    def tiny(cls) -> Config:
        return cls(halvings=2, bootstrap_share=0.5)


class Shortcut(Method):
    def __init__(self, config: Config, student: LatentDiffusion, teacher: Teacher | None) -> None:
        super().__init__(student, teacher)
        self.config = config
        self.target = MovingAverage(student, config.target_ema)

    def start(self) -> None:
        fit_times(self.student, self.teacher)
        fit_times(self.target.model, self.teacher)

    def __call__(self, clean: Tensor, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        t, length, bootstraps = self.steps(noise)
        added, at = noise.normal(*clean.shape[1:]), t[:, None, None]
        x, wanted = (1 - at) * clean + at * added, added - clean
        with torch.no_grad():
            if self.teacher is not None:
                wanted = self.teacher.velocity(x, t, condition, codec)
            rows = pick(bootstraps, self.config.bootstrap_share)
            mean = self.two_steps(x[rows], t[rows], length[rows] / 2, condition[rows], codec)
            wanted = wanted.index_copy(0, rows, mean.to(wanted.dtype))
        found = self.student.under(condition, codec)(x, TIME_SCALE * torch.stack([t, t - length], dim=1)).float()
        return {"shortcut": (found - wanted).square().mean()}

    def steps(self, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
        """Times (B,) and lengths (B,) of steps, 0 where a row learns the velocity; and which rows bootstrap.

        A step of length d starts at a multiple of d.
        """
        uniform, choice = self.student.diffusion.times(noise.uniform()).sigma, noise.uniform()
        bootstraps = noise.uniform() < self.config.bootstrap_share
        length = 0.5 ** (choice * self.config.halvings).floor()
        place = (uniform / length).floor() + 1
        return torch.where(bootstraps, place * length, uniform), torch.where(bootstraps, length, 0.0), bootstraps

    def two_steps(self, x: Tensor, t: Tensor, half: Tensor, condition: Condition, codec: Codec | None) -> Tensor:
        """The mean velocity of two steps of length `half`, those of the shortest length by the velocity."""
        predict = self.target.model.under(condition, codec)
        shortest = half < 1.5 * 0.5**self.config.halvings
        velocities, time = list[Tensor](), t
        for _ in range(2):
            end = torch.where(shortest, time, time - half)
            velocities.append(predict(x, TIME_SCALE * torch.stack([time, end], dim=1)).float())
            x, time = x - half[:, None, None] * velocities[-1], time - half
        return torch.stack(velocities).mean(0)

    def settle(self) -> None:
        self.target.update()

    def kept(self) -> dict[str, Tensor]:
        return self.target.kept()


def pick(chosen: Tensor, share: float) -> Tensor:
    """The numbers of the chosen rows; on the meta device, which has no values, as many as expected."""
    if chosen.is_meta:
        return torch.empty(max(1, round(share * len(chosen))), dtype=torch.int64, device="meta")
    return chosen.nonzero()[:, 0]
