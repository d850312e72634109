"""File locks between processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def hold_lock(path: Path, busy: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of a file or folder inside the context. Where the place cannot be locked, nothing is held.

    busy: called before waiting for another process; what it raises ends the wait. A killed process releases its lock.
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


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock of a file inside the context, unless another process does. Whether it is held.

    True too where the place cannot be locked.
    """
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    mine = True
    with suppress(OSError):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            mine = False
    try:
        yield mine
    finally:
        lock.release()


def discard(folder: Path) -> None:
    """Delete everything in a folder except lock files, which the caller may hold."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != ".lock":
            path.unlink(missing_ok=True)
