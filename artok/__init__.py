"""artok: train image tokenizers and the generators that run on their tokens, and measure which pair serves a need."""

__version__ = "0.1.0"
