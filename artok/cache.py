"""The user's cache folder: tokens, trained extractors, imported checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artok.errors import ConfigError, RunError

VARIABLE = "ARTOK_CACHE"


def cache_directory() -> Path:
    """$ARTOK_CACHE, or ~/.cache/artok. ConfigError: the variable is not set, and the user has no home directory."""
    given = os.environ.get(VARIABLE)
    try:
        return Path(given) if given else Path.home() / ".cache" / "artok"
    except RuntimeError:
        raise ConfigError(f"there is no home directory for the cache; set {VARIABLE} to a folder") from None


@contextmanager
def writing_cache() -> Iterator[None]:
    """Turn a failure to write inside the context into a RunError that names the variable."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"the cache {cache_directory()} cannot be written ({str(error.strerror or error).lower()}); "
            f"set {VARIABLE} to a folder that can be written"
        ) from None
