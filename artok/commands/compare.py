"""`artok compare`: trains, measures and reports the entries of a study. A stopped study resumes."""

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
from artok.discard import check_discardable, discard
from artok.errors import ConfigError, RunError
from artok.evaluation.run_directory import diverged, is_trained
from artok.files import remove_partial
from artok.locks import hold_lock
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
from artok.training.log import LOG, duration, read_log
from artok.training.progress import Progress

STUDY = "study.yaml"
BESIDE = "beside"  # folder of the second study on the page
EXTRACTOR, TIMES = "extractor", "times"  # parts of a study; the first is a prefix of a name
MOST_WORKERS, MOST_SUBMITTED = 4, 64  # parallel jobs on a CPU, and under Slurm
SHORT = 0.25  # time of measuring, as a share of a training's


def compare(study: Study, folder: Path, device: str, fresh: bool = False) -> Path | None:
    """Train and measure what is missing, then write `results.json`, `results.csv` and `report.html`. Returns the page.

    fresh: discard what the folder holds. Under `torchrun` or `accelerate launch` the first process runs the study and
    starts each training over as many processes; the others return None. ConfigError, LayoutError, CheckpointError,
    DataError: raised before anything is trained. RunError: a training failed.
    """
    if os.environ.get("RANK", "0") != "0":
        return None
    launcher = find_launcher(study)
    if fresh:
        check_discardable(folder)
    plans = [prepare(study, folder, fresh)]  # raises errors before the folder is made
    if study.beside:
        plans.append(prepare(load_study(study.beside, []), folder / BESIDE, fresh))
    for plan in plans:
        require_extractor(plan.study.evaluation)
    with hold_lock(folder / LOCK, partial(refuse_two, folder)):
        return _conduct_studies(plans, device, launcher, fresh)


def _conduct_studies(plans: list[StudyPlan], device: str, launcher: tuple[str, ...], fresh: bool) -> Path:
    """`compare` while holding the folder's lock. plans: of the study and, if there is one, of the second study."""
    study, folder = plans[0].study, plans[0].folder
    progress = Progress(study.name)
    if fresh:
        discard(folder)
    remove_partial(folder)
    for plan in plans:
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
        if list_untimed(plan):  # after all other jobs, since they would slow it down
            conduct(plans[0], [measuring_job(plan, f"time {plan.study.name}", TIMES)], 1, progress)
    return conclude(plans, device)


def conclude(plans: Sequence[StudyPlan], device: str) -> Path:
    """Write results.json, results.csv and the page of measured and timed studies."""
    from artok.report.study import write_page  # imported late, since it imports matplotlib

    outcome = gather(plans[0], gather(plans[1]) if plans[1:] else None)
    folder = plans[0].folder
    write_json(folder / RESULTS, study_json(outcome))
    write_text(folder / TABLE, as_csv(outcome))
    return write_page(folder / PAGE, outcome, device)


def study_json(outcome: Outcome) -> dict[str, Any]:
    """The content of results.json, with the second study under `beside`."""
    own = as_json(outcome, tradeoffs_json(outcome) if outcome.plan.study.grid else {})
    return own if outcome.beside is None else own | {"beside": study_json(outcome.beside)}


def prepare(study: Study, folder: Path, fresh: bool = False) -> StudyPlan:
    """Plan the study, match it to its budget as far as speeds are known, and check it against the folder.

    fresh: the folder's content will be discarded.
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
    """Set `snapshot_every` of the trainings for the learning curve."""
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
    """The command that starts a training: the study's `launch`, or as many processes as this one was launched with."""
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
    """The words of the study's `launch`. ConfigError: it names no program of this machine."""
    try:
        words = tuple(shlex.split(launch))
    except ValueError as error:
        raise ConfigError(f"launch {launch!r} cannot be read: {str(error).lower()}") from None
    beside = f"{os.environ.get('PATH', '')}{os.pathsep}{Path(sys.executable).parent}"  # if it is not activated
    found = shutil.which(words[0], path=beside) if words else None
    if found is None:
        raise ConfigError(f"launch {launch!r} names no program of this machine; give one such as torchrun, or none")
    return (found, *words[1:])


