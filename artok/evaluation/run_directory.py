"""Opens run directories for reports: settings, results and log, without the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from artok.config import read_yaml, validate
from artok.data.base import DataConfig
from artok.errors import CheckpointError, ConfigError
from artok.metrics.results import Results
from artok.saved import CONFIG, RESULTS, WEIGHTS, Saved, digest_weights, find_saved, read_saved, read_training
from artok.training import checkpoints
from artok.training.encode import DataOnly
from artok.training.experiment import Experiment
from artok.training.health import Finding, diagnose
from artok.training.log import LOG, NONFINITE, read_log


@dataclass(frozen=True)
class Spent:
    """The cost of training, from its log.

    images: seen. wanted: to be seen in all. seconds: of wall time, pauses between a stop and a resumption left out.
    core_seconds: of processor time, over all processes.
    """

    images: int
    wanted: int
    seconds: float
    core_seconds: float
    processes: int
    device: str

    @property
    def finished(self) -> bool:
        return self.images >= self.wanted


@dataclass(frozen=True)
class Run:
    """name: differs among the runs that are shown together. config: all of `config.yaml`. log: empty if there is none,
    as for an imported checkpoint."""

    name: str
    folder: Path
    saved: Saved
    config: Mapping[str, Any]
    results: Results
    log: Sequence[Mapping[str, Any]]

    @property
    def data(self) -> DataConfig:
        """The `data` section; a ConfigError when there is none."""
        section = self.config.get("data")
        if section is None:
            raise ConfigError(f"{self.folder / CONFIG} names no data to show; add its 'data' section")
        return validate(DataOnly, {"data": section}, str(self.folder / CONFIG)).data

    @property
    def spent(self) -> Spent | None:
        """None without a log."""
        if not self.log:
            return None
        starts = [index for index, event in enumerate(self.log) if event["event"] in ("start", "resume")] or [0]
        ends = [*(index - 1 for index in starts[1:]), len(self.log) - 1]
        seconds = sum(self.log[end]["time"] - self.log[start]["time"] for start, end in zip(starts, ends, strict=True))
        images = self.log[-1]["images"]
        wanted = read_training(self.folder).get("images", images)
        begun = self.log[starts[-1]]
        processes = begun.get("processes", 1)
        cores = processes * sum(self.log[end].get("core_seconds", 0.0) for end in self._last_reports(starts))
        return Spent(images, wanted, seconds, cores, processes, begun.get("device", "cpu"))

    @property
    def findings(self) -> list[Finding]:
        """What is wrong according to the log; empty for a healthy run, and without a log."""
        return diagnose(self.log)

    def _last_reports(self, starts: Sequence[int]) -> list[int]:
        """Where each start's last report of training stands."""
        reports = [index for index, event in enumerate(self.log) if event["event"] == "train"]
        spans = zip(starts, [*starts[1:], len(self.log)], strict=True)
        return [max(inside) for low, high in spans if (inside := [index for index in reports if low < index < high])]


def is_trained(experiment: Experiment, folder: Path) -> bool:
    """Whether training has ended. Weights alone do not say so: every checkpoint writes them."""
    newest = checkpoints.find_latest(folder / "checkpoints")
    return newest is not None and int(newest.name) >= experiment.training.images and (folder / WEIGHTS).exists()


def diverged(log: Sequence[Mapping[str, Any]]) -> bool:
    """Whether training ended because a loss, a gradient or a weight was not finite."""
    if any(event["event"] == NONFINITE for event in log):
        return True
    reports = [event for event in log if event["event"] == "train"]
    last = reports[-1] if reports else {}
    losses = [value for name, value in last.items() if name.endswith("_loss")]
    return any(not math.isfinite(value) for value in losses)


def step_seconds(log: Sequence[Mapping[str, Any]]) -> tuple[int, float]:
    """Images and seconds of training steps alone, from the stretches of a log in which nothing else was done.

    Seconds of processor time over all processes on a CPU, of wall time on a GPU.
    """
    images, seconds, device, processes = 0, 0.0, "cpu", 1
    for before, now in pairwise(log):
        if before["event"] in ("start", "resume"):
            device, processes = before.get("device", "cpu"), before.get("processes", 1)
        if before["event"] == now["event"] == "train":
            images += now["images"] - before["images"]
            cores = processes * (now.get("core_seconds", 0.0) - before.get("core_seconds", 0.0))
            seconds += cores if device == "cpu" else now["time"] - before["time"]
    return images, seconds


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs of these folders. A CheckpointError names the first that is missing, not measured, or measured with
    other weights than it has now."""
    names = distinct_names(folders)
    return [_open(folder, name) for folder, name in zip(folders, names, strict=True)]


def _open(folder: Path, name: str) -> Run:
    """A run with the results in its folder."""
    if not folder.exists():  # said here, since find_saved would look for it on the hub
        raise CheckpointError(f"there is no run {folder}; train it first with 'artok train'")
    find_saved(folder)
    if not (folder / RESULTS).exists():
        raise CheckpointError(f"the run {folder} has no {RESULTS}; measure it first with 'artok evaluate {folder}'")
    results = Results.load(folder / RESULTS)
    stale = results.describe_stale(folder, digest_weights(folder))
    if stale is not None:
        raise CheckpointError(stale)
    return open_run(folder, name, results)


def open_run(folder: Path, name: str, results: Results) -> Run:
    """A run with results that are kept elsewhere."""
    config = read_yaml(folder / CONFIG)
    return Run(name, folder, read_saved(folder), config, replace(results, name=name), read_log(folder / LOG))


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents before them as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        depth = next(n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others))
        names.append("/".join(own[-depth:]))
    return names
