"""The optimizer of a player, and which players get gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import compress

import torch
from torch import nn

from artok.training.settings import Optimizer


def make_optimizer(module: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices and convolutions only, except those that a module lists as `undecayed`.

    `undecayed` names parameters, or parts whose parameters are all spared.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    named = [getattr(part, name) for part in module.modules() for name in getattr(part, "undecayed", ())]
    spared = {id(p) for each in named for p in (each.parameters() if isinstance(each, nn.Module) else (each,))}
    decays = [p.ndim >= 2 and id(p) not in spared for p in trained]
    groups = [
        {"params": list(compress(trained, decays)), "weight_decay": settings.weight_decay},
        {"params": [p for p, decay in zip(trained, decays, strict=True) if not decay], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


@contextmanager
def only(players: Mapping[str, nn.Module], player: str) -> Iterator[None]:
    """Freeze the other players, so that they get no gradients."""
    others = [p for name, module in players.items() if name != player for p in module.parameters()]
    frozen = [parameter for parameter in others if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
