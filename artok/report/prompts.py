"""Images of every entry of a study for the same captions, and the share of images that show what was asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from artok.data.base import DataConfig, Split
from artok.data.loader import evaluation_batches
from artok.evaluation.evaluator import choose_captions
from artok.evaluation.statistics import Value, format_mean
from artok.images import to_uint8
from artok.metrics.catalogue import describe
from artok.metrics.prompt_match import NAME
from artok.pipeline import Pipeline
from artok.report.data_uris import Picture, strip
from artok.report.images import SEED, heard
from artok.studies.results import EntryResults, Outcome

SHOWN, NEW = 6, 2  # captions of held-out images, and of combinations that training never shows
SIDE = 64  # CSS pixels of an image, about


@dataclass(frozen=True)
class Asked:
    """Held-out images (B, C, H, W) uint8 with a caption and a label each. new: which are of combinations that training
    never shows."""

    images: Tensor
    captions: list[str]
    labels: list[int]
    new: list[bool]


@dataclass(frozen=True)
class PromptsPart:
    """prompts: captions, and whether each is new to the models. rows: an image for each, by the name of who made it.

    columns: what is asked. shares: of images that show it, by name; empty cells where nothing was asked. ceilings: the
    same of the tokenizers' reconstructions.
    """

    prompts: list[tuple[str, bool]]
    rows: list[tuple[str, list[Picture]]]
    columns: list[str]
    shares: list[tuple[str, list[str]]]
    ceilings: list[tuple[str, list[str]]]


def prompts_part(outcome: Outcome, device: str) -> PromptsPart | None:
    """The images and shares of a study; None where no entry hears text."""
    if not any(map(hears_text, outcome.generators)):
        return None
    asked = ask(outcome.plan.data)
    rows = [("held-out images", _pictures(asked, asked.images, "held-out image"))]
    for one in outcome.generators:
        pipeline = Pipeline.from_pretrained(one.first.folder, device)
        sampling = pipeline.settings({**one.first.results.sampling, "seed": SEED})
        labels, prompts = heard(pipeline, asked.labels, asked.captions)
        made = to_uint8(pipeline(labels, prompts=prompts, sampling=sampling))
        rows.append((one.entry.title, _pictures(asked, made, f"image by {one.entry.title}")))
    names = list(dict.fromkeys(name for one in outcome.generators for name in one.values if _part(name) is not None))
    shares = [(one.entry.title, [_share(name, one.value(name)) for name in names]) for one in outcome.generators]
    found = [(name, run.results) for name, run in outcome.tokenizers.items() if run.results.find(NAME)]
    ceilings = [
        (title, [entry.text if (entry := results.find(name)) else "" for name in names]) for title, results in found
    ]
    columns = [_part(name) or "all" for name in names]
    return PromptsPart(list(zip(asked.captions, asked.new, strict=True)), rows, columns, shares, ceilings)


def hears_text(one: EntryResults) -> bool:
    config = one.first.saved.generator
    return config is not None and config.hears_text


def ask(data: DataConfig) -> Asked:
    """Captions of held-out images, the last of them of new combinations where the data have any."""
    split = data.open("test")
    parts = [(split, SHOWN + (0 if split.unseen else NEW), False)]
    if split.unseen:
        parts.append((split.unseen, NEW, True))
    images, captions, labels, new = [], list[str](), list[int](), list[bool]()
    for part, count, unseen in parts:
        for image, text, label in _captioned(part, data, count):
            images.append(image)
            captions.append(text)
            labels.append(label)
            new.append(unseen)
    return Asked(torch.stack(images), captions, labels, new)


def _captioned(split: Split, data: DataConfig, count: int) -> Iterator[tuple[Tensor, str, int]]:
    """The first images with a caption, among ten times as many."""
    for batch in evaluation_batches(split, data, count, 10 * count):
        for image, text, label in zip(
            to_uint8(batch.images), choose_captions(batch), batch.labels.tolist(), strict=True
        ):
            if text and count:
                count -= 1
                yield image, text, label


def _pictures(asked: Asked, images: Tensor, what: str) -> list[Picture]:
    return [strip(image[None], f"{what}: {text}", SIDE) for image, text in zip(images, asked.captions, strict=True)]


def _part(name: str) -> str | None:
    """What a share of matches is of, empty for all that was asked; None for another metric."""
    metric, _, part = name.partition("/")
    return part.replace("_", " ") if metric == NAME else None


def _share(name: str, value: Value | None) -> str:
    return "" if value is None else format_mean(value, describe(name))
