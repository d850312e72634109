"""Knowledge distillation on pairs of a noise and the sample that the teacher makes of it (Luhman and Luhman 2021, arXiv
2101.02388): the student learns to map one to the other in one step."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from artok.distillation.base import Method, SamplesConfig, Teacher, predict_clean, pseudo_huber
from artok.generators.diffusion import LatentDiffusion
from artok.layout import Codec, Condition, Tokens
from artok.noise import Noise


class Config(SamplesConfig):
    """kind: pairs. huber: as in `pseudo_huber`."""

    kind: Literal["pairs"] = "pairs"
    pool: int = Field(2_000, ge=1)
    huber: float = Field(0.0, ge=0)

    @property
    def most_steps(self) -> int | None:
        return 1

    def build(self, student: LatentDiffusion, teacher: Teacher | None) -> Pairs:
        assert teacher is not None
        return Pairs(self, student, teacher)

    @classmethod
    def tiny(cls) -> Config:
        return cls(pool=24, teacher_steps=2)


class Pairs(Method):
    def __init__(self, config: Config, student: LatentDiffusion, teacher: Teacher) -> None:
        super().__init__(student, teacher)
        self.config, self.sampler = config, teacher

    def __call__(self, clean: Tensor, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        start = noise.branch("pair").normal(*clean.shape[1:])
        noisiest = self.grid(1, clean.device)[torch.zeros(len(clean), dtype=torch.int64, device=clean.device)]
        error = predict_clean(self.student, start, noisiest, condition, codec) - clean
        return {"pairs": pseudo_huber(error, self.config.huber)}

    def teach(self, condition: Condition, noise: Noise, codec: Codec | None) -> Tokens:
        return self.sampler.sample(condition, self.config, noise.branch("pair"), codec)
