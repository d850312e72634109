"""Measures the runs of a study; each record is stored in its own file.

A record is one set of weights under one sampling setting. Its file has a cache key of everything that affects its
value, so a resumed study measures only missing and outdated records.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from artok.config import validate
from artok.errors import ArtokError
from artok.evaluation.code_usage import examine
from artok.evaluation.edits import add_edits
from artok.evaluation.evaluator import Evaluator
from artok.evaluation.rollouts import add_rollouts
from artok.evaluation.run_directory import diverged
from artok.generators.base import Generator, GeneratorConfig
from artok.metrics.results import Results
from artok.noise import fold
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling
from artok.saved import TOKENIZER, WEIGHTS, Saved, digest_file, load_tokenizer, read_saved, read_training, write_json
from artok.studies.resolve import Entry, StudyPlan
from artok.tokenizers.base import TokenizerConfig
from artok.training.checkpoints import list_snapshots
from artok.training.log import LOG, read_log
from artok.training.progress import Progress
from artok.weights import read_weights

Kind = Literal["final", "images", "steps", "cfg_scale", "own", "tokenizer"]
FORMAT = 3  # of a record's file
RECORDS = "records"


@dataclass(frozen=True)
class Record:
    """kind: `final`, all metrics of the finished run; `images`, samples of the weights after `at` images; `steps` and
    `cfg_scale`, samples with that setting at `at`; `own`, samples with the entry's settings and as many images as for
    those; `tokenizer`, reconstructions.

    owner: the entry or tokenizer. folder: of the run. n: number of images; None for all held-out ones.
    """

    kind: Kind
    owner: str
    seed: int
    folder: Path
    weights: Path
    sampling: Sampling
    n: int | None
    at: float | None = None

    @property
    def name(self) -> str:
        return self.kind if self.at is None else f"{self.kind}-{self.at:g}"

    def place(self, study: Path) -> Path:
        """Its file."""
        if self.kind == "tokenizer":
            return study / RECORDS / "tokenizers" / f"{self.owner}.json"
        return study / RECORDS / "entries" / self.owner / f"seed{self.seed}" / f"{self.name}.json"


# ---------------------------------------------------------------------------------------------- owners


def owners(plan: StudyPlan) -> list[str]:
    """The owners that `measure` takes: entries, and tokenizers that several entries share."""
    own = {name for entry in plan.entries for name in list_own_tokenizers(plan, entry)}
    return [entry.name for entry in plan.entries] + [
        f"{TOKENIZER}:{name}" for name in list_tokenizers(plan) if name not in own
    ]


def list_tokenizers(plan: StudyPlan) -> dict[str, Path]:
    """Folder by name of every tokenizer with weights; one from a finished run has the name of its entry."""
    found: dict[str, Path] = {name: planned.folder for name, planned in plan.tokenizers.items()}
    digests: dict[str, str] = {}
    for entry in plan.entries:
        for folder in set(_folders(entry).values()):
            if folder in found.values() or not _has_weights(folder):
                continue
            short = folder.name if folder.name != TOKENIZER else entry.name
            found.setdefault(digests.setdefault(digest_file(folder / WEIGHTS), short), folder)
    return found


def tokenizer_of(plan: StudyPlan, entry: Entry) -> dict[int, str]:
    """The name of each seed's tokenizer, among those measured."""
    names = {folder: name for name, folder in list_tokenizers(plan).items()}
    return {seed: names[folder] for seed, folder in _folders(entry).items() if folder in names}


def list_own_tokenizers(plan: StudyPlan, entry: Entry) -> list[str]:
    """Names of the tokenizers that only this entry uses, which are measured with it."""
    others = {folder for other in plan.entries if other is not entry for folder in _folders(other).values()}
    known = list_tokenizers(plan)
    return list(dict.fromkeys(name for name in tokenizer_of(plan, entry).values() if known[name] not in others))


def _folders(entry: Entry) -> dict[int, Path]:
    if entry.given:
        return {seed: run / TOKENIZER for seed, run in entry.runs.items()}
    return entry.tokenizers


def _has_weights(folder: Path) -> bool:
    """Whether a tokenizer has weights; the pixel tokenizer, which loses nothing, has none."""
    return isinstance(config := read_saved(folder).tokenizer, TokenizerConfig) and config.kind != "pixels"


# ---------------------------------------------------------------------------------------------- records


