"""Weights prepared for sampling: same numbers in float32, near ones in the shorter types, and no stale copies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from artok.device import has_bfloat16
from artok.nn.packed import (
    FEW_ROWS,
    CastLinear,
    LateBiasLinear,
    PackedLinear,
    Weights,
    can_pack,
    with_linears,
)

ROUNDING = {"float32": 2.0**-22, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # relative, of a weight or of a sum
needs_operators = pytest.mark.skipif(not can_pack(), reason="this build of torch has no packed products")


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@needs_operators
@pytest.mark.parametrize("weights", ["float32", "float16", "bfloat16", "auto"])
@pytest.mark.parametrize("rows", [1, FEW_ROWS, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_multiplies_like_the_layer(weights: Weights, rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(96, 40, bias=bias), torch.randn(1, rows, 96)
    with torch.inference_mode():
        got, wanted = PackedLinear(layer, weights)(x), F.linear(x.double(), layer.weight.double()).float()
        wanted = wanted if layer.bias is None else wanted + layer.bias
    effective = weights
    if weights == "auto":
        effective = "bfloat16" if has_bfloat16(torch.device("cpu")) and rows > FEW_ROWS else "float16"
    assert got.shape == (1, rows, 40) and got.dtype == torch.float32
    # independent roundings of inputs, weights and the sum, each by at most half a unit
    assert relative_error(got, wanted) < 2 * ROUNDING[effective]
    if effective != "float32":
        assert relative_error(got, wanted) > ROUNDING[effective] / 16


@needs_operators
def test_a_packed_layer_takes_a_late_bias_and_short_inputs() -> None:
    torch.manual_seed(0)
    layer, x, bias = LateBiasLinear(32, 8), torch.randn(3, 32), torch.randn(8)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(layer, "float32")(x, bias), layer(x, bias))
        assert PackedLinear(layer, "auto")(x.bfloat16()).dtype == torch.bfloat16


def test_a_cast_layer_computes_in_its_type() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 8), torch.randn(3, 32)
    got = CastLinear(layer, torch.bfloat16)(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(got, layer(x))


def test_the_copy_shares_everything_but_linear_layers() -> None:
    shared = nn.Linear(4, 4)
    module = nn.ModuleDict({"a": nn.Sequential(shared, nn.LayerNorm(4)), "b": shared})
    made = with_linears(module, lambda linear: nn.Identity())
    assert isinstance(module["a"][0], nn.Linear)  # the original is as it was
    assert made["a"][0] is made["b"] and isinstance(made["b"], nn.Identity)  # type: ignore[index]
    assert made["a"][1].weight is module["a"][1].weight  # type: ignore[index]
