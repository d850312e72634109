"""How models continue held-out clips: the clips side by side, quality over time, and cost over length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from artok.data.base import DataConfig
from artok.data.loader import read_rows
from artok.evaluation.evaluator import choose_captions
from artok.evaluation.rollouts import CONTINUED, FROZEN, lengthen, roll
from artok.evaluation.run_directory import Run
from artok.images import to_uint8
from artok.metrics.catalogue import describe
from artok.metrics.results import Results
from artok.metrics.selection import Rollout
from artok.pipeline import Pipeline
from artok.report.data_uris import Picture, strip
from artok.report.images import SEED
from artok.report.plots.lines import Line, line_plot

SHOWN = 8  # clips of each model
SIDE = 64  # CSS pixels of a clip
OVER_TIME = ("trajectory_error_px", "psnr_db", "ssim", "class_kept", "mass")


@dataclass(frozen=True)
class ClipsPart:
    """rows: clips by the name of who made them, the true ones first. plots: over frames. given, frames: of clips."""

    rows: list[tuple[str, Picture]]
    plots: list[Picture]
    given: int
    frames: int


def clips_part(runs: Sequence[tuple[str, Run, Results]], data: DataConfig, device: str) -> ClipsPart | None:
    """The continued clips of the runs whose results have them; None where none has.

    runs: name, run and the results that are shown.
    """
    shown = [each for each in runs if f"psnr_db/{CONTINUED}" in each[2].series]
    if not shown:
        return None
    known = shown[0][2].series[f"psnr_db/{CONTINUED}"]
    asked = Rollout(given=sum(value is None for value in known), frames=len(known))
    longer = lengthen(data.model_copy(update={"control": None}), asked)
    split = longer.open("test")
    (batch,) = read_rows(split, longer, [torch.arange(min(SHOWN, len(split)))])
    true, given = to_uint8(batch.images), batch.images[:, :, : asked.given]
    rows = [("true clips", strip(true, f"{len(true)} held-out clips of {asked.frames} frames", SIDE))]
    for name, run, results in shown:
        pipeline = Pipeline.from_pretrained(run.folder, device)
        sampling = pipeline.settings({**results.sampling, "seed": SEED})
        texts = choose_captions(batch) if "text" in pipeline.generator.hears else None
        condition = pipeline.generator.condition(batch.labels, texts or None)
        made, _ = roll(pipeline, condition, given, asked.frames, sampling)
        rows.append((name, strip(made, f"The same clips continued by {name} from frame {asked.given} on", SIDE)))
    return ClipsPart(rows, series_plots([(name, results) for name, _, results in shown]), asked.given, asked.frames)


def series_plots(shown: Sequence[tuple[str, Results]]) -> list[Picture]:
    """Values of each frame by model, beside those of a clip whose last given frame stays, and the time until a frame is
    there."""
    found = []
    still = shown[0][1].series
    for key in OVER_TIME:
        traces = [
            _line(name, results.series.get(f"{key}/{CONTINUED}", ()), at) for at, (name, results) in enumerate(shown)
        ]
        traces.append(_line("last frame held", still.get(f"{key}/{FROZEN}", ()), len(shown)))
        if any(trace.x for trace in traces):
            quantity = describe(key)
            found.append(line_plot(f"{quantity.label} over time", "frame", quantity.head(), traces, log=""))
    traces = [_line(name, results.series[f"seconds/{CONTINUED}"], at) for at, (name, results) in enumerate(shown)]
    found.append(line_plot("Cost over length", "frame", "seconds per clip until it is there", traces, log=""))
    return found


def _line(name: str, values: Sequence[float | None], colour: int) -> Line:
    points = [(number, value) for number, value in enumerate(values, 1) if value is not None]
    return Line(name, [x for x, _ in points], [y for _, y in points], colour=colour)
