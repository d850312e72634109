"""Progress of long jobs: a bar with the time left on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from artok.data.base import Split
from artok.training.log import duration

SILENT = 30.0  # seconds between progress lines without a terminal


class Progress:
    """Progress of one job at a time, in images. quiet: print nothing (in every process but the first)."""

    def __init__(self, name: str, quiet: bool = False) -> None:
        self.name, self.quiet = name, quiet
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.bar: RichProgress | None = None
        self.job: TaskID | None = None
        self.told = time.perf_counter()
        self.noted: set[str] = set()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def notes(self, *splits: Split) -> None:
        """Show what the splits leave out, each sentence once."""
        for note in dict.fromkeys(note for split in splits for note in split.notes if note not in self.noted):
            self.noted.add(note)
            self.say(note)

    def skipped(self, reasons: Sequence[str]) -> None:
        """Report images that could not be read."""
        more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        self.say(f"skipped {len(reasons)} unreadable: {'; '.join(reasons[:3])}{more}")

    @contextmanager
    def over(self, done: int, total: int, unit: str = "images") -> Iterator[None]:
        """Show the progress from `done` to `total` images, or other units, inside the context."""
        self.total, self.first, self.unit = total, done, unit
        self.began = self.told = time.perf_counter()
        if self.quiet or not self.console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with RichProgress(*columns, console=self.console, refresh_per_second=4) as self.bar:
            self.job = self.bar.add_task(self.name, total=total, completed=done)
            yield
        self.bar = None

    def advance(self, done: int) -> None:
        if self.bar is not None and self.job is not None:
            self.bar.update(self.job, completed=done)
        elif not self.quiet and time.perf_counter() - self.told > SILENT:
            self.show(done, {})

    def show(self, done: int, values: Mapping[str, float], what: str = "") -> None:
        """Print a line of values, with the time left."""
        speed = (done - self.first) / max(time.perf_counter() - self.began, 1e-9)
        left = duration(max(self.total - done, 0) / speed) if speed > 0 else "?"  # the last step may go beyond
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.told = time.perf_counter()
        text = f"{self.name} {done:>9,}/{self.total:,} {self.unit}, {left} left  {what + ': ' if what else ''}{numbers}"
        self.say(text.rstrip())
