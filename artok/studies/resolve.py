"""Resolves a study to experiments with their folders, and finds mistakes before any training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from artok.config import locate, merge, read_yaml, resolve, validate
from artok.data.base import DataConfig, Split
from artok.errors import ArtokError, CheckpointError, ConfigError, LayoutError
from artok.layout import TokenLayout
from artok.saved import CONFIG, TOKENIZER, check_layout, find_saved, read_saved
from artok.studies.config import EntryConfig, Study
from artok.studies.grid import GridPoint, entry_of, grid_title, read_points, refuse_impossible
from artok.tokenizers.base import Tokenizer, TokenizerConfig
from artok.training.encode import DataOnly
from artok.training.experiment import Experiment, check_codebook
from artok.training.same_run import check_same_run


@dataclass
class Planned:
    """A planned training. name: for messages. after: names of trainings that it needs."""

    name: str
    experiment: Experiment
    folder: Path
    after: tuple[str, ...] = ()


@dataclass
class Entry:
    """A resolved entry. runs: the folder of each seed; a finished run may serve several seeds; empty for tokenizers.

    labels: of its point in a grid, axis to label. tokenizers: the folder of each seed's tokenizer, empty for one that
    needs no training. trainings: of the generator, by seed; empty for finished runs. adjustment: the change made to
    meet the budget, as text.
    """

    name: str
    layout: TokenLayout
    classes: int
    runs: dict[int, Path]
    labels: Mapping[str, str] = field(default_factory=dict)
    tokenizers: dict[int, Path] = field(default_factory=dict)
    trainings: dict[int, Planned] = field(default_factory=dict)
    adjustment: str = ""

    @property
    def given(self) -> bool:
        """Whether it is a finished run."""
        return bool(self.runs) and not self.trainings

    @property
    def title(self) -> str:
        return grid_title(self.labels) or self.name


@dataclass
class StudyPlan:
    """A resolved study. tokenizers: trainings by folder name. skipped: points of the grid that cannot be trained, with
    the reason."""

    study: Study
    folder: Path
    data: DataConfig
    entries: list[Entry]
    tokenizers: dict[str, Planned]
    skipped: list[tuple[GridPoint, str]] = field(default_factory=list)

    def trainings(self) -> Iterator[Planned]:
        yield from self.tokenizers.values()
        for entry in self.entries:
            yield from entry.trainings.values()


def settle(study: Study, folder: Path, only: str | None = None) -> StudyPlan:
    """Resolve a study, before its budget is applied. only: name of a single grid point to resolve.

    ConfigError: a config is unknown or impossible, or entries are the same or differ in their data. LayoutError: a
    generator cannot model its tokenizer's tokens. CheckpointError: a run is missing, of other data, or was started with
    other settings. DataError: images are missing.
    """
    tokenizers: dict[str, Planned] = {}
    entries = list[Entry]()
    skipped = []
    for name, config in study.entries.items():
        teacher, init = (_find_earlier(name, role, getattr(config, role), entries) for role in ("teacher", "init"))
        if config.run:
            entries.append(_settle_given(study, folder, name, config))
        else:
            entries.append(_settle_trained(study, folder, name, config, tokenizers, teacher, init))
    for point in read_points(study) if study.grid else ():
        if only not in (None, point.name):
            continue
        own = dict(tokenizers)  # a copy, so that tokenizers of an impossible point are dropped
        try:
            entry = _settle_trained(study, folder, point.name, entry_of(study, point), own)
            entry.labels = point.labels
            _common_data(study, [*entries[:1], entry], own)
            entries.append(entry)
            tokenizers.update(own)
        except ArtokError as error:
            reason = str(error).removeprefix(f"{point.name}: ").replace(f" for {point.name}:", ":")
            skipped.append((point, reason))  # without the name, so that equal reasons are given once
    if study.grid:
        refuse_impossible(study, skipped, len(entries))
    data = _common_data(study, entries, tokenizers)
    _refuse_twins(entries, tokenizers)
    return StudyPlan(study, folder, data, entries, tokenizers, skipped)


# ---------------------------------------------------------------------------------------------- trained entries


def _find_earlier(name: str, role: str, wanted: str | None, entries: list[Entry]) -> Entry | None:
    """The entry `wanted` that an entry names as its teacher or init. ConfigError: there is none before it."""
    if wanted is None:
        return None
    found = next((entry for entry in entries if entry.name == wanted), None)
    if found is None or not found.runs:
        before = ", ".join(entry.name for entry in entries if entry.runs) or "none"
        raise ConfigError(
            f"{name} names the {role} {wanted}, which is no generator among the entries before it ({before})"
        )
    return found


def _settle_trained(
    study: Study,
    folder: Path,
    name: str,
    config: EntryConfig,
    tokenizers: dict[str, Planned],
    teacher: Entry | None = None,
    init: Entry | None = None,
) -> Entry:
    places = _settle_tokenizers(study, folder, name, config, tokenizers)
    if config.generator is None:
        planned = tokenizers.get(places[study.seeds[0]].name)
        if planned is None:
            raise ConfigError(f"{name} names a trained tokenizer and no generator, so that nothing is left to train")
        layout, split = _check_tokens(name, planned.experiment, tokenizers)
        return Entry(name, layout, len(split.classes), {}, tokenizers=places)
    settings = _merge_settings(config.generator, study.settings, config.settings, study)
    if not (settings.get("generator") or {}).get("kind"):
        raise ConfigError(f"{name} names {config.generator} as its generator, but that trains a tokenizer")
    runs = {seed: folder / "trained" / name / f"seed{seed}" for seed in study.seeds}
    trainings = {}
    for seed in study.seeds:
        changes: dict[str, Any] = {"name": f"{name}-seed{seed}", "seed": seed}
        after: tuple[str, ...] = ()
        if places:
            changes["tokenizer"] = str(places[seed])
            after = (f"train {places[seed].name}",) if places[seed].name in tokenizers else ()
        if teacher is not None:
            changes |= _learning(name, settings, str(teacher.runs[seed]))
        if init is not None:
            changes["init"] = str(init.runs[seed])
        after += tuple(each.trainings[seed].name for each in (teacher, init) if each is not None and each.trainings)
        experiment = validate(Experiment, settings | changes, f"{config.generator} for {name}")
        if isinstance(experiment.tokenizer, str) and not places:
            raise ConfigError(f"{name} needs a 'tokenizer': a config to train it from, or the run of a trained one")
        trainings[seed] = Planned(f"train {name} seed {seed}", experiment, runs[seed], after)
    layout, split = _check_tokens(name, trainings[study.seeds[0]].experiment, tokenizers)
    return Entry(name, layout, len(split.classes), runs, tokenizers=places, trainings=trainings)


def _learning(name: str, settings: Mapping[str, Any], teacher: str) -> dict[str, Any]:
    """The sections of a student's settings that name its teacher, with another one in its place."""
    section = settings.get("distill")
    if not section:
        raise ConfigError(f"{name} has a teacher, and its config has no 'distill' section to learn from it by")
    starts = settings.get("init") is not None and settings["init"] == section.get("teacher")
    return {"distill": {**section, "teacher": teacher}} | ({"init": teacher} if starts else {})


