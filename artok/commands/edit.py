"""`artok edit`: settings from flags and overrides, then the edited picture as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from artok.commands.sample import open_pipeline
from artok.errors import ConfigError
from artok.evaluation.controls import read_controls
from artok.evaluation.edit_files import read_edit, write_edit
from artok.evaluation.sample import parse_labels


def edit(
    run: str,
    image: Path,
    mask: str,
    overrides: Sequence[str],
    flags: Mapping[str, object],
    label: str,
    prompt: str | None,
    control: Sequence[Path],
    maps: Sequence[Path],
    n: int,
    feather: float,
    folder: Path,
    device: str | None,
) -> Tensor:
    """Make the hidden part of a picture anew, `n` times, into a folder. Returns the results (n, C, H, W) in [-1, 1].

    overrides, flags, device: as in `open_pipeline`. label: a class by number or name, empty for none. control: pictures
    to make maps of, as of training images. maps: files that are maps.
    """
    pipeline, settings = open_pipeline(run, overrides, flags, device)
    labels = parse_labels(label, pipeline.classes) if label else None
    if labels is not None and len(labels) > 1:
        raise ConfigError(f"one picture takes one label, got {len(labels)}")
    pixels, hidden = read_edit(image, mask, pipeline.tokenizer.layout)
    told = read_controls(pipeline, control, maps)
    made = pipeline.edit(pixels, hidden, labels, n, prompts=prompt, control=told, feather=feather, sampling=settings)
    write_edit(pixels, hidden, made, folder)
    return made
