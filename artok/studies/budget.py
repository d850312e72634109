"""Matches every entry to one budget, by its size or its number of training images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artok.config import validate
from artok.errors import CheckpointError, ConfigError
from artok.evaluation.run_directory import step_seconds
from artok.metrics import cost
from artok.metrics.quantity import number
from artok.planning.training_cost import training_flops
from artok.saved import describe_unfinished
from artok.studies.config import Budget
from artok.studies.model_scaling import describe_size, resize_to
from artok.studies.resolve import Entry, StudyPlan, tokenizer_section
from artok.training.experiment import Experiment
from artok.training.settings import INTERVALS

UNITS = {"parameters": "parameters", "flops": "training FLOPs", "images": "images", "seconds": "seconds of training"}


@dataclass(frozen=True)
class TrainingCost:
    """The cost of an entry's training in the unit of every budget. speed: images per second, if measured."""

    parameters: int
    flops_per_image: float
    images: int
    speed: float | None = None

    def spent(self, kind: str) -> float | None:
        """The cost in the unit of a budget's kind; None for seconds that were not measured."""
        if kind == "seconds":
            return None if self.speed is None else self.images / self.speed
        return {"parameters": self.parameters, "flops": self.flops_per_image * self.images, "images": self.images}[kind]


def match(plan: StudyPlan, speeds: Mapping[str, float]) -> None:
    """Change the plan's trainings to meet the study's budget; each entry's `adjustment` describes the change.

    speeds: images per second of each entry, for a budget of seconds; other entries are not changed.
    ConfigError: an entry cannot come within the tolerance.
    """
    budget = plan.study.budget
    for entry in plan.entries:
        if entry.given:
            unfinished = filter(None, map(describe_unfinished, dict.fromkeys(entry.runs.values())))
            entry.adjustment = "; ".join(unfinished) or "a finished run, used unchanged"
            continue
        if not entry.trainings:
            continue
        if budget is None:
            entry.adjustment = "as its config says: the study has no budget"
            continue
        first = entry.trainings[plan.study.seeds[0]].experiment
        if budget.kind == "parameters":
            changes, entry.adjustment = _resized(entry, first, budget.amount, budget.tolerance)
        else:
            rate = _rate(plan, entry, first, budget.kind, speeds)
            if rate is None:
                continue
            changes, entry.adjustment = _lasting(entry.name, first, budget.amount / rate, budget.tolerance)
            entry.adjustment += f": {number(rate)} {UNITS[budget.kind]} per image" if rate != 1 else ""
        for planned in entry.trainings.values():
            planned.experiment = validate(Experiment, planned.experiment.model_dump() | changes, entry.name)


def _rate(
    plan: StudyPlan, entry: Entry, experiment: Experiment, kind: str, speeds: Mapping[str, float]
) -> float | None:
    """The cost of training on one image, in the budget's unit."""
    if kind == "images":
        return 1.0
    if kind == "flops":
        return _flops(experiment, plan, entry)
    return 1 / speeds[entry.name] if entry.name in speeds else None


def _resized(entry: Entry, experiment: Experiment, target: float, tolerance: float) -> tuple[dict[str, Any], str]:
    assert experiment.generator is not None
    try:
        generator, found = resize_to(experiment.generator, entry.layout, entry.classes, target, tolerance)
    except ConfigError as error:
        raise ConfigError(f"{entry.name}: {error}") from None
    share = f"{found:,} parameters, {found / target - 1:+.1%} of the budget"
    if generator == experiment.generator:
        return {}, f"size kept: {share}"
    before, after = describe_size(experiment.generator), describe_size(generator)
    return {"generator": generator.model_dump()}, f"{before} became {after}: {share}"


def _lasting(name: str, experiment: Experiment, wanted: float, tolerance: float) -> tuple[dict[str, Any], str]:
    """Change the training to `wanted` images in whole batches, with schedule and intervals in proportion."""
    training = experiment.training
    images = round(wanted / training.global_batch) * training.global_batch
    if not images or abs(images / wanted - 1) > tolerance:
        raise ConfigError(
            f"{name}: the budget is enough for {wanted:,.1f} images, which whole batches of {training.global_batch} "
            f"cannot come within {tolerance:.0%} of; raise the budget or lower training.global_batch"
        )
    if images == training.images:
        return {}, f"{images:,} images, as its config says"
    try:
        lasting = training.lasting(images)
    except ConfigError as error:
        raise ConfigError(f"{name}: the budget is too large: {error}") from None
    return {"training": lasting.model_dump()}, f"{training.images:,} images became {images:,}"


# ---------------------------------------------------------------------------------------------- cost of training


def _flops(experiment: Experiment, plan: StudyPlan, entry: Entry) -> float:
    """FLOPs of training per image, with a critic's. The tokenizer need not exist yet."""
    section = tokenizer_section(experiment, plan.tokenizers)[0]
    return training_flops(experiment.model_copy(update={"tokenizer": section}), entry.classes)


def training_cost(plan: StudyPlan, entry: Entry, speeds: Mapping[str, float]) -> TrainingCost | None:
    """The cost of an entry's training; None for a finished run or without a generator."""
    if not entry.trainings:
        return None
    experiment = entry.trainings[plan.study.seeds[0]].experiment
    assert experiment.generator is not None
    with torch.device("meta"):
        parameters = cost.parameters(experiment.generator.build(entry.layout, entry.classes))
    steps = experiment.training.steps()
    flops = _flops(experiment, plan, entry)
    return TrainingCost(parameters, flops, steps * experiment.training.global_batch, speeds.get(entry.name))


# ---------------------------------------------------------------------------------------------- speed

SPEEDS = "speeds.json"
PROBED = 48  # steps of the speed measurement; the first quarter is not counted


def read_speeds(budget: Budget | None, folder: Path) -> dict[str, float]:
    """Images per second of each entry, from the budget or as measured before by the study in a folder.

    CheckpointError: the folder's file of speeds is damaged.
    """
    given, path = dict(budget.speeds if budget else {}), folder / SPEEDS
    if not path.exists():
        return given
    try:
        found = {str(name): float(speed) for name, speed in json.loads(path.read_text(encoding="utf-8")).items()}
    except (AttributeError, TypeError, ValueError):
        found = {}
    if not found or not all(0 < speed < math.inf for speed in found.values()):
        raise CheckpointError(f"{path} does not hold speeds; delete it, and they are measured again")
    return found | given


def make_probe(entry: Entry, seed: int) -> Experiment:
    """A short training that measures an entry's speed, without validation, previews or monitoring."""
    experiment = entry.trainings[seed].experiment
    batch = experiment.training.global_batch
    never = PROBED * batch + 1
    section = experiment.training.model_dump() | dict.fromkeys(INTERVALS, never)
    section |= {
        "images": PROBED * batch,
        "log_every": PROBED * batch // 8,
        "validate_images": 1,
        "monitor_images": 0,
        "trackers": (),
    }
    return validate(Experiment, experiment.model_dump() | {"training": section}, entry.name)


def speed(log: Sequence[Mapping[str, Any]]) -> float:
    """Images per second of training steps, in processor time on a CPU and wall time on a GPU."""
    images, seconds = step_seconds(log)
    if not seconds:
        raise ConfigError("the short training that measures the speed has no step to count")
    return images / seconds
