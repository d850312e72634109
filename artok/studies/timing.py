"""What a contestant's sampling takes on this machine: latency and throughput, one contestant after another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

from artok.config import validate
from artok.evaluation.evaluator import make
from artok.metrics import cost
from artok.noise import fold
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling
from artok.saved import write_json
from artok.studies.measure import Cell, Marks, cells_of
from artok.studies.resolve import Plan
from artok.training.progress import Progress

FORMAT = 3


@dataclass(frozen=True)
class Times:
    """latency: seconds to one decoded image, a value for each round. throughput: images a second by batch.

    steps: latency by sampling steps.
    """

    latency: Sequence[float]
    throughput: Mapping[int, float]
    steps: Mapping[int, float] = field(default_factory=dict)

    @property
    def best(self) -> tuple[int, float]:
        """The batch with the highest throughput, and that."""
        return max(self.throughput.items(), key=lambda pair: pair[1])


def time_all(plan: Plan, device: str, progress: Progress) -> dict[str, Times]:
    """The times of every contestant's first run, from their files where they were taken before of the same weights."""
    marks, found = Marks(plan), {}
    for entry in plan.entries:
        cells = cells_of(plan, entry.name)
        if not cells:
            continue
        final = next(cell for cell in cells if cell.kind == "final")
        steps = [cell for cell in cells if cell.kind == "steps" and cell.seed == final.seed]
        mark = f"{fold(marks(final), plan.study.timing.model_dump_json(), *(cell.name for cell in steps), device):016x}"
        path = plan.folder / "cells" / "times" / f"{entry.name}.json"
        times = _read(path, mark)
        if times is None:
            progress.say(f"{entry.name}: timing its sampling")
            times = take(plan, final, steps, device)
            write_json(path, {"format": FORMAT, "mark": mark, "times": asdict(times)})
        found[entry.name] = times
    return found


def _read(path: Path, mark: str) -> Times | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["format"], content["mark"]) == (FORMAT, mark):
            known = content["times"]
            by_number = {
                key: {int(number): value for number, value in known[key].items()} for key in ("throughput", "steps")
            }
            return Times(known["latency"], by_number["throughput"], by_number["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def take(plan: Plan, final: Cell, steps: Sequence[Cell], device: str) -> Times:
    """Time a run: its own settings in rounds, then each number of steps once."""
    wishes = plan.study.timing
    pipeline = Pipeline.from_pretrained(final.folder, device)
    sampling = validate(Sampling, final.sampling.model_dump(), "sampling")

    def one(settings: Sampling, warmup: int) -> float:
        return cost.latency(lambda: make(pipeline, settings, 1), device, warmup, wishes.repeats).median

    latency = [one(sampling, warmup=0 if round_ else 2) for round_ in range(wishes.rounds)]
    by_batch = dict(_throughputs(pipeline, sampling, sorted(set(wishes.batches)), device))
    own = pipeline.generator.passes(sampling)
    by_steps = {
        int(cell.at or 0): min(latency) if pipeline.generator.passes(cell.sampling) == own else one(cell.sampling, 1)
        for cell in steps
    }
    return Times(latency, by_batch, by_steps)


def _throughputs(
    pipeline: Pipeline, sampling: Sampling, batches: Sequence[int], device: str
) -> Iterator[tuple[int, float]]:
    """By batch, from the smallest on; a batch that does not fit the memory ends it."""
    for batch in batches:
        try:
            yield batch, cost.throughput(partial(make, pipeline, sampling, batch), batch, device)
        except torch.cuda.OutOfMemoryError:  # noqa: PERF203
            if batch == batches[0]:
                raise
            return
