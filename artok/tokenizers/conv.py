"""The two-dimensional convolutional tokenizer: VQGAN's encoder and decoder around any quantizer (Esser et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.config import OPEN, Depth, of_kind
from artok.errors import ConfigError
from artok.layout import TokenLayout, Tokens
from artok.nn.conv2d import Decoder, Encoder, arrange
from artok.quantizers.base import QuantizerConfig
from artok.tokenizers.base import Reconstruction, Tokenizer, TokenizerConfig


class Config(TokenizerConfig):
    """kind: conv.

    downsample: image side over grid side, a power of two.
    patch_size: side in pixels of the squares that become the channels of one position before the first convolution, and
        after the last, as Cosmos' wavelets do (Agarwal et al. 2025, arXiv 2501.03575); levels of full size take most of
        the time on a CPU.
    channel_multipliers: base_channels times each gives the channels of a level, finest first; there are
        log2(downsample / patch_size) + 1 levels.
    attention_resolutions: grid sides that have attention, or "coarsest".
    z_channels: channels that the encoder puts out and the decoder takes in, around the quantizer's own width.
    """

    kind: Literal["conv"] = "conv"
    downsample: int = Field(16, ge=2, le=32)
    patch_size: Literal[1, 2, 4] = 1
    base_channels: int = Field(128, ge=1)
    stem: int | None = Field(None, ge=1, description="channels after the first convolution; base_channels unless given")
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_channel_multipliers: tuple[int, ...] | None = Field(
        None, description="the same for the decoder; as in the encoder unless given (LlamaGen tells them apart)"
    )
    num_res_blocks: Depth = Field(2, description="residual blocks per level of the encoder")
    decoder_num_res_blocks: Depth | None = Field(None, description="the same for the decoder; one more unless given")
    attention_resolutions: tuple[int, ...] | Literal["coarsest"] = "coarsest"
    decoder_attention_resolutions: tuple[int, ...] | Literal["coarsest"] | None = Field(
        None, description="the same for the decoder; as in the encoder unless given"
    )
    middle_attention: bool = True
    z_channels: int = Field(256, ge=1)
    quantizer_kernel: Literal[1, 3] = Field(1, description="side of the convolutions before and after the quantizer")
    groups: int = Field(32, ge=1, description="groups of each GroupNorm")
    quantizer: Annotated[QuantizerConfig, of_kind("quantizers"), OPEN]

    @model_validator(mode="after")
    def _levels_match(self) -> Config:
        if self.downsample & (self.downsample - 1):
            raise ValueError(f"downsample must be a power of two (2, 4, 8, 16, 32), got {self.downsample}")
        if self.downsample < self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} is more than downsample {self.downsample}")
        levels = (self.downsample // self.patch_size).bit_length()
        after = f" after patches of {self.patch_size}" if self.patch_size > 1 else ""
        for multipliers in filter(None, (self.channel_multipliers, self.decoder_channel_multipliers)):
            if len(multipliers) != levels:
                raise ValueError(
                    f"downsample {self.downsample}{after} needs {levels} multipliers, got {len(multipliers)}: "
                    f"{list(multipliers)}"
                )
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


class ConvTokenizer(Tokenizer):
    """Encoder, quantizer, decoder. Latent grids have the image's sides over `downsample`."""

    def __init__(self, config: Config, image: tuple[int, ...]) -> None:
        super().__init__()
        channels, *size = image
        grid = tuple(side // config.downsample for side in size)
        quantizer = config.quantizer.build(grid)
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        self.patch = config.patch_size
        sides = [size[0] // self.patch >> level for level in range(len(widths))]

        def attends(where: tuple[int, ...] | Literal["coarsest"]) -> list[bool]:
            return [side == sides[-1] if where == "coarsest" else side in where for side in sides]

        padding = config.quantizer_kernel // 2
        self.encoder = Encoder(
            in_channels=channels * self.patch**2,
            stem=config.stem or config.base_channels,
            widths=widths,
            blocks=config.num_res_blocks,
            attention=attends(config.attention_resolutions),
            middle_attention=config.middle_attention,
            out_channels=config.z_channels * quantizer.input_channels // quantizer.width,
            groups=config.groups,
        )
        encoded = config.z_channels * quantizer.input_channels // quantizer.width
        self.to_quantizer = nn.Conv2d(encoded, quantizer.input_channels, config.quantizer_kernel, padding=padding)
        self.quantizer = quantizer
        self.from_quantizer = nn.Conv2d(quantizer.width, config.z_channels, config.quantizer_kernel, padding=padding)
        self.decoder = Decoder(
            in_channels=config.z_channels,
            widths=[
                config.base_channels * multiplier
                for multiplier in config.decoder_channel_multipliers or config.channel_multipliers
            ],
            blocks=config.decoder_num_res_blocks or config.num_res_blocks + 1,
            attention=attends(
                config.attention_resolutions
                if config.decoder_attention_resolutions is None
                else config.decoder_attention_resolutions
            ),
            middle_attention=config.middle_attention,
            out_channels=channels * self.patch**2,
            groups=config.groups,
        )
        self.layout = TokenLayout(quantizer.grids, quantizer.width, quantizer.vocab, image, quantizer.codes)
        self.latent_mean: Tensor
        self.latent_deviation: Tensor
        if not self.layout.discrete:  # of each channel, as `measure` found them
            self.register_buffer("latent_mean", torch.zeros(quantizer.width))
            self.register_buffer("latent_deviation", torch.ones(quantizer.width))

    def latents(self, images: Tensor) -> Tensor:
        """What the quantizer receives, (B, input_channels, *grid)."""
        return self.to_quantizer(self.encoder(arrange(F.pixel_unshuffle(images, self.patch))))

    def decode_latents(self, vectors: Tensor) -> Tensor:
        """Images (B, C, H, W) of latent vectors (B, D, *grid)."""
        return F.pixel_shuffle(self.decoder(self.from_quantizer(arrange(vectors))), self.patch)

    def decoder_parts(self) -> list[nn.Module]:
        return [self.from_quantizer, self.decoder]

    def _decode_perturbed(self, images: Tensor, perturb: Callable[[Tokens], Tokens]) -> Reconstruction:
        for part in (self.encoder, self.to_quantizer, self.quantizer):
            part.eval()  # in training it would follow the images
        with torch.no_grad():
            tokens = perturb(self.encode(images))
            vectors = self.embed(tokens)
        return Reconstruction(self.decode_latents(vectors), tokens, {}, {})

    def forward(self, images: Tensor) -> Reconstruction:
        if self.perturb is not None:
            return self._decode_perturbed(images, self.perturb)
        quantized = self.quantizer(self.latents(images))
        reconstructed = self.decode_latents(quantized.vectors)
        # reconstruction errors are means over the numbers of an image, so sums per image are divided by these
        shares = {name: value / self.layout.dimensions for name, value in quantized.sums.items()}
        tokens = Tokens(self._normalised(quantized.values), self.layout)
        return Reconstruction(reconstructed, tokens, quantized.losses | shares, quantized.monitors)

    def encode(self, images: Tensor) -> Tokens:
        return Tokens(self._normalised(self.quantizer(self.latents(images)).values), self.layout)

    def _normalised(self, values: Tensor) -> Tensor:
        return values if self.layout.discrete else (values - self.latent_mean) / self.latent_deviation

    def _latent(self, values: Tensor) -> Tensor:
        """The inverse of `_normalised`."""
        return values if self.layout.discrete else values * self.latent_deviation + self.latent_mean

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> dict[str, float]:
        if self.layout.discrete:
            return {}
        count, total, squares = 0, 0.0, 0.0
        for images in batches:
            values = self.quantizer(self.latents(images)).values.flatten(0, 1).double()
            count, total, squares = count + len(values), total + values.sum(0), squares + values.square().sum(0)
        mean = torch.as_tensor(total) / count
        deviation = (torch.as_tensor(squares) / count - mean.square()).clamp(min=1e-12).sqrt()
        self.latent_mean.copy_(mean)
        self.latent_deviation.copy_(deviation)
        return {"latent_mean": float(mean.mean()), "latent_deviation": float(deviation.mean())}

    def decode(self, tokens: Tokens) -> Tensor:
        return self.decode_latents(self.embed(tokens))

    def embed(self, tokens: Tokens) -> Tensor:
        return self.quantizer.lookup(self._latent(tokens.values), tokens.known)

    def prefix(self, tokens: Tokens, scales: int) -> Tensor:
        if scales == 0 or tokens.known is not None:
            return self.embed(tokens.first_scales(scales))
        end = list(self.layout.scales())[scales - 1].stop
        return self.quantizer.prefixes(self._latent(tokens.values[:, :end]))[-1]  # the other scales take no time

    def prefixes(self, tokens: Tokens) -> list[Tensor]:
        return self.quantizer.prefixes(self._latent(tokens.values))

    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight  # type: ignore[return-value]
