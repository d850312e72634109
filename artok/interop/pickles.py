"""Reads pickles that hold other classes beside tensors, without executing anything in them.

Unpickling calls the classes and functions that a pickle names. Here only the few functions that torch needs to rebuild
a tensor are called. Every other name becomes an inert object that accepts any call, state or item and does nothing,
such as MAR's argparse.Namespace, Lightning's callbacks in taming's files, or the calls of a malicious file.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch import Tensor


class Inert:
    """A placeholder for an object or the result of a call that is not made."""

    def __new__(cls, *arguments: object, **options: object) -> Inert:
        return object.__new__(cls)

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def __call__(self, *arguments: object, **options: object) -> Inert:
        return Inert()

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    def extend(self, values: object) -> None:
        pass

    def add(self, value: object) -> None:
        pass


def _rebuild(*parts: Any) -> Tensor:
    storage, offset, size, stride = parts[:4]
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


def _rebuild_oldest(storage: Any, offset: int, size: Any, stride: Any) -> Tensor:
    return _rebuild(storage, offset, size, stride)


def _parameter(data: object, *_: object) -> object:
    return data


def _with_attributes(build: Any, _: object, arguments: tuple[Any, ...], __: object) -> object:
    """A tensor that was saved with attributes, without them."""
    return build(*arguments) if build in (_rebuild, _rebuild_oldest, _parameter) else Inert()


# Wrappers instead of torch's functions, since a pickle can set attributes on the objects that it gets.
ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): _rebuild_oldest,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _with_attributes,
}


def reading_with_stand_ins(found: set[str]) -> Any:
    """A `pickle_module` for `torch.load`. Replaced names are added to `found`."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in ALLOWED:
                return ALLOWED[module, name]
            dtype = getattr(torch, name, None) if module == "torch" else None
            if isinstance(dtype, torch.dtype):
                return dtype
            found.add(f"{module}.{name}")
            return type("StandIn", (Inert,), {})

        def __setattr__(self, name: str, value: Any) -> None:  # torch sets its storage reader like this
            super().__setattr__(name, _storages_only(value) if name == "persistent_load" else value)

    def load(file: IO[bytes], **options: Any) -> Any:
        return Unpickler(file, **options).load()

    loads: Callable[..., Any] = _refuse
    return SimpleNamespace(__name__="artok", Unpickler=Unpickler, load=load, loads=loads)


def _storages_only(load: Callable[[Any], object]) -> Callable[[Any], object]:
    """Refuse the other requests of torch's oldest format, such as comparing the source code of a module."""

    def persistent_load(saved_id: Any) -> object:
        kind = saved_id[0] if isinstance(saved_id, tuple) and saved_id else None
        if kind not in ("storage", b"storage"):
            raise pickle.UnpicklingError("the pickle asks for more than the numbers of tensors")
        return load(saved_id)

    return persistent_load


def _refuse(*_: object, **__: object) -> None:
    raise pickle.UnpicklingError("nested pickles are not read")
