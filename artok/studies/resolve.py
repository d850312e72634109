"""From a study to what has to be done: experiments with their folders, every mistake found before any training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from artok.config import locate, merge, read_yaml, resolve, validate
from artok.data.base import DataConfig, Split
from artok.errors import CheckpointError, ConfigError, LayoutError
from artok.layout import TokenLayout
from artok.saved import CONFIG, TOKENIZER, check_layout, find_saved, read_saved
from artok.studies.config import Contestant, Study
from artok.tokenizers.base import Tokenizer, TokenizerConfig
from artok.training.encode import DataOnly
from artok.training.experiment import Experiment, check_codebook
from artok.training.run import check_same_run

SHARED = -1  # in place of a seed: the tokenizer of all seeds


@dataclass
class Planned:
    """One training. name: for messages. weights: how many points of its course are kept."""

    name: str
    experiment: Experiment
    folder: Path
    after: tuple[str, ...] = ()


@dataclass
class Entry:
    """A contestant, settled. runs: the folder of each seed, which may be the same one for all where it was given.

    tokenizers: the folder of each seed's tokenizer, empty for one that needs no training. trainings: of the generator,
    by seed; empty for finished runs. did: what was done to meet the budget, in words.
    """

    name: str
    layout: TokenLayout
    classes: int
    runs: dict[int, Path]
    tokenizers: dict[int, Path] = field(default_factory=dict)
    trainings: dict[int, Planned] = field(default_factory=dict)
    did: str = ""

    @property
    def given(self) -> bool:
        return not self.trainings


@dataclass
class Plan:
    """Everything a study needs. tokenizers: trainings by folder name."""

    study: Study
    folder: Path
    data: DataConfig
    entries: list[Entry]
    tokenizers: dict[str, Planned]

    def trainings(self) -> Iterator[Planned]:
        yield from self.tokenizers.values()
        for entry in self.entries:
            yield from entry.trainings.values()


def settle(study: Study, folder: Path) -> Plan:
    """What the study trains and uses, before any budget.

    ConfigError: a config is unknown or impossible, contestants are the same or differ in their data; LayoutError: a
    generator cannot model its tokenizer's tokens; CheckpointError: a run is missing or of other data, or one that the
    study started before had other settings; DataError: images are missing.
    """
    tokenizers: dict[str, Planned] = {}
    entries = []
    for name, contestant in study.contestants.items():
        settled = _given if contestant.run else _trained
        entries.append(settled(study, folder, name, contestant, tokenizers))
    data = _common_data(study, entries)
    _refuse_twins(entries)
    return Plan(study, folder, data, entries, tokenizers)


# ---------------------------------------------------------------------------------------------- trained contestants


def _trained(study: Study, folder: Path, name: str, contestant: Contestant, tokenizers: dict[str, Planned]) -> Entry:
    assert contestant.generator is not None
    settings = _settings(contestant.generator, study.settings, contestant.settings, study)
    if not (settings.get("generator") or {}).get("kind"):
        raise ConfigError(f"{name} names {contestant.generator} as its generator, but that trains a tokenizer")
    runs = {seed: folder / "trained" / name / f"seed{seed}" for seed in study.seeds}
    places = _tokenizers(study, folder, name, contestant, tokenizers)
    trainings = {}
    for seed in study.seeds:
        changes: dict[str, Any] = {"name": f"{name}-seed{seed}", "seed": seed}
        after: tuple[str, ...] = ()
        if places:
            changes["tokenizer"] = str(places[seed])
            after = (f"train {places[seed].name}",) if places[seed].name in tokenizers else ()
        experiment = validate(Experiment, settings | changes, f"{contestant.generator} for {name}")
        if isinstance(experiment.tokenizer, str) and not places:
            raise ConfigError(f"{name} needs a 'tokenizer': a config to train it from, or the run of a trained one")
        trainings[seed] = Planned(f"train {name} seed {seed}", experiment, runs[seed], after)
    first = trainings[study.seeds[0]].experiment
    layout = layout_of(first, tokenizers)
    assert first.generator is not None
    try:
        check_layout(first.generator, layout)
    except LayoutError as error:
        raise LayoutError(f"{name}: {error}") from None
    if layout.image != first.image:
        raise ConfigError(f"{name}: the tokenizer makes images of {layout.image}, but the data has {first.image}")
    split = first.data.open("train")
    if layout.vocab is not None:
        check_codebook(layout, len(split))
    return Entry(name, layout, len(split.classes), runs, places, trainings)


def _settings(config: str, shared: Mapping[str, Any], own: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """A config's sections with the study's and the contestant's on top."""
    data = {} if study.data is None else {"data": study.data.model_dump(mode="json")}
    below = merge(read_yaml(locate(config)), data)
    return resolve(merge(merge(below, shared), own))


def _tokenizers(
    study: Study, folder: Path, name: str, contestant: Contestant, known: dict[str, Planned]
) -> dict[int, Path]:
    """The tokenizer's folder for each seed, each training added to `known` once."""
    if contestant.tokenizer is None:
        return {}
    if (Path(contestant.tokenizer) / CONFIG).exists():
        if contestant.tokenizer_settings:
            raise ConfigError(f"{name}: {contestant.tokenizer} is a trained tokenizer, which no settings can change")
        return dict.fromkeys(study.seeds, find_saved(contestant.tokenizer))
    settings = _settings(contestant.tokenizer, study.tokenizer_settings, contestant.tokenizer_settings, study)
    places = {}
    for seed in study.seeds:
        changes = {"seed": seed} if study.tokenizer_seeds else {}
        experiment = validate(Experiment, settings | changes, f"{contestant.tokenizer} for {name}")
        if experiment.generator is not None:
            raise ConfigError(f"{name} names {contestant.tokenizer} as its tokenizer, but that trains a generator")
        places[seed] = _place(experiment, folder, name, study.tokenizer_seeds, known)
    return places


