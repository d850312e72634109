"""The identity tokenizer: the numbers of an image as continuous tokens, for pixel diffusion."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from artok.errors import ConfigError
from artok.layout import TokenLayout, Tokens
from artok.nn.patches import merge_patches, split_patches
from artok.tokenizers.base import Reconstruction, Tokenizer, TokenizerConfig


class Config(TokenizerConfig):
    """kind: pixels. patch_size: side of the squares of pixels that make a token."""

    kind: Literal["pixels"] = "pixels"
    patch_size: int = Field(1, ge=1)

    def build(self, image: tuple[int, ...]) -> PixelTokenizer:
        if any(side % self.patch_size for side in image[-2:]):
            raise ConfigError(
                f"the image side must be a multiple of tokenizer.patch_size {self.patch_size}, and "
                f"{'x'.join(map(str, image[1:]))} is not; change data.size or tokenizer.patch_size"
            )
        return PixelTokenizer(self.patch_size, image)

    @classmethod
    def tiny(cls) -> Config:
        return cls(patch_size=4)


class PixelTokenizer(Tokenizer):
    """Tokens in [-1, 1], each the pixels of a square, by channel, row and column. There is nothing to train."""

    def __init__(self, patch: int, image: tuple[int, ...]) -> None:
        super().__init__()
        channels, *size = image
        grid = (*size[:-2], size[-2] // patch, size[-1] // patch)
        self.layout = TokenLayout((grid,), channels * patch**2, None, image)
        self.patch: Tensor
        self.register_buffer("patch", torch.tensor(patch))  # saved, so that the fingerprint tells two sides apart
        self.side = patch

    def forward(self, images: Tensor) -> Reconstruction:
        return Reconstruction(images, self.encode(images), {}, {})

    def encode(self, images: Tensor) -> Tokens:
        values = images.flatten(2).transpose(1, 2)
        return Tokens(split_patches(values, tuple(images.shape[2:]), self.side), self.layout)

    def decode(self, tokens: Tokens) -> Tensor:
        values = tokens.values
        if tokens.known is not None:
            values = torch.where(tokens.known[..., None], values, 0.0)
        pixels = merge_patches(values, self.layout.image[1:], self.side)
        return pixels.transpose(1, 2).unflatten(2, self.layout.image[1:])

    def embed(self, tokens: Tokens) -> Tensor:
        values = tokens.values
        if tokens.known is not None:
            values = torch.where(tokens.known[..., None], values, 0.0)
        return values.transpose(1, 2).unflatten(2, self.layout.grid)

    def prefix(self, tokens: Tokens, scales: int) -> Tensor:
        return self.embed(tokens.first_scales(scales))

    def prefixes(self, tokens: Tokens) -> list[Tensor]:
        return [self.embed(tokens)]
