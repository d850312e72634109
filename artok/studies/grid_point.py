"""One cell of a sweep: its tokenizer and generator trained, then measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from artok.config import dump
from artok.evaluation.code_usage import CodeStudy, examine
from artok.evaluation.evaluator import RESULTS, Judge
from artok.evaluation.run_directory import Run, is_trained, open_runs
from artok.metrics.results import Results
from artok.noise import fold
from artok.pipeline import Pipeline
from artok.saved import load_tokenizer, write_json
from artok.studies.grid import GENERATOR, TOKENIZER, Cell, Plan, Sweep, Trial
from artok.studies.grid_columns import (
    FLOPS,
    GENERATOR_TIME,
    IMAGES,
    TOKENIZER_TIME,
    Side,
    columns,
    values_of,
)
from artok.training.experiment import Experiment
from artok.training.progress import Progress
from artok.training.run import check_same_run, train

RECORD = "cell.json"
FORMAT = 2  # of that file


@dataclass(frozen=True)
class Record:
    """What was measured of one trial. positions: entropy of the codes at each position, (N, K) nested lists in bits;
    empty for continuous tokens."""

    cell: str
    seed: int
    values: Mapping[str, float]
    positions: Sequence[Sequence[float]]


def parts(trial: Trial) -> Iterator[tuple[Experiment, Path]]:
    """What is trained, in this order, and where."""
    yield trial.tokenizer, trial.folder / TOKENIZER
    if trial.generator is not None:
        yield trial.generator, trial.folder / GENERATOR


def run_cell(planned: Plan, cell: Cell, device: str) -> bool:
    """Train what is missing of a cell and measure it. Whether it is finished; False after Ctrl-C or SIGTERM."""
    for trial in cell.trials:
        if is_measured(planned, trial):
            continue
        for experiment, place in parts(trial):
            check_same_run(experiment, place)
            if not is_trained(experiment, place) and not train(experiment, place):
                return False
        record = measure(planned.study, cell, trial, device)
        content = {"format": FORMAT, "settings": settings_mark(planned.study, trial), **vars(record)}
        write_json(trial.folder / RECORD, content)
    return True


def settings_mark(study: Sweep, trial: Trial) -> str:
    """Changes with whatever decides a trial's figures."""
    measured = [dump(study.evaluation), dump(study.robustness)]
    trained = [dump(experiment).replace(str(trial.folder), "") for experiment, _ in parts(trial)]  # may be moved
    return f"{fold(*measured, *trained):016x}"


def is_measured(planned: Plan, trial: Trial) -> bool:
    """Whether the trial's record is there and of these settings."""
    try:
        content = json.loads((trial.folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return content.get("format") == FORMAT and content.get("settings") == settings_mark(planned.study, trial)


def read_record(trial: Trial) -> Record:
    content = json.loads((trial.folder / RECORD).read_text(encoding="utf-8"))
    return Record(content["cell"], content["seed"], content["values"], content["positions"])


def measure(study: Sweep, cell: Cell, trial: Trial, device: str) -> Record:
    """All figures of a trained trial; its runs get a results.json each, as from `artok evaluate`."""
    wanted, progress = study.evaluation, Progress(f"{cell.name}, measured")
    judge = Judge(trial.tokenizer.data, wanted.extractor, device, wanted.n, progress, wanted)
    results, codes = measure_tokenizer(study, judge, trial.folder / TOKENIZER)
    found: dict[Side, Results] = {"tokenizer": results}
    own: dict[str, float] = {}
    if trial.generator is not None and cell.flops is not None:
        pipeline = Pipeline.from_pretrained(trial.folder / GENERATOR, device)
        found["generator"] = judge.generator(pipeline, GENERATOR, trial.generator.sampling)
        found["generator"].save(trial.folder / GENERATOR / RESULTS)
        images = trial.generator.training.images
        own |= {IMAGES.name: images, FLOPS.name: images * cell.flops}
    own |= dict(training_times(trial))
    values = dict(values_of(columns(wanted.extractor, study.robustness.shares), found, own))
    return Record(cell.name, trial.seed, values, codes.positions.tolist() if codes else [])


def measure_tokenizer(study: Sweep, judge: Judge, folder: Path) -> tuple[Results, CodeStudy | None]:
    """What a tokenizer loses, and where it has codes, what replacing some of them does."""
    tokenizer = load_tokenizer(folder)[0].to(judge.device)
    results, codes = judge.tokenizer(tokenizer, TOKENIZER), None
    if tokenizer.layout.discrete:
        codes = examine(judge, tokenizer, study.robustness.shares, study.robustness.neighbours)
        results = replace(results, measurements=(*results.measurements, *codes.perturbed))
    results.save(folder / RESULTS)
    return results, codes


def training_times(trial: Trial) -> Iterator[tuple[str, float]]:
    """Core-seconds of the training loops, where the log has them."""
    for name, run in zip((TOKENIZER_TIME.name, GENERATOR_TIME.name), runs_of(trial), strict=False):
        if run.spent is not None and run.spent.device == "cpu":
            yield name, run.spent.core_seconds


def runs_of(trial: Trial) -> list[Run]:
    """The trial's measured runs."""
    return open_runs([place for _, place in parts(trial)])
