"""Counts the cost of a computation, operator by operator, by running it on the meta device.

The real modules run without values. Counted are FLOPs by torch's own formulas, bytes that each operator reads and
writes, and bytes that are alive at the same time.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ATTENTION = ("bmm", "baddbmm", "attention")  # only attention has batched products in artok
READS_A_PART = ("embedding", "index", "index_select", "gather")  # they read as much of their first input as they write


@dataclass(frozen=True)
class OpCost:
    """The cost of one operator. flops: a multiply-add counts as two. bytes: read and written; 0 for a view, which runs
    no kernel. dtype: of its inputs. attention: whether it multiplies queries, keys or values.
    """

    name: str
    flops: int
    bytes: int
    dtype: torch.dtype
    attention: bool


@dataclass
class OpCounts:
    """Operators and how often each runs."""

    ops: Counter[OpCost]

    def total(self, value: Callable[[OpCost], float]) -> float:
        return sum(count * value(op) for op, count in self.ops.items())

    @property
    def flops(self) -> int:
        return int(self.total(lambda op: op.flops))

    @property
    def attention_flops(self) -> int:
        return int(self.total(lambda op: op.flops if op.attention else 0))

    @property
    def bytes(self) -> int:
        return int(self.total(lambda op: op.bytes))

    @property
    def operators(self) -> int:
        """Number of kernels; views run none."""
        return int(self.total(lambda op: op.bytes > 0))

    def share(self, part: float) -> OpCounts:
        """The counts of operators that run in a part of the steps only."""
        return self if part == 1 else OpCounts(Counter({op: count * part for op, count in self.ops.items()}))

    def __add__(self, other: OpCounts) -> OpCounts:
        return OpCounts(self.ops + other.ops)


TensorSpec = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # shape, stride, dtype


class Trace(TorchDispatchMode):
    """Counts the operators that run inside it, and the bytes of the tensors that they make.

    live, peak: bytes of these tensors now, and the most at any time. gradients: bytes of tensors given to
    `hold_gradient`, no longer part of `live`. peak_with_gradients: the most of both at any time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[OpCost] = Counter()
        self.live = self.peak = self.gradients = self.peak_with_gradients = 0
        self._quiet = False
        self._known: dict[Hashable, tuple[TensorSpec, OpCost]] = {}
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}

    def take(self) -> OpCounts:
        """The operators since the last call."""
        ops, self.ops = self.ops, Counter()
        return OpCounts(ops)

    @contextmanager
    def apart(self) -> Iterator[tuple[Counter[OpCost], list[int]]]:
        """Yields the operators that run inside and, in a list of one, the most bytes that they add to `live`."""
        outer, before, peak = self.ops, self.live, self.peak
        self.ops, self.peak = Counter(), self.live
        inner, added = self.ops, [0]
        try:
            yield inner, added
        finally:
            added[0] = self.peak - before
            outer.update(inner)
            self.ops, self.peak = outer, max(peak, self.peak)

    def repeat(self, ops: Counter[OpCost], added: int, spec: TensorSpec) -> Tensor:
        """Count again what was counted `apart`; returns a tensor like its result."""
        self.ops.update(ops)
        self.peak = max(self.peak, self.live + added)
        self._quiet = True
        shape, stride, dtype = spec
        result = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        self._quiet = False
        self.hold(result)
        return result

    def hold_gradient(self, tensor: Tensor) -> None:
        """Count a tensor as a gradient and no longer as alive; once, where several share a storage."""
        found = self._alive.pop(tensor.untyped_storage()._cdata, None)
        if found is not None:
            self.live -= found[1]
            self.gradients += found[1]

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's storage as alive until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def freed(_: object) -> None:
            if self._alive.pop(key, None) is not None:
                self.live -= size

        self._alive[key] = (weakref.ref(storage, freed), size)
        self.live += size
        self.peak = max(self.peak, self.live)
        self.peak_with_gradients = max(self.peak_with_gradients, self.live + self.gradients)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._quiet:
            return func(*args, **kwargs)
        key = (func, _kind(args), _kind(tuple(kwargs.items())))
        if key in self._known:  # torch takes milliseconds to work out the shapes of some operators
            (shape, stride, dtype), op = self._known[key]
            self.ops[op] += 1
            out = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            self.hold(out)
            return out
        out = func(*args, **kwargs)
        inputs = [*_tensors(args), *_tensors(kwargs.values())]
        known = {tensor.untyped_storage()._cdata for tensor in inputs}
        fresh = [tensor for tensor in _tensors(out) if tensor.untyped_storage()._cdata not in known]
        op = _cost(func, args, kwargs, out, inputs, fresh)
        self.ops[op] += 1
        for tensor in fresh:
            self.hold(tensor)
        if fresh and isinstance(out, Tensor) and out.is_meta and not func._schema.is_mutable:
            self._known[key] = ((tuple(out.shape), out.stride(), out.dtype), op)
        return out


def _kind(value: Any) -> Hashable:
    """The part of an argument that decides the cost and the shape of the result."""
    if isinstance(value, Tensor):
        whole = value.untyped_storage().nbytes()
        return (tuple(value.shape), value.stride(), value.dtype, value.device.type, whole)
    if isinstance(value, (list, tuple)):
        return tuple(map(_kind, value))
    return float if isinstance(value, float) else value


def _cost(func: Any, args: Any, kwargs: Any, out: Any, inputs: list[Tensor], fresh: list[Tensor]) -> OpCost:
    name = func._schema.name.removeprefix("aten::")
    formula = flop_registry.get(func._overloadpacket)
    flops = int(formula(*args, **kwargs, out_val=out)) if formula else 0
    written = sum(map(_size, fresh))
    if (not fresh and not func._schema.is_mutable) or name.startswith("empty"):
        moved = 0
    elif name in READS_A_PART:
        moved = 2 * written + sum(map(_size, inputs[1:]))
    else:
        moved = written + sum(map(_size, inputs))
    first = next((tensor for tensor in inputs if tensor.is_floating_point()), None)
    dtype = torch.float32 if first is None else first.dtype
    return OpCost(name, flops, moved, dtype, any(word in name for word in ATTENTION))


def _size(tensor: Tensor) -> int:
    """Bytes that reading a tensor touches; an expanded one is stored once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)) or (hasattr(values, "__iter__") and not isinstance(values, str)):
        for value in values:
            yield from _tensors(value)
