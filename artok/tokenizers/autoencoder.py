"""What the convolutional tokenizers share: an encoder, a quantizer and a decoder around it (Esser et al. 2021)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from artok.config import OPEN, Depth, of_kind
from artok.layout import TokenLayout, Tokens
from artok.quantizers.base import Quantizer, QuantizerConfig
from artok.tokenizers.base import Reconstruction, Tokenizer, TokenizerConfig


class AutoencoderConfig(TokenizerConfig, ABC):
    """Settings of every convolutional tokenizer.

    patch_size: side in pixels of the squares that become the channels of one position before the first convolution, and
        after the last, as Cosmos' wavelets do (Agarwal et al. 2025, arXiv 2501.03575); levels of full size take most of
        the time on a CPU.
    channel_multipliers: base_channels times each gives the channels of a level, finest first.
    attention_resolutions: grid sides that have attention, or "coarsest".
    z_channels: channels that the encoder puts out and the decoder takes in, around the quantizer's own width.
    """

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

    def check_multipliers(self, levels: int, reason: str) -> None:
        """Raise a ValueError unless there is a multiplier for each level. reason: what asks for them."""
        for multipliers in filter(None, (self.channel_multipliers, self.decoder_channel_multipliers)):
            if len(multipliers) != levels:
                raise ValueError(f"{reason} needs {levels} multipliers, got {len(multipliers)}: {list(multipliers)}")

    @property
    def widths(self) -> list[int]:
        """Channels of the encoder's levels, finest first."""
        return [self.base_channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def decoder_widths(self) -> list[int]:
        """The same for the decoder."""
        return [self.base_channels * each for each in self.decoder_channel_multipliers or self.channel_multipliers]

    @property
    def decoder_blocks(self) -> int:
        return self.decoder_num_res_blocks or self.num_res_blocks + 1

    def attention(self, sides: Sequence[int], decoder: bool = False) -> list[bool]:
        """Which levels have attention. sides: of the levels' grids, finest first."""
        where = self.attention_resolutions
        if decoder and self.decoder_attention_resolutions is not None:
            where = self.decoder_attention_resolutions
        return [side == sides[-1] if where == "coarsest" else side in where for side in sides]


class Autoencoder(Tokenizer, ABC):
    """Encoder, quantizer, decoder. latent_mean, latent_deviation: of each channel, as `measure` found them."""

    encoder: nn.Module
    to_quantizer: nn.Module
    quantizer: Quantizer
    latent_mean: Tensor
    latent_deviation: Tensor

    @abstractmethod
    def layout_like(self, images: Tensor) -> TokenLayout:
        """The layout of the tokens of such images."""

    @abstractmethod
    def latents(self, images: Tensor) -> Tensor:
        """What the quantizer receives, (B, input_channels, *grid)."""

    @abstractmethod
    def decode_latents(self, vectors: Tensor, layout: TokenLayout | None = None) -> Tensor:
        """Images of latent vectors (B, D, *grid). layout: of their tokens, where that is not the tokenizer's own."""

    def reconstruct(self, vectors: Tensor, layout: TokenLayout, images: Tensor) -> Tensor:
        """`decode_latents` in training on `images`."""
        return self.decode_latents(vectors, layout)

    def encoder_parts(self) -> list[nn.Module]:
        """What turns images into tokens."""
        return [self.encoder, self.to_quantizer, self.quantizer]

    def register_statistics(self) -> None:
        """Give continuous tokens the buffers of their mean and deviation; the last thing in building a tokenizer."""
        if not self.layout.discrete:
            self.register_buffer("latent_mean", torch.zeros(self.layout.width))
            self.register_buffer("latent_deviation", torch.ones(self.layout.width))

    def _decode_perturbed(self, images: Tensor, perturb: Callable[[Tokens], Tokens]) -> Reconstruction:
        for part in self.encoder_parts():
            part.eval()  # in training it would follow the images
        with torch.no_grad():
            tokens = perturb(self.encode(images))
            vectors = self.embed(tokens)
        return Reconstruction(self.reconstruct(vectors, tokens.layout, images), tokens, {}, {})

    def forward(self, images: Tensor) -> Reconstruction:
        if self.perturb is not None:
            return self._decode_perturbed(images, self.perturb)
        layout = self.layout_like(images)
        quantized = self.quantizer(self.latents(images))
        reconstructed = self.reconstruct(quantized.vectors, layout, images)
        # reconstruction errors are means over the numbers of an image, so sums per image are divided by these
        shares = {name: value / layout.dimensions for name, value in quantized.sums.items()}
        tokens = Tokens(self._normalised(quantized.values), layout)
        return Reconstruction(reconstructed, tokens, quantized.losses | shares, quantized.monitors)

    def encode(self, images: Tensor) -> Tokens:
        values = self.quantizer(self.latents(images)).values
        return Tokens(self._normalised(values), self.layout_like(images))

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
        return self.decode_latents(self.embed(tokens), tokens.layout)

    def embed(self, tokens: Tokens) -> Tensor:
        return self.quantizer.lookup(self._latent(tokens.values), tokens.known)

    def prefix(self, tokens: Tokens, scales: int) -> Tensor:
        if scales == 0 or tokens.known is not None:
            return self.embed(tokens.first_scales(scales))
        end = list(tokens.layout.scales())[scales - 1].stop
        return self.quantizer.prefixes(self._latent(tokens.values[:, :end]))[-1]  # the other scales take no time

    def prefixes(self, tokens: Tokens) -> list[Tensor]:
        return self.quantizer.prefixes(self._latent(tokens.values))


def count_halvings(name: str, factor: int, patch: int, patch_name: str = "patch_size") -> int:
    """How often an axis is halved after patches. ValueError: its factor is no power of 2, or less than a patch."""
    if factor & (factor - 1):
        raise ValueError(f"{name} must be a power of two (2, 4, 8, 16, 32), got {factor}")
    if factor < patch:
        raise ValueError(f"{patch_name} {patch} is more than {name} {factor}")
    return (factor // patch).bit_length() - 1
