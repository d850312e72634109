"""The adversarial loss of VQGAN: a critic tells reconstructions from images (Esser et al. 2021, eq. 5 to 7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from artok.adversarial.critic import CriticConfig
from artok.adversarial.discriminators import patch
from artok.losses.base import AdversarialLoss, BatchContext, LossConfig, Setting

TINY = 1e-4
LARGEST = 1e4
SCALE = 2.0**8  # of the scores' gradients, per image


class Config(LossConfig):
    """kind: adversarial.

    weight: of the loss (.8 taming on ImageNet, .75 LDM's VQ, .5 LDM's KL and LlamaGen).
    adaptive: the weight is multiplied by |gradient of the other reconstruction losses| / |gradient of this one| at the
        decoder's last layer, at most 1e4, as published.
    start: images before the critic begins to train. warmup: images for which it then trains alone. ramp: images over
        which the weight then rises from 0. A critic that joins untrained and at full weight ruins the reconstruction.
    """

    has_critic: ClassVar = True

    kind: Literal["adversarial"] = "adversarial"
    weight: float = Field(0.5, gt=0)
    adaptive: bool = True
    warmup: int = Field(0, ge=0)
    ramp: int = Field(0, ge=0)
    critic: CriticConfig

    @model_validator(mode="after")
    def _takes_turns_of_one(self) -> Config:
        if self.critic.n_critic != 1:
            raise ValueError("n_critic is for a GAN's critic: against a tokenizer both play at each step; leave it out")
        return self

    def build(self, setting: Setting) -> Adversarial:
        return Adversarial(self, setting.image)

    @classmethod
    def tiny(cls) -> Config:
        return cls(critic=CriticConfig(discriminator=patch.Config.tiny()))


class Adversarial(AdversarialLoss):
    """The adaptive factor is measured at one step, over all its parts and processes, and used at the next.

    So it does not depend on how a batch is split. The published code measures it in each process by itself.
    """

    def __init__(self, config: Config, image: tuple[int, ...]) -> None:
        super().__init__()
        self.config, self.start = config, config.start
        self.critic = config.critic.build(image, classes=0)
        self.critic.register_buffer("factor", torch.zeros(()) if config.adaptive else torch.ones(()))
        self._gradients: list[Tensor] = []  # of each part of a step: (2, weights of the last layer), of others and this

    def ramp_up(self, seen: int) -> float:
        """Share of the weight after `seen` images."""
        after = seen - self.config.start - self.config.warmup
        return 1.0 if after >= self.config.ramp else max(after, 0) / self.config.ramp

    def forward(
        self, reconstructions: Tensor, images: Tensor, context: BatchContext
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if context.seen < self.config.start + self.config.warmup:
            return {}, {}
        loss = self.critic.generator_loss(images, reconstructions, None, context.noise)
        if self.config.adaptive and context.last_layer is not None and loss.requires_grad:
            parts = context.others, loss
            pair = [compute_gradient(part, reconstructions, context.last_layer) for part in parts]
            self._gradients.append(torch.stack(pair))
        factor = self.critic.get_buffer("factor").clone()
        weight = self.config.weight * self.ramp_up(context.seen) * factor
        return {"adversarial": weight * loss}, {"adversarial_factor": factor, "adversarial_unweighted": loss.detach()}

    def settle(self, mean: Callable[[Tensor], Tensor]) -> None:
        self.critic.settle(mean)
        if self._gradients:
            others, own = mean(torch.stack(self._gradients).mean(0)).norm(dim=1)
            factor, found = self.critic.get_buffer("factor"), (others / (own + TINY)).clamp(0, LARGEST)
            factor.copy_(torch.where(found.isfinite(), found, factor))  # float16 may overflow at a step
            self._gradients = []


def compute_gradient(loss: Tensor, reconstructions: Tensor, weight: Tensor) -> Tensor:
    """Gradient of a loss of reconstructions (B, C, H, W) by one weight of their decoder, flat and float32.

    The graph is kept for the training pass. float16 has no numbers as small as the gradient of a mean over many images
    and pixels. So the loss is scaled by about B, and what reaches the images is brought to a norm of about 1, at which
    the sums of a weight's gradient stay below float16's largest number. Factors are powers of 2, which round nothing.
    """
    scale = SCALE * 2.0 ** math.ceil(math.log2(len(reconstructions)))
    (at_images,) = torch.autograd.grad(loss * scale, reconstructions, retain_graph=True)
    exponent = torch.frexp(at_images.norm()).exponent
    (found,) = torch.autograd.grad(reconstructions, weight, torch.ldexp(at_images, -exponent), retain_graph=True)
    return torch.ldexp(found.float().flatten(), exponent) / scale
