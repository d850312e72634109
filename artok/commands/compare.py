"""`artok compare`: contestants at one budget, trained, measured and reported; a stopped study goes on where it was."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from artok.commands.sweep import start
from artok.config import dump, validate
from artok.errors import ConfigError, RunError
from artok.evaluation.run_directory import LOG, diverged, is_trained
from artok.locks import alone, discard
from artok.metrics.features import parse
from artok.saved import write_json, write_text
from artok.studies.budget import SPEEDS, known_speeds, match, probe_of, speed
from artok.studies.config import LOCK, Study, refuse_two, require_extractor, require_trained
from artok.studies.grid import Plan as Swept
from artok.studies.grid import load_sweep
from artok.studies.grid import plan as plan_sweep
from artok.studies.grid_results import found
from artok.studies.measure import Marks, missing, owners
from artok.studies.resolve import Plan, Planned, check_started, settle
from artok.studies.results import PAGE, RESULTS, TABLE, as_csv, as_json, gather
from artok.studies.scheduler import Job, run_jobs
from artok.studies.timing import time_all
from artok.training.experiment import Experiment
from artok.training.extractor import extractor_for
from artok.training.log import duration, read_log
from artok.training.progress import Progress

STUDY = "study.yaml"
EXTRACTOR = "extractor"  # before its name, as a part of a study
MOST_WORKERS = 4
SHORT = 0.25  # of a training's time, about what measuring takes


def compare(study: Study, folder: Path, device: str, fresh: bool = False) -> Path | None:
    """Train and measure what is missing, then write `results.json`, `results.csv` and `report.html`. The page.

    fresh: discard what the folder holds. Under `torchrun` or `accelerate launch` the first process conducts and starts
    each training over as many processes; the others have nothing to do, and get None. ConfigError, LayoutError,
    CheckpointError, DataError: before anything is trained. RunError: a training failed.
    """
    if os.environ.get("RANK", "0") != "0":
        return None
    launcher = launcher_of(study)
    require_trained(study)
    match(settle(study, folder), known_speeds(study.budget, folder))  # mistakes come before there is a folder
    with alone(folder / LOCK, partial(refuse_two, "compare", folder)):
        return conducted(study, folder, device, launcher, fresh)


def conducted(study: Study, folder: Path, device: str, launcher: tuple[str, ...], fresh: bool) -> Path:
    """What `compare` does, with the folder to itself."""
    progress = Progress(study.name)
    if fresh:
        discard(folder)
    plan = prepare(study, folder)
    require_extractor(study.evaluation)
    write_text(folder / STUDY, dump(study))
    swept = sweep_of(study, folder)
    cells = start(swept, progress) if swept else []
    if study.budget and study.budget.kind == "seconds":
        plan = with_speeds(plan, launcher, device, progress)
    for entry in plan.entries:
        progress.say(f"{entry.name}: {entry.did}")
    jobs = jobs_of(plan, launcher, cells)
    progress.say(f"{len(plan.entries)} contestants, {len(jobs)} jobs, into {folder}")
    conduct(jobs, workers_of(study, launcher, device), progress)
    check_trained(plan)
    return conclude(plan, device, progress, swept)


def conclude(plan: Plan, device: str, progress: Progress, swept: Swept | None = None) -> Path:
    """Write results.json, results.csv and the page of a study all of whose cells are measured.

    swept: the sweep beside it.
    """
    from artok.report.study import write_page  # not before training, as it draws

    outcome = gather(plan, time_all(plan, device, progress))
    if swept is not None:
        outcome = replace(outcome, sweep=found(swept))
    write_json(plan.folder / RESULTS, as_json(outcome))
    write_text(plan.folder / TABLE, as_csv(outcome))
    return write_page(plan.folder / PAGE, outcome, device)


def sweep_of(study: Study, folder: Path) -> Swept | None:
    """The sweep beside the study, if it has one; a ConfigError when it is impossible."""
    return plan_sweep(load_sweep(study.sweep, []), folder / "sweep") if study.sweep else None


def prepare(study: Study, folder: Path) -> Plan:
    """The study settled and matched to its budget as far as that is known, checked against what the folder holds."""
    plan = settle(study, folder)
    match(plan, known_speeds(study.budget, folder))
    keep_course(plan)
    if not study.budget or study.budget.kind != "seconds" or known_speeds(study.budget, folder):
        check_started(plan)
    return plan


def keep_course(plan: Plan) -> None:
    """Have the trainings keep their weights at as many points as the curve of quality wants."""
    curve = plan.study.curve
    for entry in plan.entries:
        for seed in plan.study.seeds[: curve.seeds]:
            if curve.points > 1 and seed in entry.trainings:
                planned = entry.trainings[seed]
                training = planned.experiment.training
                section = training.model_dump() | {"snapshot_every": -(-training.images // curve.points)}
                changed = planned.experiment.model_dump() | {"training": section}
                planned.experiment = validate(Experiment, changed, planned.name)


# ---------------------------------------------------------------------------------------------- jobs


def launcher_of(study: Study) -> tuple[str, ...]:
    """What starts a training: the study's `launch`, or as many processes as this one was launched with."""
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if study.launch:
        return launch_command(study.launch)
    if world != local:
        raise ConfigError(
            "a study runs on one machine; to train on several, start it by itself and set 'launch' to the command that "
            "starts a training on all of them"
        )
    if world == 1:
        return ()
    return (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world))


