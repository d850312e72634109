"""Reading pickles that hold other classes beside their tensors, with nothing in them ever executed.

A pickle names classes and functions, and calls them as it is read. Here a name means something only if it is one of a
short list of what torch needs to rebuild a tensor. Every other name becomes an inert stand-in, which takes any call,
state or item and does nothing: MAR's argparse.Namespace, the callbacks that Lightning puts into taming's files, and
what a malicious file would like to have called.
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
    """Stands for an object, or the result of a call, that is not to be made."""

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
    """A tensor that was saved with attributes of its own, without them."""
    return build(*arguments) if build in (_rebuild, _rebuild_oldest, _parameter) else Inert()


# Wrappers, and not torch's own functions: a pickle can set attributes on whatever it is handed.
ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): _rebuild_oldest,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _with_attributes,
}


def reading_with_stand_ins(found: set[str]) -> Any:
    """What `torch.load` takes as its `pickle_module`. The names that were replaced are added to `found`."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in ALLOWED:
                return ALLOWED[module, name]
            dtype = getattr(torch, name, None) if module == "torch" else None
            if isinstance(dtype, torch.dtype):
                return dtype
            found.add(f"{module}.{name}")
            return type("StandIn", (Inert,), {})

        def __setattr__(self, name: str, value: Any) -> None:  # torch hands its reader of storages over like this
            super().__setattr__(name, _storages_only(value) if name == "persistent_load" else value)

    def load(file: IO[bytes], **options: Any) -> Any:
        return Unpickler(file, **options).load()

    loads: Callable[..., Any] = _refuse
    return SimpleNamespace(__name__="artok", Unpickler=Unpickler, load=load, loads=loads)


def _storages_only(load: Callable[[Any], object]) -> Callable[[Any], object]:
    """torch's oldest format can also ask for the source of a pickled module to be compared; nothing needs that."""

    def persistent_load(saved_id: Any) -> object:
        kind = saved_id[0] if isinstance(saved_id, tuple) and saved_id else None
        if kind not in ("storage", b"storage"):
            raise pickle.UnpicklingError("the pickle asks for more than the numbers of tensors")
        return load(saved_id)

    return persistent_load


def _refuse(*_: object, **__: object) -> None:
    raise pickle.UnpicklingError("nested pickles are not read")
