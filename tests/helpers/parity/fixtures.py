"""The recorded fixtures: read, wrapped into a file as the published ones are, and imported by `artok import`'s code."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from artok.config import find
from artok.generators.base import Generator
from artok.interop.importing import ImportOptions, import_file
from artok.saved import CONFIG, WEIGHTS, Facts, Saved, load_generator, load_tokenizer, write_config, write_weights
from artok.tokenizers.base import Tokenizer
from helpers.paths import FIXTURES as FOLDER


@dataclass
class Fixture:
    """about: the JSON. weights: by official key. io: inputs and outputs by name. folder: for files made on the way."""

    name: str
    about: dict[str, Any]
    weights: dict[str, Tensor]
    io: dict[str, Tensor]
    folder: Path

    @property
    def made(self) -> dict[str, Any]:
        """The official constructor's arguments."""
        return self.about["constructor"]


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.with_suffix(".safetensors").is_file())


def fixture(name: str, folder: Path) -> Fixture:
    tensors = load_file(FOLDER / f"{name}.safetensors")
    weights = {key[8:]: value for key, value in tensors.items() if key.startswith("weights/")}
    io = {key[3:]: value for key, value in tensors.items() if key.startswith("io/")}
    return Fixture(name, json.loads((FOLDER / f"{name}.json").read_text()), weights, io, folder)


class Callback:
    """Stands for what Lightning keeps in its checkpoints: a class that an import must not need."""


def published(fixture: Fixture) -> Path:
    """A file like the published one: its wrapper, and beside the weights what such files hold."""
    wrapper = (fixture.about["official_checkpoints"]["wrapper"] or "").split(" ")[0]
    path = fixture.folder / f"{fixture.name}.pt"
    content: dict[str, Any] = dict(fixture.weights)
    if wrapper == "state_dict":
        content = {"state_dict": content, "epoch": 7, "callbacks": {Callback: Callback()}}
    elif wrapper == "model_ema":
        raw = {key: torch.zeros_like(value) for key, value in content.items()}
        content = {"model": raw, "model_ema": content, "args": argparse.Namespace(model="mar"), "epoch": 799}
    elif wrapper == "model":
        content = {"model": content, "optimizer": {}, "steps": 1}
    torch.save(content, path)
    return path


def imported_tokenizer(fixture: Fixture, *overrides: str, scale: float | None = None) -> tuple[Path, Tokenizer]:
    """The run of a tokenizer's fixture, and what loading it gives."""
    run = fixture.folder / fixture.name
    channels, height, width = fixture.io["image"].shape[1:]
    size = [f"facts.image=[{channels},{height},{width}]"]
    import_file(published(fixture), run, ImportOptions(size=height, overrides=(*size, *overrides), scale=scale))
    return run, load_tokenizer(run)[0]


def imported_generator(fixture: Fixture, tokenizer: Path, *overrides: str) -> tuple[Generator, Tokenizer]:
    """What loading the run of a generator's fixture gives, with the tokenizer inside it."""
    run = fixture.folder / fixture.name
    import_file(published(fixture), run, ImportOptions(tokenizer=str(tokenizer), overrides=overrides))
    own, _ = load_tokenizer(run)
    return load_generator(run, own.layout)[0], own


def any_tokenizer(folder: Path, side: int, quantizer: dict[str, Any]) -> Path:
    """A run of a tokenizer with random weights, for tokens of a grid of that side."""
    section = {
        "kind": "conv",
        "downsample": 2,
        "base_channels": 4,
        "channel_multipliers": [1, 1],
        "num_res_blocks": 1,
        "z_channels": 4,
        "groups": 1,
    }
    config = find("tokenizers", "conv").model_validate(section | {"quantizer": quantizer})
    image = (3, 2 * side, 2 * side)
    torch.manual_seed(0)
    write_weights(config.build(image).state_dict(), folder / WEIGHTS)
    write_config(
        folder / CONFIG, Saved(tokenizer=config, facts=Facts(image=image, classes=(), data="none", version="0"))
    )
    return folder


# ---------------------------------------------------------------------------------------------- comparison

CHAINS = (
    "_traj", "_final", "_pred_x0_first", "_latents", "t_embed_freq", "head_sample_", "generated_", "recon", "decoded",
    "_image",
)  # fmt: skip


def disagreement(name: str, ours: Tensor, official: Tensor) -> str | None:
    """Why a tensor is not the recorded one, or None: integers exactly, float64 tables to 1e-11 of each value
    (1 - signal is as small as 1e-4, so that a rounding of 1e-16 counts 1e4 times), a forward pass to 1e-5 and whole
    chains (sampling, a decoder of many layers, sinusoids of large float32 angles) to 1e-4 of the largest value."""
    if ours.shape != official.shape:
        return f"{name} has the shape {tuple(ours.shape)}, not {tuple(official.shape)}"
    if not official.is_floating_point():
        wrong = int((ours.long() != official.long()).sum())
        return f"{name} differs in {wrong} of {official.numel()} integers" if wrong else None
    gap = (ours.double() - official.double()).abs()
    if official.dtype == torch.float64:
        wrong = int((gap > 1e-11 * official.abs()).sum())
        return f"{name} differs in {wrong} of {official.numel()} coefficients" if wrong else None
    tolerance = 1e-4 if any(part in name for part in CHAINS) else 1e-5
    allowed = tolerance * max(1.0, float(official.abs().max()))
    worst = float(gap.max())
    return f"{name} is off by {worst:.2e}, {allowed:.2e} allowed" if not worst <= allowed else None
