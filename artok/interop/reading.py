"""Reads published files, safetensors and torch's formats, without wrappers and without executing anything."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from artok.errors import CheckpointError, shorten
from artok.interop.pickles import Inert, reading_with_stand_ins
from artok.weights import require_memory

# Parts of a training checkpoint, preferred first: EMA weights before the raw ones.
WRAPPERS = ("model_ema", "ema", "trainer", "var_wo_ddp", "state_dict", "model", "module")
PREFIXES = ("module.", "_orig_mod.", "first_stage_model.")  # DistributedDataParallel, torch.compile, latent diffusion
DEPTH = 4  # of nested wrappers, at most, since a pickle can contain itself
FOLDER_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "model.safetensors")


@dataclass
class Checkpoint:
    """A published file. Its tensors are memory-mapped if the format allows it.

    wrapper: the part of the file that holds the tensors, such as "model_ema", or "" for the whole file.
    skipped_classes: classes in the file that were replaced by placeholders. others: keys outside of the part.
    """

    path: Path
    tensors: dict[str, Tensor]
    wrapper: str
    skipped_classes: tuple[str, ...]
    others: tuple[str, ...] = ()


def read(path: Path, wrapper: str | None = None) -> Checkpoint:
    """Read a safetensors or torch file, or a folder of `diffusers` that holds one.

    wrapper: the part to read, such as "model"; default the first of `WRAPPERS` that is there. CheckpointError: the file
    does not exist, is truncated, is no checkpoint, or holds no tensors.
    """
    if path.is_dir():
        inside = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not inside:
            raise CheckpointError(f"{path} is a folder without weights; name the file itself")
        path = inside[0]
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    found: set[str] = set()
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path, found)
    tensors, place, others = unwrap(content, path, wrapper)
    strange = [key for key, tensor in tensors.items() if not _plain(tensor)]
    if strange:
        raise CheckpointError(
            f"{path} holds sparse, quantized or empty tensors, such as {strange[0]}, not plain numbers"
        )
    tensors, prefix, outside = strip(tensors)
    place = ".".join(filter(None, (place, prefix.rstrip("."))))
    return Checkpoint(path, tensors, place, tuple(sorted(found)), (*others, *outside))


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (len(start) == 9 and start[8:] == b"{" and start[:2] != b"PK")


def _plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    require_memory(path.stat().st_size, f"reading {path}", mapped=True)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no readable safetensors file, it may be truncated ({_first(error)})"
        ) from None


def _read_torch(path: Path, found: set[str]) -> Mapping[str, Any]:
    mapped = zipfile.is_zipfile(path)
    if mapped:
        _refuse_other_zips(path)
    require_memory(path.stat().st_size, f"reading {path}", mapped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # failures are raised as a CheckpointError below
        content = _load(path, mapped, found)
    if not isinstance(content, Mapping):
        what = type(content).__name__
        if isinstance(content, Inert):
            what = f"whole object ({', '.join(sorted(found)[:3])}), which is not executed,"
        raise CheckpointError(f"{path} holds a {what} where tensors by name (a state_dict) were expected")
    return content


def _load(path: Path, mapped: bool, found: set[str]) -> Any:
    # A foreign file can raise any exception; all mean that it cannot be read.
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        _pass_on_lack_of_memory(error)
    reader = reading_with_stand_ins(found)
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader, mmap=mapped)
    except Exception as error:
        _pass_on_lack_of_memory(error)
        raise CheckpointError(f"{path} is no checkpoint, or it is truncated ({_first(error)})") from None


def _pass_on_lack_of_memory(error: Exception) -> None:
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        raise error


def _refuse_other_zips(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is no checkpoint, or it is damaged ({_first(error)})") from None
    if "data.pkl" not in names:
        raise CheckpointError(f"{path} is a zip file but no checkpoint: it has no data.pkl")
    if "constants.pkl" in names:  # torch would compile such a file
        raise CheckpointError(f"{path} is a compiled TorchScript program, not a file of weights")


def _first(error: Exception) -> str:
    if isinstance(error, EOFError | pickle.UnpicklingError) and not str(error):
        return "it ends too early"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.split(". ")[0][:160]


# ---------------------------------------------------------------------------------------------- wrappers


def unwrap(
    content: Mapping[str, Any], path: Path, wanted: str | None
) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """The tensors without wrappers, the path of the wrapper, and the keys beside them."""
    place: list[str] = []
    others: list[str] = []
    steps = wanted.split(".") if wanted else None
    while len(place) < DEPTH:
        inside = [name for name in WRAPPERS if isinstance(content.get(name), Mapping) and _holds_tensors(content[name])]
        if steps is not None:
            inside = [steps.pop(0)] if steps else []
            if inside and not isinstance(content.get(inside[0]), Mapping):
                keys = ", ".join(str(key) for key in list(content)[:12])
                raise CheckpointError(f"{path} has no part {shorten(repr(wanted))}; its keys are {shorten(keys)}")
        if not inside:
            break
        others += [f"{'.'.join([*place, str(key)])}" for key in content if key != inside[0]]
        place.append(inside[0])
        content = content[inside[0]]
    tensors = {str(key): value.detach() for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(str(key) for key in list(content)[:12]) or "none"
        raise CheckpointError(f"{path} holds no tensors by name (its keys: {keys}), so it is no checkpoint")
    others += [".".join([*place, str(key)]) for key in content if str(key) not in tensors]
    return tensors, ".".join(place), tuple(others)


def _holds_tensors(part: Mapping[str, Any], depth: int = DEPTH) -> bool:
    """Whether a part, or a wrapper inside it, holds tensors."""
    return any(isinstance(value, Tensor) for value in part.values()) or (
        depth > 0
        and any(isinstance(part.get(name), Mapping) and _holds_tensors(part[name], depth - 1) for name in WRAPPERS)
    )


def strip(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str, list[str]]:
    """Remove the key prefix of a training wrapper. Returns the tensors, the prefix, and the keys without it."""
    prefix = ""
    outside: list[str] = []
    for each in PREFIXES:
        having = {key for key in tensors if key.startswith(each)}
        if having and (len(having) == len(tensors) or each == "first_stage_model."):
            outside += [key for key in tensors if key not in having]
            tensors = {key.removeprefix(each): value for key, value in tensors.items() if key in having}
            prefix += each
    return tensors, prefix, outside
