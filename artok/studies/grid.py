"""The YAML of a sweep: a grid over a tokenizer's settings, and the experiments that its cells stand for."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from artok.config import Config, load, locate, merge, read_yaml, resolve, validate
from artok.data.base import Augment, Split
from artok.errors import ArtokError, ConfigError
from artok.layout import TokenLayout
from artok.planning.training_cost import training_flops
from artok.saved import check_layout
from artok.studies.config import Evaluation, shipped_study
from artok.training.experiment import SEEDS, CachedTokens, Experiment, check_codebook

SECTIONS = tuple(Experiment.model_fields)  # a key of the grid that begins with one of them is a setting
TOKENIZER, GENERATOR = "tokenizer", "generator"  # folders of a trial
LEAST_STEPS = 10
MOST_CELLS = 1_000
LONGEST = 200  # letters of a folder's name


class Budget(Config):
    """What the generator of every cell gets, the same for all.

    kind: `images` seen, or `flops` of training, forward and backward, of which longer sequences leave fewer images.
    """

    kind: Literal["images", "flops"]
    amount: float = Field(gt=0)


class Robustness(Config):
    """What replaced codes do to reconstructions.

    shares: of an image's codes. neighbours: among so many nearest codes of the codebook the replacement is drawn.
    """

    shares: tuple[float, ...] = (0.1, 0.3)
    neighbours: int = Field(4, ge=1)

    @field_validator("shares")
    @classmethod
    def _growing(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < share <= 1 for share in shares) or list(shares) != sorted(set(shares)):
            raise ValueError("must be shares above 0 and up to 1 that grow")
        return shares


class Sweep(Config):
    """A whole sweep.

    tokenizer: the config whose settings vary; tokenizer_settings: sections on top of it. generator: the config of what
    is trained on each cell's tokens, on the tokenizer's data with its own augmentation, with `settings` on top; without
    one, tokenizers alone are compared.
    grid: axis to its entries. An axis such as `tokenizer.quantizer.codebook_size` is that setting of the tokenizer's
    config, and its entries are values. Any other name is free, and its entries are sections of settings that go
    together, such as {label: f8, tokenizer: {downsample: 8, multipliers: [1, 2, 2, 4]}}; without a label, the first
    value names it.
    impossible: whether combinations that cannot be trained are refused all at once, or skipped with their reason.
    seeds: each trains every cell once, tokenizer and generator.
    workers: cells trained side by side; one a core (at most 4) on a CPU and one on a GPU unless given.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="names the folder, runs/<name>")
    title: str = ""
    intro: str = ""
    tokenizer: str
    tokenizer_settings: dict[str, Any] = Field({})
    generator: str | None = None
    settings: dict[str, Any] = Field({})
    budget: Budget | None = Field(None, description="of each generator; the images of its config unless given")
    grid: dict[str, list[Any]] = Field(min_length=1)
    impossible: Literal["refuse", "skip"] = "refuse"
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    evaluation: Evaluation = Evaluation()
    robustness: Robustness = Robustness()
    workers: int | None = Field(None, ge=1)

    @field_validator("grid", mode="before")
    @classmethod
    def _flat(cls, grid: object) -> object:
        """Nested keys as dotted ones, so that `grid.tokenizer.downsample=[2,4]` on a command line replaces an axis."""

        def flat(section: Mapping[Any, Any], place: str) -> Iterator[tuple[str, Any]]:
            for key, value in section.items():
                if isinstance(value, Mapping):
                    yield from flat(value, f"{place}{key}.")
                else:
                    yield f"{place}{key}", value

        return dict(flat(grid, "")) if isinstance(grid, Mapping) else grid

    @model_validator(mode="after")
    def _whole(self) -> Sweep:
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0 or max(self.seeds) >= SEEDS:
            raise ValueError(f"seeds {list(self.seeds)} must be different whole numbers from 0 to {SEEDS - 1:,}")
        if self.generator is None and (self.budget is not None or self.settings):
            raise ValueError("'budget' and 'settings' are for a 'generator' config, and there is none")
        for name, entries in self.grid.items():
            if not entries:
                raise ValueError(f"the axis '{name}' of the grid has no entries")
            if _free(name) and not all(isinstance(entry, Mapping) for entry in entries):
                raise ValueError(
                    f"the axis '{name}' is no setting of a tokenizer's config (they begin with {', '.join(SECTIONS)}), "
                    "so each of its entries must be a section of settings"
                )
        count = math.prod(map(len, self.grid.values()))
        if count > MOST_CELLS:
            raise ValueError(f"the grid has {count:,} cells, more than {MOST_CELLS:,}; take out entries or axes")
        return self