def list_records(plan: StudyPlan, owner: str) -> list[Record]:
    """The records of an entry or a tokenizer, for existing runs."""
    if owner.startswith(f"{TOKENIZER}:"):
        return [tokenizer_record(plan, owner.partition(":")[2])]
    entry = next(entry for entry in plan.entries if entry.name == owner)
    own = [tokenizer_record(plan, name) for name in list_own_tokenizers(plan, entry)]
    return own + [record for seed in entry.runs for record in _of_seed(plan, entry, seed)]


def tokenizer_record(plan: StudyPlan, name: str) -> Record:
    folder = list_tokenizers(plan)[name]
    return Record("tokenizer", name, 0, folder, folder / WEIGHTS, Sampling(), plan.study.evaluation.n)


def _of_seed(plan: StudyPlan, entry: Entry, seed: int) -> Iterator[Record]:
    """The records of one seed, in the order of measurement."""
    study, folder = plan.study, entry.runs[seed]
    if not (folder / WEIGHTS).exists() or diverged(read_log(folder / LOG)):
        return
    saved = read_saved(folder)
    assert saved.generator is not None
    sampling = saved.sampling.model_copy(update={"seed": seed})
    weights, rank = folder / WEIGHTS, study.seeds.index(seed)

    def record(kind: Kind, n: int | None, at: float | None = None, **changes: Any) -> Record:
        return Record(kind, entry.name, seed, folder, weights, sampling.model_copy(update=changes), n, at)

    yield record("final", study.evaluation.n)
    if rank < study.curve.seeds:
        yield from _snapshots(plan, entry, seed, sampling)
    grid = study.sampling_grid
    if rank >= grid.seeds:
        return
    if grid.n not in (None, study.evaluation.n):
        yield record("own", grid.n)
    generator = build_on_meta(entry, saved.generator)
    for steps in possible_steps(generator, saved, sampling, grid.steps):
        yield record("steps", grid.n, steps, steps=steps)
    if saved.generator.guides and not (saved.distill and saved.distill.cfg_scale != 1):
        for scale in grid.cfg_scale:
            yield record("cfg_scale", grid.n, scale, cfg_scale=scale)


def _snapshots(plan: StudyPlan, entry: Entry, seed: int, sampling: Sampling) -> Iterator[Record]:
    """Records of the snapshots, and of the final weights if the curve uses another number of images."""
    folder, curve = entry.runs[seed], plan.study.curve
    for path in list_snapshots(folder):
        yield Record("images", entry.name, seed, folder, path, sampling, curve.n, int(path.stem))
    if curve.n not in (None, plan.study.evaluation.n):
        last = read_training(folder).get("images", 0)
        yield Record("images", entry.name, seed, folder, folder / WEIGHTS, sampling, curve.n, last)


def build_on_meta(entry: Entry, config: GeneratorConfig) -> Generator:
    """An entry's generator on the meta device, to ask what it supports."""
    with torch.device("meta"):
        return config.build(entry.layout, entry.classes)


def possible_steps(generator: Generator, saved: Saved, sampling: Sampling, wanted: tuple[int, ...]) -> list[int]:
    """The wanted numbers of steps that a model supports; none for a family with a fixed number."""
    passes: dict[int, int] = {}
    for steps in wanted:
        try:
            changed = sampling.model_copy(update={"steps": steps})
            generator.check(changed)
            saved.check(changed)
            passes[steps] = generator.passes(changed)
        except ArtokError:  # noqa: PERF203
            continue
    return list(passes) if len(set(passes.values())) > 1 else []


# ---------------------------------------------------------------------------------------------- values


class CacheKeys:
    """Cache keys of records: 16 hexadecimal digits of everything that affects the value."""

    def __init__(self, plan: StudyPlan) -> None:
        self.plan = plan

    @cached_property
    def data(self) -> str:
        return self.plan.data.open("train").fingerprint + self.plan.data.open("test").fingerprint

    def __call__(self, record: Record) -> str:
        study, files = self.plan.study, [record.weights]
        if record.kind != "tokenizer" and (record.folder / TOKENIZER / WEIGHTS).exists():
            files.append(record.folder / TOKENIZER / WEIGHTS)
        evaluation = study.evaluation
        settings: list[int | str] = [record.sampling.model_dump_json(), record.n or 0, evaluation.extractor]
        if evaluation.metrics is not None:
            settings.append(repr(evaluation.metrics))
        if evaluation.edits and record.kind == "final":
            settings.append(repr(evaluation.edits))
        if evaluation.rollout is not None and record.kind == "final":
            settings.append(repr(evaluation.rollout))
        if record.kind == "tokenizer" and study.robustness is not None:
            settings.append(study.robustness.model_dump_json())
        return f"{fold(*map(digest_file, files), *settings, self.data, self.plan.data.size):016x}"


