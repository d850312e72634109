"""Errors that a user can act on. The command line prints their message and exits with their code."""

from __future__ import annotations


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


def describe_failure(error: BaseException) -> str | None:
    """A message for failures of the machine, such as lack of memory; None for any other error."""
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text.lower():
        return "out of memory; use a smaller batch, a smaller model, or training.gradient_accumulation_steps"
    if "storage size calculation overflowed" in text.lower():
        return "tensors of such a size cannot exist; ask for something smaller"
    if isinstance(error, OSError) and error.errno in (28, 122):
        return "no space left on the disk; free some and run the same command again"
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
        return f"{error.filename}: {str(error.strerror).lower()}; choose another place with --out"
    if isinstance(error, PermissionError):
        return f"no permission to use {error.filename}; choose another folder with --out"
    return None