def _free(axis: str) -> bool:
    """Whether an axis has a free name."""
    return axis.split(".")[0] not in SECTIONS


# ---------------------------------------------------------------------------------------------- axes and cells


@dataclass(frozen=True)
class Entry:
    """label: how tables call it. settings: of the tokenizer's config, nested."""

    label: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """name: how tables call it, the last part of a dotted key."""

    name: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Trial:
    """One training and measurement of a cell. generator: None where tokenizers alone are compared."""

    seed: int
    folder: Path
    tokenizer: Experiment
    generator: Experiment | None


@dataclass(frozen=True)
class Cell:
    """name: names its folder. labels: axis to entry. flops: of training the generator, of an image forward and
    backward, or None without one."""

    name: str
    labels: Mapping[str, str]
    layout: TokenLayout
    trials: tuple[Trial, ...]
    flops: float | None

    @property
    def title(self) -> str:
        return ", ".join(f"{axis} {label}" for axis, label in self.labels.items())


@dataclass(frozen=True)
class Plan:
    """skipped: labels of a combination that cannot be trained, with the reason."""

    study: Sweep
    folder: Path
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    skipped: tuple[tuple[Mapping[str, str], str], ...]


def axes_of(study: Sweep) -> tuple[Axis, ...]:
    """The grid's axes; a ConfigError when two have the same name or two entries of one the same label."""
    axes = []
    for key, entries in study.grid.items():
        free = _free(key)
        made = tuple(_entry(key, entry, free) for entry in entries)
        labels = [entry.label for entry in made]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ConfigError(f"the axis '{key}' of the grid has {twice} twice")
        axes.append(Axis(key if free else key.split(".")[-1], made))
    names = [axis.name for axis in axes]
    if len(set(names)) < len(names):
        raise ConfigError(f"two axes of the grid have the same name, among {', '.join(names)}")
    return tuple(axes)


def _entry(key: str, entry: Any, free: bool) -> Entry:
    if free:
        settings = {name: value for name, value in entry.items() if name != "label"}
        return Entry(str(entry.get("label", _text(next(_leaves(settings), "")))), settings)
    settings = entry
    for part in reversed(key.split(".")):
        settings = {part: settings}
    return Entry(_text(entry), settings)


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


def plan(study: Sweep, folder: Path, only: str | None = None) -> Plan:
    """Every cell's experiments, each checked against the others before anything is trained.

    only: the one cell to look at. ConfigError: it is none; or combinations that cannot be trained, all of them named,
    unless the study skips those; or none is left.
    """
    axes = axes_of(study)
    builder = _Builder(study, folder)
    cells, skipped, named = [], [], {}
    for chosen in itertools.product(*(axis.entries for axis in axes)):
        labels = {axis.name: entry.label for axis, entry in zip(axes, chosen, strict=True)}
        name = "_".join(f"{_slug(axis)}-{_slug(label)}" for axis, label in labels.items())
        if name in named:
            raise ConfigError(f"two cells of the grid would share the folder {name}; give their entries other labels")
        named[name] = labels
        if len(name) > LONGEST:
            raise ConfigError(f"the folder {name[:40]}... would have {len(name)} letters; give entries a short label")
        if only not in (None, name):
            continue
        try:
            cells.append(builder.cell(name, labels, chosen))
        except ArtokError as error:
            skipped.append((labels, str(error)))
    if only is not None and only not in named:
        raise ConfigError(f"the study has no cell {only}; it has {', '.join(named)}")
    refuse_twins(cells)
    if skipped and (study.impossible == "refuse" or not cells):
        why = "; ".join(reasons(skipped))
        raise ConfigError(
            f"{len(skipped)} of {len(named)} combinations cannot be trained ({why}); change the grid"
            + (", or leave them out with impossible=skip" if cells else "")
        )
    return Plan(study, folder, axes, tuple(cells), tuple(skipped))


def reasons(skipped: Sequence[tuple[Mapping[str, str], str]]) -> Iterator[str]:
    """Why combinations cannot be trained, each reason once, after the first two that it holds for."""
    found: dict[str, list[str]] = {}
    for labels, why in skipped:
        found.setdefault(why, []).append(", ".join(f"{axis} {label}" for axis, label in labels.items()))
    for why, names in found.items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        yield f"{' and '.join(names[:2])}{more}: {why}"


