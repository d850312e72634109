"""`artok sample`: settings from flags and overrides, then images as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from artok.config import merge, override
from artok.device import resolve_device
from artok.evaluation.sample import parse_labels
from artok.evaluation.sample import sample as write_samples
from artok.pipeline import Pipeline
from artok.training.progress import Progress


def sample(
    run: str,
    overrides: Sequence[str],
    flags: Mapping[str, object],
    labels: str,
    n: int,
    batch: int,
    folder: Path,
    device: str | None,
) -> Tensor:
    """Write `n` images per label to a folder. Returns the images (n * labels, C, H, W) in [-1, 1].

    overrides: sampling settings as key=value. flags: settings by name, applied after the overrides; None is not given.
    """
    pipeline = Pipeline.from_pretrained(run, resolve_device(device))
    changes = merge(override({}, overrides), {key: value for key, value in flags.items() if value is not None})
    settings = pipeline.settings(changes)
    wanted = parse_labels(labels, pipeline.classes)
    return write_samples(pipeline, wanted, n, settings, folder, batch, Progress("sample"))
