"""Quantizers of every kind with tiny settings, latents for them, and a few steps of training."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from artok.config import find, kinds
from artok.noise import Noise
from artok.quantizers import multiscale, residual, vq
from artok.quantizers.base import Quantizer, QuantizerConfig
from artok.quantizers.codebook import CodebookConfig

KINDS = kinds("quantizers")


LEARNED: dict[str, CodebookConfig] = {
    "ema cosine": vq.Config(codebook_size=16, code_dim=4, kmeans_init=True),
    "ema euclidean": vq.Config(
        codebook_size=16, code_dim=4, similarity="euclidean", kmeans_init=True, rotation_trick=True
    ),
    "gradient cosine": vq.Config(codebook_size=16, code_dim=4, update="gradient", kmeans_init=True),
    "gradient euclidean": vq.Config(codebook_size=16, code_dim=4, update="gradient", similarity="euclidean"),
    "residual ema": residual.Config(codebook_size=16, code_dim=4, kmeans_init=True),
    "residual gradient": residual.Config(codebook_size=16, code_dim=4, update="gradient", rotation_trick=True),
}


def tiny(kind: str) -> QuantizerConfig:
    part = find("quantizers", kind)
    assert issubclass(part, QuantizerConfig)
    return part.tiny()


BALANCED = multiscale.Config(codebook_size=16, code_dim=4, dead_code_threshold=0, standardise=True, usage_balancing=0.5)
CONFIGS = {**{kind: tiny(kind) for kind in KINDS}, **LEARNED, "multiscale balanced": BALANCED}


def built(config: QuantizerConfig, grid: tuple[int, ...] = (4, 4), seed: int = 0) -> Quantizer:
    torch.manual_seed(seed)
    return config.build(grid)


def latents(quantizer: Quantizer, batch: int = 8, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(batch, quantizer.input_channels, *quantizer.grids[-1], generator=rng)


def train(quantizer: Quantizer, steps: int, seed: int = 1, batch: int = 8) -> None:
    """A few steps on random latents, as a tokenizer would take them."""
    quantizer.train()
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.5) if parameters else None
    for step in range(steps):
        given = latents(quantizer, batch, seed * 1000 + step)
        if step == 0:
            quantizer.start(given, seed, 1)
        out = quantizer(given)
        if optimizer:
            optimizer.zero_grad()
            torch.stack(list(out.losses.values())).sum().backward()
            if distributed.is_initialized():
                for parameter in parameters:
                    if parameter.grad is None:  # a table that only the decoder's error moves
                        continue
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= distributed.get_world_size()
            optimizer.step()
        quantizer.settle()


def train_split(quantizer: Quantizer, parts: int = 1, rank: int = 0, world: int = 1, steps: int = 8) -> None:
    """Steps on 16 images of which this process has its share, in parts: what a tokenizer's training does to one.

    A quarter of the latents lie far out, so that codes die and start anew.
    """
    parameters = list(quantizer.train().parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.05) if parameters else None
    for step in range(steps):
        batch, positions = latents(quantizer, 16, seed=step), torch.arange(16 * step, 16 * step + 16)
        batch[step % 4 :: 4] = 3 * batch[step % 4 :: 4] + step
        if step == 0:
            quantizer.start(batch, 5, 1)
        share = slice(16 // world * rank, 16 // world * (rank + 1))
        split = zip(batch[share].chunk(parts), positions[share].chunk(parts), strict=True)
        for given, places in split:
            quantizer.noise = Noise(3, places)
            out = quantizer(given)
            if optimizer:
                loss = torch.stack(list(out.losses.values())).sum() + out.vectors.square().mean()
                (loss / parts / world).backward()
        if optimizer:
            for parameter in parameters:
                if parameter.grad is not None and world > 1:
                    distributed.all_reduce(parameter.grad)
            optimizer.step()
            optimizer.zero_grad()
        quantizer.settle()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def snapshot(quantizer: Quantizer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
