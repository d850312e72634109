"""A small network for clips that artok trains itself on the training split, for the distance that FVD is of videos.

It learns three things at once: the class, a coarse copy of five frames, from which places and velocities follow, and
which way a clip was spoilt, if it was. So its features tell clips apart by what they show, where and how it moves, and
whether it moves as in the data, which features of single frames cannot (Ge et al. 2024, arXiv 2404.12391).
Determinism, cache and scale are as those of the classifier.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from artok.cache import cache_directory
from artok.errors import ArtokError
from artok.metrics.features import Extractor, ExtractorConfig, TrainingImages, weights_fingerprint
from artok.metrics.trained import cycle, load_or_train, normalise, reproducible, watched

VERSION = 1  # of everything below that changes the trained weights or the features
DIM = 64
LARGEST = 64  # pixels of the longer side; larger frames are reduced to this first
WIDTHS = (16, 32, 64)
BATCH, AT_ONCE = 32, 256  # clips of a step, and of the pass that sets the scale
SEEN = 16_000  # training clips, unless told
SHOWN, COARSE = 5, 4  # frames, and the side to which they are reduced, that are to be told from the features
WAYS = ("whole", "shuffled", "jittered", "swapped", "frozen", "slow")
CHANGE = 1.0  # factor of the differences of successive frames, which are small
SPOILT = 0.5  # share of the training clips


class Config(ExtractorConfig):
    """The network and how long it trains."""

    trained: ClassVar[bool] = True
    kind: Literal["motion"] = "motion"
    clips_seen: int = Field(SEEN, gt=0)
    seed: int = 0

    def build(self, training: TrainingImages | None, device: torch.device | str, cache: Path | None) -> MotionFeatures:
        """Loaded from the cache when these clips have been trained on before, else trained and cached."""
        if training is None:
            raise ArtokError("the extractor 'motion' is trained on training clips, and none were given")
        shape = tuple(training.images.shape[1:])
        if len(shape) != 4 or shape[1] < 3:
            raise ArtokError("the extractor 'motion' looks at clips of 3 frames or more; images need another extractor")
        key = f"v{VERSION}-{'x'.join(map(str, shape))}-{training.classes}-{self.clips_seen}-{self.seed}"
        path = (cache or cache_directory()) / f"motion-{training.fingerprint}-{key}.safetensors"
        with torch.device("meta"):
            empty = Network(shape[0], training.classes)
        steps = -(-self.clips_seen // BATCH)

        def train_watched() -> Network:
            with watched(training, steps * BATCH, "motion network that judges"):
                return train(training, steps, self.seed, device)

        return MotionFeatures(load_or_train("motion network", empty, path, key, train_watched), shape, device)


class MotionFeatures(Extractor):
    """The trained network, in evaluation mode and float32, for clips (C, T, H, W) of the shape it was trained on."""

    def __init__(self, network: Network, shape: tuple[int, ...], device: torch.device | str) -> None:
        self.name, self.dim, self.device = "motion", DIM, torch.device(device)
        self.fingerprint = weights_fingerprint(network.state_dict(), VERSION, shape)
        self._network = network.to(device).eval().requires_grad_(False)
        self._shape = shape

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if tuple(images.shape[1:]) != self._shape:
            raise ArtokError(
                f"the motion network was trained on clips of {self._shape}, and cannot judge {tuple(images.shape[1:])}"
            )
        features, logits, _, _ = self._network(reduce(images))
        return (features - self._network.centre) * self._network.scale, logits if logits.shape[1] > 1 else None


class Network(nn.Module):
    """Clips (B, C, T, H, W) in [-1, 1] to features (B, 64), logits of the classes and of `WAYS`, and coarse frames.

    Beside the frames it sees their differences. Each convolution halves the sides, all but the first the time too; a
    grid of 2x2x2 is left, so places stay known.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        stages = enumerate(pairwise((2 * channels, *WIDTHS)))
        self.convs = nn.ModuleList(nn.Conv3d(a, b, 3, (1 if i == 0 else 2, 2, 2), 1) for i, (a, b) in stages)
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in WIDTHS)
        self.project = nn.Linear(8 * WIDTHS[-1], DIM)
        self.label, self.way = nn.Linear(DIM, classes), nn.Linear(DIM, len(WAYS))
        self.coarse = nn.Linear(DIM, SHOWN * COARSE**2)
        self.register_buffer("centre", torch.zeros(DIM))
        self.register_buffer("scale", torch.ones(()))
        self.centre: Tensor
        self.scale: Tensor

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = torch.cat([clips, CHANGE * clips.diff(dim=2, prepend=clips[:, :, :1])], dim=1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.silu(norm(conv(x)))
        features = self.project(functional.adaptive_avg_pool3d(x, 2).flatten(1).float())
        inner = functional.silu(features)
        return features, self.label(inner), self.way(inner), self.coarse(inner)


def reduce(clips: Tensor) -> Tensor:
    """uint8 (B, C, T, H, W) to float32 in [-1, 1], the longer side at most 64 (means over areas)."""
    pixels = clips.to(torch.float32) / 127.5 - 1
    largest = max(pixels.shape[-2:])
    if largest <= LARGEST:
        return pixels
    size = [max(1, round(side * LARGEST / largest)) for side in pixels.shape[-2:]]
    return functional.interpolate(pixels.flatten(1, 2), size, mode="area").unflatten(1, pixels.shape[1:3])


# ---------------------------------------------------------------------------------------------- training


def train(training: TrainingImages, steps: int, seed: int, device: torch.device | str) -> Network:
    """A network trained for `steps` batches: AdamW, one cycle of the learning rate, the sum of three losses."""
    clips, labels = training.images, training.labels.to(torch.int64)
    generator = torch.Generator().manual_seed(seed)
    with reproducible(seed):
        network = Network(clips.shape[1], training.classes).to(device).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cycle(step / steps))
        for step in range(steps):
            rows = torch.randint(len(clips), (BATCH,), generator=generator)
            batch, way = spoil(reduce(clips[rows]), generator)
            batch, way = batch.to(device), way.to(device)
            noise = 0.1 * torch.randn(batch.shape, generator=generator).to(device)
            _, label, ways, coarse = network(batch + noise)
            named = way != WAYS.index("swapped")  # a swapped clip shows two
            loss = functional.cross_entropy(ways, way) + 4 * functional.mse_loss(coarse, coarse_frames(batch))
            loss = loss + functional.cross_entropy(label[named], labels[rows].to(device)[named])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if training.watch is not None:
                training.watch.advance((step + 1) * BATCH)
        normalise(network.eval(), (reduce(part.to(device)) for part in clips[:10_000].split(AT_ONCE)))
    return network.cpu()


