"""`artok export --format npz`: samples for ADM's evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from artok.config import override
from artok.device import resolve_device
from artok.interop.to_npz import to_npz
from artok.pipeline import Pipeline
from artok.training.progress import Progress


def export_samples(run: str, out: Path, n: int, batch: int, overrides: Sequence[str], device: str | None) -> Path:
    """Write `n` samples of a generator to one file. Returns its path. overrides: sampling settings as key=value."""
    pipeline = Pipeline.from_pretrained(run, resolve_device(device))
    settings = pipeline.settings(override({}, overrides))
    progress = Progress("samples")
    with progress.over(0, n):
        path = out if out.suffix == ".npz" else out.with_suffix(".npz")
        return to_npz(pipeline, path, n, settings, batch, progress.advance)
