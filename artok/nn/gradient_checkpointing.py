"""Gradient checkpointing: activations computed twice instead of kept, in any stack of blocks (Chen et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as run_checkpointed


def run(block: nn.Module, *inputs: object, checkpoint: bool) -> Tensor:
    """`block(*inputs)`; with `checkpoint`, its activations are dropped and computed again in the backward pass."""
    if checkpoint and torch.is_grad_enabled():
        return run_checkpointed(block, *inputs, use_reentrant=False)
    return block(*inputs)


def set_gradient_checkpointing(model: nn.Module, on: bool) -> int:
    """Switch it in every module that has a flag `gradient_checkpointing`; returns how many do."""
    stacks = [each for each in model.modules() if isinstance(getattr(each, "gradient_checkpointing", None), bool)]
    for module in stacks:
        module.gradient_checkpointing = on  # type: ignore[assignment]
    return len(stacks)
