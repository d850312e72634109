"""`artok compare`: entries at one budget, trained, measured and reported; a stopped study goes on where it was."""

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
from typing import Any

import torch

from artok.config import dump, validate
from artok.errors import ConfigError, RunError
from artok.evaluation.run_directory import LOG, diverged, is_trained
from artok.locks import discard, hold_lock
from artok.metrics.features import parse
from artok.saved import write_json, write_text
from artok.studies.budget import SPEEDS, make_probe, match, read_speeds, speed
from artok.studies.config import LOCK, Study, load_study, refuse_two, require_extractor, require_trained
from artok.studies.grid import read_points
from artok.studies.measure import CacheKeys, list_missing, list_own_tokenizers, owners
from artok.studies.resolve import Planned, StudyPlan, check_started, settle
from artok.studies.results import PAGE, RESULTS, TABLE, Outcome, as_csv, as_json, gather
from artok.studies.scheduler import Job, Slurm, run_jobs
from artok.studies.timing import list_untimed, time_all
from artok.studies.tradeoffs import tradeoffs_json
from artok.training.experiment import Experiment
from artok.training.extractor import build_extractor
from artok.training.log import duration, read_log
from artok.training.progress import Progress

STUDY = "study.yaml"
BESIDE = "beside"  # folder of the study beside another
EXTRACTOR, TIMES = "extractor", "times"  # parts of a study; the first stands before a name
MOST_WORKERS, MOST_SUBMITTED = 4, 64  # jobs side by side on a CPU, and under Slurm
SHORT = 0.25  # of a training's time, about what measuring takes


def compare(study: Study, folder: Path, device: str, fresh: bool = False) -> Path | None:
    """Train and measure what is missing, then write `results.json`, `results.csv` and `report.html`. The page.

    fresh: discard what the folder holds. Under `torchrun` or `accelerate launch` the first process conducts and starts
    each training over as many processes; the others have nothing to do, and get None. ConfigError, LayoutError,
    CheckpointError, DataError: before anything is trained. RunError: a training failed.
    """
    if os.environ.get("RANK", "0") != "0":
        return None
    launcher = find_launcher(study)
    plans = [prepare(study, folder, fresh)]  # mistakes come before there is a folder
    if study.beside:
        plans.append(prepare(load_study(study.beside, []), folder / BESIDE, fresh))
    with hold_lock(folder / LOCK, partial(refuse_two, folder)):
        return _conduct_studies(plans, device, launcher, fresh)


def _conduct_studies(plans: list[StudyPlan], device: str, launcher: tuple[str, ...], fresh: bool) -> Path:
    """What `compare` does, with the folder to itself. plans: of the study, and of one beside it."""
    study, folder = plans[0].study, plans[0].folder
    progress = Progress(study.name)
    if fresh:
        discard(folder)
    for plan in plans:
        require_extractor(plan.study.evaluation)
        write_text(plan.folder / STUDY, dump(plan.study))
    plans = [measure_speeds(plan, launcher, device, progress) for plan in plans]
    for plan in plans:
        for entry in plan.entries:
            progress.say(f"{entry.title}: {entry.adjustment}".removesuffix(": "))
        for point, reason in plan.skipped:
            progress.say(f"skipped {point.title}: {reason}")
    jobs = list_jobs(plans[0], launcher)
    for plan in plans[1:]:
        jobs = _join(jobs, list_jobs(plan, launcher), f"{plan.study.name}: ")
    progress.say(f"{sum(len(plan.entries) for plan in plans)} entries, {len(jobs)} jobs, into {folder}")
    conduct(plans[0], jobs, count_workers(study, launcher, device), progress)
    for plan in plans:
        check_trained(plan)
        if list_untimed(plan):  # when nothing else is running
            conduct(plans[0], [measuring_job(plan, f"time {plan.study.name}", TIMES)], 1, progress)
    return conclude(plans, device)


def conclude(plans: Sequence[StudyPlan], device: str) -> Path:
    """Write results.json, results.csv and the page of studies that are measured and timed."""
    from artok.report.study import write_page  # not before training, as it draws

    outcome = gather(plans[0], gather(plans[1]) if plans[1:] else None)
    folder = plans[0].folder
    write_json(folder / RESULTS, study_json(outcome))
    write_text(folder / TABLE, as_csv(outcome))
    return write_page(folder / PAGE, outcome, device)


