"""Latent consistency models: consistency distillation of a guided teacher (Luo et al. 2023, arXiv 2310.04378).

The student reads the guidance scale, which is drawn anew for each row (algorithm 1), so that guidance takes no second
pass. To fold one scale in, use `consistency` with `distill.cfg_scale`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from artok.distillation import consistency
from artok.distillation.base import MethodConfig, Teacher
from artok.generators.diffusion import LatentDiffusion
from artok.sampling.diffusion import DiffusionConfig


class Config(MethodConfig):
    """kind: latent_consistency.

    most_scale: the largest guidance scale that is learned, from 1 on.
    levels: of the path; few levels are what the paper calls skipping steps (section 4.3). teacher_solver, target_ema,
    huber: as in `consistency`.
    """

    kind: Literal["latent_consistency"] = "latent_consistency"
    most_scale: float = Field(4.0, gt=1)
    levels: int = Field(50, ge=2)
    teacher_solver: Literal["euler", "heun"] = "euler"
    target_ema: float = Field(0.95, ge=0, lt=1)
    huber: float = Field(0.00054, ge=0)

    @property
    def largest_scale(self) -> float:
        return self.most_scale

    def refuse(self, student: DiffusionConfig) -> str | None:
        return self._consistency().refuse(student)

    def build(self, student: LatentDiffusion, teacher: Teacher | None) -> consistency.Consistency:
        assert teacher is not None
        return consistency.Consistency(self._consistency(), student, teacher, self.most_scale)

    def _consistency(self) -> consistency.Config:
        shared = {name: getattr(self, name) for name in ("levels", "teacher_solver", "target_ema", "huber")}
        return consistency.Config(**shared)

    @classmethod
    def tiny(cls) -> Config:
        return cls(levels=4)
