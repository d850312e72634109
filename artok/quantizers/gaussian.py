"""The Gaussian bottleneck of a KL autoencoder (Kingma and Welling 2014; Rombach et al. 2022, appendix G)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from artok.quantizers.base import Quantized, Quantizer, QuantizerConfig, to_grid, to_sequence

LOG_VARIANCE = (-30.0, 20.0)  # as published: keeps exp() finite


class Config(QuantizerConfig):
    """kind: gaussian.

    latent_channels: latent channels; the encoder delivers twice as many, means and then log variances.
    kl_weight: of the KL divergence from a unit Gaussian, with both the divergence and the reconstruction error
        summed per image, as in the published models (1e-6 there), so that one weight means the same at every size.
    sample: train the decoder on draws from the posterior; without it, on its mean. Encoding always gives the mean.
    """

    kind: Literal["gaussian"] = "gaussian"
    latent_channels: int = Field(16, ge=1)
    kl_weight: float = Field(1e-6, ge=0)
    sample: bool = True

    def build(self, grid: tuple[int, ...]) -> GaussianBottleneck:
        return GaussianBottleneck(grid, self)

    @classmethod
    def tiny(cls) -> Config:
        return cls(latent_channels=4)


class GaussianBottleneck(Quantizer):
    """A diagonal Gaussian at each position. monitors: the KL divergence in nats per image, the posterior's
    deviation, and the deviation of the means over a batch; a generator needs the first deviation below the second."""

    def __init__(self, grid: tuple[int, ...], config: Config) -> None:
        super().__init__((grid,), config.latent_channels, None, input_channels=2 * config.latent_channels)
        self.config = config

    def quantize(self, latents: Tensor) -> Quantized:
        mean, log_variance = latents.chunk(2, dim=1)
        log_variance = log_variance.clamp(*LOG_VARIANCE)
        deviation = (0.5 * log_variance).exp()
        drawn = self.training and self.config.sample
        vectors = mean + deviation * self.draws(mean).normal(*mean.shape[1:]) if drawn else mean
        nats = divergence(mean, log_variance).mean()
        monitors = {
            "kl_nats": nats.detach(),
            "posterior_deviation": deviation.detach().mean(),
            "latent_deviation": mean.detach().square().flatten(1).mean(1).sqrt().mean(),  # from 0, of each image
        }
        return Quantized(vectors, to_sequence(vectors), {}, monitors, sums={"kl": self.config.kl_weight * nats})

    def dequantize(self, values: Tensor) -> Tensor:
        return to_grid(values, self.grids[0])


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats, summed over each image: (B,) of two (B, D, *grid).

    1/2 sum(mean^2 + variance - 1 - log variance) (Kingma and Welling 2014, appendix B).
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
