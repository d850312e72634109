"""The base class of distillation methods: the losses of a student in training, with or without a frozen teacher."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from artok.adversarial.critic import Opponent
from artok.config import OPEN, Config, Part, of_kind
from artok.errors import ConfigError
from artok.generators.base import Generator
from artok.generators.diffusion import Guided, LatentDiffusion
from artok.generators.patched import PatchedGenerator
from artok.layout import GUIDED, Codec, Condition, Tokens, last
from artok.nn.time import IntervalEmbedding, TimeEmbedding
from artok.noise import Noise
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.guidance import append_unconditional, guide
from artok.sampling.schedules import CLEAN, TIME_SCALE, Levels
from artok.sampling.settings import Sampling
from artok.sampling.targets import to_clean

LEAST_TIME = 1e-3  # at which a velocity is told from a prediction of the clean tokens


class Method(ABC):
    """Gives the losses of a student, which the student's `forward` returns."""

    def __init__(self, student: LatentDiffusion, teacher: Teacher | None) -> None:
        self.student, self.teacher = student, teacher
        self.progress = 0.0  # share of the training that is done
        self._grids: dict[int, Grid] = {}

    @abstractmethod
    def __call__(self, clean: Tensor, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        """Weighted scalar losses. clean: the vectors of the training tokens, (B, N, D)."""

    def grid(self, steps: int, device: torch.device) -> Grid:
        """The student's levels of sampling in so many steps."""
        if steps not in self._grids:
            self._grids[steps] = Grid(self.student.diffusion.config.sampling_levels(steps), device)
        return self._grids[steps]

    def start(self) -> None:
        """Once the student has its first weights, set what is made from them."""
        return

    def settle(self) -> None:
        """At the end of a step, bring in what is not trained by gradients."""
        return

    def kept(self) -> dict[str, Tensor]:
        """What `settle` changes, to be kept in checkpoints."""
        return {}

    def teach(self, condition: Condition, noise: Noise, codec: Codec | None) -> Tokens | None:
        """The tokens to learn from in the place of the data's, for the same noise as the losses get; else None."""
        return None


class AdversarialMethod(Method):
    """A method that trains its student against a second player."""

    critic: Opponent

    @abstractmethod
    def generate(self, clean: Tensor, condition: Condition, noise: Noise, codec: Codec | None) -> Tensor:
        """The student's samples (B, N, D) for the critic, beside as many real ones `clean`."""


class MethodConfig(Part, ABC):
    """The `method:` section. pool: number of training samples that the teacher makes, or None for a method that learns
    from the data."""

    pool: int | None = None

    @property
    def needs_teacher(self) -> bool:
        return True

    @property
    def largest_scale(self) -> float | None:
        """The largest guidance scale that its students read, from 1 on; None if they read none."""
        return None

    @property
    def most_steps(self) -> int | None:
        """The most sampling steps that its students are made for; None for any number."""
        return None

    @property
    def folds_guidance(self) -> bool:
        """Whether its students learn the guidance of their teacher."""
        return True

    @abstractmethod
    def refuse(self, student: DiffusionConfig) -> str | None:
        """The reason why it cannot train such a student (a phrase such as "needs schedule straight"), or None."""

    @abstractmethod
    def build(self, student: LatentDiffusion, teacher: Teacher | None) -> Method:
        """The method. The student has passed `refuse`, and there is a teacher where it needs one."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> MethodConfig:
        """A small config for the contract tests."""


class SamplesConfig(MethodConfig, ABC):
    """A method whose students map noise to samples directly, and may learn from samples of the teacher.

    pool: as in `MethodConfig`, under the conditions of as many training images. teacher_solver, teacher_steps: of the
    samples, without added noise. Heun's takes two evaluations per step.
    """

    teacher_solver: Literal["euler", "heun", "ddim", "dpm++"] = "heun"
    teacher_steps: int = Field(10, ge=1)

    def refuse(self, student: DiffusionConfig) -> str | None:
        if student.averages or student.variance == "learned":
            return "needs a prediction_type other than average_velocity and a variance that is not learned"
        return None


class DistillConfig(Config):
    """The `distill:` section: how a diffusion model is trained for few sampling steps.

    teacher: run directory or hub name of a diffusion model on the same tokens; some methods work without one.
    cfg_scale: guidance of the teacher, which its student folds in.
    """

    teacher: str | None = None
    cfg_scale: float = Field(1.0, ge=0)
    method: Annotated[MethodConfig, of_kind("distillation"), OPEN]

    def check(self, sampling: Sampling, student: DiffusionConfig, asked: int | None) -> None:
        """Raise a ConfigError for sampling settings that the student was not made for. asked: its steps, if given."""
        most, steps = self.method.most_steps, asked or student.steps
        if most is not None and steps > most:
            raise ConfigError(
                f"{steps} sampling steps are more than the {most} that method {self.method.kind} made this model for; "
                f"ask for at most {most}"
            )
        largest = self.method.largest_scale
        if largest is not None and not 1 <= sampling.cfg_scale <= largest:
            raise ConfigError(
                f"this model learned guidance scales from 1 to {largest:g}, and cfg_scale is {sampling.cfg_scale:g}; "
                "ask for one of these"
            )
        if self.cfg_scale != 1 and sampling.guides:
            raise ConfigError(
                f"this model has its teacher's guidance of cfg_scale {self.cfg_scale:g} folded in, so it takes none in "
                "sampling; leave cfg_scale at 1"
            )


def student_of(generator: Generator) -> LatentDiffusion:
    """What is trained of a generator: a diffusion model, or a diffusion head, which has all that methods without a
    teacher use of one; its conditions are vectors z and not a `Condition`."""
    return cast(LatentDiffusion, generator.head if isinstance(generator, PatchedGenerator) else generator)


class MovingAverage:
    """A student's average over its training, for targets; with decay 0, the student itself."""

    def __init__(self, student: LatentDiffusion, decay: float) -> None:
        self.student, self.decay = student, decay
        self.model = deepcopy(student).eval().requires_grad_(False) if decay else student

    @torch.no_grad()
    def update(self) -> None:
        if self.decay:
            weights = [weight.detach() for weight in self.student.parameters() if weight.requires_grad]
            torch._foreach_lerp_(self._averages(), weights, 1 - self.decay)

    def kept(self) -> dict[str, Tensor]:
        """The averages, for a checkpoint."""
        return {f"target.{index}": each for index, each in enumerate(self._averages())} if self.decay else {}

    def _averages(self) -> list[Tensor]:
        pairs = zip(self.model.parameters(), self.student.parameters(), strict=True)
        return [average for average, weight in pairs if weight.requires_grad]


class Teacher:
    """A frozen diffusion model with its guidance."""

    def __init__(self, model: LatentDiffusion, cfg_scale: float = 1.0) -> None:
        self.model, self.sampling = model, Sampling(cfg_scale=cfg_scale)

    @torch.no_grad()
    def clean(self, x: Tensor, at: Rows, condition: Condition, codec: Codec | None) -> Tensor:
        """Its prediction of the clean tokens at x (B, N, D)."""
        output = self._output(x, at.time, condition, codec)
        return self.model.diffusion.denoise(output, x, at.signal, at.sigma).clean

    @torch.no_grad()
    def guided(self, x: Tensor, at: Rows, scale: Tensor, condition: Condition, codec: Codec | None) -> Tensor:
        """`clean` with a guidance scale (B,) for each row."""
        both = append_unconditional(condition, GUIDED)
        output = self.model.under(both, codec)(x.repeat(2, 1, 1), at.time.repeat(2)).float()
        guided = guide(output, scale[:, None, None], self.model.config.guided_channels)
        return self.model.diffusion.denoise(guided, x, at.signal, at.sigma).clean

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor, condition: Condition, codec: Codec | None) -> Tensor:
        """Its velocity at x (B, N, D) and times t (B,) in [0, 1] of the straight path."""
        output, at = self._output(x, t * TIME_SCALE, condition, codec), t[:, None, None].clamp(min=LEAST_TIME)
        if self.model.config.diffusion.prediction_type in ("velocity", "average_velocity"):
            return output
        return (x - self.model.diffusion.denoise(output, x, 1 - at, at).clean) / at

    def features(self, x: Tensor, at: Rows, condition: Condition) -> list[Tensor]:
        """What its network's stages put out at x (B, N, D), each (B, M, W) at M places; with gradients to x, without
        guidance and known tokens."""
        config, found = self.model.config.diffusion, list[Tensor]()
        second = at.time if config.averages else torch.ones_like(at.time)  # an interval of no length, or a scale of 1
        times = torch.stack([at.time, second], dim=1) if config.averages or config.reads_scale else at.time
        network = self.model.network
        hooks = [stage.register_forward_hook(lambda *given: found.append(given[2])) for stage in network.stages]
        try:
            self.model.under(replace(condition, known=None), None)(x, times)
        finally:
            for hook in hooks:
                hook.remove()
        return [each.flatten(2).transpose(1, 2) if each.ndim > 3 else each for each in found]

    def _output(self, x: Tensor, times: Tensor, condition: Condition, codec: Codec | None) -> Tensor:
        predict = Guided(self.model, condition, self.sampling, 1, codec)
        averages = self.model.config.diffusion.averages
        return predict(x, times[:, None].expand(-1, 2) if averages else times).float()

    @torch.no_grad()
    def sample(self, condition: Condition, config: SamplesConfig, noise: Noise, codec: Codec | None) -> Tokens:
        """Its samples, with its guidance."""
        changes = {"solver": config.teacher_solver, "steps": config.teacher_steps}
        return last(self.model.steps(condition, self.sampling.model_copy(update=changes), noise, codec))


