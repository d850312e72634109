"""The cells of a study: every measurement of a contestant's runs, each kept in a file of its own.

A cell is one set of weights under one sampling setting. Its file carries the mark of all that decides its value, so a
study that was stopped measures only what is missing, and what was trained anew is measured anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from artok.config import read_yaml, validate
from artok.errors import ArtokError
from artok.evaluation.evaluator import Judge
from artok.evaluation.run_directory import LOG, diverged
from artok.generators.base import Generator, GeneratorConfig
from artok.metrics.results import Results
from artok.noise import fold
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling
from artok.saved import CONFIG, TOKENIZER, WEIGHTS, load_tokenizer, read_saved, write_json
from artok.studies.resolve import Entry, Plan
from artok.tokenizers.base import TokenizerConfig
from artok.training.checkpoints import snapshots
from artok.training.log import read_log
from artok.training.progress import Progress
from artok.weights import read_weights

Kind = Literal["final", "images", "steps", "guidance", "own", "tokenizer"]
FORMAT = 3  # of a cell's file
PIECE = 2**24  # bytes


@dataclass(frozen=True)
class Cell:
    """kind: `final`, everything about the finished run; `images`, samples of the weights after `at` images; `steps`,
    `guidance`, samples with that one setting at `at`; `own`, with the contestant's own settings but as many images as
    those; `tokenizer`, reconstructions.

    owner: the contestant, or the tokenizer. folder: of the run. n: images, all held-out ones when None.
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
            return study / "cells" / "tokenizers" / f"{self.owner}.json"
        return study / "cells" / "contestants" / self.owner / f"seed{self.seed}" / f"{self.name}.json"


def owners(plan: Plan) -> list[str]:
    """Contestants and tokenizers, as `measure` takes them."""
    return [entry.name for entry in plan.entries] + [f"{TOKENIZER}:{name}" for name in tokenizers_of(plan)]


def tokenizers_of(plan: Plan) -> dict[str, Path]:
    """Every tokenizer that has weights, once; one that came with a run has the name of that contestant."""
    found: dict[str, Path] = {name: planned.folder for name, planned in plan.tokenizers.items()}
    marks: dict[str, str] = {}
    for entry in plan.entries:
        folders = entry.tokenizers if entry.trainings else {s: run / TOKENIZER for s, run in entry.runs.items()}
        for folder in folders.values():
            if folder in found.values() or not _has_weights(folder):
                continue
            name = marks.setdefault(digest(folder / WEIGHTS), folder.name if folder.name != TOKENIZER else entry.name)
            found.setdefault(name, folder)
    return found


def _has_weights(folder: Path) -> bool:
    """Whether there is something to measure: pixels pass through their tokenizer unchanged."""
    return isinstance(config := read_saved(folder).tokenizer, TokenizerConfig) and config.kind != "pixels"


# ---------------------------------------------------------------------------------------------- which cells


def cells_of(plan: Plan, owner: str) -> list[Cell]:
    """The cells of a contestant or of a tokenizer, for the runs that are there."""
    if owner.startswith(f"{TOKENIZER}:"):
        name = owner.partition(":")[2]
        folder, n = tokenizers_of(plan)[name], plan.study.evaluation.n
        return [Cell("tokenizer", name, 0, folder, folder / WEIGHTS, Sampling(), n)]
    entry = next(entry for entry in plan.entries if entry.name == owner)
    return [cell for seed in plan.study.seeds for cell in _of_seed(plan, entry, seed)]


def _of_seed(plan: Plan, entry: Entry, seed: int) -> Iterator[Cell]:
    """In the order in which they are wanted."""
    study, folder = plan.study, entry.runs[seed]
    if not (folder / WEIGHTS).exists() or diverged(read_log(folder / LOG)):
        return
    saved = read_saved(folder)
    assert saved.generator is not None
    sampling = saved.sampling.model_copy(update={"seed": seed})
    weights, rank = folder / WEIGHTS, study.seeds.index(seed)

    def cell(kind: Kind, n: int | None, at: float | None = None, **changes: Any) -> Cell:
        return Cell(kind, entry.name, seed, folder, weights, sampling.model_copy(update=changes), n, at)

    yield cell("final", study.evaluation.n)
    if rank < study.curve.seeds:
        yield from _course(plan, entry, seed, sampling)
    if rank >= study.grid.seeds:
        return
    if study.grid.n not in (None, study.evaluation.n):
        yield cell("own", study.grid.n)
    generator = built(entry, saved.generator)
    for steps in steps_of(generator, sampling, study.grid.steps):
        yield cell("steps", study.grid.n, steps, steps=steps)
    if saved.generator.class_dropout:
        for guidance in study.grid.guidance:
            yield cell("guidance", study.grid.n, guidance, cfg_scale=guidance)