def refuse_twins(cells: Sequence[Cell]) -> None:
    """A ConfigError when two cells come to the same training."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(repr(cell.trials[0].tokenizer.model_copy(update={"name": ""})), cell)
        if other is not cell:
            raise ConfigError(f"{other.title} and {cell.title} are the same once the settings of the grid are read")


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", ".", text).strip(".") or "none"


class _Builder:
    """Cells of one study. The data are opened once, and equal layouts counted once."""

    def __init__(self, study: Sweep, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.tokenizer = merge(read_yaml(locate(study.tokenizer)), study.tokenizer_settings)
        self.generator = merge(read_yaml(locate(study.generator)), study.settings) if study.generator else None
        if self.tokenizer.get("generator") is not None:
            raise ConfigError(f"{study.tokenizer} trains no tokenizer, which is what a sweep varies")
        if self.generator is not None and not (self.generator.get("generator") or {}).get("kind"):
            raise ConfigError(f"{study.generator} trains no generator")
        self.split: Split | None = None
        self.data: dict[str, Any] = {}
        self.counted: dict[str, float] = {}

    def cell(self, name: str, labels: Mapping[str, str], chosen: tuple[Entry, ...]) -> Cell:
        """The cell; an ArtokError when it cannot be trained."""
        section = self.tokenizer
        for entry in chosen:
            section = merge(section, entry.settings)
        title = f"{self.study.name}-{name}"
        first = validate(Experiment, resolve(section | {"name": title}), self.study.tokenizer)
        if first.generator is not None or isinstance(first.tokenizer, str):
            raise ConfigError(f"{self.study.tokenizer} trains no tokenizer, which is what a sweep varies")
        split = self._split(first)
        with torch.device("meta"):
            layout = first.tokenizer.build(first.image).layout
        check_codebook(layout, len(split))
        flops = None
        trials = []
        for seed in self.study.seeds:
            place = self.folder / "cells" / name / (f"seed-{seed}" if len(self.study.seeds) > 1 else "")
            tokenizer = first.model_copy(update={"seed": seed})
            generator = None
            if self.generator is not None:
                generator, flops = self._generator(title, seed, place / TOKENIZER, first, layout, len(split.classes))
            trials.append(Trial(seed, place, tokenizer, generator))
        return Cell(name, labels, layout, tuple(trials), flops)

    def _split(self, experiment: Experiment) -> Split:
        """The training images, which all cells must share, or else their figures would not compare."""
        data = experiment.data.model_copy(update={"augment": Augment(), "workers": 0}).model_dump(mode="json")
        if self.split is None:
            self.split, self.data = experiment.data.open("train"), data
        elif data != self.data:
            raise ConfigError("its images are not those of the other cells, so that their figures would not compare")
        return self.split

    def _generator(
        self, title: str, seed: int, tokenizer: Path, first: Experiment, layout: TokenLayout, classes: int
    ) -> tuple[Experiment, float]:
        """The generator's experiment within the budget, and its FLOPs an image."""
        assert self.generator is not None and self.study.generator is not None
        data = {**first.data.model_dump(mode="json"), "augment": self.generator.get("data", {}).get("augment", {})}
        own = {"name": f"{title}-generator", "tokenizer": str(tokenizer), "seed": seed, "data": data}
        experiment = validate(Experiment, resolve(self.generator | own), self.study.generator)
        if experiment.generator is None:
            raise ConfigError(f"{self.study.generator} has no generator")
        check_layout(experiment.generator, layout)
        key = repr((layout, experiment.generator))
        if key not in self.counted:
            # the generator's own work: of cached tokens, whatever its config says
            alone = {"tokenizer": first.tokenizer, "tokens": CachedTokens()}
            self.counted[key] = training_flops(experiment.model_copy(update=alone), classes)
        return fitted(experiment, self.study.budget, self.counted[key]), self.counted[key]


# ---------------------------------------------------------------------------------------------- the budget


def fitted(experiment: Experiment, budget: Budget | None, flops: float) -> Experiment:
    """The experiment with as many images as the budget allows, in whole steps, its warm-up and intervals in proportion.

    flops: of an image. ConfigError: that is less than ten steps.
    """
    training = experiment.training
    if budget is None:
        return experiment
    wanted = budget.amount if budget.kind == "images" else budget.amount / flops
    steps = round(wanted / training.global_batch)
    if steps < LEAST_STEPS:
        raise ConfigError(
            f"the budget leaves its generator {wanted:,.0f} images, less than {LEAST_STEPS} steps of "
            f"{training.global_batch}; raise the budget or make the generator smaller"
        )
    return experiment.model_copy(update={"training": training.lasting(steps * training.global_batch)})


def load_sweep(name: str, overrides: Sequence[str]) -> Sweep:
    """The sweep of a YAML file, or of a shipped name such as "digits-sweep", with key.sub=value settings on top."""
    return load(Sweep, shipped_study(name, "sweep"), overrides)
