"""The base class of published families, and detection of a family by its keys."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from artok.errors import CheckpointError
from artok.layout import TokenLayout


@dataclass(frozen=True)
class Source:
    """The source of one of artok's tensors.

    names: published tensors, concatenated along the first axis; axes of length 1 may differ from artok's. change:
    applied to the result; undo: its inverse, unless only the shape changes. value: computes a tensor that a published
    file does not hold.
    """

    names: tuple[str, ...] = ()
    value: Callable[[], Tensor] | None = None
    change: Callable[[Tensor], Tensor] | None = None
    undo: Callable[[Tensor], Tensor] | None = None


def to_published(
    state: Mapping[str, Tensor], sources: Mapping[str, Source], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """artok's tensors under published names and shapes, the inverse of an import."""
    published: dict[str, Tensor] = {}
    for own, source in sources.items():
        if source.names:
            value = state[own] if source.undo is None else source.undo(state[own])
            rows = [shapes[name][0] if len(source.names) > 1 else len(value) for name in source.names]
            for name, part in zip(source.names, value.split(rows), strict=True):
                if name not in published:  # a published tensor with several copies in artok comes from the first
                    published[name] = part.reshape(tuple(shapes[name])).contiguous()
    return published


def rename(*names: str) -> Source:
    return Source(names)


def compute(value: Callable[[], Tensor]) -> Source:
    return Source((), value)


def rename_layer(own: str, published: str, *leaves: str) -> dict[str, Source]:
    """Sources of a layer's weight and bias, or of the named `leaves`."""
    return {f"{own}.{leaf}": rename(f"{published}.{leaf}") for leaf in leaves or ("weight", "bias")}


def rename_all(module: nn.Module, rules: Sequence[tuple[str, str]]) -> dict[str, Source]:
    """Sources of every tensor of a module; the published name results from applying each rule to its name."""
    sources = {}
    for own in module.state_dict():
        published = own
        for pattern, replacement in rules:
            published = re.sub(pattern, replacement, published)
        sources[own] = rename(published)
    return sources


@dataclass(frozen=True)
class Description:
    """The model that follows from a checkpoint's keys and shapes.

    section: the `tokenizer:` or `generator:` section; None marks values that the user has to give.
    size: in words. image: side of its images. classes: of a generator. sampling: the published settings. scale: factor
    on latents for generators. licence: if it differs from the family's.
    """

    section: dict[str, Any]
    size: str
    image: int | None = None
    classes: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    scale: float | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Hints:
    """image: side of the images, if given by the user. layout: of a generator's tokens."""

    image: int | None = None
    layout: TokenLayout | None = None


class Family(ABC):
    """A published checkpoint format.

    role: the kind of model. source: code and paper. licence: of the files.
    ignored: shell patterns of published keys that are not part of the model, with the reason.
    """

    name: ClassVar[str]
    role: ClassVar[Literal["tokenizer", "generator"]]
    source: ClassVar[str]
    licence: ClassVar[str]
    ignored: ClassVar[Mapping[str, str]]

    @abstractmethod
    def recognises(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the keys are of this family and of no other."""

    @abstractmethod
    def describe(self, tensors: Mapping[str, Tensor], hints: Hints) -> Description:
        """The model's size from keys and shapes. CheckpointError: they contradict each other.

        hints: settings given by the user.
        """

    @abstractmethod
    def sources(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Source]:
        """The source of each tensor of the built module."""

    def check(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Raise a CheckpointError when constants in the file differ from those that the module computes."""
        return


def families() -> dict[str, Family]:
    """Every family by name: the modules of `artok.interop` with a `FAMILY`."""
    package = importlib.import_module("artok.interop")
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(package.__path__):
        family = getattr(importlib.import_module(f"artok.interop.{module.name}"), "FAMILY", None)
        if isinstance(family, Family):
            found[family.name] = family
    return found


def find_family(tensors: Mapping[str, Tensor], wanted: str | None) -> Family:
    """The wanted family, or the one whose keys these are. CheckpointError: there is none."""
    known = families()
    fitting = [family for family in known.values() if family.recognises(tensors)]
    if wanted is None:
        if fitting:
            return fitting[0]
        sample = ", ".join(list(tensors)[:4])
        raise CheckpointError(f"these keys ({sample}, ...) match no published family; artok knows {', '.join(known)}")
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise CheckpointError(f"there is no family {wanted!r}; {hint}")
    if not known[wanted].recognises(tensors):
        seems = f"; they look like {fitting[0].name}" if fitting else ""
        raise CheckpointError(f"the keys are not those of the family {wanted}{seems}")
    return known[wanted]


# ---------------------------------------------------------------------------------------------- reading sizes


def shape_of(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> Sequence[int]:
    """The shape of a published tensor. CheckpointError: it is missing or has other dimensions."""
    if name not in tensors:
        raise CheckpointError(f"the key {name} is missing")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions:
        raise CheckpointError(f"{name} has the shape {shape}, where {dimensions} dimensions were expected")
    return shape


def count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """The number of consecutive keys that match `pattern` with {i} = 0, 1, ..."""
    number = 0
    while pattern.format(i=number) in tensors:
        number += 1
    return number


def codebook_sources(own: str, published: str, codes: int) -> dict[str, Source]:
    """Sources of a `Codebook`'s state: the published table, with running counts and sums that agree with it."""
    return {
        f"{own}.table": rename(published),
        f"{own}.sums": rename(published),
        f"{own}.counts": compute(lambda: torch.ones(1, codes)),
        f"{own}.started": compute(lambda: torch.tensor(True)),
    }
