"""Files and folders that are whole or absent, also after a kill or a power cut."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from artok.errors import ConfigError, RunError, shorten

MOST_FOLDERS = 200  # of a path in an argument
WAITS = (0.1, 0.5, 2.5)  # seconds before another attempt at a write that failed
MAY_PASS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET, errno.EHOSTDOWN}  # as on NFS


def retry(write: Callable[[], None]) -> None:
    """Call a function that writes, and again for some seconds after errors of the file system that may pass."""
    for wait in WAITS:
        try:
            write()
            return
        except Exception as error:  # safetensors has errors of its own, which name the system's number
            number = getattr(error, "errno", None) or re.search(r"os error (\d+)", str(error))
            if (int(number[1]) if isinstance(number, re.Match) else number) not in MAY_PASS:
                raise
        time.sleep(wait)
    write()


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    with suppress(OSError) if path.is_dir() else nullcontext():  # some systems cannot sync folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def move(aside: Path, final: Path) -> None:
    """Rename a written file or folder, once all its content is on the disk. A file in its place is replaced."""
    for path in sorted(aside.rglob("*")) if aside.is_dir() else ():
        sync(path)
    sync(aside)
    os.replace(aside, final)
    sync(final.parent)


def remove_partial(folder: Path) -> None:
    """Delete the temporary files below a folder (see `write_aside`) whose processes are gone, as after a kill."""
    for path in folder.rglob(".*.tmp"):
        writer = path.name.split(".")[-2]
        if path.is_file() and writer.isdecimal() and not _is_alive(int(writer)):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # it is another user's
        return True
    except (OSError, OverflowError):
        return False
    return True


@contextmanager
def new_folder(out: Path, last: str) -> Iterator[Path]:
    """A temporary folder whose files are moved to `out` at the end; after a failure nothing of them is left.

    Files of the same names are replaced, other files stay. last: the file that is moved last, since it says that the
    folder is whole.
    """
    missing = [path for path in (out, *out.parents) if not path.exists()]
    aside = out.resolve().parent / f".{out.resolve().name}.writing"
    try:
        shutil.rmtree(aside, ignore_errors=True)  # left by a kill
        aside.mkdir(parents=True)
        yield aside
        out.mkdir(parents=True, exist_ok=True)
        files = [path.relative_to(aside) for path in sorted(aside.rglob("*")) if path.is_file()]
        for name in sorted(files, key=lambda name: str(name) == last):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            move(aside / name, out / name)
        shutil.rmtree(aside)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError):
            reason = str(error.strerror or error).lower()
            raise RunError(f"could not write {out}: {reason}; choose another place with --out") from None
        raise


def read_place(text: str) -> Path:
    """The file or folder that a user names. ConfigError: the name is empty, as an unset variable of a shell is."""
    if not str(text).strip():
        raise ConfigError("the name of a file or folder to write to is empty; name one, or leave --out out")
    return Path(text)


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise a ConfigError for an argument that is not UTF-8, which no config or page could hold, or far too deep."""
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):  # what stands for a byte that is not UTF-8
            raise ConfigError(f"the argument {shorten(ascii(argument))} is not UTF-8; rename the file")
        if argument.count("/") > MOST_FOLDERS:
            raise ConfigError(f"the path {shorten(argument)} has more than {MOST_FOLDERS} folders")