def _course(plan: Plan, entry: Entry, seed: int, sampling: Sampling) -> Iterator[Cell]:
    """The weights kept on the way, and the last ones where the course is measured on another number of images."""
    folder, curve = entry.runs[seed], plan.study.curve
    for path in snapshots(folder):
        yield Cell("images", entry.name, seed, folder, path, sampling, curve.n, int(path.stem))
    if curve.n not in (None, plan.study.evaluation.n):
        last = read_yaml(folder / CONFIG).get("training", {}).get("images", 0)
        yield Cell("images", entry.name, seed, folder, folder / WEIGHTS, sampling, curve.n, last)


def built(entry: Entry, config: GeneratorConfig) -> Generator:
    """A contestant's generator without numbers, for what it can do."""
    with torch.device("meta"):
        return config.build(entry.layout, entry.classes)


def steps_of(generator: Generator, sampling: Sampling, wanted: tuple[int, ...]) -> list[int]:
    """The numbers of steps that a family can sample in; none for a family whose number is fixed."""
    passes: dict[int, int] = {}
    for steps in wanted:
        try:
            changed = sampling.model_copy(update={"steps": steps})
            generator.check(changed)
            passes[steps] = generator.passes(changed)
        except ArtokError:  # noqa: PERF203
            continue
    return list(passes) if len(set(passes.values())) > 1 else []


# ---------------------------------------------------------------------------------------------- their values


class Marks:
    """What decides a cell's value, as 16 hexadecimal digits; files are read once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._known: dict[Path, str] = {}

    @cached_property
    def data(self) -> str:
        return self.plan.data.open("train").fingerprint + self.plan.data.open("test").fingerprint

    def __call__(self, cell: Cell) -> str:
        files = [cell.weights]
        if cell.kind != "tokenizer" and (cell.folder / TOKENIZER / WEIGHTS).exists():
            files.append(cell.folder / TOKENIZER / WEIGHTS)
        for path in files:
            if path not in self._known:
                self._known[path] = digest(path)
        wanted = self.plan.study.evaluation
        settings = cell.sampling.model_dump_json(), cell.n or 0, wanted.extractor, repr(wanted.metrics)
        return f"{fold(*(self._known[path] for path in files), *settings, self.data, self.plan.data.size):016x}"


def digest(path: Path) -> str:
    """Of a file's content, which is read piece by piece."""
    found = hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
    return found.hexdigest()


def read_cell(plan: Plan, cell: Cell, marks: Marks) -> Results | None:
    """The results of a cell that was measured, or None."""
    try:
        content = json.loads(cell.place(plan.folder).read_text(encoding="utf-8"))
        if content["format"] == FORMAT and content["mark"] == marks(cell):
            return Results.from_dict(content["results"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def missing(plan: Plan, owner: str, marks: Marks) -> list[Cell]:
    return [cell for cell in cells_of(plan, owner) if read_cell(plan, cell, marks) is None]


def measure(plan: Plan, owner: str, device: str) -> None:
    """Measure what is missing of a contestant or a tokenizer, a file for each cell as soon as it is done."""
    marks, progress = Marks(plan), Progress(f"{owner}, measured")
    wanted = missing(plan, owner, marks)
    if not wanted:
        return
    wishes = plan.study.evaluation
    judge = Judge(plan.data, wishes.extractor, device, wishes.n, progress, wishes)
    loaded: tuple[Path, Pipeline] | None = None
    known: dict[str, Results] = {}  # a grid's own point is one of the cells before it
    for done, cell in enumerate(wanted):
        progress.say(f"{owner}, seed {cell.seed}: {cell.name}, {done + 1} of {len(wanted)}")
        if cell.kind == "tokenizer":
            results = judge.tokenizer(load_tokenizer(cell.folder)[0].to(judge.device), cell.owner)
        else:
            if loaded is None or loaded[0] != cell.folder:
                loaded = cell.folder, Pipeline.from_pretrained(cell.folder, device)
            same = _amounts_to(loaded[1], cell)
            results = known.get(same) or _value(judge, loaded[1], cell)
            results = known.setdefault(same, results)
        content = {"format": FORMAT, "mark": marks(cell), "results": results.to_dict()}
        write_json(cell.place(plan.folder), content)


def _amounts_to(pipeline: Pipeline, cell: Cell) -> str:
    """The same for cells that make the same samples and measure the same of them."""
    everything = cell.kind == "final"
    steps = pipeline.generator.passes(cell.sampling)
    return repr((everything, cell.weights, cell.n, steps, cell.sampling.model_copy(update={"steps": None})))


def _value(judge: Judge, pipeline: Pipeline, cell: Cell) -> Results:
    """A cell's results; the pipeline is left with the run's own weights."""
    sampling = validate(Sampling, cell.sampling.model_dump(), "sampling")
    if cell.kind == "final":
        return judge.generator(pipeline, cell.owner, sampling, timed=False)
    try:
        if cell.kind == "images":
            read_weights(pipeline.generator, cell.weights)
        return judge.of(cell.n).samples_alone(pipeline, cell.owner, sampling)
    finally:
        if cell.kind == "images":
            read_weights(pipeline.generator, cell.folder / WEIGHTS)
