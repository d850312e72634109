"""Pictures of reconstructions and samples: the same images, labels and seed for all models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from artok.config import dump
from artok.data.base import Augment, DataConfig
from artok.data.captions import first_captions
from artok.data.loader import evaluation_batches
from artok.evaluation.reconstruct import token_map
from artok.evaluation.run_directory import Run
from artok.evaluation.sample import thinned
from artok.images import from_uint8, put_first, to_uint8
from artok.layout import Condition, TokenLayout, Tokens
from artok.masks import name_mask
from artok.metrics.edits import EDIT, KEPT
from artok.pipeline import Pipeline
from artok.report.data_uris import Picture, animation, strip, thin
from artok.report.plots.codebook import codebook_plot
from artok.sampling.settings import Sampling
from artok.saved import load_tokenizer

CLASSES, EACH = 10, 8  # classes shown at most, and images of each
UNFINISHED = 4  # images that are shown while they are generated
STEPS, FRAMES = 8, 32  # steps of generation shown side by side, and frames of the animation
SEARCHED = 50_000  # images of a split searched at most, for examples of a class and for nearest neighbours
COUNTED = 1_000  # held-out images whose codes are counted
SEED = 0
BATCH = 64
SIDE, NARROW = 48, 32  # CSS pixels of an image, about; narrow in sheets beside others


# ---------------------------------------------------------------------------------------------- real images


@dataclass(frozen=True)
class Real:
    """Held-out images of one data set. labels: the classes shown. rows: (up to 8, C, H, W) uint8 for each of them.

    captions: of the first image of each row, empty where the data have none. control: its map, (rows, ...) uint8, where
    the data have maps.
    """

    data: DataConfig
    classes: tuple[str, ...]
    labels: list[int]
    rows: list[Tensor]
    captions: list[str]
    control: Tensor | None = None

    @property
    def names(self) -> list[str]:
        return [self.classes[label] for label in self.labels]


class RealImages:
    """Held-out images by data section, read once for all runs that share it."""

    def __init__(self) -> None:
        self._known: dict[str, Real] = {}

    def of(self, data: DataConfig) -> Real:
        """The held-out images. Raises DataError when they are missing or unreadable."""
        key = dump(data.model_copy(update={"augment": Augment(), "workers": 0}))
        if key not in self._known:
            self._known[key] = _read(data)
        return self._known[key]


def _read(data: DataConfig) -> Real:
    split = data.open("test")
    labels = thin(len(split.classes), CLASSES)
    found: dict[int, list[Tensor]] = {label: [] for label in labels}
    said: dict[int, str] = {}
    maps: dict[int, Tensor] = {}
    for batch in evaluation_batches(split, data, BATCH, SEARCHED):
        texts = first_captions(batch.captions) if batch.captions else [""] * len(batch)
        for row, (label, text) in enumerate(zip(batch.labels.tolist(), texts, strict=True)):
            if label in found and len(found[label]) < EACH:
                found[label].append(to_uint8(batch.images[row]))
                said.setdefault(label, text)
                if batch.control is not None:
                    maps.setdefault(label, batch.control[row])
        if all(len(images) == EACH for images in found.values()):
            break
    labels = [label for label in labels if found[label]]
    rows = [torch.stack(found[label]) for label in labels]
    control = torch.stack([maps[label] for label in labels]) if maps else None
    return Real(data, split.classes, labels, rows, [said[label] for label in labels], control)


def nearest(data: DataConfig, images: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest training image of each of images (B, C, H, W) uint8, and the distances (B,) of pixels in [-1, 1]."""
    wanted = images.flatten(1).float() / 127.5
    best = torch.full((len(images),), torch.inf)
    found = torch.zeros_like(images)
    data = data.model_copy(update={"control": None})  # maps are not compared
    for batch in evaluation_batches(data.open("train"), data, 256, SEARCHED):
        real = to_uint8(batch.images)
        distance, index = torch.cdist(wanted, real.flatten(1).float() / 127.5).min(1)
        closer = distance < best
        best = torch.where(closer, distance, best)
        found[closer] = real[index[closer]]
    return found, best


# ---------------------------------------------------------------------------------------------- tokenizers


@dataclass(frozen=True)
class TokenizerGallery:
    """rows: name and strip of originals, reconstructions, differences and tokens. codes: use of the codebook."""

    layout: TokenLayout
    names: list[str]
    rows: list[tuple[str, Picture]]
    codes: Picture | None


