"""Measures edits of held-out images: each mask hides a part of them, which is made anew for their class or caption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from artok.errors import ConfigError, LayoutError
from artok.evaluation.evaluator import BATCH, Evaluator, choose_captions
from artok.images import from_uint8, to_uint8
from artok.masks import name_mask, require_places
from artok.metrics import consistency, edits, frechet
from artok.metrics.base import EvalBatch
from artok.metrics.results import Results
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling

MASKS = ("left", "top", "box", "outpaint", "random")  # of `artok evaluate --edit`
METRICS = (frechet.Config(), consistency.Config(), edits.Config())


def add_edits(evaluator: Evaluator, pipeline: Pipeline, sampling: Sampling, results: Results) -> Results:
    """The results with those of edits, named such as `fd/edit_left`, for each mask of `evaluation.edits`.

    What cannot be edited is left out, and said. ConfigError: a mask has no meaning.
    """
    layout, sampling = pipeline.tokenizer.layout, pipeline.settings({}, sampling)
    subject = evaluator.subject(layout, sampling.seed)
    metrics = [metric for metric in METRICS if metric.suits(subject)]
    measurements, said = list(results.measurements), ""
    for mask in evaluator.choice.edits:
        reason = refuse(evaluator, pipeline, mask)
        if reason is not None:
            evaluator.progress.say(reason if reason != said else f"neither are those with {mask}")
            said = reason
            continue
        evaluation = evaluator.evaluation(metrics, layout, sampling.seed)
        evaluation.update(evaluator.held_out)
        for seen in edit(evaluator, pipeline, sampling, mask):
            evaluation.update(seen)
        found = evaluation.results(results.name, sampling.seed).measurements
        measurements += [replace(each, name=f"{each.name}/{edits.EDIT}{mask}") for each in found]
    return replace(results, measurements=tuple(measurements))


def refuse(evaluator: Evaluator, pipeline: Pipeline, mask: str) -> str | None:
    """Why edits with a mask are not measured. ConfigError: the mask has no meaning."""
    layout = pipeline.tokenizer.layout
    if evaluator.test_split.sequential:
        return "edits are not measured: a stream has no second image of each class to compare with"
    try:
        require_places(layout)
    except LayoutError as error:
        return f"edits are not measured: {error}"
    hidden = name_mask(mask, layout)
    try:
        pipeline.check_edit(torch.zeros(1, *layout.image), hidden)
    except ConfigError as error:
        return f"edits with mask {mask} are not measured: {error}"
    return None


def edit(evaluator: Evaluator, pipeline: Pipeline, sampling: Sampling, mask: str) -> Iterator[EvalBatch]:
    """Held-out images with a part made anew for their class, or for their caption and control."""
    held_out, layout = evaluator.held_out, pipeline.tokenizer.layout
    assert held_out.labels is not None
    pairs, done = pair_within_classes(held_out.labels), 0
    rows = torch.arange(evaluator.n) % len(held_out.labels)
    control = evaluator.with_control if "control" in pipeline.generator.hears else None
    with evaluator.progress.over(0, evaluator.n):
        for part in rows.split(BATCH):
            (batch,) = evaluator.read_batches(evaluator.test_split, evaluator.rows[part], BATCH, control)
            (other,) = evaluator.read_batches(evaluator.test_split, evaluator.rows[pairs[part]], BATCH)
            images = from_uint8(batch.pixels)
            hidden = name_mask(mask, layout, torch.arange(done, done + len(part))).expand(len(part), -1, -1)
            condition = pipeline.generator.condition(
                batch.labels, choose_captions(batch) or None, control=batch.control
            )
            made = to_uint8(pipeline.fill(images, hidden, condition, sampling, done))
            pasted = torch.where(hidden[:, None], other.pixels, batch.pixels)
            yield EvalBatch(
                samples=made,
                conditions=batch.labels,
                edited=made,
                originals=batch.pixels,
                pasted=pasted,
                hidden=hidden,
            )
            done += len(part)
            evaluator.progress.advance(done)


def pair_within_classes(labels: Tensor) -> Tensor:
    """(N,) int64: for each label the place of another one of its class, or of any class where it is the only one.

    Pairs are drawn with seed 0: images that follow one another may be alike beyond their class.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pairs = torch.empty_like(order)
    pairs[order] = order.roll(-1)
    for label in labels.unique():
        places = order[labels[order] == label]
        if len(places) > 1:
            pairs[places] = places.roll(-1)
    return pairs
