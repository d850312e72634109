"""ControlNet: a trained copy of a network's first blocks, which steers the frozen network (Zhang et al. 2023, arXiv
2302.05543)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy

from torch import Tensor, nn

COPIES = ".controlnet.copies."


class ControlNet(nn.Module):
    """copies: of the blocks given by name. zeros: layers that start at zero, one for each state that a copy gives: what
    they make of it is added to the network's own state, so that nothing changes before training (section 3.1).
    """

    def __init__(self, blocks: Mapping[str, nn.ModuleList], zeros: Iterable[nn.Module]) -> None:
        super().__init__()
        self.copies = nn.ModuleDict({name: deepcopy(each) for name, each in blocks.items()}).requires_grad_(True)
        self.zeros = nn.ModuleList(zeros)

    def copy(self, name: str) -> nn.ModuleList:
        copy = self.copies[name]
        assert isinstance(copy, nn.ModuleList)
        return copy

    def residual(self, index: int, state: Tensor, mapped_B: Tensor | None) -> Tensor:
        """What is added to state `index` of the network; exactly zero in rows without a map."""
        residual: Tensor = self.zeros[index](state)
        return residual if mapped_B is None else residual * mapped_B.view(-1, *[1] * (residual.ndim - 1))


def copied_from(name: str) -> str | None:
    """The tensor that the copied one of this name starts from; None for others."""
    return name.replace(COPIES, ".") if COPIES in name else None
