"""A small residual classifier that artok trains itself on the training split, for data that no published network knows.

Deterministic: on one machine the same training images give the same weights to the bit, whatever the number of threads
in use. Across machines arithmetic differs in the last bit and training amplifies it, so results carry the fingerprint
of the weights; copying the cached file makes two machines comparable.

The features are those before the last layer (64 of them), centred on the mean of the training split and scaled by one
number, so that their variances on the training split sum to 4 D. Units thereby do not depend on the run of training:
on digits the floor of the Fréchet distance lies near 0.5 at 540 against 540 images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from artok.cache import cache_directory
from artok.errors import ArtokError
from artok.metrics.features import (
    Extractor,
    ExtractorConfig,
    Maps,
    TrainingImages,
    weights_fingerprint,
)
from artok.metrics.trained import cycle, load_or_train, normalise, reproducible, watched

VERSION = 1  # of everything below that changes the trained weights or the features
DIM = 64
LARGEST = 64  # pixels; larger images are reduced to this first
BATCH = 128
EPOCHS, SEEN_AT_LEAST, SEEN_AT_MOST = 30, 38_400, 250_000  # training images, unless told


class Config(ExtractorConfig):
    """The classifier and how long it trains."""

    trained: ClassVar[bool] = True
    kind: Literal["classifier"] = "classifier"
    images_seen: int | None = Field(
        None, gt=0, description="training images seen; by default 30 epochs, but 38,400 at least and 250,000 at most"
    )
    seed: int = 0

    def build(self, training: TrainingImages | None, device: torch.device | str, cache: Path | None) -> Classifier:
        """Loaded from the cache when these images have been trained on before, else trained and cached."""
        if training is None:
            raise ArtokError("the extractor 'classifier' is trained on labelled training images, and none were given")
        if training.classes < 2:
            raise ArtokError("the extractor 'classifier' needs at least 2 classes; use inception or timm:NAME")
        shape = tuple(training.images.shape[1:])
        if len(shape) != 3:
            raise ArtokError("the extractor 'classifier' looks at images; clips need the extractor motion")
        seen = self.images_seen or min(SEEN_AT_MOST, max(SEEN_AT_LEAST, EPOCHS * len(training.images)))
        key = f"v{VERSION}-{shape[0]}x{shape[1]}x{shape[2]}-{training.classes}-{seen}-{self.seed}"
        path = (cache or cache_directory()) / f"classifier-{training.fingerprint}-{key}.safetensors"
        with torch.device("meta"):  # neither time nor random numbers for weights that the cache holds
            empty = Network(shape[0], max(shape[1:]), training.classes)
        steps = math.ceil(seen / BATCH)

        def train_watched() -> Network:
            with watched(training, steps * BATCH, "classifier that judges"):
                return train(training, steps=steps, seed=self.seed, device=device)

        return Classifier(load_or_train("classifier", empty, path, key, train_watched), shape, torch.device(device))

    def blank_maps(self, image: tuple[int, ...]) -> Maps:
        network = Network(image[0], max(image[1:]), classes=2).eval().requires_grad_(False)
        return lambda images, layers: chosen(network.maps(shrunk(images)), layers)


class Classifier(Extractor):
    """The trained network, in evaluation mode and float32."""

    def __init__(self, network: Network, shape: tuple[int, ...], device: torch.device) -> None:
        """shape: (C, H, W) of the images that it was trained on; others are refused."""
        self.name, self.dim, self.device = "classifier", DIM, device
        self.fingerprint = weights_fingerprint(network.state_dict(), VERSION, shape)
        self._network = network.to(device).eval().requires_grad_(False)
        self._shape = shape

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if tuple(images.shape[1:]) != self._shape:
            raise ArtokError(
                f"the classifier was trained on images of {self._shape}, and cannot evaluator {tuple(images.shape[1:])}"
            )
        features, logits = self._network(reduce(images))
        return (features - self._network.centre) * self._network.scale, logits

    def maps(self, images: Tensor, layers: Sequence[int] | None) -> list[Tensor]:
        """Layer 0 is the stem's, each next one a block's."""
        return chosen(self._network.maps(shrunk(images)), layers)


def chosen(maps: list[Tensor], layers: Sequence[int] | None) -> list[Tensor]:
    outside = [layer for layer in layers or () if not 0 <= layer < len(maps)]
    if outside:
        raise ArtokError(f"the classifier has layers 0 to {len(maps) - 1}, and no {outside[0]}")
    return maps if layers is None else [maps[layer] for layer in layers]


# ---------------------------------------------------------------------------------------------- network


class Block(nn.Module):
    """Two 3x3 convolutions with a residual path (He et al. 2016), the first of which may halve the size."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.skip = (
            nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1, bias=False)
        )
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        short = functional.avg_pool2d(x, 2, ceil_mode=True) if self.stride == 2 else x
        return functional.relu(inner + self.skip(short))


