"""MeanFlow: a network of average velocities, which samples in one step (Geng et al. 2025, arXiv 2505.13447).

The average velocity u(x, t, r) over the way from t to r obeys u = v - (t - r) du/dt, with du/dt along the velocity v
(eq. 6). A Jacobian-vector product gives du/dt, and u is drawn to the right side, which gets no gradient (eq. 9 to 11).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from artok.distillation.base import Method, MethodConfig, Teacher, fit_times
from artok.generators.diffusion import LatentDiffusion
from artok.layout import Codec, Condition
from artok.noise import Noise
from artok.sampling.diffusion import DiffusionConfig, Network
from artok.sampling.schedules import TIME_SCALE


class Config(MethodConfig):
    """kind: meanflow. With a teacher, v is its velocity; without one, noise - clean.

    interval_share: rows that learn an average over r < t; the others have r = t. at_noise: share of rows whose t is the
    noisiest, and at_data: whose r is the clean end, as in one step.
    improved: without a teacher, du/dt is taken along the student's own velocity, which has less variance (improved
    MeanFlow, Geng et al. 2025, arXiv 2512.02012, section 4.1).
    norm_power: p of the loss weight (|error|^2 + .01)^-p (section 4.3); 0 is the squared error.
    """

    kind: Literal["meanflow"] = "meanflow"
    interval_share: float = Field(0.5, gt=0, le=1)
    at_noise: float = Field(0.3, ge=0, le=1)
    at_data: float = Field(0.3, ge=0, le=1)
    improved: bool = True
    norm_power: float = Field(0.5, ge=0, le=1)

    @property
    def needs_teacher(self) -> bool:
        return False

    def refuse(self, student: DiffusionConfig) -> str | None:
        return None if student.averages else "needs schedule straight and prediction_type average_velocity"

    def build(self, student: LatentDiffusion, teacher: Teacher | None) -> MeanFlow:
        return MeanFlow(self, student, teacher)

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class MeanFlow(Method):
    def __init__(self, config: Config, student: LatentDiffusion, teacher: Teacher | None) -> None:
        super().__init__(student, teacher)
        self.config = config

    def __call__(self, clean: Tensor, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        t, r = self.times(noise)
        added, at = noise.normal(*clean.shape[1:]), t[:, None, None]
        x, velocity = (1 - at) * clean + at * added, added - clean
        predict = self.student.under(condition, codec)
        if self.teacher is not None:
            velocity = self.teacher.velocity(x, t, condition, codec)
        along = velocity
        if self.teacher is None and self.config.improved:
            with torch.no_grad():
                along = predict(x, TIME_SCALE * torch.stack([t, t], dim=1)).float()
        average, change = slope(predict, x, t, r, along, apart=self.student.network.gradient_checkpointing)
        error = average.float() - (velocity - (t - r)[:, None, None] * change.float())
        squared = error.square().flatten(1).sum(1)
        weight = (squared.detach() + 0.01) ** -self.config.norm_power
        return {"meanflow": (weight * squared).mean()}

    def start(self) -> None:
        fit_times(self.student, self.teacher)

    def times(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """Times t >= r, (B,) each."""
        config, diffusion = self.config, self.student.diffusion
        draws = torch.stack([diffusion.times(noise.uniform()).sigma for _ in range(2)])
        t, r = draws.amax(0), draws.amin(0)
        t = torch.where(noise.uniform() < config.at_noise, 1.0, t)
        r = torch.where(noise.uniform() < config.at_data, 0.0, r)
        return t, torch.where(noise.uniform() < config.interval_share, r, t)


def slope(predict: Network, x: Tensor, t: Tensor, r: Tensor, velocity: Tensor, apart: bool) -> tuple[Tensor, Tensor]:
    """u(x, t, r) of a network with gradients, and du/dt without: its derivative as t grows and x moves by `velocity`.

    Fused attention has no forward-mode derivative, so it is computed by plain products. apart: compute u once more for
    its gradients, as gradient checkpointing needs, which cannot repeat a forward-mode pass.
    """

    def average(x: Tensor, t: Tensor) -> Tensor:
        return predict(x, TIME_SCALE * torch.stack([t, r], dim=1))

    with sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(torch.is_grad_enabled() and not apart):
        u, change, *_ = torch.func.jvp(average, (x, t), (velocity, torch.ones_like(t)))
    return average(x, t) if apart else u, change.detach()