@dataclass(frozen=True)
class Rows:
    """A noise level for each row. time: (B,), the input of a network. signal, sigma: (B, 1, 1)."""

    time: Tensor
    signal: Tensor
    sigma: Tensor


class Grid:
    """The levels of sampling in some steps, to be looked up by row; level -1 has no noise."""

    def __init__(self, levels: Levels, device: torch.device) -> None:
        columns = (levels.times, levels.signal_squared.sqrt(), levels.sigma_squared.sqrt())
        ends = (CLEAN.time, CLEAN.signal, CLEAN.sigma)
        self._columns = [
            torch.cat([column, torch.tensor([end], dtype=torch.float64, device="cpu")]).float().to(device)
            for column, end in zip(columns, ends, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._columns[0]) - 1

    def __getitem__(self, index: Tensor) -> Rows:
        """The levels `index` (B,) int64."""
        time, signal, sigma = (column[index] for column in self._columns)
        return Rows(time, signal[:, None, None], sigma[:, None, None])


def predict_clean(
    student: LatentDiffusion,
    x: Tensor,
    at: Rows,
    condition: Condition,
    codec: Codec | None,
    scale: Tensor | None = None,
) -> Tensor:
    """A student's prediction of the clean tokens at x (B, N, D). scale: of guidance (B,), where it reads one."""
    times = at.time if scale is None else torch.stack([at.time, scale], dim=1)
    output = student.under(condition, codec)(x, times).float()
    return to_clean(student.diffusion.config.prediction_type, output, x, at.signal, at.sigma)


def pseudo_huber(error: Tensor, huber: float) -> Tensor:
    """The mean over rows of sqrt(|error|^2 + c^2) - c with c = huber * sqrt(numbers of a row) (Song and Dhariwal 2023,
    arXiv 2310.14189, eq. 7 and 8); for huber 0, the mean squared error."""
    if not huber:
        return error.square().mean()
    offset = huber * math.sqrt(error[0].numel())
    return ((error.square().flatten(1).sum(1) + offset**2).sqrt() - offset).mean()


def fit_times(student: LatentDiffusion, teacher: Teacher | None) -> None:
    """Let a student that reads intervals start with its teacher's embedding of times, where it has as many numbers."""
    own, other = student.network.time, None if teacher is None else teacher.model.network.time
    if not isinstance(own, IntervalEmbedding) or other is None:
        return
    if all(each.shape == state.shape for each, state in zip(own.parameters(), other.parameters(), strict=True)):
        own.load_state_dict(other.state_dict())
    elif isinstance(other, TimeEmbedding) and own.layers[-1].out_features == other.layers[-1].out_features:
        own.fit(other)