def _check_tokens(name: str, experiment: Experiment, tokenizers: Mapping[str, Planned]) -> tuple[TokenLayout, Split]:
    """The token layout and training split of an entry's first training. ArtokError: they do not fit."""
    layout = find_layout(experiment, tokenizers)
    if experiment.generator is not None:
        try:
            check_layout(experiment.generator, layout)
        except LayoutError as error:
            raise LayoutError(f"{name}: {error}") from None
    if layout.image != experiment.image:
        raise ConfigError(f"{name}: the tokenizer makes images of {layout.image}, but the data has {experiment.image}")
    split = experiment.data.open("train")
    if layout.vocab is not None:
        check_codebook(layout, len(split))
    return layout, split


def _merge_settings(config: str, shared: Mapping[str, Any], own: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """Merge a config's sections with the study's and the entry's on top."""
    data = {} if study.data is None else {"data": study.data.model_dump(mode="json")}
    below = merge(read_yaml(locate(config)), data)
    return resolve(merge(merge(below, shared), own))


def _settle_tokenizers(
    study: Study, folder: Path, name: str, config: EntryConfig, known: dict[str, Planned]
) -> dict[int, Path]:
    """The tokenizer's folder for each seed. New trainings are added to `known`."""
    if config.tokenizer is None:
        return {}
    if (Path(config.tokenizer) / CONFIG).exists():
        if config.tokenizer_settings:
            raise ConfigError(f"{name}: {config.tokenizer} is a trained tokenizer, which no settings can change")
        return dict.fromkeys(study.seeds, find_saved(config.tokenizer))
    settings = _merge_settings(config.tokenizer, study.tokenizer_settings, config.tokenizer_settings, study)
    places = {}
    for seed in study.seeds:
        changes = {"seed": seed} if study.tokenizer_seeds else {}
        experiment = validate(Experiment, settings | changes, f"{config.tokenizer} for {name}")
        if experiment.generator is not None:
            raise ConfigError(f"{name} names {config.tokenizer} as its tokenizer, but that trains a generator")
        places[seed] = _place(experiment, folder, name, study.tokenizer_seeds, known)
    return places


def _place(experiment: Experiment, folder: Path, name: str, seeded: bool, known: dict[str, Planned]) -> Path:
    """The folder of a tokenizer's training: of an equal training already planned, or a new one."""
    ending = f"-seed{experiment.seed}" if seeded else ""
    for short in (f"{experiment.name}{ending}", f"{experiment.name}-{name}{ending}"):
        planned = known.get(short)
        if planned is None:
            planned = Planned(f"train {short}", experiment, folder / "tokenizers" / short)
            known[short] = planned
        if planned.experiment == experiment:
            return planned.folder
    raise ConfigError(f"{name}: two tokenizers are called {experiment.name}; give one another 'name' in its settings")


def find_layout(experiment: Experiment, tokenizers: Mapping[str, Planned]) -> TokenLayout:
    """The token layout of a generator's experiment. Its tokenizer need not be trained yet."""
    section, image = tokenizer_section(experiment, tokenizers)
    with torch.device("meta"):
        return section.build(image).layout


def tokenizer_section(
    experiment: Experiment, tokenizers: Mapping[str, Planned]
) -> tuple[TokenizerConfig, tuple[int, ...]]:
    """The tokenizer config of a generator's experiment, and (channels, *size) of its images."""
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


def _settle_given(study: Study, folder: Path, name: str, config: EntryConfig) -> Entry:
    folders = [find_saved(run) for run in config.run]
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


def _common_data(study: Study, entries: list[Entry], tokenizers: Mapping[str, Planned]) -> DataConfig:
    """The data of all measurements. ConfigError, CheckpointError: an entry was trained on other data."""
    sections = {entry.name: section for entry in entries if (section := _section(entry, tokenizers)) is not None}
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
                f"{data.size}), so that their figures would not compare; name one 'data' section for the study"
            )
    data.open("test")
    return data


