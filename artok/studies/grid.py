"""Expands a grid over a tokenizer's settings into entries."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from artok.config import locate, merge, read_yaml, resolve, validate
from artok.errors import ConfigError
from artok.studies.config import EntryConfig, Study, is_free
from artok.training.experiment import Experiment

LONGEST = 200  # letters of a folder's name


@dataclass(frozen=True)
class Axis:
    """name: in tables, the last part of a dotted key. settings: label to a section of the tokenizer's config."""

    name: str
    settings: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class GridPoint:
    """name: of its folders. labels: axis to label. settings: of the tokenizer's config, all axes merged."""

    name: str
    labels: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def title(self) -> str:
        return grid_title(self.labels)


def grid_title(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{axis} {label}" for axis, label in labels.items())


def read_axes(study: Study) -> tuple[Axis, ...]:
    """The grid's axes. ConfigError: two axes have the same name, or two settings of one the same label."""
    axes = []
    for key, values in study.grid.items():
        labelled = [_label(key, value) for value in values]
        labels = [label for label, _ in labelled]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ConfigError(f"the axis '{key}' of the grid has {twice} twice")
        axes.append(Axis(key if is_free(key) else key.split(".")[-1], dict(labelled)))
    names = [axis.name for axis in axes]
    if len(set(names)) < len(names):
        raise ConfigError(f"two axes of the grid have the same name, among {', '.join(names)}")
    return tuple(axes)


def _label(key: str, value: Any) -> tuple[str, Mapping[str, Any]]:
    if is_free(key):
        settings = {name: each for name, each in value.items() if name != "label"}
        return str(value.get("label", _text(next(_leaves(settings), "")))), settings
    settings = value
    for part in reversed(key.split(".")):
        settings = {part: settings}
    return _text(value), settings


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _leaves(each)
    else:
        yield value


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(_text(each) for each in value.values())
    if isinstance(value, list | tuple):
        return "x".join(map(_text, value))
    return str(value)


def read_points(study: Study) -> list[GridPoint]:
    """Every combination of the axes' settings. ConfigError: two points would share a folder."""
    points: dict[str, GridPoint] = {}
    axes = read_axes(study)
    for chosen in itertools.product(*(axis.settings.items() for axis in axes)):
        labels = {axis.name: label for axis, (label, _) in zip(axes, chosen, strict=True)}
        name = "_".join(f"{_slug(axis)}-{_slug(label)}" for axis, label in labels.items())
        if name in points:
            raise ConfigError(f"two points of the grid would share the folder {name}; give their entries other labels")
        if len(name) > LONGEST:
            raise ConfigError(f"the folder {name[:40]}... would have {len(name)} letters; give entries a short label")
        settings: Mapping[str, Any] = {}
        for _, section in chosen:
            settings = merge(settings, section)
        points[name] = GridPoint(name, labels, settings)
    return list(points.values())


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", ".", text).strip(".") or "none"


def entry_of(study: Study, point: GridPoint) -> EntryConfig:
    """The entry of a point: its tokenizer, and a generator on the tokenizer's data with the generator's augmentation.

    ConfigError: the configs are of the wrong kind, or the settings impossible.
    """
    assert study.tokenizer is not None
    tokenizer = {"name": point.name, **point.settings}
    whole = merge(merge(read_yaml(locate(study.tokenizer)), study.tokenizer_settings), tokenizer)
    if (whole.get("generator") or {}).get("kind") or isinstance(whole.get("tokenizer"), str):
        raise ConfigError(f"{study.tokenizer} trains no tokenizer, which is what a grid varies")
    if study.generator is None:
        return EntryConfig(tokenizer=study.tokenizer, tokenizer_settings=tokenizer)
    data = validate(Experiment, resolve(whole), study.tokenizer).data.model_dump(mode="json")
    own = merge(read_yaml(locate(study.generator)), study.settings)
    if not (own.get("generator") or {}).get("kind"):
        raise ConfigError(f"{study.generator} trains no generator")
    data["augment"] = own.get("data", {}).get("augment", {})
    settings = {"data": data}
    return EntryConfig(
        tokenizer=study.tokenizer, tokenizer_settings=tokenizer, generator=study.generator, settings=settings
    )


def refuse_impossible(study: Study, skipped: Sequence[tuple[GridPoint, str]], possible: int) -> None:
    """Raise a ConfigError that names all impossible points, unless the study skips them and others are left."""
    if skipped and (study.impossible == "refuse" or not possible):
        raise ConfigError(
            f"{len(skipped)} of {len(skipped) + possible} combinations cannot be trained "
            f"({'; '.join(_reasons(skipped))}); change the grid"
            + (", or leave them out with impossible=skip" if possible else "")
        )


def _reasons(skipped: Sequence[tuple[GridPoint, str]]) -> Iterator[str]:
    """The reasons why points cannot be trained, each once, with the first two points that it holds for."""
    found: dict[str, list[str]] = {}
    for point, why in skipped:
        found.setdefault(why, []).append(point.title)
    for why, names in found.items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        yield f"{' and '.join(names[:2])}{more}: {why}"
