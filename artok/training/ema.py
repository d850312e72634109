"""The exponential moving average of the weights, which is evaluated and exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from artok.quantizers.base import Replacement
from artok.training.sharding import local


class Ema:
    """shadow <- decay shadow + (1 - decay) weights, over trained parameters.

    Buffers are averaged only where a module names them in `averaged`: a table of codes that follows the encoder belongs
    to the averaged encoder when it is averaged as well.

    It averages the tensors that the optimizer updates, of a sharded model this process's part. The decay is at most
    (1 + step) / (10 + step). The step is the loop's, so that a resumed run equals an uninterrupted one.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for part in model.modules():
            own = dict(part.named_buffers(recurse=False))
            self.weights += [own[name] for name in getattr(part, "averaged", ()) if name in own]
        self.shadow = [parameter.detach().clone() for parameter in self.weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [local(weight.detach()) for weight in self.weights]
        torch._foreach_lerp_([local(shadow) for shadow in self.shadow], weights, 1 - decay)

    @torch.no_grad()
    def restart(self, replaced: list[Replacement]) -> None:
        """Copy replaced rows of tables as they are: an average with what stood there before would be no code at all."""
        shadows = {id(weight): shadow for weight, shadow in zip(self.weights, self.shadow, strict=True)}
        for each in replaced:
            if (shadow := shadows.get(id(each.table))) is not None:  # a frozen table has no average
                shadow.copy_(torch.where(each.rows[:, None], each.table.detach(), shadow))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the context, the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, shadow in zip(self.weights, self.shadow, strict=True):
            own, average = local(weight.detach()), local(shadow)
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        return {str(index): tensor for index, tensor in enumerate(self.shadow)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for index, (tensor, weight) in enumerate(zip(self.shadow, self.weights, strict=True)):
            tensor.copy_(state.get(str(index), weight.detach()))  # checkpoints before 0.2 have no averaged buffers
