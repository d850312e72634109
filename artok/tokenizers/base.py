"""The interface of tokenizers: images to tokens and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from artok.config import Part
from artok.errors import LayoutError
from artok.layout import TokenLayout, Tokens
from artok.masks import blank, find_known


@dataclass
class Reconstruction:
    """One training pass.

    images: (B, C, H, W) reconstructions. tokens: what they were decoded from.
    losses: the tokenizer's own weighted scalars (commitment, entropy, KL); what compares images with their
    reconstructions belongs to `artok.losses`. monitors: scalars for the log.
    """

    images: Tensor
    tokens: Tokens
    losses: dict[str, Tensor]
    monitors: dict[str, Tensor]


class Tokenizer(nn.Module, ABC):
    """Images (B, C, H, W) in [-1, 1] to tokens of a fixed layout and back.

    A tokenizer is also the `Codec` that a generator may borrow: `embed`, `prefix` and `prefixes`.
    """

    layout: TokenLayout
    perturb: Callable[[Tokens], Tokens] | None = None  # set while the decoder alone is trained, on such tokens

    @abstractmethod
    def forward(self, images: Tensor) -> Reconstruction:
        """The training pass; gradients reach every trained parameter through its results."""

    def decoder_parts(self) -> list[nn.Module]:
        """What turns tokens into images and has no part in making them; none where that is not trained."""
        return []

    @abstractmethod
    def encode(self, images: Tensor) -> Tokens:
        """Deterministic tokens of images; to be called in eval mode, without gradients."""

    def encode_known(self, images: Tensor, mask: Tensor) -> Tokens:
        """Tokens of images (B, C, H, W) with the pixels of a mask (B, H, W) hidden, known where their cell has none.

        Hidden pixels are blanked before they are encoded: the encoder would carry them into the tokens beside them.
        LayoutError: the tokens have no places in the image.
        """
        known = find_known(mask, self.layout)
        return replace(self.encode(blank(images, mask)), known=known)

    @abstractmethod
    def decode(self, tokens: Tokens) -> Tensor:
        """Images (B, C, H, W), not clamped. Undecided tokens count as zero vectors."""

    def layout_of(self, frames: int) -> TokenLayout:
        """The layout of the tokens of clips of so many frames. LayoutError: the tokenizer takes no such clips."""
        if self.layout.image[1:-2] != (frames,):
            raise LayoutError(
                f"the tokenizer takes images of {self.layout.image} (channels, *size), not {frames} frames"
            )
        return self.layout

    def fit(self, image: tuple[int, ...]) -> None:
        """Take clips of `image`, (channels, frames, height, width), from now on, where only their number of frames is
        another; other samples change nothing. LayoutError or ConfigError: as of `layout_of`."""
        own = self.layout.image
        if len(own) == len(image) == 4 and image != own and image == (*own[:1], image[1], *own[2:]):
            self.layout = self.layout_of(image[1])

    def decode_chunks(self, parts: Iterable[Tokens]) -> Iterator[Tensor]:
        """Frames (B, C, n, H, W) of consecutive parts of a video, each as soon as its tokens are there.

        Together they are those of `decode`, and memory depends on the parts alone. parts: each holds whole frames of
        the grid, in the layout that `part_layout` gives. LayoutError: the tokenizer makes no video in parts.
        """
        raise LayoutError(f"{type(self).__name__} makes no video in parts")

    def part_layout(self, count: int, begins: bool) -> TokenLayout:
        """The layout of `count` frames of the grid. begins: whether they are the first of a video."""
        raise LayoutError(f"{type(self).__name__} makes no video in parts")

    @abstractmethod
    def embed(self, tokens: Tokens) -> Tensor:
        """Latent vectors (B, D, *grid) of tokens; undecided positions are zero."""

    @abstractmethod
    def prefix(self, tokens: Tokens, scales: int) -> Tensor:
        """Latent vectors (B, D, *grid) of the first `scales` scales alone."""

    @abstractmethod
    def prefixes(self, tokens: Tokens) -> list[Tensor]:
        """`prefix` for 1, 2, ... scales in one pass; the last is `embed`."""

    def measure(self, batches: Iterable[Tensor]) -> dict[str, float]:
        """Set the statistics of the latents, so that tokens have mean 0 and deviation 1; returns scalars to log.

        batches: images (B, C, H, W), to be called in eval mode. Codes have no such statistics.
        """
        return {}

    def last_layer(self) -> nn.Parameter | None:
        """The weight at which an adaptive adversarial loss compares gradients, if there is one."""
        return None


class TokenizerConfig(Part, ABC):
    """The `tokenizer:` section of a tokenizer's experiment. tiny_image: (channels, *size) that `tiny` is tried on."""

    tiny_image: ClassVar[tuple[int, ...]] = (3, 16, 16)

    @abstractmethod
    def build(self, image: tuple[int, ...]) -> Tokenizer:
        """The tokenizer for images of (channels, *size); a ConfigError when that size does not fit."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> TokenizerConfig:
        """The smallest sensible setting, which the contract tests run on images of `tiny_image`."""
