"""`artok demo`: every family on real digits, from nothing to a page of pictures and figures: a small comparison."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from artok.errors import ConfigError
from artok.studies.compare import compare
from artok.studies.study import Study, load_study
from artok.training.log import duration

STUDY = "digits-demo"


def demo(folder: Path, families: Sequence[str] = (), device: str = "cpu", fresh: bool = False) -> Path | None:
    """Train, measure and report into `folder`; what is there already is kept, so a stopped demo goes on. The page.

    families: contestants of the shipped study; all unless given. ConfigError: one is unknown.
    """
    study = chosen(families)
    began = time.perf_counter()
    page = compare(study, folder, device, fresh)
    print(f"the demo took {duration(time.perf_counter() - began)}")
    return page


def chosen(families: Sequence[str]) -> Study:
    """The demo's study with these contestants alone."""
    study = load_study(STUDY, [])
    unknown = [name for name in families if name not in study.contestants]
    if unknown:
        raise ConfigError(f"the demo has no family {', '.join(unknown)}; it has {', '.join(study.contestants)}")
    kept = {name: study.contestants[name] for name in families or study.contestants}
    return study.model_copy(update={"contestants": kept})
