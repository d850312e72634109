"""Consistency models: any noisy state is mapped to where its path ends (Song et al. 2023, arXiv 2303.01469).

The function is f(x, t) = the clean tokens of the student's prediction, which is x itself where there is no noise. With
prediction_type v it has the published c_skip and c_out at a data deviation of 1 (eq. 25), whatever the schedule; with
velocity, on the straight path, f(x, t) = x - t v (Yang et al. 2024, arXiv 2407.02398, eq. 5).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from artok.distillation.base import (
    Method,
    MethodConfig,
    MovingAverage,
    Rows,
    Teacher,
    predict_clean,
    pseudo_huber,
)
from artok.generators.diffusion import LatentDiffusion
from artok.layout import Codec, Condition
from artok.noise import Noise
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.solvers import ONLY_NOISE, corrected, follow


class Config(MethodConfig):
    """kind: consistency. With a teacher it is consistency distillation (algorithm 2), without one consistency training
    (algorithm 3).

    levels: noise levels at the end of training, evenly spaced in time. first_levels: at its start; their number doubles
    on the way (Song and Dhariwal 2023, arXiv 2310.14189, section 3.4).
    teacher_solver: of the teacher's step from a level to the next.
    target_ema: decay of the target's moving average of the student, or 0 for the student itself.
    huber: as in `pseudo_huber`; by default as in improved consistency training (section 3.3).
    """

    kind: Literal["consistency"] = "consistency"
    levels: int = Field(40, ge=2)
    first_levels: int | None = Field(None, ge=2)
    teacher_solver: Literal["euler", "heun"] = "heun"
    target_ema: float = Field(0.95, ge=0, lt=1)
    huber: float = Field(0.00054, ge=0)

    @model_validator(mode="after")
    def _check_levels(self) -> Config:
        if self.first_levels is not None and self.first_levels > self.levels:
            raise ValueError(f"first_levels {self.first_levels} are more than the levels {self.levels} of the end")
        return self

    @property
    def needs_teacher(self) -> bool:
        return False

    def refuse(self, student: DiffusionConfig) -> str | None:
        if student.prediction_type not in ("v", "velocity"):
            return "needs prediction_type v or velocity, whose clean tokens are x itself where there is no noise,"
        if student.variance == "learned":
            return "needs a variance that is not learned"
        if student.schedule != "straight" and student.timesteps < self.levels:
            return f"needs at least {self.levels} timesteps"
        return None

    def build(self, student: LatentDiffusion, teacher: Teacher | None) -> Consistency:
        return Consistency(self, student, teacher)

    @classmethod
    def tiny(cls) -> Config:
        return cls(levels=4)


class Consistency(Method):
    """most_scale: the largest guidance scale that the student learns to read, from 1 on, if it reads one."""

    def __init__(
        self, config: Config, student: LatentDiffusion, teacher: Teacher | None, most_scale: float | None = None
    ) -> None:
        super().__init__(student, teacher)
        self.config, self.most_scale = config, most_scale
        self.target = MovingAverage(student, config.target_ema)

    def __call__(self, clean: Tensor, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        grid = self.grid(self.levels(), clean.device)
        index = (noise.uniform() * len(grid)).long()  # float32 below 1 times a number below 2^24 stays below it
        t, s = grid[index], grid[index - 1]
        added = noise.normal(*clean.shape[1:])
        x = t.signal * clean + t.sigma * added
        scale = None if self.most_scale is None else 1 + (self.most_scale - 1) * noise.uniform()
        with torch.no_grad():
            cleaner = s.signal * clean + s.sigma * added
            if self.teacher is not None:
                cleaner = self.step(self.teacher, x, t, s, condition, codec, scale)
            target = predict_clean(self.target.model, cleaner, s, condition, codec, scale)
        error = predict_clean(self.student, x, t, condition, codec, scale) - target
        return {"consistency": pseudo_huber(error, self.config.huber)}

    def levels(self) -> int:
        """The number of levels at this time of training."""
        first, last = self.config.first_levels, self.config.levels
        if first is None:
            return last
        doublings = math.floor(math.log2(last / first))
        return min(last, first * 2 ** math.floor(self.progress * (doublings + 1)))

    def step(
        self,
        teacher: Teacher,
        x: Tensor,
        t: Rows,
        s: Rows,
        condition: Condition,
        codec: Codec | None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """x moved by the teacher from level t to s. scale: of guidance (B,), by default the teacher's own."""

        def predict(x: Tensor, at: Rows) -> Tensor:
            if scale is None:
                return teacher.clean(x, at, condition, codec)
            return teacher.guided(x, at, scale, condition, codec)

        clean = predict(x, t)
        reached = follow(x, clean, t, s)
        if self.config.teacher_solver == "euler":
            return reached
        straight = self.student.diffusion.config.schedule == "straight"
        ahead = predict(reached, s)
        has_slopes = s.sigma > 0 if straight else (s.sigma > 0) & (t.signal.square() > ONLY_NOISE)
        return torch.where(has_slopes, corrected(x, clean, reached, ahead, t, s, straight), reached)

    def settle(self) -> None:
        self.target.update()

    def kept(self) -> dict[str, Tensor]:
        return self.target.kept()