@torch.no_grad()
def show_tokenizer(run: Run, real: Real, device: str = "cpu") -> TokenizerGallery:
    """Up to eight held-out images, one per class as far as there are classes, through the tokenizer."""
    tokenizer = load_tokenizer(run.folder)[0].to(device)
    layout = tokenizer.layout
    originals, names = one_each(real)
    tokens = tokenizer.encode(from_uint8(originals).to(device))
    decoded = to_uint8(tokenizer.decode(tokens)).cpu()
    difference = ((decoded.short() - originals.short()) / 2 + 128).clamp(0, 255).to(torch.uint8)
    of = f"{len(originals)} held-out images ({', '.join(names)})"
    rows = [
        ("original", strip(originals, f"{of} as they are", SIDE)),
        ("reconstruction", strip(decoded, f"The same images after tokenizer {run.name}", SIDE)),
        ("difference", strip(difference, "Half of reconstruction minus original, around grey", SIDE)),
        ("tokens", strip(_token_maps(tokens, originals.shape[2:]), f"Maps of their tokens, {layout}", SIDE)),
    ]
    codes = None
    if layout.vocab is not None:
        counts, images = torch.zeros(layout.vocab, dtype=torch.int64), 0
        for batch in evaluation_batches(real.data.open("test"), real.data, BATCH, COUNTED):
            values = tokenizer.encode(batch.images_on(device)).values.cpu()
            counts += torch.bincount(values.flatten(), minlength=layout.vocab)
            images += len(values)
        codes = codebook_plot(counts, images, run.name)
    return TokenizerGallery(layout, names, rows, codes)


def one_each(real: Real) -> tuple[Tensor, list[str]]:
    """Eight images: the first of every class, then the second of every class, and so on."""
    order = [(place, row) for place in range(EACH) for row in range(len(real.rows)) if place < len(real.rows[row])]
    chosen = sorted(order[:EACH], key=lambda pair: pair[1])
    return torch.stack([real.rows[row][place] for place, row in chosen]), [real.names[row] for _, row in chosen]


def _token_maps(tokens: Tokens, size: Sequence[int]) -> Tensor:
    """Each image's tokens as colours, (B, 3, *size) uint8: a grid of squares as large as the image, or clip."""
    maps = torch.stack([token_map(tokens[index : index + 1]) for index in range(len(tokens))])
    if len(size) == 3:  # the frames of a clip's map lie one below another
        maps = maps.unflatten(2, (tokens.layout.grid[0] if len(tokens.layout.grid) == 3 else 1, -1))
    return torch.nn.functional.interpolate(maps, size=tuple(size), mode="nearest")


# ---------------------------------------------------------------------------------------------- generators


@dataclass(frozen=True)
class Near:
    """An image above its nearest training image."""

    pair: Picture
    label: str
    distance: float


@dataclass(frozen=True)
class GeneratorGallery:
    """rows: class name and strip of samples, their control first. moments: step number and picture. film: None when
    there is one step only.

    near: of each class the sample that lies closest to a training image. settings: of sampling, in words. edits: mask
    and picture, for each mask that was measured.
    """

    rows: list[tuple[str, Picture]]
    moments: list[tuple[int, Picture]]
    steps: int
    film: Picture | None
    near: list[Near]
    settings: str
    edits: list[tuple[str, Picture]]


