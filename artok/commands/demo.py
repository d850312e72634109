"""`artok demo`: a small study of every family and a sweep over tokenizers on real digits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from artok.commands.compare import compare
from artok.errors import ConfigError
from artok.studies.config import Study, load_study
from artok.training.log import duration

STUDY = "digits-demo"


def demo(
    folder: Path, families: Sequence[str] = (), device: str = "cpu", fresh: bool = False, sweep: bool | None = None
) -> Path | None:
    """Train, measure and report into `folder`; a stopped demo resumes. Returns the page.

    families: entries of the shipped study; default all. sweep: whether to do its grid of tokenizers; default with all
    families. ConfigError: a family is unknown.
    """
    study = choose(families, sweep)
    began = time.perf_counter()
    page = compare(study, folder, device, fresh)
    print(f"the demo took {duration(time.perf_counter() - began)}")
    return page


def choose(families: Sequence[str], sweep: bool | None = None) -> Study:
    """The demo's study with these entries, with or without its grid of tokenizers."""
    study = load_study(STUDY, [])
    unknown = [name for name in families if name not in study.entries]
    if unknown:
        raise ConfigError(f"the demo has no family {', '.join(unknown)}; it has {', '.join(study.entries)}")
    kept = {name: study.entries[name] for name in families or study.entries}
    beside = study.beside if (sweep if sweep is not None else not families) else None
    return study.model_copy(update={"entries": kept, "beside": beside})
