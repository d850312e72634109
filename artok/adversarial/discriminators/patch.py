"""The patch discriminator of pix2pix (Isola et al. 2017) as taming-transformers trains it on VQGAN's reconstructions.

4x4 convolutions, `layers` of them with stride 2, and a score for every patch of the image.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from artok.adversarial.discriminators.base import Discriminator, DiscriminatorConfig
from artok.config import Depth
from artok.errors import ConfigError
from artok.nn.batch_norm import BatchNorm2d

KERNEL = 4


class Config(DiscriminatorConfig):
    """kind: patch. As published: width 64, layers 3, norm batch.

    norm: with "batch" the scores depend on the accumulated parts of a batch; with "group" and "none" they do not.
    """

    kind: Literal["patch"] = "patch"
    base_channels: int = Field(64, ge=1)
    layers: Depth = Field(3, description="convolutions of stride 2")
    norm: Literal["batch", "group", "none"] = "batch"

    def build(self, image: tuple[int, ...], classes: int, text: int = 0) -> PatchDiscriminator:
        if classes or text:
            raise ConfigError(
                "discriminator kind patch scores patches and hears no labels or texts; use residual, stylegan or dcgan"
            )
        if self.side(min(image[1:])) < 1:
            raise ConfigError(
                f"images of {image[1]}x{image[2]} are too small for a patch discriminator of {self.layers} layers; "
                "use fewer layers or larger images"
            )
        return PatchDiscriminator(self, image[0])

    def side(self, size: int) -> int:
        """Side of the score map: each convolution (kernel 4, padding 1) takes one off, a stride of 2 halves."""
        for _ in range(self.layers):
            size = (size - KERNEL + 2) // 2 + 1
        return size - 2

    @classmethod
    def tiny(cls) -> Config:
        return cls(base_channels=8, layers=1, norm="group")


class PatchDiscriminator(Discriminator):
    """Scores (B, 1, h, w)."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        widths = [config.base_channels * min(2**index, 8) for index in range(config.layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(channels, widths[0], KERNEL, 2, 1), nn.LeakyReLU(0.2)]
        for index in range(1, config.layers + 1):
            stride = 2 if index < config.layers else 1
            norm = make_norm(config.norm, widths[index])
            bias = isinstance(norm, nn.Identity)  # a norm has a shift of its own
            blocks += [nn.Conv2d(widths[index - 1], widths[index], KERNEL, stride, 1, bias=bias), norm]
            blocks += [nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, KERNEL, 1, 1))
        for module in self.modules():  # as published, and as DCGAN before
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Tensor, labels: Tensor | None, text: Tensor | None = None) -> Tensor:
        return self.layers(images)


def make_norm(kind: Literal["batch", "group", "none"], channels: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    return BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(1, channels)