def show_generator(run: Run, real: Real, side: int = NARROW, device: str = "cpu") -> GeneratorGallery:
    """Samples of the classes that `real` shows, or for its captions, and with its control, some of them step by step,
    and their nearest training images.

    side: CSS pixels of a sample.
    """
    pipeline = Pipeline.from_pretrained(run.folder, device)
    sampling = pipeline.settings({**run.results.sampling, "seed": SEED})
    edits = show_edits(pipeline, run, real, sampling)
    hears = pipeline.generator.hears
    prompted = [row for row, text in enumerate(real.captions) if text] if "text" in hears else []
    prompts = [real.captions[row] for row in prompted]
    if prompts:
        control = None if real.control is None else real.control[prompted]
        real = replace(real, classes=tuple(prompts), labels=list(range(len(prompts))), control=control)
    labels = None if prompts else real.labels  # a caption may lack its class
    control = pick_control(pipeline, real)
    samples = to_uint8(pipeline(labels, EACH, prompts=prompts or None, control=control, sampling=sampling)).split(EACH)
    condition = pipeline.condition(labels, prompts=prompts or None, control=control)
    numbers, frames, steps = generate_steps(pipeline, condition, sampling)
    film = None
    if steps > 1:
        text = f"{run.name} generates one image of each: {', '.join(real.names)}"
        shown = frames if frames.ndim == 5 else frames[:, :, :, frames.shape[3] // 2]  # of clips the middle frame
        film = animation(shown.unbind(), text, side=SIDE, columns=math.ceil(len(samples) / 2))
    moments = [
        (numbers[index], strip(frames[index, :UNFINISHED], _moment(real, numbers[index], steps), side=64, columns=1))
        for index in thin(len(numbers), STEPS)
    ]
    rows = class_rows(real, samples, f"samples by {run.name}", side, control)
    near = closest(real, samples, "sample")
    return GeneratorGallery(rows, moments, steps, film, near, settings_text(sampling), edits)


def show_edits(pipeline: Pipeline, run: Run, real: Real, sampling: Sampling) -> list[tuple[str, Picture]]:
    """The first held-out image of each row with a part hidden, above its result, for each mask that was measured."""
    names = [entry.name for entry in run.results.measurements]
    masks = [name.removeprefix(f"{KEPT}/{EDIT}") for name in names if name.startswith(f"{KEPT}/{EDIT}")]
    if not masks:
        return []
    images = from_uint8(torch.stack([row[0] for row in real.rows[:EACH]]))
    labels, texts = heard(pipeline, real.labels[:EACH], real.captions[:EACH])
    control = pick_control(pipeline, real)
    condition = pipeline.condition(labels, prompts=texts, control=None if control is None else control[:EACH])
    pictures = []
    for mask in masks:
        hidden = name_mask(mask, pipeline.tokenizer.layout, torch.arange(len(images))).expand(len(images), -1, -1)
        made = pipeline.fill(images, hidden, condition, sampling)
        text = f"Held-out images with mask {mask}, above what {run.name} makes of them"
        shown = torch.cat([images.masked_fill(hidden[:, None], 0), made])
        pictures.append((mask, strip(to_uint8(shown), text, SIDE, columns=len(images))))
    return pictures


def heard(pipeline: Pipeline, labels: list[int], captions: list[str]) -> tuple[list[int] | None, list[str] | None]:
    """Those of the labels and captions of some images that a generator uses, as `Pipeline.condition` takes them."""
    hears = pipeline.generator.hears
    return labels if "labels" in hears else None, captions if "text" in hears else None


def pick_control(pipeline: Pipeline, real: Real) -> Tensor | None:
    """The control of each row of `real`, for a generator that hears it."""
    return real.control if "control" in pipeline.generator.hears else None


def _moment(real: Real, step: int, steps: int) -> str:
    return f"Images of {', '.join(real.names[:UNFINISHED])} after step {step} of {steps}"


def class_rows(
    real: Real, rows: Sequence[Tensor], what: str, side: int, control: Tensor | None = None
) -> list[tuple[str, Picture]]:
    """A strip of images for each class, with its name. side: CSS pixels of an image. control: maps, each the first of
    its strip."""
    shown, after = rows, ""
    if control is not None:
        pairs = zip(control.split(1), rows, strict=True)
        shown, after = (
            [to_uint8(put_first(given, from_uint8(images))) for given, images in pairs],
            ", after their control",
        )
    strips = zip(real.names, rows, shown, strict=True)
    return [(name, strip(whole, f"{name}: {len(images)} {what}{after}", side)) for name, images, whole in strips]


def closest(real: Real, rows: Sequence[Tensor], what: str) -> list[Near]:
    """Per class, the image nearest to a training image, above that training image."""
    images = torch.cat(list(rows))
    found, distances = nearest(real.data, images)
    nears, first = [], 0
    for name, row in zip(real.names, rows, strict=True):
        index = first + int(distances[first : first + len(row)].argmin())
        first += len(row)
        pair, distance = torch.stack([images[index], found[index]]), float(distances[index])
        text = f"A {what} of {name} above its nearest training image, {distance:.2f} apart"
        nears.append(Near(strip(pair, text, side=SIDE, columns=1), name, distance))
    return nears


def generate_steps(pipeline: Pipeline, condition: Condition, sampling: Sampling) -> tuple[list[int], Tensor, int]:
    """The first image of each row of a condition while it is generated.

    Step numbers from 1, images (F, B, C, H, W) uint8 after those steps, and the number of steps.
    """
    samples = torch.arange(len(condition), device=pipeline.device) * EACH  # the first column of the samples
    kept, steps = thinned(pipeline.steps(condition, sampling, samples=samples), 2 * FRAMES)
    chosen = [kept[index] for index in thin(len(kept), FRAMES)]
    frames = [to_uint8(pipeline.decode(tokens, sampling.dtype)).cpu() for _, tokens in chosen]
    return [step for step, _ in chosen], torch.stack(frames), steps


def settings_text(sampling: Sampling) -> str:
    """The settings that differ from the defaults, and the seed."""
    plain = Sampling().model_dump()
    changed = {key: value for key, value in sampling.model_dump().items() if value != plain[key] and key != "seed"}
    return ", ".join([*(f"{key} {value}" for key, value in changed.items()), f"seed {sampling.seed}"])