def study_json(outcome: Outcome) -> dict[str, Any]:
    """results.json, with the study beside it under `beside`."""
    own = as_json(outcome, tradeoffs_json(outcome) if outcome.plan.study.grid else {})
    return own if outcome.beside is None else own | {"beside": study_json(outcome.beside)}


def prepare(study: Study, folder: Path, fresh: bool = False) -> StudyPlan:
    """The study settled and matched to its budget as far as that is known, checked against what the folder holds.

    fresh: the folder's content is going to be discarded.
    """
    require_trained(study)
    speeds = dict(study.budget.speeds if study.budget else {}) if fresh else read_speeds(study.budget, folder)
    plan = settle(study, folder)
    match(plan, speeds)
    keep_snapshots(plan)
    if not fresh and (not study.budget or study.budget.kind != "seconds" or speeds):
        check_started(plan)
    return plan


def keep_snapshots(plan: StudyPlan) -> None:
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


def find_launcher(study: Study) -> tuple[str, ...]:
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


def count_workers(study: Study, launcher: Sequence[str], device: str) -> int:
    """Jobs side by side: one where each takes several processes, else one per GPU or per core, up to four."""
    if study.workers is not None:
        return study.workers
    if study.executor == "slurm":
        return MOST_SUBMITTED
    if launcher:
        return 1
    return torch.cuda.device_count() if device == "cuda" else min(MOST_WORKERS, os.cpu_count() or 1)


def list_jobs(plan: StudyPlan, launcher: tuple[str, ...]) -> list[Job]:
    """Everything that is not done: trainings, and each entry's measurements once its last run is trained.

    What is short comes last, so that workers end together.
    """
    wanted = [planned for planned in plan.trainings() if not is_done(planned)]
    training = {planned.name for planned in wanted}
    jobs = [training_job(plan, planned, launcher, training) for planned in wanted]
    keys, measuring = CacheKeys(plan), []
    for owner in owners(plan):
        after = tuple(name for name in list_needed(plan, owner) if name in training)
        if after or list_missing(plan, owner, keys):
            measuring.append(replace(measuring_job(plan, f"measure {owner}", owner, after), share=SHORT))
    extractor = plan.study.evaluation.extractor
    if wanted and parse(extractor).trained:  # beside them: of several jobs that want it at once, all but one would wait
        first = measuring_job(plan, f"train {extractor}", f"{EXTRACTOR}:{extractor}")
        jobs.append(first)
        measuring = [replace(job, after=(*job.after, first.name)) for job in measuring]
    return sorted(jobs, key=lambda job: bool(job.after)) + measuring


def _join(jobs: Sequence[Job], others: Sequence[Job], prefix: str) -> list[Job]:
    """Jobs of two studies, the second's names with a prefix but for an extractor that both want."""
    shared = {job.name for job in jobs if f"{EXTRACTOR}:" in job.arguments[-1]} & {job.name for job in others}

    def rename(name: str) -> str:
        return name if name in shared else f"{prefix}{name}"

    named = [
        replace(job, name=rename(job.name), after=tuple(map(rename, job.after)), share=SHORT)
        for job in others
        if job.name not in shared
    ]
    return [*jobs, *named]


def measuring_job(plan: StudyPlan, name: str, part: str, after: tuple[str, ...] = ()) -> Job:
    """`artok compare --measure` of a part of the study, for `run_part`."""
    return Job(name, ("compare", str(plan.folder / STUDY), "--out", str(plan.folder), "--measure", part), after)


def list_needed(plan: StudyPlan, owner: str) -> list[str]:
    """The trainings that an entry's or a tokenizer's measurements wait for."""
    kind, _, name = owner.rpartition(":")
    if kind:
        return [f"train {name}"]
    entry = next(entry for entry in plan.entries if entry.name == name)
    own = [f"train {tokenizer}" for tokenizer in list_own_tokenizers(plan, entry)]
    return own + [planned.name for planned in entry.trainings.values()]


