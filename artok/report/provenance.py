"""The commands that reproduce a run, its config, and the machine of a page."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
from collections.abc import Mapping
from typing import Any

import torch

from artok.config import SHIPPED, dump, load, validate
from artok.errors import ArtokError
from artok.evaluation.run_directory import Run
from artok.planning.measure import processor
from artok.training.experiment import Experiment

MOST = 12  # settings on top of a shipped config; with more, the whole config is given


def machine() -> str:
    """The processor, its cores, the system and torch."""
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} used by torch"
    return f"{processor()}; {cores}; {platform.system()} {platform.machine()}; torch {torch.__version__}"


def commands(run: Run) -> list[str]:
    """What trains and measures the run again: a shipped config with overrides, or the run's config as a file."""
    folder = shlex.quote(str(run.folder))
    lines = []
    experiment = _experiment(run)
    if experiment is not None:
        shipped = from_shipped(experiment) or [f"{run.folder.name}.yaml"]
        lines.append(f"artok train {shlex.join(shipped)} --out {folder}")
    featured = next((entry for entry in run.results.measurements if entry.extractor is not None), None)
    extractor = f" --extractor {shlex.quote(str(featured.extractor))}" if featured else ""
    count = max((entry.n for entry in run.results.measurements), default=0)
    return [*lines, f"artok evaluate {folder} -n {count}{extractor}"]


def config_text(run: Run) -> str:
    """The run's config as YAML, to train from; empty for a model that was trained elsewhere."""
    experiment = _experiment(run)
    return "" if experiment is None else dump(experiment)


def _experiment(run: Run) -> Experiment | None:
    settings = {key: value for key, value in run.config.items() if key != "facts"}
    try:
        return validate(Experiment, settings, str(run.folder))
    except ArtokError:
        return None


def from_shipped(experiment: Experiment) -> list[str] | None:
    """A shipped config and overrides that make this very experiment; None when that takes more than MOST."""
    wanted = experiment.model_dump(mode="json")
    ways = []
    for root in SHIPPED:
        for path in sorted(root.rglob("*.yaml")):
            name = str(path.relative_to(root).with_suffix(""))
            try:
                overrides = changes(load(Experiment, name).model_dump(mode="json"), wanted)
                if len(overrides) <= MOST and load(Experiment, name, overrides) == experiment:
                    ways.append([name, *overrides])
            except ArtokError:  # a config of something else, or settings that cannot be put on top of it
                continue
    return min(ways, key=len, default=None)


def changes(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> list[str]:
    """key.sub=value for every setting of `now` that differs."""
    found = []
    for key, value in now.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            found += changes(old, value, f"{place}{key}.")
        elif value != old or key not in before:
            plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_./][\w./-]*", value)
            found.append(f"{place}{key}={value if plain else json.dumps(value)}")
    return found
