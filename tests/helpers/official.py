"""The recorded tensors of official code (see their README), wherever they lie; without them, tests are skipped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers.paths import FIXTURES as FOLDER


@dataclass
class Official:
    """about: the JSON. weights: by official key. io: inputs and outputs by name."""

    about: dict[str, Any]
    weights: dict[str, Tensor]
    io: dict[str, Tensor]


def official(name: str) -> Official:
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is missing; set ARTOK_FIXTURES to the folder of recorded official tensors")
    tensors = load_file(path)
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "io": {}}
    for key, tensor in tensors.items():
        group, rest = key.split("/", 1)
        parts[group][rest] = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return Official(json.loads(path.with_suffix(".json").read_text()), **parts)


def renamed(weights: Mapping[str, Tensor], table: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Weights under names changed by every pattern in turn."""
    result = {}
    for key, tensor in weights.items():
        name = key
        for pattern, replacement in table:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


def load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill a module, every weight of both sides used."""
    missing, unexpected = module.load_state_dict(dict(state), strict=False)
    assert not unexpected
    assert not missing


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """max |a - b| <= tolerance * max(1, max |b|)."""
    assert ours.shape == theirs.shape
    worst = float((ours.double() - theirs.double()).abs().max())
    assert worst <= tolerance * max(1.0, float(theirs.abs().max())), worst


def exact(ours: Tensor | list[float], theirs: Tensor) -> None:
    """float64 tables: 1e-12 relative."""
    torch.testing.assert_close(torch.as_tensor(ours, dtype=torch.float64), theirs.double(), rtol=1e-12, atol=0)
