"""The plan of sparse attention over videos agrees with what the modules compute and keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from artok.config import validate
from artok.generators import diffusion
from artok.generators.diffusion import LatentDiffusion
from artok.layout import Condition, TokenLayout
from artok.nn.patterns import local, tiles
from artok.nn.windows import TileWindows
from artok.planning.op_trace import Trace
from artok.planning.sparse_attention import local as local_on_paper
from artok.planning.sparse_attention import of_config, saved_bytes

GRID, DEPTH, WIDTH, HEADS = (9, 12, 16), 4, 32, 2
PATTERNS: dict[str, dict[str, Any]] = {
    "full": {},
    "factorised": {},
    "local": {"window": 4, "neighbours": 1, "key_frames": 2},
    "tiles": {"tile": [3, 4, 4], "window": [1, 3, 3]},
}


@pytest.mark.parametrize("kind", PATTERNS)
def test_attention_on_paper_is_what_a_network_computes(kind: str) -> None:
    section = {
        "network": {
            "kind": "dit", "depth": DEPTH, "width": WIDTH, "heads": HEADS, "patch_size": 1,
            "attention": {"kind": kind, **PATTERNS[kind]},
        }
    }  # fmt: skip
    config = validate(diffusion.Config, section, "test")
    layout = TokenLayout((GRID,), 4, None, (3, 33, 96, 128))
    with torch.device("meta"), torch.no_grad():
        model = config.build(layout, 3).to("meta")
        assert isinstance(model, LatentDiffusion)
        context = model.context(Condition(torch.zeros(1, dtype=torch.int64)))
        with Trace() as trace:
            model.network(torch.zeros(1, *layout.value_shape()), torch.zeros(1), context)
    network = config.network
    paper = of_config(network.attention, GRID, DEPTH)  # type: ignore[attr-defined]
    assert trace.take().attention_flops == pytest.approx(paper.flops(DEPTH, WIDTH), rel=0.01)


def test_the_formula_of_local_attention_is_the_module_s() -> None:
    built = local.Config(window=4, neighbours=1, key_frames=1).build(GRID, 0)
    assert local_on_paper(GRID, 4, 1, 1).pairs == built.pairs


@pytest.mark.parametrize(
    "pattern",
    [
        local.Config(window=4).build((9, 12, 16), 0),
        local.Config(window=2, neighbours=2, key_frames=0).build((9, 12, 16), 0),
        tiles.Config(tile=(3, 4, 4), window=(3, 3, 1)).build((9, 12, 16), 0),
    ],
)
def test_memory_on_paper_is_what_the_backward_pass_keeps(pattern: TileWindows) -> None:
    qkv = torch.randn(1, pattern.length, 3, HEADS, WIDTH // HEADS, requires_grad=True)
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        pattern(*qkv.permute(2, 0, 3, 1, 4).unbind())
    assert sum(storages.values()) == pytest.approx(saved_bytes(pattern, WIDTH, HEADS), rel=0.1)
