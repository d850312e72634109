"""The log of a run: one JSON line per event."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from artok.errors import CheckpointError
from artok.files import retry, sync
from artok.saved import write_text

LOG = "log.jsonl"
NONFINITE = "nonfinite"  # event of a training that stopped since a number was not finite
HEARTBEAT = 60.0  # seconds without an event, after which a finished step is logged as "alive"
TEXTS = frozenset({"event", "device", "health", "kind", "text"})  # values that are texts; all others are numbers


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log, without an incomplete last line. CheckpointError: another line is damaged."""
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    events = [_read_event(line) for line in lines]
    if None in events[:-1]:
        raise CheckpointError(f"line {events.index(None) + 1} of {path} is damaged; repair the line or delete it")
    return [event for event in events if event is not None]


def _read_event(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None when the line is damaged."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not {"event", "images", "time"} <= set(event):
        return None
    right = all(isinstance(value, str if key in TEXTS else int | float) for key, value in event.items())
    return event if right else None


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
        line, size = f"{json.dumps(self.events[-1])}\n".encode(), self.path.stat().st_size

        def append() -> None:
            with self.path.open("ab") as file:
                file.truncate(size)  # after an attempt that wrote a part
                file.write(line)

        retry(append)
        if event == "checkpoint":
            sync(self.path)  # before the checkpoint is

    def beat(self, images: int) -> None:
        """Write a sign of life where there was no event for long."""
        if time.time() - self.events[-1]["time"] > HEARTBEAT:
            self.write("alive", images, {})


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
