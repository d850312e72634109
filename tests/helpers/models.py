"""Tiny models and experiments that several tests use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from artok.config import find, kinds, merge, validate
from artok.tokenizers import conv, conv3d
from artok.tokenizers.autoencoder import AutoencoderConfig
from artok.tokenizers.base import TokenizerConfig
from artok.training.experiment import Experiment

IMAGE = (3, 16, 16)


def conv_around(quantizer: str) -> TokenizerConfig:
    """The tiny convolutional tokenizer with the tiny quantizer of a kind."""
    return around(conv.Config, quantizer)


def around(tokenizer: type[AutoencoderConfig], quantizer: str) -> AutoencoderConfig:
    return tokenizer.tiny().model_copy(update={"quantizer": find("quantizers", quantizer).tiny()})


EVERY_TOKENIZER: dict[str, Callable[[], TokenizerConfig]] = {
    kind: find("tokenizers", kind).tiny for kind in kinds("tokenizers")
} | {
    f"{name}-{kind}": partial(around, tokenizer, kind)
    for name, tokenizer in (("conv", conv.Config), ("conv3d", conv3d.Config))
    for kind in kinds("quantizers")
}
TOKENIZERS = {name: make for name, make in EVERY_TOKENIZER.items() if make().tiny_image == IMAGE}  # of images
VIDEO_TOKENIZERS = {name: make for name, make in EVERY_TOKENIZER.items() if len(make().tiny_image) == 4}

TOKENIZER: dict[str, Any] = {
    "name": "tiny-vq",
    "data": {"kind": "digits", "size": 16},
    "tokenizer": {
        "kind": "conv",
        "downsample": 4,
        "base_channels": 8,
        "channel_multipliers": [1, 1, 1],
        "num_res_blocks": 1,
        "z_channels": 8,
        "groups": 4,
        "quantizer": {"kind": "vq", "codebook_size": 16, "code_dim": 4},
    },
    "training": {
        "images": 128,
        "global_batch": 16,
        "precision": "fp32",
        "validate_images": 32,
        "log_every": 32,
        "validate_every": 64,
        "preview_every": 64,
        "checkpoint_every": 64,
        "monitor_images": 32,
    },
}
GENERATOR: dict[str, Any] = merge(
    TOKENIZER,
    {
        "name": "tiny-raster",
        "generator": {"kind": "raster", "depth": 2, "width": 16, "heads": 2, "multiple_of": 8},
        "training": {"ema": 0.9},
    },
)


def tokenizer_experiment(**changes: Any) -> Experiment:
    return validate(Experiment, merge(TOKENIZER, changes), "test")


def generator_experiment(tokenizer: str, **changes: Any) -> Experiment:
    return validate(Experiment, merge(GENERATOR | {"tokenizer": tokenizer}, changes), "test")