class Network(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to features (B, 64) and logits (B, classes).

    A stem and one block a resolution down to about 4 pixels; the stem already halves sides above 32. The buffers
    `centre` (64,) and `scale` () are set after training.
    """

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        side, stem_stride = (min(side, LARGEST) // 2, 2) if min(side, LARGEST) > 32 else (side, 1)
        stages = max(1, round(math.log2(side / 4)) + 1)
        widths = [*(16 << stage for stage in range(stages - 1)), DIM]
        self.stem = nn.Conv2d(channels, widths[0], 3, stem_stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        pairs = pairwise([widths[0], *widths])
        self.blocks = nn.Sequential(*(Block(a, b, stride=1 if i == 0 else 2) for i, (a, b) in enumerate(pairs)))
        self.head = nn.Linear(DIM, classes)
        self.register_buffer("centre", torch.zeros(DIM))
        self.register_buffer("scale", torch.ones(()))
        self.centre: Tensor
        self.scale: Tensor

    def maps(self, images: Tensor) -> list[Tensor]:
        """What the stem and each block give, (B, C, h, w)."""
        found = [functional.relu(self.norm(self.stem(images)))]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.maps(images)[-1].float().mean((2, 3))
        return features, self.head(features)


def reduce(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) to float32 in [-1, 1], the longer side at most 64."""
    return shrunk(images.to(torch.float32) / 127.5 - 1)


def shrunk(pixels: Tensor) -> Tensor:
    """The longer side at most 64 (antialiased bilinear)."""
    height, width = pixels.shape[2:]
    shrink = LARGEST / max(height, width)
    if shrink >= 1:
        return pixels
    size = [max(1, round(height * shrink)), max(1, round(width * shrink))]
    return functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)


# ---------------------------------------------------------------------------------------------- training


def train(training: TrainingImages, steps: int, seed: int, device: torch.device | str) -> Network:
    """A network trained for `steps` batches of 128: AdamW, one cycle of the learning rate, cross-entropy.

    Images are changed at random as in `_augment`; not mirrored, which would make another digit. On a CPU one thread is
    used: the number of threads changes the order of sums.
    """
    device = torch.device(device)
    shape = training.images.shape[1:]
    images, labels = training.images, training.labels.to(torch.int64)
    generator = torch.Generator().manual_seed(seed)
    fast = device.type == "cuda" or (device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    with reproducible(seed):
        network = Network(shape[0], max(shape[1:]), training.classes)
        network = network.to(device).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cycle(step / steps))
        for step in range(steps):
            rows = torch.randint(len(images), (BATCH,), generator=generator)
            batch = _augment(reduce(images[rows].to(device)), generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=fast):
                _, logits = network(batch.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits.float(), labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if training.watch is not None:
                training.watch.advance((step + 1) * BATCH)
        normalise(network.eval(), (reduce(part.to(device)) for part in images[:50_000].split(256)))
    return network.cpu().to(memory_format=torch.contiguous_format)


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts by up to 6% of the side, rotations by up to 10 degrees, sizes by up to 10%, light blur and noise.

    Blur (at most half way to the mean of 3x3 pixels) and noise (deviation at most 0.1 of pixels in [-1, 1]) are there
    for the evaluator's sake: without them what distance a blurred or noisy image gets is left to chance, and varies
    threefold from one run of training to another.
    """
    random = torch.rand(len(images), 6, generator=generator)
    noise = 0.1 * random[:, 5, None, None, None] * torch.randn(images.shape, generator=generator)
    random, noise = random.to(images.device), noise.to(images.device)
    angle, size = (2 * random[:, 0] - 1) * math.radians(10), 1 + 0.1 * (2 * random[:, 1] - 1)
    shift = 2 * 0.06 * (2 * random[:, 2:4] - 1)
    cos, sin = size * angle.cos(), size * angle.sin()
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    blurred = functional.avg_pool2d(functional.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.lerp(moved, blurred, 0.5 * random[:, 4, None, None, None]) + noise
