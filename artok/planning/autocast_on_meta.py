"""Emulates device-dependent choices on meta tensors: autocast and the attention kernel.

Both change the operators that run and the tensors that are kept. The lists are torch's, as far as artok's models use
them (https://docs.pytorch.org/docs/stable/amp.html).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from artok.nn.attention import PLAIN_LENGTH, plain_attention

Chip = Literal["cpu", "gpu"]

LOWERED = {"linear", "matmul", "__matmul__", "bmm", "addmm", "baddbmm", "conv1d", "conv2d", "conv3d"}
RAISED = {
    "cpu": {"cross_entropy", "nll_loss", "mse_loss", "l1_loss", "cdist", "prod"},
    "gpu": {
        *("cross_entropy", "nll_loss", "mse_loss", "l1_loss", "cdist", "prod", "layer_norm", "group_norm", "softmax"),
        *("log_softmax", "exp", "log", "pow", "square", "rsqrt", "sum", "cumsum", "norm", "softplus"),
    },
}


class AutocastOnMeta(TorchFunctionMode):
    """Treats meta tensors as those of a CPU or a GPU, with matrix products in `dtype` as under autocast.

    Copies of weights in lower precision are kept until `end_forward`, as autocast keeps them until it is left.
    """

    def __init__(self, chip: Chip, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.chip, self.dtype = chip, dtype
        self._copies: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            args = [self._lowered(value) for value in args]
            return self._attention(*args, **kwargs)
        if self.dtype != torch.float32:
            if name in LOWERED:
                return func(*map(self._lowered, args), **{key: self._lowered(value) for key, value in kwargs.items()})
            if name in RAISED[self.chip]:
                return func(*map(_raised, args), **kwargs)
        return func(*args, **kwargs)

    def end_forward(self) -> None:
        self._copies.clear()

    def _lowered(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32 or self.dtype == torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.dtype)
        if id(value) not in self._copies:
            self._copies[id(value)] = value.to(self.dtype)
        return self._copies[id(value)]

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
    ) -> Tensor:
        """The kernel that `artok.nn.attention.attend` leads to: on a CPU plain products or the fused kernel, on a GPU
        FlashAttention, or the memory-efficient kernel with a mask or in float32. Plain products where a forward-mode
        derivative has switched these off."""
        assert not dropout_p and not is_causal, "neither artok's models nor the frozen backbones use them"
        unfused = not torch.backends.cuda.mem_efficient_sdp_enabled()
        if unfused or (self.chip == "cpu" and k.shape[2] <= PLAIN_LENGTH):
            return plain_attention(q, k, v, attn_mask, scale)
        bias = None if attn_mask is None else torch.where(attn_mask, 0.0, -torch.inf).to(q.dtype)
        fused: Callable[..., Any]
        if self.chip == "cpu":
            fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return fused(q, k, v, 0.0, False, attn_mask=bias, scale=scale)[0]
        if bias is None and q.dtype != torch.float32:
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, scale=scale)[0]
        if bias is not None:
            bias = bias.expand(*q.shape[:2], q.shape[2], k.shape[2])
        keeps = torch.is_grad_enabled()
        fused = torch.ops.aten._scaled_dot_product_efficient_attention
        return fused(q, k, v, bias, keeps, 0.0, False, scale=scale)[0]


def _raised(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value