def read_record(plan: StudyPlan, record: Record, keys: CacheKeys) -> Results | None:
    """The results of a record, or None if they are missing or outdated."""
    try:
        content = json.loads(record.place(plan.folder).read_text(encoding="utf-8"))
        if content["format"] == FORMAT and content["cache_key"] == keys(record):
            return Results.from_dict(content["results"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def read_positions(plan: StudyPlan, record: Record) -> list[list[float]]:
    """Entropy in bits of a measured tokenizer's codes at each position, (N, K); empty if it was not measured."""
    return list(json.loads(record.place(plan.folder).read_text(encoding="utf-8"))["code_entropy_bits"])


def list_missing(plan: StudyPlan, owner: str, keys: CacheKeys) -> list[Record]:
    return [record for record in list_records(plan, owner) if read_record(plan, record, keys) is None]


def measure(plan: StudyPlan, owner: str, device: str) -> None:
    """Measure the missing records of an entry or a tokenizer; each is written when it is done."""
    keys, progress = CacheKeys(plan), Progress(f"{owner}, measured")
    wanted = list_missing(plan, owner, keys)
    if not wanted:
        return
    evaluation = plan.study.evaluation
    evaluator = Evaluator(plan.data, evaluation.extractor, device, evaluation.n, progress, evaluation)
    loaded: tuple[Path, Pipeline] | None = None
    known: dict[str, Results] = {}  # a grid's point with the entry's own settings equals an earlier record
    for done, record in enumerate(wanted):
        progress.say(f"{owner}, seed {record.seed}: {record.name}, {done + 1} of {len(wanted)}")
        positions: list[list[float]] = []
        if record.kind == "tokenizer":
            results, positions = measure_tokenizer(plan, evaluator, record)
        else:
            if loaded is None or loaded[0] != record.folder:
                loaded = record.folder, Pipeline.from_pretrained(record.folder, device)
            same = _identity(loaded[1], record)
            results = known.get(same) or measure_samples(evaluator, loaded[1], record)
            results = known.setdefault(same, results)
        content = {"format": FORMAT, "cache_key": keys(record), "results": results.to_dict()}
        write_json(record.place(plan.folder), content | {"code_entropy_bits": positions})


def measure_tokenizer(plan: StudyPlan, evaluator: Evaluator, record: Record) -> tuple[Results, list[list[float]]]:
    """Reconstruction metrics of a tokenizer and, if it has codes and the study asks for it, their robustness."""
    tokenizer = load_tokenizer(record.folder)[0].to(evaluator.device)
    evaluator = evaluator.of(min(evaluator.n, len(evaluator.test_split)))  # there may be more samples than images
    results, robustness = evaluator.tokenizer(tokenizer, record.owner), plan.study.robustness
    if robustness is None or not tokenizer.layout.discrete:
        return results, []
    codes = examine(evaluator, tokenizer, robustness.shares, robustness.neighbours)
    return replace(results, measurements=(*results.measurements, *codes.perturbed)), codes.positions.tolist()


def _identity(pipeline: Pipeline, record: Record) -> str:
    """A key that is equal for records with the same samples and metrics."""
    everything = record.kind == "final"
    steps = pipeline.generator.passes(record.sampling)
    return repr((everything, record.weights, record.n, steps, record.sampling.model_copy(update={"steps": None})))


def measure_samples(evaluator: Evaluator, pipeline: Pipeline, record: Record) -> Results:
    """Measure a record. Afterwards the pipeline has the run's final weights."""
    sampling = validate(Sampling, record.sampling.model_dump(), "sampling")
    if record.kind == "final":
        results = evaluator.generator(pipeline, record.owner, sampling, timed=False)
        results = add_edits(evaluator, pipeline, sampling, results)
        return add_rollouts(evaluator, pipeline, sampling, results)
    try:
        if record.kind == "images":
            read_weights(pipeline.generator, record.weights)
        return evaluator.of(record.n).samples_alone(pipeline, record.owner, sampling)
    finally:
        if record.kind == "images":
            read_weights(pipeline.generator, record.folder / WEIGHTS)
