"""Caches costs by module and input shapes, so that identical blocks and steps are traced once."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from artok.nn.attention import KVCache
from artok.planning.op_trace import OpCost, TensorSpec, Trace

METHODS = ("forward", "sample")  # sample: of a diffusion head, which draws its tokens in many steps

Known = dict[Hashable, tuple[Counter[OpCost], int, TensorSpec]]


@contextmanager
def cache_costs(model: nn.Module, trace: Trace) -> Iterator[list[int]]:
    """Inside, each module below `model` runs once per kind of input; later calls repeat the cached cost.

    For tensors on the meta device, without gradients. Yields, in a list of one, the bytes of the largest KV cache.
    """
    known: Known = {}
    numbers: dict[Hashable, int] = {}
    cache = [0]
    modules = [module for module in model.modules() if module is not model and any(True for _ in module.parameters())]
    for module in modules:
        structure = (type(module), str(module), _shapes(module), _settings(module))
        number = numbers.setdefault(structure, len(numbers))  # hashing the long tuple once per module
        for name in METHODS:
            if hasattr(module, name):
                setattr(module, name, _CachedCost(getattr(module, name), (number, name), known, trace, cache))
    try:
        yield cache
    finally:
        for module in modules:
            for name in METHODS:
                vars(module).pop(name, None)


class _CachedCost:
    """A method of a module whose cost is cached. name: the same for all modules of the same structure."""

    def __init__(
        self, method: Callable[..., Any], name: Hashable, known: Known, trace: Trace, cache: list[int]
    ) -> None:
        self.method, self.name, self.known, self.trace, self.cache = method, name, known, trace, cache
        self.parameters = list(inspect.signature(method).parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        for value in given.values():
            if isinstance(value, KVCache):
                self.cache[0] = max(self.cache[0], value.keys.nbytes + value.values.nbytes)
        # a layer's number does not change its cost
        key = (self.name, tuple((name, _kind(value)) for name, value in given.items() if name != "layer"))
        if key in self.known:
            return self.trace.repeat(*self.known[key])
        with self.trace.apart() as (ops, added):
            result = self.method(*args, **kwargs)
        if isinstance(result, Tensor):
            self.known[key] = (ops, added[0], _spec(result))
        return result


def _kind(value: Any) -> Hashable:
    """The part of an argument that decides the cost; the value of a float does not."""
    if isinstance(value, Tensor):
        return _spec(value)
    if is_dataclass(value):  # a context, a cache
        return tuple(_kind(getattr(value, each.name)) for each in fields(value))
    if isinstance(value, Mapping):
        return tuple(map(_kind, value.values()))
    if isinstance(value, list | tuple):
        return tuple(map(_kind, value))
    return float if isinstance(value, float) else value


def _spec(tensor: Tensor) -> TensorSpec:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def _shapes(module: nn.Module) -> Hashable:
    return tuple((name, tuple(weight.shape), weight.dtype) for name, weight in module.named_parameters())


def _settings(module: nn.Module) -> Hashable:
    """Settings of a module and of those below it, beside their weights."""
    plain = (bool, int, float, str, tuple)
    return tuple(
        (place, name, value)
        for place, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, plain) and not name.startswith("_")
    )
