"""Gradient checkpointing: memory for time, in any stack of blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run(block: nn.Module, *inputs: object, recompute: bool) -> Tensor:
    """`block(*inputs)`; with `recompute`, its activations are dropped and made again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def set_recompute(model: nn.Module, on: bool) -> int:
    """Switch gradient checkpointing in every module that offers it; how many do."""
    stacks = [module for module in model.modules() if isinstance(getattr(module, "recompute", None), bool)]
    for module in stacks:
        module.recompute = on  # type: ignore[assignment]
    return len(stacks)
