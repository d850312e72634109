"""The critic: a discriminator with the game it plays and the penalties that keep it smooth.

It is a player of its own in training, with its optimizer. Everything it is trained on happens inside `forward`, so that
wrappers that synchronise gradients see it; its opponent calls `opposing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from artok.adversarial.augment import Change, changed
from artok.adversarial.discriminators.base import Discriminator, DiscriminatorConfig
from artok.adversarial.games import GAMES, GameName, squared_slopes
from artok.config import OPEN, Config, of_kind
from artok.noise import Noise


class CriticConfig(Config):
    """The `critic:` section of a GAN or of an adversarial loss.

    r1, r2: gamma of the penalty gamma / 2 |slope|^2 at real and at made images (Mescheder et al. 2018).
    gradient_penalty: weight of (|slope| - 1)^2 between the two (Gulrajani et al. 2017). penalty_every: steps from one
    to the next, its weight multiplied by as many (StyleGAN2's lazy regularisation). penalty_final: the share of r1 and
    r2 that is left at the end of training, reached by a cosine (R3GAN).
    lecam: weight of LeCam's regulariser (Tseng et al. 2021), lecam_decay: of the running mean scores that it needs.
    spectral_norm: every weight divided by its largest singular value, one power iteration a pass (Miyato et al. 2018).
    augment: differentiable changes of all images that the discriminator sees.
    n_critic: critic steps for one of its opponent's (5 in WGAN-GP).
    """

    discriminator: Annotated[DiscriminatorConfig, of_kind("adversarial.discriminators"), OPEN]
    gan_loss: GameName = "hinge"
    r1: float = Field(0.0, ge=0)
    r2: float = Field(0.0, ge=0)
    gradient_penalty: float = Field(0.0, ge=0)
    penalty_every: int = Field(1, ge=1)
    penalty_final: float = Field(1.0, ge=0, le=1)
    lecam: float = Field(0.0, ge=0)
    lecam_decay: float = Field(0.99, ge=0, lt=1)
    spectral_norm: bool = False
    augment: tuple[Change, ...] = ()
    n_critic: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _lecam_has_two_scores(self) -> CriticConfig:
        if self.lecam and self.gan_loss in ("relativistic", "wasserstein"):
            raise ValueError(f"lecam anchors scores that have a zero, and those of game {self.gan_loss} have none")
        return self

    def build(self, image: tuple[int, ...], classes: int) -> Critic:
        """The critic of images of (channels, height, width) with `classes` labels, or 0 for none."""
        return Critic(self, self.discriminator.build(image, classes))


@dataclass
class Verdict:
    """losses: weighted scalars to minimise. monitors: scalars for the log."""

    losses: dict[str, Tensor]
    monitors: dict[str, Tensor]


class Critic(nn.Module):
    def __init__(self, config: CriticConfig, discriminator: Discriminator) -> None:
        super().__init__()
        self.config = config
        self.discriminator = discriminator
        if config.spectral_norm:
            for module in discriminator.modules():
                weighted = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | nn.Embedding)
                if weighted and module.weight.requires_grad and not nn.utils.parametrize.is_parametrized(module):
                    spectral_norm(module)
        self.game = GAMES[config.gan_loss]
        self.mean_scores: Tensor  # LeCam's running means, of real and of made images
        self.register_buffer("mean_scores", torch.zeros(2))
        self._fresh: list[Tensor] = []  # mean scores of this step's parts

    def scores(self, images: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        return self.discriminator(changed(images, self.config.augment, noise), labels)

    def forward(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, noise: Noise, step: int, progress: float
    ) -> Verdict:
        """What the critic minimises on real and made images (B, C, H, W), one of each for every label (B,).

        step: counted from 0; it decides whether a lazy penalty is due. progress: share of training that is done.
        """
        config = self.config
        due = step % config.penalty_every == 0
        real = real.detach().float().requires_grad_(due and config.r1 > 0)
        fake = fake.detach().float().requires_grad_(due and config.r2 > 0)  # bfloat16 where autocast made it
        real_scores, fake_scores = self.scores(real, labels, noise).float(), self.scores(fake, labels, noise).float()
        losses = {"critic": self.game.critic(real_scores, fake_scores)}
        strength = config.penalty_every * decayed(config.penalty_final, progress)
        for name, gamma, scores, images in (("r1", config.r1, real_scores, real), ("r2", config.r2, fake_scores, fake)):
            if images.requires_grad:
                losses[name] = strength * gamma / 2 * squared_slopes(scores, images).mean()
        if due and config.gradient_penalty:
            losses["gradient_penalty"] = config.penalty_every * self.unit_slope(real, fake, labels, noise)
        if config.lecam:
            losses["lecam"] = config.lecam * self.lecam(real_scores, fake_scores)
        self._fresh.append(torch.stack([real_scores.mean(), fake_scores.mean()]).detach())
        return Verdict(losses, balance(real_scores, fake_scores))

    def opposing(self, real: Tensor, fake: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """What the opponent minimises, a scalar through which `fake` is trained."""
        fake_scores = self.scores(fake, labels, noise).float()
        if self.config.gan_loss != "relativistic":
            return self.game.opponent(fake_scores, fake_scores)
        return self.game.opponent(self.scores(real, labels, noise).float(), fake_scores)

    def unit_slope(self, real: Tensor, fake: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """WGAN-GP's penalty at a random place on the line from each made image to the real one beside it."""
        between = torch.lerp(fake.detach(), real.detach(), noise.uniform(1, 1, 1)).requires_grad_(True)
        slopes = squared_slopes(self.scores(between, labels, noise), between).clamp(min=1e-12).sqrt()
        return self.config.gradient_penalty * (slopes - 1).square().mean()

    def lecam(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """Squared distance of each side's scores to the other side's running mean (Tseng et al. 2021, eq. 3)."""
        mean_real, mean_fake = self.mean_scores.clone().unbind()
        return (real_scores - mean_fake).square().mean() + (fake_scores - mean_real).square().mean()

    def settle(self, mean: Callable[[Tensor], Tensor]) -> None:
        """At the end of a step: bring its scores into the running means. mean: over all processes."""
        if self._fresh:
            decay = self.config.lecam_decay if bool(self.mean_scores.any()) else 0.0
            now = mean(torch.stack(self._fresh).mean(0))
            self.mean_scores.copy_(torch.lerp(now, self.mean_scores, decay))
            self._fresh = []


def decayed(final: float, progress: float) -> float:
    """From 1 to `final` along half a cosine."""
    return final + (1 - final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def balance(real_scores: Tensor, fake_scores: Tensor) -> dict[str, Tensor]:
    """How the game stands: mean scores, and how often the real image of a pair scores above the made one."""
    real, fake = real_scores.detach(), fake_scores.detach()
    return {"score_real": real.mean(), "score_fake": fake.mean(), "critic_accuracy": (real > fake).float().mean()}