def count_workers(study: Study, launcher: Sequence[str], device: str) -> int:
    """The number of parallel jobs: 1 if each takes several processes, else one per GPU or core, up to four."""
    if study.workers is not None:
        return study.workers
    if study.executor == "slurm":
        return MOST_SUBMITTED
    if launcher:
        return 1
    return torch.cuda.device_count() if device == "cuda" else min(MOST_WORKERS, os.cpu_count() or 1)


def list_jobs(plan: StudyPlan, launcher: tuple[str, ...]) -> list[Job]:
    """All jobs that are not done: trainings, and each entry's measurements after its last training.

    Short jobs come last, so that workers end at about the same time.
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
    if wanted and parse(extractor).trained:  # a job of its own, since measuring jobs would wait for each other
        first = measuring_job(plan, f"train {extractor}", f"{EXTRACTOR}:{extractor}")
        jobs.append(first)
        measuring = [replace(job, after=(*job.after, first.name)) for job in measuring]
    return sorted(jobs, key=lambda job: bool(job.after)) + measuring


def _join(jobs: Sequence[Job], others: Sequence[Job], prefix: str) -> list[Job]:
    """The jobs of two studies. The second's names get a prefix, except for an extractor that both need."""
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
    """A job that runs `artok compare --measure` for a part of the study (see `run_part`)."""
    return Job(name, ("compare", str(plan.folder / STUDY), "--out", str(plan.folder), "--measure", part), after)


def list_needed(plan: StudyPlan, owner: str) -> list[str]:
    """The names of the trainings that an entry's or a tokenizer's measurements need."""
    kind, _, name = owner.rpartition(":")
    if kind:
        return [f"train {name}"]
    entry = next(entry for entry in plan.entries if entry.name == name)
    own = [f"train {tokenizer}" for tokenizer in list_own_tokenizers(plan, entry)]
    return own + [planned.name for planned in entry.trainings.values()]


def training_job(plan: StudyPlan, planned: Planned, launcher: tuple[str, ...], others: Collection[str] = ()) -> Job:
    """A job that runs `artok train` on the resolved config, which is written to the study's folder.

    others: names of the other trainings that are not done.
    """
    config = plan.folder / "configs" / f"{planned.name.removeprefix('train ').replace(' ', '-')}.yaml"
    write_text(config, dump(planned.experiment))
    arguments = ("train", str(config), "--out", str(planned.folder))
    after = tuple(name for name in planned.after if name in others)
    return Job(planned.name, arguments, after, launcher, may_fail=planned.experiment.generator is not None)


def is_done(planned: Planned) -> bool:
    """Whether a training is finished or diverged."""
    return is_trained(planned.experiment, planned.folder) or diverged(read_log(planned.folder / LOG))


def conduct(plan: StudyPlan, jobs: Sequence[Job], workers: int, progress: Progress) -> None:
    """Run the jobs with the study's executor. Prints a line with the time left after each."""
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
    """Raise a RunError when a training failed without diverging, or when all trainings of an entry diverged."""
    for planned in plan.trainings():
        if not is_done(planned):
            raise RunError(f"{planned.name} failed (see above); run the same command again to resume")
    for entry in plan.entries:
        if entry.trainings and all(diverged(read_log(folder / LOG)) for folder in entry.runs.values()):
            raise RunError(f"every training of {entry.name} diverged; lower its lr, or leave it out of the study")


# ---------------------------------------------------------------------------------------------- speeds


def measure_speeds(plan: StudyPlan, launcher: tuple[str, ...], device: str, progress: Progress) -> StudyPlan:
    """The plan; for a budget of seconds, matched to the measured speed of every entry.

    Speeds are measured one after another on trained tokenizers by short trainings, and stored.
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
    """Run a job of a study: measure one entry or tokenizer, time the sampling of all, or train the extractor."""
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
