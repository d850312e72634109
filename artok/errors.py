"""Errors that a user can act on. The command line prints their message and exits with their code."""

from __future__ import annotations

import errno
import os


class ArtokError(Exception):
    """The user's input is wrong. The message says what and how to fix it."""

    exit_code = 2


class ConfigError(ArtokError):
    """A config names an unknown key, a wrong type or an impossible value."""


class DataError(ArtokError):
    """Images, labels or cached tokens are missing, corrupt or do not fit."""


class LayoutError(ArtokError):
    """A generator does not model tokens of this layout. The message names both sides."""


class CheckpointError(ArtokError):
    """A run directory or a file of weights is missing, damaged or of another architecture."""


class RunError(ArtokError):
    """Something failed while running, such as a full disk or a loss that is not finite. Earlier files stay."""

    exit_code = 1


MOST_SHOWN = 100  # characters of a value in a message

# Errors of the system that say that a file or folder cannot be used.
PLACES = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS}
PLACES |= {errno.ENAMETOOLONG, errno.ELOOP, errno.ETXTBSY, errno.ENXIO}


def shorten(text: str) -> str:
    """A text for a message, cut after `MOST_SHOWN` characters."""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


# How torch and Python say that a size is more than 64 bits hold.
TOO_LARGE = ("overflow", "infinity to integer", "int too large", "int too big")


def lacks_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def describe_failure(error: BaseException) -> str | None:
    """A message for failures of the machine, such as lack of memory; None for any other error."""
    text = str(error)
    if lacks_memory(error):
        return "out of memory; use a smaller batch, a smaller model, or training.gradient_accumulation_steps"
    if isinstance(error, OverflowError | RuntimeError | TypeError | ValueError) and any(
        word in text.lower() for word in TOO_LARGE
    ):
        return f"a number is too large to compute with; ask for something smaller ({shorten(text.splitlines()[0])})"
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in text:
        return f"{shorten(text.split(',')[0])}; leave training.deterministic off, or use another part"
    if isinstance(error, RuntimeError) and text.startswith("Symlink loop"):
        return f"{shorten(text)}: a link leads to itself; remove it"
    if isinstance(error, OSError) and error.errno in (28, 122):
        return "no space left on the disk; free some and run the same command again"
    if isinstance(error, OSError) and error.errno in PLACES and error.filename is not None:
        return f"{shorten(os.fsdecode(error.filename))}: {str(error.strerror).lower()}; choose another place with --out"
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"{shorten(os.fsdecode(error.filename))}: no such file or folder, and it cannot be made"
    return None
