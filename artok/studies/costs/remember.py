"""A module costs the same whenever it is given the same shapes, so that one block of a stack, or one step of a hundred,
has to be run."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from artok.nn.attention import KVCache
from artok.studies.costs.trace import Like, Trace, Work

Known = dict[Hashable, tuple[Counter[Work], int, Like]]


@contextmanager
def remembered(model: nn.Module, trace: Trace) -> Iterator[list[int]]:
    """Inside, each module below `model` runs once for each kind of input; later calls are counted from memory.

    For tensors on the meta device and without gradients. Gives the bytes of the largest KV cache that was used.
    """
    known: Known = {}
    cache = [0]
    modules = [module for module in model.modules() if module is not model and any(True for _ in module.parameters())]
    for module in modules:
        module.forward = _Remembered(module, known, trace, cache)
    try:
        yield cache
    finally:
        for module in modules:
            del module.forward


class _Remembered:
    """The forward of one module."""

    def __init__(self, module: nn.Module, known: Known, trace: Trace, cache: list[int]) -> None:
        self.forward, self.known, self.trace, self.cache = module.forward, known, trace, cache
        self.names = list(inspect.signature(module.forward).parameters)
        self.structure = (type(module), str(module), _shapes(module), _settings(module))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self.names, args, strict=False)) | kwargs
        for value in given.values():
            if isinstance(value, KVCache):
                self.cache[0] = max(self.cache[0], value.keys.nbytes + value.values.nbytes)
        # a layer's number only says where in the cache it writes
        key = (self.structure, tuple((name, _kind(value)) for name, value in given.items() if name != "layer"))
        if key in self.known:
            return self.trace.repeat(*self.known[key])
        with self.trace.apart() as (works, added):
            result = self.forward(*args, **kwargs)
        if isinstance(result, Tensor):
            self.known[key] = (works, added[0], _like(result))
        return result


def _kind(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return _like(value)
    if isinstance(value, KVCache):
        return (tuple(value.keys.shape), value.keys.dtype, value.filled)
    return value


def _like(tensor: Tensor) -> Like:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def _shapes(module: nn.Module) -> Hashable:
    return tuple((name, tuple(weight.shape), weight.dtype) for name, weight in module.named_parameters())


def _settings(module: nn.Module) -> Hashable:
    """What a module was told beside its weights, in all modules below it."""
    plain = (bool, int, float, str, tuple)
    return tuple(
        (place, name, value)
        for place, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, plain) and not name.startswith("_")
    )
