"""Compares a published file's keys with a module's, and makes the module's tensors from the file's."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from artok.errors import CheckpointError
from artok.interop.families import Family, Source
from artok.interop.reading import Checkpoint
from artok.weights import DTYPES

SHOWN = 6  # keys named in a message


def compare(
    family: Family,
    module: nn.Module,
    checkpoint: Checkpoint,
    sources: Mapping[str, Source],
    ignore: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, list[str]]:
    """Compare all keys with the module's. Returns unused keys by the reason why they are allowed.

    CheckpointError: keys are missing, extra, or of another shape or type; all are passed to `say` first.
    """
    used = {name for source in sources.values() for name in source.names}
    allowed = dict(family.ignored) | dict.fromkeys(ignore, "left out by --ignore")
    unused: dict[str, list[str]] = {}
    extra: list[str] = []
    for key in checkpoint.tensors:
        if key not in used:
            reason = next((why for pattern, why in allowed.items() if fnmatch.fnmatch(key, pattern)), None)
            (extra if reason is None else unused.setdefault(reason, [])).append(key)
    wanting = mismatches(module.state_dict(), checkpoint.tensors, sources)
    problems = {what: keys for what, keys in ({"not part of this model": extra} | wanting).items() if keys}
    if problems:
        for what, keys in problems.items():
            for key in keys:
                say(f"{what}: {key}")
        parts = [
            f"{len(keys)} key{'s' * (len(keys) > 1)} {what} "
            f"({', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''})"
            for what, keys in problems.items()
        ]
        hint = (
            "; keys that are no part of it can be left out with --ignore" if list(problems.values()) == [extra] else ""
        )
        raise CheckpointError(f"{checkpoint.path} does not fit {family.name}: {'; '.join(parts)}{hint}")
    if checkpoint.others:
        unused["outside the part that was read"] = list(checkpoint.others)
    return unused


def mismatches(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], sources: Mapping[str, Source]
) -> dict[str, list[str]]:
    """Keys of a module's state that are missing, of another shape, or of a type that cannot be converted."""
    problems: dict[str, list[str]] = {"missing": [], "of another shape": [], "of another type of number": []}
    for name, place in own.items():
        source = sources.get(name, Source())
        missing = [key for key in source.names if key not in tensors]
        problems["missing"] += missing or ([] if source.names or source.value else [f"the counterpart of {name}"])
        if missing or not source.names:
            continue
        parts, label = [tensors[key] for key in source.names], " + ".join(source.names)
        if not all(converts(part, place) for part in parts):
            types = ", ".join(str(part.dtype).removeprefix("torch.") for part in parts)
            problems["of another type of number"].append(f"{label} {types}")
        elif not fits(source, place, parts):
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            problems["of another shape"].append(f"{label} {shapes}, not {tuple(place.shape)}")
    return problems


def converts(part: Tensor, place: Tensor) -> bool:
    """Whether a tensor's type can be converted to a place's: no complex numbers, no integers for floats."""
    return part.dtype in DTYPES and part.is_floating_point() == place.is_floating_point()


def fits(source: Source, place: Tensor, parts: Sequence[Tensor]) -> bool:
    """Whether a source's parts give a tensor of the place's shape, up to axes of length 1."""
    shapes = [torch.empty(part.shape, device="meta") for part in parts]
    try:
        joined = _concatenate(source, shapes)
    except (RuntimeError, IndexError):
        return False
    return [side for side in joined.shape if side != 1] == [side for side in place.shape if side != 1]


def _concatenate(source: Source, parts: Sequence[Tensor]) -> Tensor:
    whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    return whole if source.change is None else source.change(whole)


def assemble(source: Source, tensors: Mapping[str, Tensor], place: Tensor) -> Tensor:
    """Make one of artok's tensors from its source. CheckpointError: it holds infinities or NaN."""
    if source.value is not None:
        return source.value().view(place.shape)
    value = _concatenate(source, [tensors[name].to(place.dtype) for name in source.names])
    check_finite(value, " + ".join(source.names))
    return value.reshape(place.shape)


def check_finite(value: Tensor, name: str) -> None:
    """Raise a CheckpointError when a published tensor holds infinities or NaN."""
    if not torch.isfinite(value).all():
        raise CheckpointError(f"{name} holds values that are not finite: the file is damaged")


def find_half_precision(checkpoint: Checkpoint, sources: Mapping[str, Source]) -> str | None:
    """The half-precision types of the used tensors, or None."""
    used = {checkpoint.tensors[name].dtype for source in sources.values() for name in source.names}
    half = sorted(str(dtype).removeprefix("torch.") for dtype in used & {torch.float16, torch.bfloat16})
    return " and ".join(half) or None
