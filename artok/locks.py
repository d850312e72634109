"""One process at a time does what several want done once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Waits until no other process makes the file or folder; goes on at once where the place cannot be locked."""
    with ExitStack() as held:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(path.with_name(f"{path.name}.lock")))
        yield
