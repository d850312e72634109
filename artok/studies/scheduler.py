"""Commands that depend on one another, run side by side on the cores there are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType

from artok.errors import ArtokError, RunError
from artok.studies.fork_server import Fork, Server, can_fork

INTERRUPTED = 130
# What a launcher tells its processes. A job is a launch of its own, so it must not take itself for one of them.
LAUNCHED = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
    *("ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
)


@dataclass(frozen=True)
class Job:
    """name: for messages and for `after`. arguments: of the `artok` command. after: jobs that must be done first.

    launcher: what starts it instead of Python, such as ("torchrun", "--nproc_per_node", "2"). may_fail: its failure
    leaves out the jobs after it, and the rest goes on. share: of the time of others that it takes, about.
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


@dataclass
class Running:
    job: Job
    process: subprocess.Popen[bytes] | Fork
    began: float
    slot: int


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    done: Callable[[Mapping[str, float]], None] | None = None,
    gpus: int = 0,
) -> dict[str, float]:
    """Run every job, at most `workers` at a time, the earlier in the list first; wall seconds of each that was done.

    Each job is a process of one thread: two such processes use two cores where two threads of one wait for each other.
    done: told the seconds of those that are done, the last one last, whenever one ends. gpus: how many there are, of
    which each worker then sees one.
    RunError: a job failed; the others are told to save and stop. KeyboardInterrupt: the user stopped them.
    """
    waiting = list(jobs)
    seconds: dict[str, float] = {}
    running: dict[str, Running] = {}
    with ExitStack() as servers, _forwarded(running):  # jobs are stopped before the servers that tell of them
        start = Starter(workers, gpus, servers)
        while waiting or running:
            for job in [job for job in waiting if set(job.after) <= set(seconds)][: workers - len(running)]:
                slot = min(set(range(workers)) - {each.slot for each in running.values()})
                running[job.name] = Running(job, start(job, slot), time.perf_counter(), slot)
                waiting.remove(job)
            time.sleep(0.05)
            for name in [name for name, each in running.items() if each.process.poll() is not None]:
                each = running.pop(name)
                code = each.process.returncode
                if not code:
                    seconds[name] = time.perf_counter() - each.began
                elif each.job.may_fail and code == RunError.exit_code:
                    waiting = _without(name, waiting)
                else:
                    _stop(running)
                    _fail(name, code)
                if done is not None:
                    done(seconds)
    return seconds


@dataclass
class Starter:
    """Starts jobs: each slot has a server of its own that forks them, where processes can be forked."""

    workers: int
    gpus: int
    stack: ExitStack
    servers: dict[int, Server] = field(default_factory=dict)

    def __call__(self, job: Job, slot: int) -> subprocess.Popen[bytes] | Fork:
        variables = environment(job, self.workers, slot, self.gpus)
        if job.launcher or not can_fork(self.gpus):
            return subprocess.Popen(job.command, env=variables)
        if slot not in self.servers:
            self.servers[slot] = Server(variables)
            self.stack.callback(self.servers[slot].close)
        return self.servers[slot].start(job.arguments)


def environment(job: Job, workers: int, slot: int, gpus: int) -> dict[str, str]:
    """The job's environment variables: one thread and one GPU for each of several workers; no other launch's."""
    variables = {key: value for key, value in os.environ.items() if key not in LAUNCHED and "TORCHELASTIC" not in key}
    if workers > 1:
        variables["OMP_NUM_THREADS"] = "1"
        if gpus > 1 and not job.launcher:
            seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
            variables["CUDA_VISIBLE_DEVICES"] = seen[slot % len(seen)]
    return variables


def _without(name: str, jobs: Sequence[Job]) -> list[Job]:
    """The jobs that do not wait for the named one, directly or through others."""
    lost, kept = {name}, list(jobs)
    while found := [job for job in kept if lost & set(job.after)]:
        lost |= {job.name for job in found}
        kept = [job for job in kept if job.name not in lost]
    return kept


def _fail(name: str, code: int) -> None:
    if code in (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    text = f"{name} failed, as said above; mend that and run the same command again, which keeps what is done"
    raise ArtokError(text) if code == ArtokError.exit_code else RunError(text)


def _stop(running: Mapping[str, Running]) -> None:
    for each in running.values():
        each.process.terminate()
    for each in running.values():
        each.process.wait()


@contextmanager
def _forwarded(running: Mapping[str, Running]) -> Iterator[None]:
    """Pass SIGTERM on to the jobs, which save and stop; Ctrl-C reaches them by itself, so it is only waited for."""

    def forward(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    except KeyboardInterrupt:
        _stop(running)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
