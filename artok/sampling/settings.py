"""One typed bag of everything that steers sampling; each family reads what concerns it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from artok.config import Config
from artok.sampling.solvers import SolverName

GUIDANCE = frozenset({"cfg_scale", "cfg_schedule", "cfg_power", "cfg_interval"})  # what every guided family reads
DRAWS = frozenset({"temperature", "top_k", "top_p"})  # what every family of codes reads


class Sampling(Config):
    """The `sampling:` section.

    cfg_scale: classifier-free guidance under artok's one convention, uncond + guidance * (cond - uncond): 1 is off.
    cfg_schedule: how the scale moves from 1 to `cfg_scale` over the steps. cfg_interval: the share of the
    steps, from and up to, that is guided at all.
    eta: DDIM's share of DDPM's noise. choice_temperature: of the Gumbel noise on the confidence by which masked
    generation decides what to keep (4.5 in MaskGIT's code).
    """

    cfg_scale: float = Field(1.0, ge=0)
    cfg_schedule: Literal["constant", "linear", "cosine"] = "constant"
    cfg_power: float = Field(1.0, gt=0, description="bends the cosine schedule")
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = Field(1.0, ge=0, description="0 takes the most likely token")
    truncation: float | None = Field(None, gt=0, description="largest number in a GAN's latents")
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    steps: int | None = Field(None, ge=1, description="for families that choose their number of steps")
    solver: SolverName | None = Field(None, description="for diffusion")
    head_steps: int | None = Field(None, ge=1, description="solver steps of a diffusion head, for each token")
    eta: float = Field(0.0, ge=0, le=1)
    choice_temperature: float = Field(4.5, ge=0)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0

    @property
    def guides(self) -> bool:
        """Whether the unconditional half has to run."""
        return self.cfg_scale != 1
