"""The log of a run: one JSON line per event."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from artok.files import sync
from artok.saved import write_text

LOG = "log.jsonl"
NONFINITE = "nonfinite"  # event of a training that stopped since a number was not finite


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log, without an incomplete last line."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


class Log:
    """Appends events to `log.jsonl`. Events after `seen` images, written before an interruption, are removed.

    seen: -1 for a new log. events: all events of the file.
    """

    def __init__(self, path: Path, seen: int) -> None:
        self.path = path
        self.events = [event for event in read_log(path) if event["images"] <= seen]
        write_text(path, "".join(json.dumps(event) + "\n" for event in self.events))

    def write(self, event: str, images: int, values: dict[str, Any]) -> None:
        self.events.append({"event": event, "images": images, "time": round(time.time(), 3), **values})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.events[-1]) + "\n")
        if event == "checkpoint":
            sync(self.path)  # before the checkpoint is


def duration(seconds: float) -> str:
    """Format a time: 42s, 3m05s, 2h10m, 12.5 days."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 48 * 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds / 86400:,.1f} days"
