"""What a computation costs, operator by operator, from running it on the meta device.

The real modules run; only their numbers are missing. So what is counted is what will be computed: FLOPs by torch's own
formulas, bytes that each operator reads and writes, and which tensors are alive at once.
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

ATTENTION = ("bmm", "baddbmm", "attention")  # batched products occur in artok's attention alone
READS_A_PART = ("embedding", "index", "index_select", "gather")  # of their first tensor: as much as they put out


@dataclass(frozen=True)
class Work:
    """One operator as a device sees it. bytes: read and written; 0 for a view, which runs no kernel.

    dtype: of what it computes on. attention: whether it multiplies queries, keys and values.
    """

    name: str
    flops: int
    bytes: int
    dtype: torch.dtype
    attention: bool


@dataclass
class Costs:
    """How often each piece of work is done."""

    works: Counter[Work]

    def total(self, value: Callable[[Work], float]) -> float:
        return sum(count * value(work) for work, count in self.works.items())

    @property
    def flops(self) -> int:
        return int(self.total(lambda work: work.flops))

    @property
    def attention_flops(self) -> int:
        return int(self.total(lambda work: work.flops if work.attention else 0))

    @property
    def bytes(self) -> int:
        return int(self.total(lambda work: work.bytes))

    @property
    def operators(self) -> int:
        """Kernels, views left out."""
        return int(self.total(lambda work: work.bytes > 0))

    def share(self, part: float) -> Costs:
        """Of work that is done in a part of the steps."""
        return self if part == 1 else Costs(Counter({work: count * part for work, count in self.works.items()}))

    def __add__(self, other: Costs) -> Costs:
        return Costs(self.works + other.works)


Like = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # shape, stride and dtype of a tensor


class Trace(TorchDispatchMode):
    """Counts the operators that run inside, and the bytes of the tensors that they make while these are alive.

    live, peak: bytes now, and the most at any time. What existed before is not among them.
    aside, peak_with_aside: bytes that were set aside, such as gradients, and the most of both together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.works: Counter[Work] = Counter()
        self.live = self.peak = self.aside = self.peak_with_aside = 0
        self._quiet = False
        self._known: dict[Hashable, tuple[Like, Work]] = {}
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}

    def take(self) -> Costs:
        """What was counted since the last call."""
        works, self.works = self.works, Counter()
        return Costs(works)

    @contextmanager
    def apart(self) -> Iterator[tuple[Counter[Work], list[int]]]:
        """What runs inside, by itself, and then also as part of the whole; and the most bytes that it added."""
        outer, before, peak = self.works, self.live, self.peak
        self.works, self.peak = Counter(), self.live
        inner, added = self.works, [0]
        try:
            yield inner, added
        finally:
            added[0] = self.peak - before
            outer.update(inner)
            self.works, self.peak = outer, max(peak, self.peak)

    def repeat(self, works: Counter[Work], added: int, like: Like) -> Tensor:
        """Count again what was counted `apart`, and give a result like the one it had."""
        self.works.update(works)
        self.peak = max(self.peak, self.live + added)
        self._quiet = True
        shape, stride, dtype = like
        result = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        self._quiet = False
        self.hold(result)
        return result

    def set_aside(self, tensor: Tensor) -> None:
        """Count a tensor no longer as alive but by itself, for good; once, where several share their memory."""
        found = self._alive.pop(tensor.untyped_storage()._cdata, None)
        if found is not None:
            self.live -= found[1]
            self.aside += found[1]

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
        self.peak_with_aside = max(self.peak_with_aside, self.live + self.aside)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._quiet:
            return func(*args, **kwargs)
        key = (func, _kind(args), _kind(tuple(kwargs.items())))
        if key in self._known:  # torch takes milliseconds to work out the shapes of some operators
            (shape, stride, dtype), work = self._known[key]
            self.works[work] += 1
            out = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            self.hold(out)
            return out
        out = func(*args, **kwargs)
        inputs = [*_tensors(args), *_tensors(kwargs.values())]
        known = {tensor.untyped_storage()._cdata for tensor in inputs}
        fresh = [tensor for tensor in _tensors(out) if tensor.untyped_storage()._cdata not in known]
        work = _work(func, args, kwargs, out, inputs, fresh)
        self.works[work] += 1
        for tensor in fresh:
            self.hold(tensor)
        if fresh and isinstance(out, Tensor) and out.is_meta and not func._schema.is_mutable:
            self._known[key] = ((tuple(out.shape), out.stride(), out.dtype), work)
        return out


def _kind(value: Any) -> Hashable:
    """What of an argument decides the work and the shape of the result."""
    if isinstance(value, Tensor):
        whole = value.untyped_storage().nbytes()
        return (tuple(value.shape), value.stride(), value.dtype, value.device.type, whole)
    if isinstance(value, (list, tuple)):
        return tuple(map(_kind, value))
    return float if isinstance(value, float) else value


def _work(func: Any, args: Any, kwargs: Any, out: Any, inputs: list[Tensor], fresh: list[Tensor]) -> Work:
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
    return Work(name, flops, moved, dtype, any(word in name for word in ATTENTION))


def _size(tensor: Tensor) -> int:
    """Bytes that reading a tensor touches: those of an expanded one lie there once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)) or (hasattr(values, "__iter__") and not isinstance(values, str)):
        for value in values:
            yield from _tensors(value)
