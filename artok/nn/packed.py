"""Linear layers whose weights are prepared once for sampling.

On a CPU `F.linear` brings its weight into oneDNN's order at each call. For the few rows of decoding token by token that
costs more than the product. On a GPU autocast casts a weight at each call.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artok.device import has_bfloat16

Weights = Literal["float32", "bfloat16", "float16", "auto"]

FEW_ROWS = 4  # up to so many rows, reading the weights takes longer than multiplying by them


class LateBiasLinear(nn.Linear):
    """A linear layer without a bias of its own, which may be given a computed one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, self.weight, bias)


class PackedLinear(nn.Module):
    """`nn.Linear` on a CPU, for inference. The output has the input's type.

    weights: float32 gives the numbers of `nn.Linear` up to the order of summation. float16 rounds the weights to 11
    bits and computes in float32. bfloat16 rounds weights and inputs to 8 bits. auto is float16 for a few rows, where
    reading the weights takes the time; for more rows it is bfloat16 if this CPU multiplies it natively.
    """

    def __init__(self, linear: nn.Linear, weights: Weights) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.half: Any = None  # not tensors that a module may hold: they live in oneDNN's and FBGEMM's own types
        self.packed: Any = None
        if weights in ("float16", "auto"):
            self.half = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)
        if weights != "float16" and (weights != "auto" or has_bfloat16(weight.device)):
            self.dtype = torch.float32 if weights == "float32" else torch.bfloat16
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(self.dtype))
        self.rows = FEW_ROWS if self.packed is not None else math.inf
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = self.bias if bias is None else bias
        if self.half is not None and x.numel() <= self.rows * self.in_features:
            out = torch.ops.quantized.linear_dynamic_fp16(x.float(), self.half)
            return (out if bias is None else out.add_(bias)).to(x.dtype)
        bias = None if bias is None else bias.to(self.dtype)
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, bias, "none", [], "").to(x.dtype)


class CastLinear(nn.Module):
    """`nn.Linear` with its weight in a shorter type, in which it computes, as under autocast."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = linear.weight.detach().to(dtype)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = self.bias if bias is None else bias.to(self.weight.dtype)
        return F.linear(x.to(self.weight.dtype), self.weight, bias)


def can_pack() -> bool:
    """Whether this build of torch has the operators of `PackedLinear`."""
    return torch.backends.mkldnn.is_available() and "fbgemm" in torch.backends.quantized.supported_engines


def with_linears(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A copy of a module for inference. Linear layers are made anew; all other tensors are shared with the original."""
    made: dict[int, nn.Module] = {}

    def follow(part: nn.Module) -> nn.Module:
        if id(part) not in made:
            if isinstance(part, nn.Linear):
                made[id(part)] = make(part)
            else:
                twin = made[id(part)] = copy.copy(part)
                twin._modules = {name: child and follow(child) for name, child in part._modules.items()}
        return made[id(part)]

    return follow(module)
