"""File locks between processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def hold_lock(path: Path, busy: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of a file or folder inside the context. Where the place cannot be locked, nothing is held.

    busy: called before waiting for another process; what it raises ends the wait. A killed process releases its lock.
    Folders that were made for the lock and hold nothing else at the end are removed.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    file = path.with_name(f"{path.name}.lock")
    with ExitStack() as held:
        with suppress(OSError):
            lock = FileLock(file)
            try:
                _acquire(lock, file, blocking=False)
            except Timeout:
                if busy is not None:
                    busy()
                _acquire(lock, file)
            held.callback(lock.release)
            held.callback(_remove_if_alone, file, made)
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


def _acquire(lock: FileLock, file: Path, blocking: bool = True) -> None:
    """Acquire a lock, also when the process that held it before removes the folder (see `_remove_if_alone`)."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            lock.acquire(blocking=blocking)
            return


def _remove_if_alone(file: Path, folders: list[Path]) -> None:
    """Remove a held lock file and the folders above it, inner first, if they hold nothing else.

    A process that waits for the removed file opens a new one (see filelock).
    """
    with suppress(OSError):
        if folders and list(file.parent.iterdir()) == [file]:
            file.unlink()
            for folder in folders:
                folder.rmdir()
