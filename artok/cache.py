"""The user's cache folder: tokens, trained extractors, imported checkpoints."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """$ARTOK_CACHE, or ~/.cache/artok."""
    return Path(os.environ.get("ARTOK_CACHE") or Path.home() / ".cache" / "artok")
