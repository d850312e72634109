"""The weights that were best by a metric of validation or of the monitor, kept beside the last ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from artok.errors import ConfigError
from artok.mistakes import nearest
from artok.saved import CONFIG, TOKENIZER, copy_file, copy_model

BEST = "best"  # event of the log, and folder of a run, which holds a model as a run does


def is_better(wish: str, values: Mapping[str, float], events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the value of a wish, such as "max psnr", is better than at all earlier events `BEST`."""
    sense, name = wish.split()
    value = values.get(name, math.nan)
    if not math.isfinite(value):
        return False
    earlier = [event[name] for event in events if event["event"] == BEST and name in event]
    return not earlier or (value > max(earlier) if sense == "max" else value < min(earlier))


def require_measured(wish: str, events: Sequence[Mapping[str, Any]]) -> None:
    """Raise a ConfigError when neither validation nor the monitor has measured what a wish names."""
    name = wish.split()[1]
    known = sorted({key for event in events if event["event"] in ("validation", "monitor") for key in event})
    if name not in known:
        raise ConfigError(f"training.keep_best: nothing measures '{name}'{nearest(name, known)}")


def begin_best(run: Path) -> Path:
    """The folder of the best weights, with all that a model needs but these."""
    folder = run / BEST
    copy_file(run / CONFIG, folder / CONFIG)
    if (run / TOKENIZER).exists():
        copy_model(run / TOKENIZER, folder / TOKENIZER)
    return folder