def _place(experiment: Experiment, folder: Path, name: str, seeded: bool, known: dict[str, Planned]) -> Path:
    """Where a tokenizer is trained: one that is planned already, or a new place under its own name."""
    ending = f"-seed{experiment.seed}" if seeded else ""
    for short in (f"{experiment.name}{ending}", f"{experiment.name}-{name}{ending}"):
        planned = known.get(short)
        if planned is None:
            planned = Planned(f"train {short}", experiment, folder / "tokenizers" / short)
            known[short] = planned
        if planned.experiment == experiment:
            return planned.folder
    raise ConfigError(f"{name}: two tokenizers are called {experiment.name}; give one another 'name' in its settings")


def layout_of(experiment: Experiment, tokenizers: Mapping[str, Planned]) -> TokenLayout:
    """The tokens that a generator's experiment models, whether its tokenizer is trained already or not."""
    section, image = tokenizer_section(experiment, tokenizers)
    with torch.device("meta"):
        return section.build(image).layout


def tokenizer_section(
    experiment: Experiment, tokenizers: Mapping[str, Planned]
) -> tuple[TokenizerConfig, tuple[int, ...]]:
    """What describes the tokenizer of a generator's experiment, and (channels, *size) of its images."""
    section, image = experiment.tokenizer, experiment.image
    if isinstance(section, str):
        planned = tokenizers.get(Path(section).name)
        if planned is not None and str(planned.folder) == section:
            section, image = planned.experiment.tokenizer, planned.experiment.image
        else:
            place = Path(section)
            saved = read_saved(place / TOKENIZER if (place / TOKENIZER).exists() else place)
            section, image = saved.tokenizer, saved.facts.image
    assert isinstance(section, TokenizerConfig)
    return section, image


# ---------------------------------------------------------------------------------------------- finished runs


def _given(study: Study, folder: Path, name: str, contestant: Contestant, tokenizers: dict[str, Planned]) -> Entry:
    folders = [find_saved(run) for run in contestant.run]
    if len(folders) == 1:
        folders *= len(study.seeds)
    saved = read_saved(folders[0])
    if saved.generator is None:
        raise ConfigError(f"{name} names the run {folders[0]}, which holds a tokenizer and not a generator")
    layout = _built(folders[0]).layout
    return Entry(name, layout, len(saved.facts.classes), dict(zip(study.seeds, folders, strict=True)))


def _built(folder: Path) -> Tokenizer:
    saved = read_saved(folder / TOKENIZER)
    assert not isinstance(saved.tokenizer, str)
    with torch.device("meta"):
        return saved.tokenizer.build(saved.facts.image)


# ---------------------------------------------------------------------------------------------- one data set


def _common_data(study: Study, entries: list[Entry]) -> DataConfig:
    """The data that all are measured on; a ConfigError or CheckpointError when one was made for other data."""
    sections = {entry.name: section for entry in entries if (section := _section(entry)) is not None}
    if study.data is None and not sections:
        raise ConfigError("the study names no data, and neither do its runs; add a 'data' section")
    data = study.data or next(iter(sections.values()))
    split = data.open("train")
    owner = "the study" if study.data else next(iter(sections))
    for entry in entries:
        if entry.given:
            _check_run(entry, data, split, owner)
            continue
        own = sections[entry.name]
        if own.open("train").fingerprint != split.fingerprint or own.size != data.size:
            raise ConfigError(
                f"{entry.name} trains on other data than {owner} ({own.kind} at {own.size}, {data.kind} at "
                f"{data.size}); name one 'data' section for the study"
            )
    data.open("test")
    return data


def _section(entry: Entry) -> DataConfig | None:
    if entry.trainings:
        return next(iter(entry.trainings.values())).experiment.data
    folder = next(iter(entry.runs.values()))
    section = read_yaml(folder / CONFIG).get("data")
    return None if section is None else validate(DataOnly, {"data": section}, str(folder / CONFIG)).data


def _check_run(entry: Entry, data: DataConfig, split: Split, owner: str) -> None:
    """A finished run must have been made for this very data, as far as it says."""
    for folder in entry.runs.values():
        facts = read_saved(folder).facts
        image = data.image
        if facts.image != image:
            raise CheckpointError(f"{entry.name}: the run {folder} makes images of {facts.image}, {owner} has {image}")
        if facts.data and facts.data != split.fingerprint:
            raise CheckpointError(f"{entry.name}: the run {folder} was trained on another data set than {owner} has")
        if len(facts.classes) != len(split.classes):
            raise CheckpointError(
                f"{entry.name}: the run {folder} knows {len(facts.classes)} classes, {owner} has {len(split.classes)}"
            )


def _refuse_twins(entries: list[Entry]) -> None:
    """A ConfigError when two contestants come to the same training."""
    seen: dict[str, str] = {}
    for entry in entries:
        if entry.trainings:
            first = next(iter(entry.trainings.values())).experiment
            other = seen.setdefault(repr(first.model_copy(update={"name": ""})), entry.name)
            if other != entry.name:
                raise ConfigError(f"the contestants {other} and {entry.name} are the same once their settings are read")


def check_started(plan: Plan) -> None:
    """A CheckpointError when the study's folder holds runs of other settings than it asks for now."""
    for planned in plan.trainings():
        try:
            check_same_run(planned.experiment, planned.folder)
        except CheckpointError as error:  # noqa: PERF203
            raise CheckpointError(f"{error}".replace("--fresh", "'artok compare ... --fresh'")) from None
