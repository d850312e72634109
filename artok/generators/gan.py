"""The GAN baseline: a whole image from one random vector in one pass (Goodfellow et al. 2014).

It generates pixels with the pixel tokenizer, and latents with a KL autoencoder. Available recipes: R3GAN (Huang et al.
2024: relativistic pairing with R1 and R2, networks without normalisation), DCGAN, hinge with spectral normalisation,
and WGAN-GP.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from artok.adversarial.critic import Critic, CriticConfig
from artok.adversarial.discriminators import residual as residual_discriminator
from artok.conditioning.base import Conditioners, ContextShape
from artok.config import OPEN, of_kind
from artok.generators.base import AdversarialGenerator, GeneratorConfig
from artok.generators.gan_networks import residual
from artok.generators.gan_networks.base import GanNetworkConfig
from artok.layout import Codec, Condition, TokenLayout, Tokens
from artok.noise import Noise
from artok.sampling.settings import Sampling


class Config(GeneratorConfig):
    """kind: gan. z_dim: size of the random vector. network: a file in `artok/generators/gan_networks`.

    critic: trained with it and not saved with it. Of texts it hears the pooled vectors, by a text encoder of its own.
    """

    reads_maps: ClassVar = False

    kind: Literal["gan"] = "gan"
    z_dim: int = Field(64, ge=1)
    network: Annotated[GanNetworkConfig, of_kind("generators.gan_networks"), OPEN]
    critic: CriticConfig
    class_dropout: float = Field(0.0, ge=0, le=0, description="a GAN has no unconditional half to guide with")

    def refuse(self, layout: TokenLayout) -> str | None:
        if layout.discrete or len(layout.grids) != 1:
            return "needs a single grid of continuous tokens, such as those of tokenizer kind pixels"
        return self.network.refuse(layout.grid)

    def build(self, layout: TokenLayout, classes: int) -> Gan:
        return Gan(self, layout, classes)

    def build_critic(self, layout: TokenLayout, classes: int) -> Critic:
        image, labelled = (layout.width, *layout.grid), any(part.kind == "labels" for part in self.conditioning)
        told = tuple(part for part in self.conditioning if part.kind == "text")
        if not told:
            return self.critic.build(image, classes if labelled else 0)
        width = self.network.embedding_dim
        texts = Conditioners(told, ContextShape(width, layout.grid, layout.image), classes, null=False)
        texts.initialise(nn.init.normal_)
        return self.critic.build(image, classes if labelled else 0, texts, width)

    @classmethod
    def tiny(cls) -> Config:
        critic = CriticConfig(
            discriminator=residual_discriminator.Config(channels=(16, 16, 16), blocks=1, groups=2, embedding_dim=8),
            gan_loss="relativistic",
            r1=0.1,
            r2=0.1,
        )
        return cls(z_dim=8, network=residual.Config.tiny(), critic=critic)


class Gan(AdversarialGenerator):
    """image = network(z, context), z standard normal."""

    reads: ClassVar = frozenset({"truncation", "temperature"})

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__(layout, classes)
        self.config = config
        conditioners = partial(config.conditioners, image=layout.image, classes=classes, null=False)
        self.network = config.network.build(config.z_dim, layout.grid, layout.width, conditioners)

    @property
    def conditioner(self) -> Conditioners:  # type: ignore[override]
        return self.network.conditioner

    def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        """The generator's loss under the critic, on as many generated images."""
        fake = self.generate(condition, noise)
        return {"adversarial": self.critic.generator_loss(self.to_grid(tokens), fake, condition, noise)}

    def generate(self, condition: Condition, noise: Noise) -> Tensor:
        return self.network(noise.normal(self.config.z_dim), self.context(condition))

    def to_grid(self, tokens: Tokens) -> Tensor:
        return tokens.values.transpose(1, 2).unflatten(2, self.layout.grid)

    def steps(self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None) -> Iterator[Tokens]:
        """One pass. temperature scales the latents, truncation bounds them."""
        latents = truncated_normal(noise, self.config.z_dim, sampling.truncation)
        made = self.network(latents * sampling.temperature, self.context(condition))
        yield Tokens(rearrange(made.float(), "b d ... -> b (...) d"), self.layout)

    def passes(self, sampling: Sampling) -> int:
        return 1


def truncated_normal(noise: Noise, count: int, limit: float | None) -> Tensor:
    """(B, count) standard normal numbers within +- `limit` (truncation: Brock et al. 2019, section 3.1).

    They are drawn by the inverse of the truncated distribution, which needs one uniform number each, without rejection.
    """
    if limit is None:
        return noise.normal(count)
    tail = torch.special.ndtr(torch.tensor(-limit, dtype=torch.float64))
    uniform = noise.uniform(count).double()
    return torch.special.ndtri(tail + uniform * (1 - 2 * tail)).clamp(-limit, limit).float()