def coarse_frames(clips: Tensor) -> Tensor:
    """(B, 5 * 16): five frames of clips (B, C, T, H, W), the first and the last among them, as 4x4 grey means."""
    chosen = torch.linspace(0, clips.shape[2] - 1, SHOWN).round().long()
    return functional.adaptive_avg_pool2d(clips[:, :, chosen].mean(1), COARSE).flatten(1)


def spoil(clips: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the clips (B, C, T, H, W), spoilt in one of `WAYS`, the others as they are; and the ways (B,) int64."""
    count, frames, side = len(clips), clips.shape[2], min(clips.shape[-2:])
    way = torch.randint(1, len(WAYS), (count,), generator=generator)
    way[torch.rand(count, generator=generator) >= SPOILT] = 0
    found = clips.clone()
    for row, kind in enumerate(way.tolist()):
        name = WAYS[kind]
        cut = int(torch.randint(1, frames, (1,), generator=generator))
        if name == "shuffled":
            found[row] = clips[row, :, torch.randperm(frames, generator=generator)]
        elif name == "jittered":
            reach = max(1, side // 16)
            shifts = torch.randint(-reach, reach + 1, (frames, 2), generator=generator).tolist()
            moved = [clips[row, :, at].roll(shift, dims=(-2, -1)) for at, shift in enumerate(shifts)]
            found[row] = torch.stack(moved, dim=1)
        elif name == "swapped":
            found[row, :, cut:] = clips[row - 1, :, cut:]
        elif name == "frozen":
            found[row, :, cut:] = clips[row, :, cut - 1 : cut]
        elif name == "slow":
            found[row] = clips[row, :, torch.arange(frames) // 2]
    return found, way
