"""Published checkpoints with random weights, made from artok's own models by the way back of an import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from artok.config import find
from artok.generators.base import Generator, GeneratorConfig
from artok.interop.families import Source, families, to_published
from artok.layout import TokenLayout
from artok.saved import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    Facts,
    Saved,
    fingerprint,
    load_tokenizer,
    write_config,
    write_weights,
)
from artok.tokenizers.base import TokenizerConfig
from artok.weights import empty_parameters

VQ = {
    "kind": "vq",
    "codebook_size": 32,
    "code_dim": 4,
    "similarity": "euclidean",
    "update": "gradient",
    "dead_code_threshold": 0.0,
}
KL = {"kind": "gaussian", "latent_channels": 4}
CONV: dict[str, Any] = {
    "kind": "conv",
    "downsample": 2,
    "base_channels": 8,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "z_channels": 4,
}
RASTER: dict[str, Any] = {"kind": "raster", "depth": 2, "width": 32, "heads": 2}
DIT = {"kind": "diffusion", "network": {"kind": "dit", "depth": 2, "width": 32, "heads": 2, "patch_size": 2}}


def tokenizer_config(quantizer: Mapping[str, Any], **changes: Any) -> TokenizerConfig:
    part = find("tokenizers", "conv").model_validate(CONV | {"quantizer": dict(quantizer)} | changes)
    assert isinstance(part, TokenizerConfig)
    return part


def generator_config(section: Mapping[str, Any]) -> GeneratorConfig:
    part = find("generators", section["kind"]).model_validate(section)
    assert isinstance(part, GeneratorConfig)
    return part


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that leave nothing at zero, so that a lost one shows."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.2, generator=rng)
    return module.eval()


def published_state(family: str, module: nn.Module, hints: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state dict under the family's names. hints: keys that a family looks at before it names its own."""
    state = module.state_dict()
    sources = families()[family].sources(module, hints or {})
    return to_published(state, sources, shapes(state, sources, hints or {}))


def shapes(
    state: Mapping[str, Tensor], sources: Mapping[str, Source], hints: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """Shapes as artok's own, a joined tensor in equal parts, unless a hint tells another."""
    found: dict[str, tuple[int, ...]] = {}
    for own, source in sources.items():
        whole = tuple(state[own].shape)
        for name in source.names:
            part = (whole[0] // len(source.names), *whole[1:]) if len(source.names) > 1 else whole
            found[name] = tuple(hints[name].shape) if name in hints else part
    return found


def vqgan(side: int = 16, **changes: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """A taming VQGAN: artok's module, and the published state dict of the same weights."""
    built = randomised(tokenizer_config(VQ, **changes).build((3, side, side)))
    table = torch.empty(built.layout.vocab, built.layout.width)  # type: ignore[union-attr, arg-type]
    return built, published_state("taming_vqgan", built, {"quantize.embedding.weight": table})


def tokenizer_run(folder: Path, quantizer: Mapping[str, Any], side: int = 16, **changes: Any) -> Path:
    """A run directory of a tokenizer with random weights."""
    config = tokenizer_config(quantizer, **changes)
    image = (3, side, side)
    write_weights(randomised(config.build(image)).state_dict(), folder / WEIGHTS)
    facts = Facts(image=image, classes=(), data="none", version="0")
    write_config(folder / CONFIG, Saved(tokenizer=config, facts=facts))
    return folder


def generator_run(
    folder: Path, section: Mapping[str, Any], quantizer: Mapping[str, Any], classes: int = 3, **changes: Any
) -> Path:
    """A run directory of a generator with random weights, its tokenizer inside."""
    own, _ = load_tokenizer(tokenizer_run(folder / TOKENIZER, quantizer, **changes))
    config = generator_config(section)
    built = randomised(config.build(own.layout, classes))
    write_weights(built.state_dict(), folder / WEIGHTS)
    names = tuple(f"class {number}" for number in range(classes))
    facts = Facts(image=own.layout.image, classes=names, data="none", tokenizer=fingerprint(own), version="0")
    write_config(folder / CONFIG, Saved(tokenizer=TOKENIZER, generator=config, facts=facts))
    return folder


def on_meta(section: Mapping[str, Any], layout: TokenLayout, classes: int = 1000) -> Generator:
    """A generator of any size, without memory."""
    with empty_parameters():
        return generator_config(section).build(layout, classes)
