"""`artok report`: one HTML page about trained and evaluated runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from artok.errors import ConfigError
from artok.report.run import write_report

PAGE = "report.html"


def report(runs: Sequence[Path], out: Path | None, title: str, device: str, plots: Path | None = None) -> Path:
    """Write the page, by default into the folder of a single run, else into the current one. Errors: `write_report`."""
    path = out or (runs[0] / PAGE if len(runs) == 1 else Path(PAGE))
    if path.is_dir() or not path.name:
        raise ConfigError(f"{path} is a folder; name the page to write, such as --out {path / PAGE}")
    return write_report(path, runs, title, device=device, plots=plots)
