"""artok: train image tokenizers and the generators that run on their tokens, and measure which pair serves a need."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from artok.api import evaluate, load_tokenizer, train
    from artok.pipeline import Pipeline

__version__ = "0.2.0"
__all__ = ["Pipeline", "__version__", "evaluate", "load_tokenizer", "train"]

_HOME = {"Pipeline": "pipeline", "evaluate": "api", "load_tokenizer": "api", "train": "api"}


def __getattr__(name: str) -> object:
    """The public names, imported when first used: torch takes seconds."""
    if name not in _HOME:
        raise AttributeError(f"module 'artok' has no attribute {name!r}")
    return getattr(import_module(f"artok.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