def launch_command(launch: str) -> tuple[str, ...]:
    """The words of the study's `launch`; a ConfigError when they start nothing here."""
    try:
        words = tuple(shlex.split(launch))
    except ValueError as error:
        raise ConfigError(f"launch {launch!r} cannot be read: {str(error).lower()}") from None
    beside = f"{os.environ.get('PATH', '')}{os.pathsep}{Path(sys.executable).parent}"  # an environment not activated
    found = shutil.which(words[0], path=beside) if words else None
    if found is None:
        raise ConfigError(f"launch {launch!r} starts nothing that is here; give a command such as torchrun, or none")
    return (found, *words[1:])


def workers_of(study: Study, launcher: Sequence[str], device: str) -> int:
    """Jobs side by side: one where each takes several processes, else one a GPU or one a core, up to four."""
    if study.workers is not None:
        return study.workers
    if launcher:
        return 1
    return torch.cuda.device_count() if device == "cuda" else min(MOST_WORKERS, os.cpu_count() or 1)


def jobs_of(plan: Plan, launcher: tuple[str, ...], cells: Sequence[Job] = ()) -> list[Job]:
    """Everything that is not done: trainings, and each contestant's measurements once its last run is trained.

    cells: of a sweep beside the study, shorter than trainings. What is short comes last, so that workers end together.
    """
    wanted = [planned for planned in plan.trainings() if not is_done(planned)]
    training = {planned.name for planned in wanted}
    jobs = [training_job(plan, planned, launcher, training) for planned in wanted]
    marks, measuring = Marks(plan), []
    for owner in owners(plan):
        after = tuple(name for name in needed(plan, owner) if name in training)
        if after or missing(plan, owner, marks):
            measuring.append(measuring_job(plan, f"measure {owner}", owner, after))
    short = [replace(job, share=SHORT) for job in (*cells, *measuring)]
    extractor = plan.study.evaluation.extractor
    if wanted and parse(extractor).trained:  # beside them: of several jobs that want it at once, all but one would wait
        first = measuring_job(plan, f"train {extractor}", f"{EXTRACTOR}:{extractor}")
        jobs.append(first)
        short = [replace(job, after=(*job.after, first.name)) for job in short]
    return sorted(jobs, key=lambda job: bool(job.after)) + short


def measuring_job(plan: Plan, name: str, part: str, after: tuple[str, ...] = ()) -> Job:
    """`artok compare --measure` of a part of the study, for `run_part`."""
    return Job(name, ("compare", str(plan.folder / STUDY), "--out", str(plan.folder), "--measure", part), after)