def _section(entry: Entry, tokenizers: Mapping[str, Planned]) -> DataConfig | None:
    if entry.trainings:
        return next(iter(entry.trainings.values())).experiment.data
    if not entry.runs:
        return tokenizers[next(iter(entry.tokenizers.values())).name].experiment.data
    folder = next(iter(entry.runs.values()))
    section = read_yaml(folder / CONFIG).get("data")
    return None if section is None else validate(DataOnly, {"data": section}, str(folder / CONFIG)).data


def _check_run(entry: Entry, data: DataConfig, split: Split, owner: str) -> None:
    """Raise a CheckpointError when a finished run was trained on other data, as far as its facts say."""
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


def _refuse_twins(entries: list[Entry], tokenizers: Mapping[str, Planned]) -> None:
    """Raise a ConfigError when two entries resolve to the same training."""
    seen: dict[str, Entry] = {}
    for entry in entries:
        if entry.given:
            continue
        own = [planned.experiment for planned in list(entry.trainings.values())[:1]]
        for place in list(entry.tokenizers.values())[:1]:
            planned = tokenizers.get(place.name)
            own = [each.model_copy(update={"tokenizer": ""}) for each in own] if planned else own
            own += [planned.experiment] if planned else []
        other = seen.setdefault(repr([each.model_copy(update={"name": ""}) for each in own]), entry)
        if other is not entry:
            raise ConfigError(f"the entries {other.title} and {entry.title} are the same once their settings are read")


def check_started(plan: StudyPlan) -> None:
    """Raise a CheckpointError when the study's folder holds runs with other settings."""
    for planned in plan.trainings():
        try:
            check_same_run(planned.experiment, planned.folder)
        except CheckpointError as error:  # noqa: PERF203
            raise CheckpointError(f"{error}".replace("--fresh", "'artok compare ... --fresh'")) from None
