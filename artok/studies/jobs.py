"""Commands that depend on one another, run side by side on the cores there are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from artok.errors import ArtokError, RunError

INTERRUPTED = 130


@dataclass(frozen=True)
class Job:
    """name: for messages and for `after`. arguments: of the `artok` command. after: jobs that must be done first."""

    name: str
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()


def run_jobs(
    jobs: Sequence[Job], workers: int, done: Callable[[Mapping[str, float]], None] | None = None
) -> dict[str, float]:
    """Run every job, at most `workers` at a time, the earlier in the list first; wall seconds of each.

    done: told the seconds of those that are done, the last one last, whenever one ends.
    Each job is a process of one thread: two such processes use two cores where two threads of one wait for each other.
    RunError: a job failed; the others are told to save and stop. KeyboardInterrupt: the user stopped them.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if workers > 1 else dict(os.environ)
    waiting = list(jobs)
    seconds: dict[str, float] = {}
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    with _forwarded(running):
        while waiting or running:
            for job in [job for job in waiting if set(job.after) <= set(seconds)][: workers - len(running)]:
                command = [sys.executable, "-m", "artok", *job.arguments]
                running[job.name] = subprocess.Popen(command, env=environment), time.perf_counter()
                waiting.remove(job)
            time.sleep(0.05)
            for name in [name for name, (process, _) in running.items() if process.poll() is not None]:
                process, began = running.pop(name)
                seconds[name] = time.perf_counter() - began
                if process.returncode:
                    _stop(running)
                    _fail(name, process.returncode)
                if done is not None:
                    done(seconds)
    return seconds


def _fail(name: str, code: int) -> None:
    if code in (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    text = f"{name} failed, as said above; mend that and run the same command again, which keeps what is done"
    raise ArtokError(text) if code == ArtokError.exit_code else RunError(text)


def _stop(running: Mapping[str, tuple[subprocess.Popen[bytes], float]]) -> None:
    for process, _ in running.values():
        process.terminate()
    for process, _ in running.values():
        process.wait()


@contextmanager
def _forwarded(running: Mapping[str, tuple[subprocess.Popen[bytes], float]]) -> Iterator[None]:
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