def needed(plan: Plan, owner: str) -> list[str]:
    """The trainings that a contestant's or a tokenizer's measurements wait for."""
    kind, _, name = owner.rpartition(":")
    if kind:
        return [f"train {name}"]
    entry = next(entry for entry in plan.entries if entry.name == name)
    return [planned.name for planned in entry.trainings.values()]


def training_job(plan: Plan, planned: Planned, launcher: tuple[str, ...], others: Collection[str] = ()) -> Job:
    """`artok train` on the settled config, which is written beside the study. others: trainings to be done, too."""
    config = plan.folder / "configs" / f"{planned.name.removeprefix('train ').replace(' ', '-')}.yaml"
    write_text(config, dump(planned.experiment))
    arguments = ("train", str(config), "--out", str(planned.folder))
    after = tuple(name for name in planned.after if name in others)
    return Job(planned.name, arguments, after, launcher, may_fail=planned.experiment.generator is not None)


def is_done(planned: Planned) -> bool:
    """Whether a training is finished, or can get no further."""
    return is_trained(planned.experiment, planned.folder) or diverged(read_log(planned.folder / LOG))


def conduct(jobs: Sequence[Job], workers: int, progress: Progress) -> None:
    """Run the jobs, with a line and the time left after each."""
    began = time.perf_counter()

    def said(seconds: Mapping[str, float]) -> None:
        if seconds:
            spent = time.perf_counter() - began
            done = sum(job.share for job in jobs if job.name in seconds)
            left = duration(spent / done * (sum(job.share for job in jobs) - done))
            more = f", about {left} left" if len(seconds) < len(jobs) else ""
            progress.say(f"{len(seconds)} of {len(jobs)} jobs done, the last: {list(seconds)[-1]}{more}")

    run_jobs(jobs, workers, said, torch.cuda.device_count())


def check_trained(plan: Plan) -> None:
    """A RunError when a training failed without diverging, or when all of a contestant diverged at once."""
    for planned in plan.trainings():
        if not is_done(planned):
            raise RunError(f"{planned.name} failed, as said above; the same command goes on with what is done")
    for entry in plan.entries:
        if entry.trainings and all(diverged(read_log(folder / LOG)) for folder in entry.runs.values()):
            raise RunError(f"every training of {entry.name} diverged; lower its rate, or leave it out of the study")


# ---------------------------------------------------------------------------------------------- speeds


def with_speeds(plan: Plan, launcher: tuple[str, ...], device: str, progress: Progress) -> Plan:
    """The plan of a budget of seconds, once the speed of every contestant is known.

    Speeds are measured one after another on trained tokenizers, by a short training each, and kept.
    """
    speeds = known_speeds(plan.study.budget, plan.folder)
    unknown = [entry for entry in plan.entries if entry.trainings and entry.name not in speeds]
    if not unknown:
        return plan
    tokenizers = [training_job(plan, each, launcher) for each in plan.tokenizers.values() if not is_done(each)]
    conduct(tokenizers, workers_of(plan.study, launcher, device), progress)
    for entry in unknown:
        folder = plan.folder / "probes" / entry.name
        shutil.rmtree(folder, ignore_errors=True)
        probe = Planned(f"time {entry.name}", probe_of(entry, plan.study.seeds[0]), folder)
        conduct([training_job(plan, probe, launcher)], 1, progress)
        speeds[entry.name] = speed(read_log(folder / LOG))
        shutil.rmtree(folder, ignore_errors=True)
        write_json(plan.folder / SPEEDS, speeds)
    return prepare(plan.study, plan.folder)


def run_part(study: Study, folder: Path, owner: str, device: str) -> None:
    """Measure one contestant or tokenizer of a study that is under way, or train the extractor that all are measured
    with: what the conductor's jobs do."""
    from artok.studies.measure import measure

    plan = settle(study, folder)
    if owner.startswith(f"{EXTRACTOR}:"):
        extractor_for(parse(owner.partition(":")[2]), plan.data.open("train"), plan.data.size, device)
        return
    if owner not in owners(plan):
        raise ConfigError(f"the study has no {owner!r} to measure; it has {', '.join(owners(plan))}")
    measure(plan, owner, device)
