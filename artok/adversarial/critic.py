"""The critic: a discriminator with its GAN loss and the penalties that keep it smooth.

It has an optimizer of its own in training. All that it is trained on happens inside `forward`, so that wrappers that
synchronise gradients see it. The model that is trained against it calls `generator_loss`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from artok.adversarial.augment import Augmentation, augment
from artok.adversarial.discriminators.base import Discriminator, DiscriminatorConfig
from artok.adversarial.gan_losses import GAN_LOSSES, GanLossName, square_gradients
from artok.config import OPEN, Config, of_kind
from artok.images import frames_of
from artok.layout import Condition
from artok.noise import Noise

Told: TypeAlias = tuple[Tensor | None, ...]  # what a discriminator hears besides the images


class CriticConfig(Config):
    """The `critic:` section of a GAN or of an adversarial loss.

    r1, r2: gamma of the penalty gamma / 2 |gradient|^2 at real and at generated images (Mescheder et al. 2018).
    gradient_penalty: weight of (|gradient| - 1)^2 between the two (Gulrajani et al. 2017).
    penalty_every: steps from one penalty to the next, whose weight is multiplied by as many (StyleGAN2's lazy
        regularisation).
    penalty_final: share of r1 and r2 that is left at the end of training, reached by a cosine (R3GAN).
    lecam: weight of LeCam's regulariser (Tseng et al. 2021).
    lecam_decay: of the running mean scores that LeCam needs, per step.
    spectral_norm: each weight is divided by its largest singular value, found by one power iteration per pass (Miyato
        et al. 2018).
    augment: differentiable augmentations of all images that the discriminator sees.
    n_critic: steps of the critic per step of the model trained against it (5 in WGAN-GP).
    """

    discriminator: Annotated[DiscriminatorConfig, of_kind("adversarial.discriminators"), OPEN]
    gan_loss: GanLossName = "hinge"
    r1: float = Field(0.0, ge=0)
    r2: float = Field(0.0, ge=0)
    gradient_penalty: float = Field(0.0, ge=0)
    penalty_every: int = Field(1, ge=1)
    penalty_final: float = Field(1.0, ge=0, le=1)
    lecam: float = Field(0.0, ge=0)
    lecam_decay: float = Field(0.99, ge=0, lt=1)
    spectral_norm: bool = False
    augment: tuple[Augmentation, ...] = ()
    n_critic: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _lecam_has_two_scores(self) -> CriticConfig:
        if self.lecam and self.gan_loss in ("relativistic", "wasserstein"):
            raise ValueError(f"lecam needs scores that have a zero, and those of gan_loss {self.gan_loss} have none")
        return self

    def build(self, image: tuple[int, ...], classes: int, texts: nn.Module | None = None, width: int = 0) -> Critic:
        """The critic of images of (channels, height, width), or of the frames of clips (channels, frames, height,
        width), with `classes` labels, or 0 for none.

        texts: makes a context of a condition, whose pooled text (B, width) the critic hears.
        """
        return Critic(self, self.discriminator.build((image[0], *image[-2:]), classes, width), texts)


@dataclass
class CriticLosses:
    """losses: weighted scalars to minimise. monitors: scalars for the log."""

    losses: dict[str, Tensor]
    monitors: dict[str, Tensor]


class Opponent(nn.Module, ABC):
    """The second player of adversarial training, which learns to tell generated samples from real ones.

    n_critic: its steps per step of the model trained against it. penalty_every: steps from one penalty to the next.
    """

    n_critic: int
    penalty_every: int

    @abstractmethod
    def forward(
        self, real: Tensor, fake: Tensor, condition: Condition | None, noise: Noise, step: int, progress: float
    ) -> CriticLosses:
        """What it minimises on real and generated samples of one shape, one of each for every row of the condition.

        step: counted from 0; it decides whether a lazy penalty is due. progress: share of training that is done.
        """

    def settle(self, mean: Callable[[Tensor], Tensor]) -> None:
        """At the end of a step, bring in what it collected outside the gradients. mean: over all processes."""
        return

    def forget(self) -> None:
        """Drop what it collected in a step that is abandoned."""
        return


class Critic(Opponent):
    """A discriminator of images (B, C, H, W) and what it is trained on."""

    def __init__(self, config: CriticConfig, discriminator: Discriminator, texts: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.n_critic, self.penalty_every = config.n_critic, config.penalty_every
        self.discriminator, self.texts = discriminator, texts
        if config.spectral_norm:
            for module in discriminator.modules():
                weighted = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | nn.Embedding)
                if weighted and module.weight.requires_grad and not nn.utils.parametrize.is_parametrized(module):
                    spectral_norm(module)
        self.gan_loss = GAN_LOSSES[config.gan_loss]
        self.mean_scores: Tensor  # LeCam's running means, of real and of generated images
        self.register_buffer("mean_scores", torch.zeros(2))
        self._part_scores: list[Tensor] = []  # (2,) mean scores of each part of this step

    def told(self, condition: Condition | None) -> Told:
        """What the discriminator hears of a condition: labels, and the pooled text if it is built for texts."""
        labels = None if condition is None else condition.labels
        return (labels,) if self.texts is None else (labels, self.texts(condition).pooled)

    def scores(self, images: Tensor, told: Told, noise: Noise) -> Tensor:
        return self.discriminator(augment(images, self.config.augment, noise), *told)

    def forward(
        self, real: Tensor, fake: Tensor, condition: Condition | None, noise: Noise, step: int, progress: float
    ) -> CriticLosses:
        """Clips (B, C, T, H, W), which go without conditions, are judged frame by frame."""
        config = self.config
        due = step % config.penalty_every == 0
        noise = share_noise(noise, real)
        real, fake = frames_of(real), frames_of(fake)
        real = real.detach().float().requires_grad_(due and config.r1 > 0)
        fake = fake.detach().float().requires_grad_(due and config.r2 > 0)  # bfloat16 where autocast made it
        told = self.told(condition)
        real_scores, fake_scores = self.scores(real, told, noise).float(), self.scores(fake, told, noise).float()
        losses = {"critic": self.gan_loss.discriminator(real_scores, fake_scores)}
        strength = config.penalty_every * decay_by_cosine(config.penalty_final, progress)
        for name, gamma, scores, images in (("r1", config.r1, real_scores, real), ("r2", config.r2, fake_scores, fake)):
            if images.requires_grad:
                losses[name] = strength * gamma / 2 * square_gradients(scores, images).mean()
        if due and config.gradient_penalty:
            losses["gradient_penalty"] = config.penalty_every * self.compute_gradient_penalty(real, fake, told, noise)
        if config.lecam:
            losses["lecam"] = config.lecam * self.compute_lecam(real_scores, fake_scores)
            self._part_scores.append(torch.stack([real_scores.mean(), fake_scores.mean()]).detach())
        return CriticLosses(losses, score_monitors(real_scores, fake_scores))

    def generator_loss(self, real: Tensor, fake: Tensor, condition: Condition | None, noise: Noise) -> Tensor:
        """What the model that generated `fake` minimises, a scalar."""
        told, noise = self.told(condition), share_noise(noise, real)
        real, fake = frames_of(real), frames_of(fake)
        fake_scores = self.scores(fake, told, noise).float()
        if self.config.gan_loss != "relativistic":
            return self.gan_loss.generator(fake_scores, fake_scores)
        return self.gan_loss.generator(self.scores(real, told, noise).float(), fake_scores)

    def compute_gradient_penalty(self, real: Tensor, fake: Tensor, told: Told, noise: Noise) -> Tensor:
        """WGAN-GP's penalty, at a random place on the line from each generated image to the real one beside it."""
        between = torch.lerp(fake.detach(), real.detach(), noise.uniform(1, 1, 1)).requires_grad_(True)
        norms = square_gradients(self.scores(between, told, noise), between).clamp(min=1e-12).sqrt()
        return self.config.gradient_penalty * (norms - 1).square().mean()

    def compute_lecam(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """Squared distance of each side's scores to the other side's running mean (Tseng et al. 2021, eq. 3)."""
        mean_real, mean_fake = self.mean_scores.clone().unbind()
        return (real_scores - mean_fake).square().mean() + (fake_scores - mean_real).square().mean()

    def settle(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Bring the scores of a step's parts into the running means."""
        if self._part_scores:
            decay = self.mean_scores.any() * self.config.lecam_decay  # the first means are taken whole
            now = mean(torch.stack(self._part_scores).mean(0))
            self.mean_scores.copy_(torch.lerp(now, self.mean_scores, decay))
            self._part_scores = []

    def forget(self) -> None:
        self._part_scores = []


def share_noise(noise: Noise, images: Tensor) -> Noise:
    """The random numbers of a clip for each of its frames, which are augmented alike; those of images as they are."""
    if images.ndim == 4:
        return noise
    return noise[torch.arange(len(images), device=images.device).repeat_interleave(images.shape[2])]


def decay_by_cosine(final: float, progress: float) -> float:
    """From 1 to `final` along half a cosine."""
    return final + (1 - final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def score_monitors(real_scores: Tensor, fake_scores: Tensor) -> dict[str, Tensor]:
    """Mean scores, and how often the real image of a pair scores above the generated one."""
    real, fake = real_scores.detach(), fake_scores.detach()
    return {"score_real": real.mean(), "score_fake": fake.mean(), "critic_accuracy": (real > fake).float().mean()}
