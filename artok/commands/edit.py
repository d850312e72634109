"""`artok edit`: settings from flags and overrides, then the edited picture as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from artok.config import merge, override
from artok.device import resolve_device
from artok.errors import ConfigError
from artok.evaluation.edit import read_edit, write_edit
from artok.evaluation.sample import parse_labels
from artok.pipeline import Pipeline


def edit(
    run: str,
    image: Path,
    mask: str,
    overrides: Sequence[str],
    flags: Mapping[str, object],
    label: str,
    prompt: str | None,
    n: int,
    feather: float,
    folder: Path,
    device: str | None,
) -> Tensor:
    """Make the hidden part of a picture anew, `n` times, into a folder. Returns the results (n, C, H, W) in [-1, 1].

    overrides, flags: as of `artok.commands.sample.sample`. label: a class by number or name, empty for none.
    """
    pipeline = Pipeline.from_pretrained(run, resolve_device(device))
    changes = merge(override({}, overrides), {key: value for key, value in flags.items() if value is not None})
    settings = pipeline.settings(changes)
    labels = parse_labels(label, pipeline.classes) if label else None
    if labels is not None and len(labels) > 1:
        raise ConfigError(f"one picture takes one label, got {len(labels)}")
    pixels, hidden = read_edit(image, mask, pipeline.tokenizer.layout)
    made = pipeline.edit(pixels, hidden, labels, n, prompts=prompt, feather=feather, sampling=settings)
    write_edit(pixels, hidden, made, folder)
    return made
