"""Pictures of many settings: held-out images through every tokenizer, samples of every generator, entropy maps."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib
import torch
from torch import Tensor

from artok.evaluation.run_directory import Run
from artok.images import from_uint8, to_uint8
from artok.layout import TokenLayout
from artok.pipeline import Pipeline
from artok.report.data_uris import Picture, strip
from artok.report.images import NARROW, SEED, Real, RealImages, heard, one_each, pick_control
from artok.saved import load_tokenizer
from artok.studies.results import Outcome

EACH = 1  # samples of each class
MAP = 72  # CSS pixels of an entropy map
COLOURS = matplotlib.colormaps["viridis"]


@dataclass(frozen=True)
class EntropyMap:
    """What the codes at each position of the finest scale say, in bits. least, most: over its positions. scales: the
    mean of each scale, for several."""

    picture: Picture
    least: float
    most: float
    scales: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class SettingPictures:
    """What a setting's first seed does."""

    title: str
    layout: TokenLayout
    reconstructions: Picture
    samples: Picture | None
    entropy: EntropyMap | None


@dataclass(frozen=True)
class SettingsGallery:
    """most: bits that the brightest colour of the entropy maps stands for, with a scale of colours up to it."""

    names: list[str]
    originals: Picture
    classes: list[str]
    settings: list[SettingPictures]
    most: float
    colours: Picture | None


@torch.no_grad()
def show_settings(outcome: Outcome, device: str) -> SettingsGallery:
    """The same images, labels and seed for all settings."""
    real = RealImages().of(outcome.plan.data)
    originals, names = one_each(real)
    entropy = {
        one.name: torch.tensor(outcome.code_entropy[name])
        for one in outcome.entries
        for name in list(one.tokenizers)[:1]
        if name in outcome.code_entropy
    }
    most = max((float(bits.max()) for bits in entropy.values()), default=0.0)
    settings = []
    for one in outcome.entries:
        title = one.entry.title
        tokenizer = load_tokenizer(next(iter(one.tokenizers.values())).folder)[0].to(device)
        decoded = to_uint8(tokenizer.decode(tokenizer.encode(from_uint8(originals).to(device)))).cpu()
        pictures = strip(decoded, f"The same held-out images ({', '.join(names)}) after {title}", NARROW)
        bits = entropy.get(one.name)
        settings.append(
            SettingPictures(
                title,
                one.entry.layout,
                pictures,
                sample_strip(one.first, real, title, device) if one.runs else None,
                None if bits is None else entropy_map(bits, one.entry.layout, most, title),
            )
        )
    colours = _coloured(torch.linspace(0, 1, 24)[None], "Colours from 0 bits, dark, to the most, bright")
    what = f"{len(originals)} held-out images ({', '.join(names)}) as they are"
    return SettingsGallery(
        names, strip(originals, what, NARROW), real.names, settings, most, colours if entropy else None
    )


def sample_strip(run: Run, real: Real, title: str, device: str) -> Picture:
    """A sample of each class by a generator, side by side."""
    pipeline = Pipeline.from_pretrained(run.folder, device)
    sampling = pipeline.settings({**run.results.sampling, "seed": SEED})
    labels, prompts = heard(pipeline, real.labels, real.captions)
    control = pick_control(pipeline, real)
    images = to_uint8(pipeline(labels, EACH, prompts=prompts, control=control, sampling=sampling))
    return strip(images, f"Samples of {', '.join(real.names)} by {title}", NARROW)


def entropy_map(positions: Tensor, layout: TokenLayout, most: float, title: str) -> EntropyMap:
    """A square for each position of the finest scale, brighter with more bits, up to `most`.

    positions: (N, K) bits; the codes of one position are added up.
    """
    bits = positions.sum(1)
    parts = [bits[scale] for scale in layout.scales()]
    names = layout.scale_names() if len(parts) > 1 else []
    scales = tuple((name, float(part.mean())) for name, part in zip(names, parts, strict=False))
    field = parts[-1].view(-1, layout.grid[-1])
    least, top = float(field.min()), float(field.max())
    sides = " by ".join(map(str, field.shape))
    alt = f"Entropy by position of {title}: {least:.2f} to {top:.2f} bits in a grid of {sides}"
    return EntropyMap(_coloured(field / max(most, 1e-9), alt), least, top, scales)


def _coloured(field: Tensor, alt: str) -> Picture:
    """Shares (H, W) in [0, 1] as squares of colour, about as large as a map."""
    pixels = torch.from_numpy(COLOURS(field.double().numpy())[..., :3])
    image = (255 * pixels).round().to(torch.uint8).permute(2, 0, 1)
    return strip(image[None], alt, MAP if field.shape[0] > 1 else 4 * MAP)
