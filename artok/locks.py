"""File locks: of several processes that want the same file, one makes it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def hold_lock(path: Path, busy: Callable[[], None] | None = None) -> Iterator[None]:
    """Waits until no other process makes the file or folder; goes on at once where the place cannot be locked.

    busy: called before waiting; what it raises ends the wait. A process that was killed holds nothing.
    """
    with ExitStack() as held:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(f"{path.name}.lock"))
            try:
                lock.acquire(blocking=False)
            except Timeout:
                if busy is not None:
                    busy()
                lock.acquire()
            held.callback(lock.release)
        yield


def discard(folder: Path) -> None:
    """Empty a folder but for its locks, which who discards it may hold."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != ".lock":
            path.unlink(missing_ok=True)
