"""Runs dependent commands in parallel on cores, GPUs or Slurm nodes."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from artok.errors import ArtokError, ConfigError, RunError

INTERRUPTED = 130
# Environment variables of launchers. They are removed for jobs, which are launches of their own.
LAUNCHED = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
    *("ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
)
# Modules that training and measuring import, preloaded in the fork server so that jobs start at once.
PRELOADED = [
    *("artok.cli", "artok.training.run", "artok.commands.compare", "artok.studies.measure"),
    *("torch._dynamo", "torch.utils.flop_counter", "vector_quantize_pytorch"),
    *("sklearn.datasets", "sklearn.neighbors", "scipy.linalg"),
]


@dataclass(frozen=True)
class Job:
    """name: for messages and for `after`. arguments: of the `artok` command. after: jobs that must be done first.

    launcher: starts it instead of Python, such as ("torchrun", "--nproc_per_node", "2"). may_fail: on failure the jobs
    after it are left out and the others continue. share: its approximate duration relative to other jobs.
    """

    name: str
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    may_fail: bool = False
    share: float = 1.0

    @property
    def command(self) -> list[str]:
        return [*(self.launcher or (sys.executable,)), "-m", "artok", *self.arguments]


@dataclass(frozen=True)
class Slurm:
    """Settings for jobs on Slurm. folder: of logs. settings: of submitit's AutoExecutor, such as `timeout_min`,
    `gpus_per_node`, `slurm_partition`; and `cluster`, default slurm."""

    folder: Path
    settings: Mapping[str, Any]


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    done: Callable[[Mapping[str, float]], None] | None = None,
    gpus: int = 0,
    slurm: Slurm | None = None,
) -> dict[str, float]:
    """Run all jobs, at most `workers` at a time, in the order of the list. Returns the wall seconds of each.

    Each job is a process with one thread, since small models do not scale to several threads.
    done: called with the seconds of finished jobs, the last one last, whenever one ends. gpus: number of GPUs; each
    worker gets one. slurm: run each job on Slurm.
    RunError: a job failed; the others are told to save and stop. KeyboardInterrupt: the user stopped them.
    """
    if slurm is not None:
        require_submitit()
    named, order = {job.name: job for job in jobs}, TopologicalSorter({job.name: job.after for job in jobs})
    order.prepare()
    ready: list[Job] = []
    seconds: dict[str, float] = {}
    free, running = set(range(workers)), dict[Any, tuple[Job, BaseProcess, float, int]]()
    with _stopping(running):
        while True:
            ready = sorted([*ready, *(named[name] for name in order.get_ready())], key=jobs.index)
            while ready and free:
                job, slot = ready.pop(0), min(free)
                free.remove(slot)
                variables = environment(job, workers, slot, gpus, slurm is not None)
                process = _start(job, variables, 1 if workers > 1 else torch.get_num_threads(), gpus, slurm)
                running[process.sentinel] = job, process, time.perf_counter(), slot
            if not running:
                return seconds
            for sentinel in wait(list(running)):
                job, process, began, slot = running[sentinel]
                process.join()
                del running[sentinel]
                free.add(slot)
                if not process.exitcode:
                    seconds[job.name] = time.perf_counter() - began
                    order.done(job.name)
                elif not (job.may_fail and process.exitcode == RunError.exit_code):
                    _stop(running)
                    _fail(job.name, process.exitcode)
                if done is not None:
                    done(seconds)


def environment(job: Job, workers: int, slot: int, gpus: int, elsewhere: bool = False) -> dict[str, str]:
    """The job's environment variables: one thread and one GPU per worker, without those of another launcher."""
    variables = {key: value for key, value in os.environ.items() if key not in LAUNCHED and "TORCHELASTIC" not in key}
    if workers > 1 and not elsewhere:
        variables["OMP_NUM_THREADS"] = "1"
        if gpus > 1 and not job.launcher:
            seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
            variables["CUDA_VISIBLE_DEVICES"] = seen[slot % len(seen)]
    return variables


def _start(job: Job, variables: Mapping[str, str], threads: int, gpus: int, slurm: Slurm | None) -> BaseProcess:
    """Start a process for the job: a fork of the preloaded server, or a guard that starts a separate process.

    Separate processes are needed with a launcher and on a GPU, which forks must not share.
    """
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(PRELOADED)
    if slurm is not None:
        process = context.Process(target=run_on_slurm, args=(job.command, slurm))
    elif job.launcher or gpus or not forks:
        process = context.Process(target=run_apart, args=(job.command, dict(variables)))
    else:
        process = context.Process(target=run_here, args=(job.arguments, dict(variables), threads))
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(variables)  # the server that forks reads it when the first job starts it
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return process


def _fail(name: str, code: int) -> None:
    if code in (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    text = f"{name} failed (see above); fix that and run the same command again to resume"
    raise ArtokError(text) if code == ArtokError.exit_code else RunError(text)


def _stop(running: Mapping[Any, tuple[Job, BaseProcess, float, int]]) -> None:
    for _, process, *_ in running.values():
        process.terminate()
    for _, process, *_ in running.values():
        process.join()


@contextmanager
def _stopping(running: Mapping[Any, tuple[Job, BaseProcess, float, int]]) -> Iterator[None]:
    """Pass Ctrl-C and SIGTERM to the jobs, which save and stop, and wait for them."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except BaseException:
        _stop(running)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


# ---------------------------------------------------------------------------------------------- in the job's process


def run_here(arguments: Sequence[str], variables: Mapping[str, str], threads: int) -> None:
    """Run an `artok` command in this process."""
    _end_with_parent()
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(threads)
    sys.argv = ["artok", *arguments]
    runpy.run_module("artok", run_name="__main__", alter_sys=True)


def run_apart(command: Sequence[str], variables: Mapping[str, str]) -> None:
    """Run a command in a separate process, which is stopped when this one is."""
    started: list[subprocess.Popen[bytes]] = []

    def stop(number: int, frame: FrameType | None) -> None:
        started[0].terminate() if started else sys.exit(INTERRUPTED)

    signal.signal(signal.SIGTERM, stop)
    process = subprocess.Popen(command, env=variables)
    started.append(process)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command gets Ctrl-C by itself
    _end_with_parent()
    code = process.wait()
    sys.exit(code if code >= 0 else INTERRUPTED if -code in (signal.SIGINT, signal.SIGTERM) else RunError.exit_code)


def run_on_slurm(command: Sequence[str], slurm: Slurm) -> None:
    """Submit a command to Slurm and wait for it; cancel it when this process is stopped."""
    submitit = require_submitit()
    settings = dict(slurm.settings)
    executor = submitit.AutoExecutor(folder=slurm.folder, cluster=settings.pop("cluster", "slurm"))
    executor.update_parameters(**settings)
    submitted = executor.submit(subprocess.call, list(command))

    def cancel(number: int, frame: FrameType | None) -> None:
        submitted.cancel()
        sys.exit(INTERRUPTED)

    signal.signal(signal.SIGTERM, cancel)
    signal.signal(signal.SIGINT, cancel)
    _end_with_parent()
    try:
        code = submitted.result()
    except Exception as error:  # a node that failed, a time limit: submitit has its own errors for each
        print(
            f"artok: Slurm job {submitted.job_id} ended without a result ({error}); see {slurm.folder}", file=sys.stderr
        )
        code = RunError.exit_code
    sys.exit(code)


def require_submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise ConfigError("'executor: slurm' needs submitit; install it with pip install 'artok[slurm]'") from None
    return submitit


def _end_with_parent() -> None:
    """Save and stop, as on SIGTERM, when the scheduler's process is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
