"""Runs the sides of a comparison in turn, rejects disturbed rounds, and gives ratios with their spread."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
UNDISTURBED = 0.93  # least processor time over wall time, against a side's best round


class SideError(Exception):
    """A side cannot run a case."""


class Process:
    """A side in a process of its own. name: in tables. dtype: put into its cases."""

    def __init__(self, name: str, adapter: Path, checkout: Path, threads: int, dtype: str) -> None:
        self.name, self.dtype, self.adapter = name, dtype, adapter
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(adapter.resolve()), str(checkout), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=checkout,
            text=True,
        )

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A worker's answer. SideError: it raised an error, or ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SideError(f"the process of {self.name} ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideError(answer["error"])
        return answer

    def prepare(self, case: Mapping[str, Any], train: bool) -> dict[str, Any]:
        """Builds a case and runs it once, to warm up. Empty, or why that failed."""
        try:
            self.ask({"build": {**case, "dtype": self.dtype}})
            self.ask({"run": "time", "train": train})
        except SideError as error:
            return {"error": str(error)}
        return {}

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@dataclass
class Rounds:
    """One entry per round for each side: {"wall", "processor"} in seconds."""

    threads: int
    taken: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def busy(self, name: str) -> list[float]:
        """Processor time over wall time of each round."""
        return [each["processor"] / each["wall"] for each in self.taken[name]]

    def kept(self) -> list[int]:
        """Rounds in which no side had to wait for the processor."""
        best = {name: 1.0 if self.threads == 1 else max(self.busy(name)) for name in self.taken}
        count = min(map(len, self.taken.values()), default=0)
        return [at for at in range(count) if all(self.busy(n)[at] >= UNDISTURBED * best[n] for n in self.taken)]

    def add(self, results: Mapping[str, dict[str, float]]) -> None:
        for name, result in results.items():
            self.taken.setdefault(name, []).append(result)


def measure(sides: Sequence[Process], case: dict[str, Any], rounds: int, seconds: float, clock: str) -> dict[str, Any]:
    """A case's figures by side, the first being what others are compared with.

    rounds: undisturbed ones wanted, within `seconds`. clock: "wall", or "processor" on a machine with other work, when
    nothing is rejected; then threads must be 1.
    """
    train = case["what"] == "train"
    found = {side.name: side.prepare(case, train) for side in sides}
    able = [side for side in sides if not found[side.name]]
    taken, end = Rounds(case["threads"]), time.perf_counter() + seconds
    while able and (not taken.taken or time.perf_counter() < end):
        taken.add({side.name: side.ask({"run": "time", "train": train}) for side in able})
        done = len(next(iter(taken.taken.values()))) if clock == "processor" else len(taken.kept())
        if done >= rounds:
            break
    for side in able:
        found[side.name] = figures(taken, side.name, able[0].name, clock) | {
            "peak_bytes": side.ask({"run": "peak", "train": train})["bytes"]
        }
    return found


def figures(taken: Rounds, name: str, first: str, clock: str) -> dict[str, Any]:
    """Median seconds of the kept rounds, and how often faster than `first`: median, smallest and largest of the rounds.

    Where every round was disturbed all are used, and `kept` is 0.
    """
    count = len(taken.taken[name])
    kept = list(range(count)) if clock == "processor" else taken.kept()
    used = kept or list(range(count))
    own, other = ([taken.taken[each][at][clock] for at in used] for each in (name, first))
    ratios = [b / a for a, b in zip(own, other, strict=True)]
    return {
        "seconds": statistics.median(own),
        "spread_s": [min(own), max(own)],
        "speedup": [statistics.median(ratios), min(ratios), max(ratios)],
        "kept": len(kept),
        "rounds": count,
    }
