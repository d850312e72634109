"""`artok sweep`: every cell of a grid trained and measured, then the page that compares them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from artok.config import dump
from artok.errors import CheckpointError
from artok.locks import alone, discard
from artok.saved import write_text
from artok.studies.config import LOCK, refuse_two, require_extractor
from artok.studies.grid import Plan, Sweep, plan
from artok.studies.grid_point import is_measured, parts
from artok.studies.scheduler import Job, run_jobs
from artok.training.log import duration
from artok.training.progress import Progress
from artok.training.run import check_same_run

STUDY = "study.yaml"
MOST_WORKERS = 4


def sweep(study: Sweep, folder: Path, device: str, fresh: bool = False) -> Path:
    """Train and measure every cell, then write the page, results.json and results.csv into `folder`. The page.

    What the folder holds of the same settings is kept, so a study that was stopped goes on. fresh: discard it.
    ConfigError: the study is impossible, before anything is trained. CheckpointError: the folder holds other settings.
    """
    planned = plan(study, folder)
    with alone(folder / LOCK, partial(refuse_two, "sweep", folder)):
        return conducted(planned, device, fresh)


def conducted(planned: Plan, device: str, fresh: bool) -> Path:
    """What `sweep` does, with the folder to itself."""
    study, folder = planned.study, planned.folder
    if fresh:
        discard(folder)
    require_extractor(study.evaluation)
    progress = Progress(study.name)
    jobs = start(planned, progress)
    progress.say(f"{len(planned.cells)} cells, {len(jobs)} of them to do, into {folder}")
    began = time.perf_counter()

    def said(seconds: Mapping[str, float]) -> None:
        left = (time.perf_counter() - began) / len(seconds) * (len(jobs) - len(seconds))
        name = list(seconds)[-1]
        more = f", about {duration(left)} left" if len(seconds) < len(jobs) else ""
        progress.say(f"{study.name}: {len(seconds)} of {len(jobs)} cells done, the last {name}{more}")

    run_jobs(jobs, study.workers or default_workers(device), said, torch.cuda.device_count())
    from artok.report.sweep import write_sweep  # after training, as it draws

    return write_sweep(planned, device)


def start(planned: Plan, progress: Progress) -> list[Job]:
    """Write the study into its folder; a job for each cell that is not finished. CheckpointError: as from `sweep`."""
    folder = planned.folder
    check_started(planned)
    for labels, reason in planned.skipped:
        progress.say(f"skipped {', '.join(f'{axis} {label}' for axis, label in labels.items())}: {reason}")
    write_text(folder / STUDY, dump(planned.study))
    wanted = [cell for cell in planned.cells if not all(is_measured(planned, trial) for trial in cell.trials)]
    return [
        Job(cell.name, ("sweep", str(folder / STUDY), "--out", str(folder), "--cell", cell.name)) for cell in wanted
    ]


def default_workers(device: str) -> int:
    return 1 if device == "cuda" else min(MOST_WORKERS, os.cpu_count() or 1)


def check_started(planned: Plan) -> None:
    """A CheckpointError when a cell's folder holds a training of other settings, before any is trained."""
    try:
        for cell in planned.cells:
            for trial in cell.trials:
                for experiment, place in parts(trial):
                    check_same_run(experiment, place)
    except CheckpointError as error:
        raise CheckpointError(f"{error}".replace("--fresh", "'artok sweep ... --fresh'")) from None
