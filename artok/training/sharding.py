"""Models whose weights are sharded over processes by FSDP2 (`fully_shard`, Zhao et al. 2023, arXiv 2304.11277).

A sharded module is whole inside its `forward` only, and what makes it whole is a call of all processes. So whatever is
called past `forward` (validation, samples, previews, export) uses a `Twin`, a plain module with the gathered weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils import _pytree

from artok.adversarial.critic import CriticLosses
from artok.errors import ConfigError
from artok.quantizers.codebook import Codebook
from artok.tokenizers.base import Reconstruction


def _register(kind: type, names: tuple[str, ...]) -> None:
    """Let FSDP find the tensors in what a player's `forward` returns, from which its backward pass starts."""
    _pytree.register_pytree_node(
        kind,
        lambda given: ([getattr(given, name) for name in names], None),
        lambda values, _: kind(**dict(zip(names, values, strict=True))),
    )


_register(Reconstruction, ("images", "tokens", "losses", "monitors"))
_register(CriticLosses, ("losses", "monitors"))


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, which is all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of a sharded one in all processes, which have to call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def name_blocks(module: nn.Module) -> None:
    """Tell accelerate's policy TRANSFORMER_BASED_WRAP which parts to gather one by one: the blocks of a stack."""
    names = {type(part).__name__ for part in module.modules()}
    module._no_split_modules = sorted(name for name in names if name.endswith("Block"))  # type: ignore[assignment]


def check_shardable(players: Mapping[str, nn.Module], distilled: bool) -> None:
    """Raise a ConfigError for what trains outside `forward`, where the weights are not whole."""
    tables = any(isinstance(part, Codebook) and not part.follows_means for part in players["model"].modules())
    if tables:
        raise ConfigError(
            "a codebook with update: gradient cannot be sharded; launch without FSDP (DDP), or set quantizer.update=ema"
        )
    if distilled:
        raise ConfigError("distillation cannot be sharded yet; launch without FSDP (DDP)")


class Twin:
    """A plain module like one that is to be sharded, to be made before. It holds no weights outside `filled`."""

    def __init__(self, module: nn.Module, others: Iterable[nn.Module]) -> None:
        """others: modules that it refers to and shares."""
        memo: dict[int, object] = {id(other): other for other in others}
        for weight in module.parameters():
            memo[id(weight)] = nn.Parameter(weight.detach().to("meta"), requires_grad=False)
        self.module: nn.Module = copy.deepcopy(module, memo)

    @contextmanager
    def filled(self, sharded: nn.Module) -> Iterator[nn.Module]:
        """The plain module in eval mode, with the weights and the very buffers of the sharded one; in all processes."""
        twins = dict(self.module.named_modules())
        for name, part in sharded.named_modules():
            twins[name]._buffers.update(part._buffers)
            for key, weight in part._parameters.items():
                if weight is not None:
                    twins[name]._parameters[key] = nn.Parameter(whole(weight.detach()), requires_grad=False)
        try:
            yield self.module.eval()
        finally:
            for part in twins.values():
                for key, weight in part._parameters.items():
                    if weight is not None:
                        part._parameters[key] = nn.Parameter(weight.detach().to("meta"), requires_grad=False)


def make_twin(accelerator: Accelerator, players: Mapping[str, nn.Module], distilled: bool) -> Twin | None:
    """What stands for a model that is going to be sharded. ConfigError: it cannot be."""
    if accelerator.distributed_type.value != "FSDP":
        return None
    if not getattr(accelerator, "is_fsdp2", False):
        raise ConfigError("artok shards by FSDP2: set fsdp_version: 2 in accelerate's config, of accelerate 1.6 on")
    check_shardable(players, distilled)
    model, *others = players.values()
    return Twin(model, others)


@contextmanager
def gathered(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Keep the weights of sharded modules whole inside the context, so that players can call each other's parts.

    Gradients are shared out to the processes as always. Only the memory of the weights is not saved meanwhile.
    """
    sharded = [module for module in modules if isinstance(module, FSDPModule)]
    for module in sharded:
        for part in _parts(module):
            part.set_reshard_after_forward(False, recurse=False)
            part.set_reshard_after_backward(False, recurse=False)
            part.unshard()
    try:
        yield
    finally:
        for module in sharded:
            for part in _parts(module):
                part.reshard()


def _parts(module: FSDPModule) -> list[FSDPModule]:
    assert isinstance(module, nn.Module)
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def clip_gradients(
    accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer, most: float | None
) -> Tensor | None:
    """Scale a player's gradients down to a norm of at most `most`. Returns the norm over all processes before."""
    most = math.inf if most is None else most  # an infinite bound only computes the norm
    if not is_sharded(module):
        norm: Tensor | None = accelerator.clip_grad_norm_(module.parameters(), most)
        return norm
    accelerator.unscale_gradients(optimizer)
    return whole(nn.utils.clip_grad_norm_(module.parameters(), most))
