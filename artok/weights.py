"""Reads and writes weight files without a second copy of the model in memory.

Parameters get memory only when the file is read, each tensor is read into its place, and files are written tensor by
tensor. The peak is one copy of the weights plus the largest tensor.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from artok.errors import CheckpointError, RunError
from artok.renamed import current_name

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
EXTRA = "_extra_state"  # the last part of a key that torch gives what a module keeps beside its tensors
NAMED = {name: dtype for dtype, name in DTYPES.items()}


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Modules built inside have parameters on the meta device and real buffers.

    Random initialisation of a large model that is loaded next would take minutes and twice the memory.
    """
    register = nn.Module.register_parameter

    def without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = without_memory  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def size_in_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, each shared tensor counted once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


# ---------------------------------------------------------------------------------------------- memory


def available_memory() -> int | None:
    """Bytes that this process can still allocate, swap included, or None if the system does not say."""
    limits = [*_proc_available(), *_group_left(), *_address_space_left()]
    return min(limits) if limits else None


def _proc_available() -> Iterator[int]:
    with suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        yield 1024 * (kilobytes["MemAvailable"] + kilobytes.get("SwapFree", 0))


def _group_left() -> Iterator[int]:
    """Bytes left under a container's limit (control groups, version 2 and 1)."""
    root = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            yield int((root / limit).read_text()) - int((root / used).read_text())


def _address_space_left() -> Iterator[int]:
    if sys.platform == "linux":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            with suppress(OSError, ValueError):
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                yield limit - pages * resource.getpagesize()


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def require_memory(count: int, what: str, mapped: bool = False) -> None:
    """Raise a RunError with both numbers when `count` bytes are not available.

    mapped: the file is memory-mapped, so only a limit of the address space counts.
    """
    available = min(_address_space_left(), default=None) if mapped else available_memory()
    if available is not None and count > available:
        raise RunError(
            f"{what} needs {gigabytes(count)} of memory, and {gigabytes(max(available, 0))} are free here; "
            "free some, or use a smaller model or a larger machine"
        )


# ---------------------------------------------------------------------------------------------- reading


def read_shapes(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Types and shapes of a safetensors file; a CheckpointError when there is none or it is damaged."""
    return {name: (NAMED[entry["dtype"]], tuple(entry["shape"])) for name, entry in _header(path)[0].items()}


def _header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The entries of a safetensors file and the byte at which its data begin."""
    try:
        with safe_open(path, framework="pt"):  # checks the header and the file's length
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"there are no weights at {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file, it may be truncated ({error})") from None
    entries.pop("__metadata__", None)
    unknown = sorted({entry["dtype"] for entry in entries.values()} - set(NAMED))
    if unknown:
        raise CheckpointError(f"{path} holds numbers of type {unknown[0]}, which artok does not read")
    return entries, 8 + length


def read_into(path: Path, places: Mapping[str, Tensor]) -> None:
    """Read the tensors of a safetensors file into tensors of the same names and shapes, converting their types."""
    entries, start = _header(path)
    with path.open("rb") as file, torch.no_grad():
        for name, place in places.items():
            dtype = NAMED[entries[name]["dtype"]]
            direct = place.is_contiguous() and place.device.type == "cpu" and place.dtype == dtype
            buffer = place.detach() if direct else torch.empty(place.shape, dtype=dtype)
            file.seek(start + entries[name]["data_offsets"][0])
            if buffer.numel():
                file.readinto(_bytes_of(buffer))
            if not direct:
                place.copy_(buffer)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return cast(Any, tensor.reshape(-1).view(torch.uint8).numpy()).data


def read_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into a module, giving memory to the parameters that have none.

    CheckpointError: the file is damaged, or its keys and shapes are not the module's; the first of each are named.
    """
    shapes = read_shapes(path)
    given = {current_name(name): shape for name, shape in shapes.items()}
    own = module.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(own.items())}  # shared tensors: the first name only
    extra = {name for name in own if name.rpartition(".")[2] == EXTRA}  # their shapes follow from what was learned
    own |= {name: torch.empty(given[name][1], dtype=given[name][0]) for name in extra if name in given}
    problems = {
        "of another shape": [name for name in given if name in own and given[name][1] != tuple(own[name].shape)],
        "not in this model": [name for name in given if name not in own],
        "missing": [name for name in first.values() if name not in given and own[name].numel()],
    }
    if any(problems.values()):
        parts = [f"{len(names)} keys {what}, such as {names[0]}" for what, names in problems.items() if names]
        raise CheckpointError(f"{path} is of another architecture: {'; '.join(parts)}")
    require_memory(sum(own[name].nbytes for name in first.values() if own[name].is_meta), f"loading {path}")
    real = {id(tensor): _with_memory(tensor) for tensor in own.values()}
    for name, tensor in own.items():
        if tensor.is_meta:
            holder, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(holder), leaf, real[id(tensor)])
    read_into(path, {name: real[id(own[current_name(name)])] for name in shapes})
    set_extra_states(module, {name: own[name] for name in extra})


def set_extra_states(module: nn.Module, states: Mapping[str, Tensor]) -> None:
    """Give submodules back what they keep beside their tensors. states: by keys of the module's state dict."""
    for name, state in states.items():
        module.get_submodule(name.rpartition(".")[0]).set_extra_state(state)


def _with_memory(tensor: Tensor) -> Tensor:
    if not tensor.is_meta:
        return tensor
    return nn.Parameter(torch.empty(tensor.shape, dtype=tensor.dtype), tensor.requires_grad)


# ---------------------------------------------------------------------------------------------- writing


def write_each(
    path: Path, entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], make: Callable[[str], Tensor]
) -> None:
    """Write a safetensors file of `entries`; each tensor is made by `make(name)` and dropped once it is written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in entries.items():
        start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in entries.items():
            tensor = make(name).to(dtype).contiguous()
            assert tuple(tensor.shape) == shape, f"{name} was to be {shape} and is {tuple(tensor.shape)}"
            if tensor.numel():
                file.write(_bytes_of(tensor))
