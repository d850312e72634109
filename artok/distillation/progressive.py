"""Progressive distillation: one step of a student for two of its teacher, which it then becomes (Salimans and Ho 2022,
arXiv 2202.00512, algorithm 2)."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from artok.distillation.base import Method, MethodConfig, Teacher, predict_clean
from artok.generators.diffusion import LatentDiffusion
from artok.layout import Codec, Condition
from artok.noise import Noise
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.solvers import follow
from artok.sampling.targets import to_noise


class Config(MethodConfig):
    """kind: progressive.

    first_steps: of the student in the first round, in which the teacher takes twice as many. last_steps: of the last
    round, what its samples are made in. Each round halves the number, takes the same share of the training, and begins
    with the student as its own teacher.
    """

    kind: Literal["progressive"] = "progressive"
    first_steps: int = Field(8, ge=1)
    last_steps: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _check_halvings(self) -> Config:
        if self.first_steps != self.last_steps << (self.rounds - 1):
            raise ValueError(
                f"first_steps {self.first_steps} cannot be halved down to last_steps {self.last_steps}; give it "
                "times a power of two"
            )
        return self

    @property
    def rounds(self) -> int:
        return 1 + max(0, round(math.log2(self.first_steps / self.last_steps)))

    @property
    def most_steps(self) -> int:
        return self.last_steps

    def refuse(self, student: DiffusionConfig) -> str | None:
        if student.schedule != "straight" or student.prediction_type not in ("v", "velocity"):
            return "needs schedule straight and prediction_type velocity or v"
        if student.steps > self.last_steps:
            return f"needs at most the {self.last_steps} steps of its last round"
        return None

    def build(self, student: LatentDiffusion, teacher: Teacher | None) -> Progressive:
        assert teacher is not None
        return Progressive(self, student, teacher)

    @classmethod
    def tiny(cls) -> Config:
        return cls(first_steps=2)


class Progressive(Method):
    def __init__(self, config: Config, student: LatentDiffusion, teacher: Teacher) -> None:
        super().__init__(student, teacher)
        self.config, self.first = config, teacher
        self.before = deepcopy(student).eval().requires_grad_(False)  # the student at the end of the round before
        self.round = torch.zeros((), dtype=torch.int64, device="cpu")

    def __call__(self, clean: Tensor, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        self._begin_round()
        steps = self.config.first_steps >> int(self.round)
        grid = self.grid(2 * steps, clean.device)
        index = 2 * (noise.uniform() * steps).long() + 1
        t, middle, s = grid[index], grid[index - 1], grid[index - 2]
        x = t.signal * clean + t.sigma * noise.normal(*clean.shape[1:])
        teacher = Teacher(self.before) if self.round else self.first
        with torch.no_grad():
            reached = follow(x, teacher.clean(x, t, condition, codec), t, middle)
            reached = follow(reached, teacher.clean(reached, middle, condition, codec), middle, s)
            velocity = (x - reached) / (t.sigma - s.sigma)  # one step of which leads there (eq. 8 on this path)
        found = predict_clean(self.student, x, t, condition, codec)
        return {"progressive": (to_noise(found, x, t.signal, t.sigma) - found - velocity).square().mean()}

    def _begin_round(self) -> None:
        now = min(int(self.progress * self.config.rounds), self.config.rounds - 1)
        if now > int(self.round):
            with torch.no_grad():
                for kept, weight in zip(self.before.parameters(), self.student.parameters(), strict=True):
                    kept.copy_(weight)
            self.round.fill_(now)

    def kept(self) -> dict[str, Tensor]:
        weights = {f"before.{index}": weight for index, weight in enumerate(self.before.parameters())}
        return {"round": self.round, **weights}
