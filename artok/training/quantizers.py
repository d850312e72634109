"""What a training step does to a tokenizer's quantizers beside the gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from artok.noise import Drawing, Noise
from artok.quantizers.base import Quantizer, Replacement
from artok.tokenizers.base import Tokenizer


class Quantizers:
    """All quantizers of a tokenizer; most have one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.parts = {name: part for name, part in tokenizer.named_modules() if isinstance(part, Quantizer)}
        self.drawing = [part for part in tokenizer.modules() if isinstance(part, Drawing)]

    def draw_by(self, noise: Noise) -> None:
        """Set the random numbers of the images of the next training pass."""
        for part in self.drawing:
            part.noise = noise

    def first_images(self) -> int:
        return max((part.first_images for part in self.parts.values()), default=0)

    @torch.no_grad()
    def start(self, batches: Sequence[Tensor], seed: int) -> list[Replacement]:
        """Start from the latents of batches of images, each as many as a training step has."""
        replaced = list[Replacement]()
        self.tokenizer.eval()
        for part in self.parts.values():
            latents = list[Tensor]()
            with part.register_forward_pre_hook(lambda _, inputs, kept=latents: kept.append(inputs[0])):
                for images in batches:
                    self.tokenizer.encode(images)
            replaced += part.start(torch.cat(latents), seed, len(batches))
        self.tokenizer.train()
        return replaced

    def settle(self) -> list[Replacement]:
        return [replaced for part in self.parts.values() for replaced in part.settle()]

    def figures(self) -> dict[str, float]:
        """Usage and perplexity over a window of training, over all processes."""
        monitors = [part.usage.monitors() for part in self.parts.values() if part.usage is not None]
        return {name: float(value) for values in monitors for name, value in values.items()}

    def windows(self) -> dict[str, Tensor]:
        """The usage windows by name, the same in all processes."""
        tensors: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            if part.usage is not None:
                part.usage.share()
                tensors |= {f"{name}.frequencies": part.usage.frequencies, f"{name}.least": part.usage.least}
        return tensors
