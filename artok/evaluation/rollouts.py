"""Measures how models continue held-out clips, far beyond the length that they were trained on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from artok.data.base import DataConfig
from artok.data.loader import choose_of
from artok.errors import ConfigError
from artok.evaluation.evaluator import Evaluator, choose_captions
from artok.images import from_uint8, to_uint8
from artok.layout import Condition
from artok.metrics import frames, frechet, motion, tracking
from artok.metrics.base import EvalBatch, MetricConfig
from artok.metrics.evaluate import Evaluation
from artok.metrics.features import extract
from artok.metrics.results import Measurement, Results
from artok.metrics.selection import Rollout
from artok.pipeline import Pipeline
from artok.rollout import roll_out
from artok.sampling.settings import Sampling

CONTINUED, FROZEN = "continued", "frozen"  # end the names of values of continued clips, and of their last frame held
METRICS: tuple[MetricConfig, ...] = (motion.Config(), tracking.Config(), frames.Config())
BATCH = 32  # clips rolled out at once


def add_rollouts(evaluator: Evaluator, pipeline: Pipeline, sampling: Sampling, results: Results) -> Results:
    """The results with those of continued held-out clips, named such as `tracked_frames/continued`, if the choice of
    metrics asks for them; and of clips whose last given frame stays, such as `tracked_frames/frozen`, which a model
    should beat. `fd/frames_10_26` compares these frames of the continued clips with those of the true ones. Series have
    a value for each frame, and none for the given ones.

    A model that continues no clips is left out, and that is said. ConfigError: the data have no clips, or too few.
    """
    asked = evaluator.choice.rollout
    if asked is None:
        return results
    sampling, layout = pipeline.settings({}, sampling), pipeline.tokenizer.layout
    data = lengthen(evaluator.data, asked)
    subject = evaluator.subject(layout, sampling.seed)
    chosen = [metric for metric in METRICS if metric.suits(subject)]
    made, held = (Evaluation([metric.build(subject) for metric in chosen]) for _ in range(2))
    distances = Windows(evaluator, asked.given, layout.image[1])
    seconds: tuple[float | None, ...] = ()
    try:
        for batch in continue_clips(evaluator, pipeline, sampling, data, asked):
            made.update(batch.seen(batch.made))
            held.update(batch.seen(batch.last.expand_as(batch.true)))
            distances.update(batch.made, batch.true)
            seconds = seconds or batch.seconds
    except ConfigError as error:
        evaluator.progress.say(f"clips are not continued: {error}")
        return results
    given: tuple[float | None, ...] = (None,) * asked.given  # have no values
    measurements, series = list(results.measurements), dict(results.series)
    series[f"seconds/{CONTINUED}"] = given + seconds
    for name, evaluation in ((CONTINUED, made), (FROZEN, held)):
        found = evaluation.results(results.name, sampling.seed)
        measurements += [replace(each, name=_under(each.name, name)) for each in found.measurements]
        series |= {f"{key}/{name}": given + tuple(values) for key, values in found.series.items()}
    measurements += distances.measurements(sampling.seed)
    return replace(results, measurements=tuple(measurements), series=series)


def _under(name: str, part: str) -> str:
    return f"{name}_{part}" if "/" in name else f"{name}/{part}"


def lengthen(data: DataConfig, asked: Rollout) -> DataConfig:
    """The data with clips of the length asked for. ConfigError: they have none, or not more frames than are given."""
    if len(data.image) != 4:
        raise ConfigError(f"evaluation.rollout continues clips, and data of kind {data.kind} have images")
    if asked.given >= asked.frames:
        raise ConfigError(f"evaluation.rollout: {asked.given} given frames leave none of {asked.frames} to be made")
    return data.model_copy(update={"frames": asked.frames})


@dataclass(frozen=True)
class Continued:
    """What follows the given frames: made, true (B, C, T, H, W) uint8. last: (B, C, 1, H, W), the last given frame.

    seconds: for each made frame the time per clip until it was there; None where more frames came at once.
    """

    made: Tensor
    true: Tensor
    last: Tensor
    labels: Tensor
    seconds: tuple[float | None, ...]

    def seen(self, clips: Tensor) -> EvalBatch:
        return EvalBatch(
            images=self.true, labels=self.labels, clips=clips, clip_classes=self.labels, true_clips=self.true
        )


def continue_clips(
    evaluator: Evaluator, pipeline: Pipeline, sampling: Sampling, data: DataConfig, asked: Rollout
) -> Iterator[Continued]:
    """Held-out clips continued from their first frames. ConfigError: the model continues none."""
    split, done = data.open("test"), 0
    rows = choose_of(split, asked.clips)
    if len(rows) < asked.clips:
        raise ConfigError(f"{asked.clips} clips of {asked.frames} frames are wanted, and {len(rows)} are held out")
    with evaluator.progress.over(0, len(rows)):
        for batch in evaluator.read_batches(split, rows, BATCH, data):
            given = from_uint8(batch.pixels[:, :, : asked.given])
            texts = choose_captions(batch) if "text" in pipeline.generator.hears else None
            condition = pipeline.generator.condition(batch.labels, texts or None)
            made, times = roll(pipeline, condition, given, asked.frames, sampling, done)
            true = batch.pixels
            yield Continued(
                made[:, :, asked.given :],
                true[:, :, asked.given :],
                true[:, :, asked.given - 1 : asked.given],
                batch.labels,
                tuple(times[asked.given :]),
            )
            done += len(batch)
            evaluator.progress.advance(done)


def roll(
    pipeline: Pipeline, condition: Condition, given: Tensor, frames: int, sampling: Sampling, first: int = 0
) -> tuple[Tensor, list[float | None]]:
    """Clips (B, C, frames, H, W) uint8 that begin with frames given (B, C, n, H, W) in [-1, 1]; and for each frame the
    time per clip until it was there, None where later ones came with it."""
    parts, times, start = [], list[float | None](), time.perf_counter()
    for part in roll_out(pipeline, condition, frames, sampling, given, first=first):
        parts.append(to_uint8(part))
        spent = (time.perf_counter() - start) / len(given)
        times += [*[None] * (part.shape[2] - 1), spent]
    return torch.cat(parts, dim=2), times


class Windows:
    """Fréchet distances between parts of made and true clips, each as long as the clips that features are of."""

    def __init__(self, evaluator: Evaluator, given: int, length: int) -> None:
        self._extractor, self._given, self._length = evaluator.extractor, given, length
        self._moments: dict[int, tuple[frechet.Moments, frechet.Moments]] = {}

    def update(self, made: Tensor, true: Tensor) -> None:
        for first in range(0, made.shape[2] - self._length + 1, self._length):
            part = slice(first, first + self._length)
            pair = self._moments.setdefault(first, (frechet.Moments(), frechet.Moments()))
            for moments, clips in zip(pair, (made, true), strict=True):
                moments.update(extract(self._extractor, clips[:, :, part])[0])

    def measurements(self, seed: int) -> list[Measurement]:
        found = []
        for first, (made, true) in self._moments.items():
            frame = self._given + first + 1
            name = f"{frechet.NAME}/frames_{frame}_{frame + self._length - 1}"
            value = frechet.frechet_distance(true.mean, true.covariance, made.mean, made.covariance)
            found.append(
                Measurement(
                    name,
                    value,
                    made.count,
                    seed,
                    extractor=self._extractor.name,
                    fingerprint=self._extractor.fingerprint,
                    dim=self._extractor.dim,
                    reference_n=true.count,
                )
            )
        return found
