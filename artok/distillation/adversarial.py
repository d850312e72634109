"""Adversarial distillation: a student's samples are told from real ones by what a frozen teacher sees in them.

Latent adversarial diffusion distillation (LADD, Sauer et al. 2024, arXiv 2403.12015): real and generated tokens get the
same noise, the teacher reads them, and small heads score the outputs of its stages. With `distribution_matching` the
student also follows the gap between the teacher's prediction and that of a model of the student's own samples, which is
trained beside it (DMD, Yin et al. 2023, arXiv 2311.18828; with a critic as in DMD2, Yin et al. 2024, arXiv 2405.14867).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.adversarial.critic import CriticLosses, Opponent, score_monitors
from artok.adversarial.discriminators.base import Projection
from artok.adversarial.gan_losses import GAN_LOSSES, square_gradients
from artok.distillation.base import AdversarialMethod, Rows, SamplesConfig, Teacher, predict_clean
from artok.generators.diffusion import LatentDiffusion
from artok.layout import Codec, Condition, Tokens
from artok.noise import Noise
from artok.sampling.diffusion import Diffusion, Times

SMALLEST = 1e-3  # divisor of the gap


class Config(SamplesConfig):
    """kind: adversarial. The settings of the heads' optimizer are `training.critic`.

    pool: as of `pairs`; then real samples are the teacher's, as in LADD. By default they are the data.
    steps: of the student's sampling, at most; training starts from the levels of so many steps.
    adversarial, distribution_matching: weights of the two losses, the second 0 for none.
    regression: weight of the squared distance to the teacher's sample of the same noise, as of `pairs`, which needs a
    pool and one step; it holds a student to its teacher where the heads say little.
    hidden: width of the heads. r1: gamma of the penalty gamma / 2 |gradient|^2 at the heads' inputs for real samples, a
    mean over these (ADD, Sauer et al. 2023, arXiv 2311.17042, section 3.2).
    logit_mean, logit_std: of the noise levels at which the teacher reads (section 4.2).
    n_critic: steps of the heads, and of the model of the student's samples, per step of the student.
    """

    kind: Literal["adversarial"] = "adversarial"
    pool: int | None = Field(None, ge=1)
    steps: int = Field(1, ge=1)
    adversarial: float = Field(1.0, ge=0)
    distribution_matching: float = Field(0.0, ge=0)
    regression: float = Field(0.0, ge=0)
    hidden: int = Field(64, ge=1)
    r1: float = Field(0.1, ge=0)
    logit_mean: float = 1.0
    logit_std: float = Field(1.0, gt=0)
    n_critic: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _check_weights(self) -> Config:
        if not self.adversarial and not self.distribution_matching:
            raise ValueError("the weights adversarial and distribution_matching are both 0; give one of them")
        if self.regression and (self.pool is None or self.steps > 1):
            raise ValueError("regression compares a sample of one step with the teacher's; it needs a pool and steps 1")
        return self

    @property
    def most_steps(self) -> int:
        return self.steps

    @property
    def folds_guidance(self) -> bool:
        return self.pool is not None or self.distribution_matching > 0

    def build(self, student: LatentDiffusion, teacher: Teacher | None) -> Adversarial:
        assert teacher is not None
        return Adversarial(self, student, teacher)

    @classmethod
    def tiny(cls) -> Config:
        return cls(hidden=8, distribution_matching=1.0)


class Adversarial(AdversarialMethod):
    critic: Heads

    def __init__(self, config: Config, student: LatentDiffusion, teacher: Teacher) -> None:
        super().__init__(student, teacher)
        self.config, self.real = config, teacher
        self.critic = Heads(config, teacher)

    def __call__(self, clean: Tensor, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        fake, losses = self.generate(clean, condition, noise, codec), dict[str, Tensor]()
        if self.config.adversarial:
            losses["adversarial"] = self.config.adversarial * self.critic.student_loss(fake, condition, noise)
        if self.config.distribution_matching:
            gap = self.gap(fake.detach(), condition, noise, codec)
            # half the squared distance to a fixed point, whose gradient is the gap itself (DMD2's code)
            matching = 0.5 * (fake - (fake.detach() - gap)).square().mean()
            losses["distribution_matching"] = self.config.distribution_matching * matching
        if self.config.regression:
            losses["regression"] = self.config.regression * (fake - clean).square().mean()
        return losses

    def generate(self, clean: Tensor, condition: Condition, noise: Noise, codec: Codec | None) -> Tensor:
        grid = self.grid(self.config.steps, clean.device)
        t = grid[(noise.uniform() * len(grid)).long()]
        added = (noise.branch("pair") if self.config.regression else noise).normal(*clean.shape[1:])
        x = t.signal * clean + t.sigma * added
        return predict_clean(self.student, x, t, condition, codec)

    @torch.no_grad()
    def gap(self, fake: Tensor, condition: Condition, noise: Noise, codec: Codec | None) -> Tensor:
        """The way from the teacher's prediction to that of the model of samples, over the mean size of the first one's
        distance from the sample (DMD, eq. 7 and 8), (B, N, D)."""
        assert self.critic.samples is not None
        times = self.real.model.diffusion.times(noise.uniform())
        x, at = mix(fake, times, noise.normal(*fake.shape[1:]))
        towards = self.real.clean(x, at, condition, codec)
        own = Teacher(self.critic.samples).clean(x, at, condition, codec)
        return (own - towards) / (fake - towards).abs().mean((1, 2), keepdim=True).clamp(min=SMALLEST)

    def teach(self, condition: Condition, noise: Noise, codec: Codec | None) -> Tokens | None:
        if self.config.pool is None:
            return None
        return self.real.sample(condition, self.config, noise.branch("pair"), codec)


class Heads(Opponent):
    """A head for each stage of the teacher, and the model of the student's samples if one is wanted."""

    penalty_every = 1

    def __init__(self, config: Config, teacher: Teacher) -> None:
        super().__init__()
        self.config, self.n_critic, self.teacher = config, config.n_critic, teacher
        changes = {"times": "logit_normal", "logit_mean": config.logit_mean, "logit_std": config.logit_std}
        self.levels = Diffusion(teacher.model.config.diffusion.model_copy(update=changes))
        self.gan_loss = GAN_LOSSES["hinge"]
        self.heads = nn.ModuleList()
        if config.adversarial:
            device = next(teacher.model.parameters()).device
            blank = torch.zeros(1, teacher.model.layout.length, teacher.model.layout.width, device=device)
            condition, nowhere = teacher.model.conditioner.example(1, device), blank[:, :1, :1]
            with torch.no_grad():
                seen = teacher.features(blank, Rows(blank[:, 0, 0], nowhere, nowhere), condition)
                told = teacher.model.context(condition).pooled.shape[1]
            self.heads.extend(Head(each.shape[2], config.hidden, told) for each in seen)
        self.samples = deepcopy(teacher.model).requires_grad_(True) if config.distribution_matching else None

    def forward(
        self, real: Tensor, fake: Tensor, condition: Condition | None, noise: Noise, step: int, progress: float
    ) -> CriticLosses:
        """As `Opponent`; real, fake: (B, N, D)."""
        assert condition is not None
        losses, monitors = dict[str, Tensor](), dict[str, Tensor]()
        if self.config.adversarial:
            times, added, told = self.levels.times(noise.uniform()), noise.normal(*real.shape[1:]), self.told(condition)
            with torch.no_grad():
                seen_real, seen_fake = (self.see(each, times, added, condition) for each in (real, fake))
            if self.config.r1:
                for each in seen_real:
                    each.requires_grad_(True)
            real_scores, fake_scores = self.score(seen_real, told), self.score(seen_fake, told)
            losses["critic"] = self.gan_loss.discriminator(torch.cat(real_scores, 1), torch.cat(fake_scores, 1))
            if self.config.r1:
                pairs = zip(real_scores, seen_real, strict=True)
                squares = [square_gradients(scores, seen) / seen.shape[1] for scores, seen in pairs]
                losses["r1"] = self.config.r1 / 2 * torch.stack(squares).mean()
            monitors = score_monitors(torch.cat(real_scores, 1), torch.cat(fake_scores, 1))
        if self.samples is not None:
            times, added = self.samples.diffusion.times(noise.uniform()), noise.normal(*fake.shape[1:])
            terms = self.samples.diffusion.losses(self.samples.under(condition, None), fake, added, times)
            losses |= {f"samples_{name}": term.mean() for name, term in terms.items()}
        return CriticLosses(losses, monitors)

    def student_loss(self, fake: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """What a student minimises on its samples (B, N, D), a scalar."""
        times, added = self.levels.times(noise.uniform()), noise.normal(*fake.shape[1:])
        scores = self.score(self.see(fake, times, added, condition), self.told(condition))
        together = torch.cat(scores, 1)
        return self.gan_loss.generator(together, together)

    def see(self, tokens: Tensor, times: Times, added: Tensor, condition: Condition) -> list[Tensor]:
        """The normalised outputs of the teacher's stages, (B, M, W) float32 each, at tokens with noise."""
        x, at = mix(tokens, times, added)
        return [F.layer_norm(each.float(), each.shape[2:]) for each in self.teacher.features(x, at, condition)]

    def score(self, seen: list[Tensor], told: Tensor) -> list[Tensor]:
        """The scores of each head's places, (B, M) each."""
        return [head(each, told).float() for head, each in zip(self.heads, seen, strict=True)]

    def told(self, condition: Condition) -> Tensor:
        """The teacher's pooled vector of a condition, (B, W)."""
        with torch.no_grad():
            return self.teacher.model.context(replace(condition, known=None)).pooled


class Head(nn.Module):
    """Scores (B, M) of the M places of a stage's outputs (B, M, W), under a condition's vector (B, P)."""

    def __init__(self, width: int, hidden: int, told: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.score = Projection(hidden, 0, told)

    def forward(self, seen_BMW: Tensor, told_BP: Tensor) -> Tensor:
        places = seen_BMW.shape[1]
        told = told_BP.repeat_interleave(places, 0)
        scores: Tensor = self.score(self.layers(seen_BMW).flatten(0, 1), None, told)
        return scores.unflatten(0, (-1, places))


def mix(tokens: Tensor, times: Times, added: Tensor) -> tuple[Tensor, Rows]:
    """Tokens (B, N, D) with noise of the levels `times`, and these as rows."""
    at = Rows(times.time, times.signal[:, None, None], times.sigma[:, None, None])
    return at.signal * tokens + at.sigma * added, at