def training_job(plan: StudyPlan, planned: Planned, launcher: tuple[str, ...], others: Collection[str] = ()) -> Job:
    """`artok train` on the settled config, which is written beside the study. others: trainings to be done, too."""
    config = plan.folder / "configs" / f"{planned.name.removeprefix('train ').replace(' ', '-')}.yaml"
    write_text(config, dump(planned.experiment))
    arguments = ("train", str(config), "--out", str(planned.folder))
    after = tuple(name for name in planned.after if name in others)
    return Job(planned.name, arguments, after, launcher, may_fail=planned.experiment.generator is not None)


def is_done(planned: Planned) -> bool:
    """Whether a training is finished, or can get no further."""
    return is_trained(planned.experiment, planned.folder) or diverged(read_log(planned.folder / LOG))


def conduct(plan: StudyPlan, jobs: Sequence[Job], workers: int, progress: Progress) -> None:
    """Run the jobs where the study wants them run, with a line and the time left after each."""
    began = time.perf_counter()

    def report(seconds: Mapping[str, float]) -> None:
        if seconds:
            spent = time.perf_counter() - began
            done = sum(job.share for job in jobs if job.name in seconds)
            left = duration(spent / done * (sum(job.share for job in jobs) - done))
            more = f", about {left} left" if len(seconds) < len(jobs) else ""
            progress.say(f"{len(seconds)} of {len(jobs)} jobs done, the last: {list(seconds)[-1]}{more}")

    slurm = Slurm(plan.folder / "slurm", plan.study.slurm) if plan.study.executor == "slurm" else None
    run_jobs(jobs, workers, report, torch.cuda.device_count(), slurm)


def check_trained(plan: StudyPlan) -> None:
    """A RunError when a training failed without diverging, or when all of an entry diverged at once."""
    for planned in plan.trainings():
        if not is_done(planned):
            raise RunError(f"{planned.name} failed, as said above; the same command goes on with what is done")
    for entry in plan.entries:
        if entry.trainings and all(diverged(read_log(folder / LOG)) for folder in entry.runs.values()):
            raise RunError(f"every training of {entry.name} diverged; lower its rate, or leave it out of the study")


# ---------------------------------------------------------------------------------------------- speeds


def measure_speeds(plan: StudyPlan, launcher: tuple[str, ...], device: str, progress: Progress) -> StudyPlan:
    """The plan, for a budget of seconds once the speed of every entry is known.

    Speeds are measured one after another on trained tokenizers, by a short training each, and kept.
    """
    if plan.study.budget is None or plan.study.budget.kind != "seconds":
        return plan
    speeds = read_speeds(plan.study.budget, plan.folder)
    unknown = [entry for entry in plan.entries if entry.trainings and entry.name not in speeds]
    if not unknown:
        return plan
    tokenizers = [training_job(plan, each, launcher) for each in plan.tokenizers.values() if not is_done(each)]
    conduct(plan, tokenizers, count_workers(plan.study, launcher, device), progress)
    for entry in unknown:
        folder = plan.folder / "probes" / entry.name
        shutil.rmtree(folder, ignore_errors=True)
        probe = Planned(f"time {entry.name}", make_probe(entry, plan.study.seeds[0]), folder)
        conduct(plan, [training_job(plan, probe, launcher)], 1, progress)
        speeds[entry.name] = speed(read_log(folder / LOG))
        shutil.rmtree(folder, ignore_errors=True)
        write_json(plan.folder / SPEEDS, speeds)
    return prepare(plan.study, plan.folder)


def run_part(study: Study, folder: Path, part: str, device: str) -> None:
    """What the conductor's jobs do: measure one entry or tokenizer of a study that is under way, time the sampling of
    all, or train the extractor that all are measured with."""
    from artok.studies.measure import measure

    points = read_points(study) if study.grid else []
    plan = settle(study, folder, part if any(point.name == part for point in points) else None)
    if part.startswith(f"{EXTRACTOR}:"):
        build_extractor(parse(part.partition(":")[2]), plan.data.open("train"), plan.data.size, device)
    elif part == TIMES:
        time_all(plan, device, Progress(study.name))
    elif part in owners(plan):
        measure(plan, part, device)
    else:
        raise ConfigError(f"the study has no {part!r} to measure; it has {', '.join(owners(plan))}")
