"""Measures the latency and throughput of sampling on this machine, one entry after another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from pydantic import TypeAdapter

from artok.config import validate
from artok.evaluation.generation_cost import make
from artok.metrics import cost
from artok.noise import fold
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling
from artok.saved import write_json
from artok.studies.measure import RECORDS, CacheKeys, Record, list_records
from artok.studies.resolve import Entry, StudyPlan
from artok.training.progress import Progress

FORMAT = 3


@dataclass(frozen=True)
class SamplingTimes:
    """latency: seconds until one decoded image, per round. throughput: images per second by batch.

    steps: latency by sampling steps.
    """

    latency: Sequence[float]
    throughput: Mapping[int, float]
    steps: Mapping[int, float] = field(default_factory=dict)

    @property
    def best(self) -> tuple[int, float]:
        """The batch with the highest throughput, and the throughput."""
        return max(self.throughput.items(), key=lambda pair: pair[1])


_CHECKED = TypeAdapter(SamplingTimes)


def time_all(plan: StudyPlan, device: str, progress: Progress) -> None:
    """Time every entry's first run, one after another, unless its weights were timed before."""
    keys = CacheKeys(plan)
    for entry in plan.entries:
        wanted = _wanted(plan, entry, keys)
        if wanted is not None and _read(plan, entry, wanted[2]) is None:
            progress.say(f"{entry.title}: timing its sampling")
            times = take(plan, *wanted[:2], device)
            write_json(_place(plan, entry), {"format": FORMAT, "cache_key": wanted[2], "times": asdict(times)})


def list_untimed(plan: StudyPlan) -> list[str]:
    """Entries that can be timed and were not."""
    keys = CacheKeys(plan)
    wanted = [(entry, _wanted(plan, entry, keys)) for entry in plan.entries]
    return [entry.name for entry, found in wanted if found is not None and _read(plan, entry, found[2]) is None]


def read_times(plan: StudyPlan) -> dict[str, SamplingTimes]:
    """The times of every timed entry."""
    keys = CacheKeys(plan)
    wanted = {entry.name: (entry, found) for entry in plan.entries if (found := _wanted(plan, entry, keys))}
    times = {name: _read(plan, entry, key) for name, (entry, (_, _, key)) in wanted.items()}
    return {name: found for name, found in times.items() if found is not None}


def _wanted(plan: StudyPlan, entry: Entry, keys: CacheKeys) -> tuple[Record, list[Record], str] | None:
    """The records to time of an entry, final and by steps, and their cache key; None if there are none."""
    records = list_records(plan, entry.name)
    final = next((record for record in records if record.kind == "final"), None)
    if final is None:
        return None
    steps = [record for record in records if record.kind == "steps" and record.seed == final.seed]
    settings = plan.study.timing.model_dump_json(), *(record.name for record in steps)
    return final, steps, f"{fold(keys(final), *settings):016x}"


def _place(plan: StudyPlan, entry: Entry) -> Path:
    return plan.folder / RECORDS / "times" / f"{entry.name}.json"


def _read(plan: StudyPlan, entry: Entry, key: str) -> SamplingTimes | None:
    try:
        content = json.loads(_place(plan, entry).read_text(encoding="utf-8"))
        if (content["format"], content["cache_key"]) == (FORMAT, key):
            return _CHECKED.validate_python(content["times"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def take(plan: StudyPlan, final: Record, steps: Sequence[Record], device: str) -> SamplingTimes:
    """Time a run: its own settings in rounds, then each number of steps once."""
    settings = plan.study.timing
    pipeline = Pipeline.from_pretrained(final.folder, device)
    sampling = validate(Sampling, final.sampling.model_dump(), "sampling")

    def time_one(sampling: Sampling, warmup: int) -> float:
        return cost.latency(lambda: make(pipeline, sampling, 1), device, warmup, settings.repeats).median

    latency = [time_one(sampling, warmup=0 if round_ else 2) for round_ in range(settings.rounds)]
    by_batch = dict(_throughputs(pipeline, sampling, sorted(set(settings.batches)), device))
    own = pipeline.generator.passes(sampling)
    by_steps = {
        int(record.at or 0): min(latency)
        if pipeline.generator.passes(record.sampling) == own
        else time_one(record.sampling, 1)
        for record in steps
    }
    return SamplingTimes(latency, by_batch, by_steps)


def _throughputs(
    pipeline: Pipeline, sampling: Sampling, batches: Sequence[int], device: str
) -> Iterator[tuple[int, float]]:
    """Throughput by batch, smallest first, up to the first batch that does not fit into memory."""
    for batch in batches:
        try:
            yield batch, cost.throughput(partial(make, pipeline, sampling, batch), batch, device)
        except torch.cuda.OutOfMemoryError:  # noqa: PERF203
            if batch == batches[0]:
                raise
            return
