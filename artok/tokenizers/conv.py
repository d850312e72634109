"""The two-dimensional convolutional tokenizer: VQGAN's encoder and decoder around any quantizer (Esser et al. 2021)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.errors import ConfigError
from artok.layout import TokenLayout
from artok.nn.conv2d import Decoder, Encoder, arrange
from artok.tokenizers.autoencoder import Autoencoder, AutoencoderConfig, count_halvings
from artok.tokenizers.diffusion_decoder import DiffusionDecoder, DiffusionDecoderConfig


class Config(AutoencoderConfig):
    """kind: conv. downsample: image side over grid side, a power of two, with a level for each halving after patches of
    `patch_size`, and one more.
    diffusion_decoder: in the place of the convolutional decoder, one that denoises the image given its tokens.
    """

    kind: Literal["conv"] = "conv"
    downsample: int = Field(16, ge=2, le=32)
    diffusion_decoder: DiffusionDecoderConfig | None = None

    @model_validator(mode="after")
    def _levels_match(self) -> Config:
        levels = count_halvings("downsample", self.downsample, self.patch_size) + 1
        after = f" after patches of {self.patch_size}" if self.patch_size > 1 else ""
        self.check_multipliers(levels, f"downsample {self.downsample}{after}")
        return self

    def build(self, image: tuple[int, ...]) -> ConvTokenizer:
        if len(image) != 3:
            raise ConfigError(f"tokenizer kind conv takes images of (channels, height, width), not {image}")
        if min(image[1:]) < self.downsample:
            raise ConfigError(
                f"images of {image[1]}x{image[2]} are smaller than the downsampling {self.downsample}; "
                "use larger images (data.size) or a smaller tokenizer.downsample"
            )
        if any(side % self.downsample for side in image[1:]):
            raise ConfigError(
                f"the image side must be a multiple of the downsampling, and {image[1]}x{image[2]} is none of "
                f"{self.downsample}; change data.size or tokenizer.downsample"
            )
        return ConvTokenizer(self, image)

    @classmethod
    def tiny(cls) -> Config:
        from artok.quantizers import vq

        return cls(
            downsample=4,
            base_channels=8,
            channel_multipliers=(1, 1, 2),
            num_res_blocks=1,
            z_channels=8,
            groups=4,
            quantizer=vq.Config.tiny(),
        )


class ConvTokenizer(Autoencoder):
    """Latent grids have the image's sides over `downsample`."""

    encoder: Encoder

    def __init__(self, config: Config, image: tuple[int, ...]) -> None:
        super().__init__()
        channels, *size = image
        grid = tuple(side // config.downsample for side in size)
        quantizer = config.quantizer.build(grid)
        self.patch = config.patch_size
        sides = [size[0] // self.patch >> level for level in range(len(config.widths))]
        padding = config.quantizer_kernel // 2
        encoded = config.z_channels * quantizer.input_channels // quantizer.width
        self.encoder = Encoder(
            in_channels=channels * self.patch**2,
            stem=config.stem or config.base_channels,
            widths=config.widths,
            blocks=config.num_res_blocks,
            attention=config.attention(sides),
            middle_attention=config.middle_attention,
            out_channels=encoded,
            groups=config.groups,
        )
        self.to_quantizer = nn.Conv2d(encoded, quantizer.input_channels, config.quantizer_kernel, padding=padding)
        self.quantizer = quantizer
        self.from_quantizer = nn.Conv2d(quantizer.width, config.z_channels, config.quantizer_kernel, padding=padding)
        self.decoder: Decoder | DiffusionDecoder
        if config.diffusion_decoder is not None:
            self.decoder = DiffusionDecoder(config.diffusion_decoder, config.z_channels, image, grid)
        else:
            self.decoder = Decoder(
                in_channels=config.z_channels,
                widths=config.decoder_widths,
                blocks=config.decoder_blocks,
                attention=config.attention(sides, decoder=True),
                middle_attention=config.middle_attention,
                out_channels=channels * self.patch**2,
                groups=config.groups,
            )
        self.layout = TokenLayout(quantizer.grids, quantizer.width, quantizer.vocab, image, quantizer.codes)
        self.register_statistics()

    def layout_like(self, images: Tensor) -> TokenLayout:
        return self.layout

    def latents(self, images: Tensor) -> Tensor:
        return self.to_quantizer(self.encoder(arrange(F.pixel_unshuffle(images, self.patch))))

    def decode_latents(self, vectors: Tensor, layout: TokenLayout | None = None) -> Tensor:
        decoded: Tensor = self.decoder(self.from_quantizer(arrange(vectors)))
        return decoded if isinstance(self.decoder, DiffusionDecoder) else F.pixel_shuffle(decoded, self.patch)

    def reconstruct(self, vectors: Tensor, layout: TokenLayout, images: Tensor) -> Tensor:
        if isinstance(self.decoder, DiffusionDecoder):
            return self.decoder.predict(self.from_quantizer(arrange(vectors)), images)
        return self.decode_latents(vectors, layout)

    def decoder_parts(self) -> list[nn.Module]:
        return [self.from_quantizer, self.decoder]

    def last_layer(self) -> nn.Parameter:
        return self.decoder.last_layer()
