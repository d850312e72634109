"""A decoder that denoises pixels given the latents (epsilon-VAE, Zhao et al. 2024, arXiv 2410.04081).

It is trained by flow matching on the straight path x = (1 - t) image + t noise, and predicts the image. So the losses
that compare images with their reconstructions train it as they are, at random t, as the paper has its perceptual and
adversarial losses.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.config import Config, Depth
from artok.nn.gradient_checkpointing import run
from artok.nn.time import TimeEmbedding
from artok.nn.vit import ConditionedBlock, ConditionedOutput, initialise_linear, sincos_table
from artok.noise import Drawing, Noise

TIME_SCALE = 1000.0  # largest time that the embedding reads


class DiffusionDecoderConfig(Config):
    """The `diffusion_decoder:` section of a tokenizer: a transformer with an entry for each latent position.

    steps: Euler steps of decoding, each a pass. One gives the mean image of the tokens, more give it detail.
    """

    depth: Depth = 4
    width: int = Field(128, ge=4)
    heads: int = Field(4, ge=1)
    steps: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _check_width(self) -> DiffusionDecoderConfig:
        if self.width % (4 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of four times the heads ({self.heads})")
        return self


class DiffusionDecoder(Drawing):
    """Latents (B, Z, h, w) to images (B, C, H, W). An entry reads the pixels that its position covers."""

    def __init__(self, config: DiffusionDecoderConfig, latent: int, image: tuple[int, ...], grid: tuple[int, ...]):
        super().__init__()
        channels, height, _ = image
        self.image, self.side, self.steps = image, height // grid[0], config.steps
        self.gradient_checkpointing = False
        width, pixels = config.width, channels * self.side**2
        self.input, self.latent = nn.Linear(pixels, width), nn.Linear(latent, width)
        self.time = TimeEmbedding(width)
        self.blocks = nn.ModuleList(ConditionedBlock(width, config.heads, 4 * width) for _ in range(config.depth))
        self.output = ConditionedOutput(width, pixels)
        self.positions: Tensor
        self.register_buffer("positions", sincos_table(grid, width), persistent=False)
        self.apply(initialise_linear)

    def forward(self, z: Tensor) -> Tensor:
        """The images of latents. All start from the same noise, so that an image depends on its tokens alone."""
        same = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        x = Noise(0, same).normal(*self.image)
        times = torch.linspace(1, 0, self.steps + 1, device=z.device)
        for t, s in pairwise(times):
            clean = self.denoise(x, z, t.expand(len(z))).float()
            x = clean + s / t * (x - clean)
        return x

    def last_layer(self) -> nn.Parameter:
        return self.output.out.weight  # type: ignore[return-value]

    def predict(self, z: Tensor, images: Tensor) -> Tensor:
        """The images that it predicts from noisy ones at random times; of training."""
        noise = self.draws(images).branch("decoder")
        self.noise = None
        t, added = noise.uniform(), noise.normal(*self.image)
        at = t[:, None, None, None]
        return self.denoise((1 - at) * images + at * added, z, t)

    def denoise(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The predicted images of noisy ones (B, C, H, W) at times t (B,) in [0, 1]."""
        pixels = F.pixel_unshuffle(x, self.side).flatten(2).transpose(1, 2)
        h = self.input(pixels) + self.latent(z.flatten(2).transpose(1, 2)) + self.positions
        given = self.time(TIME_SCALE * t)
        for block in self.blocks:
            h = run(block, h, given, checkpoint=self.gradient_checkpointing)
        made: Tensor = self.output(h, given[:, None])
        return F.pixel_shuffle(made.transpose(1, 2).unflatten(2, z.shape[2:]), self.side)
