"""Full attention: every token attends to every token."""

from __future__ import annotations

from typing import Literal

from artok.nn.patterns.base import PatternConfig


class Config(PatternConfig):
    """kind: full."""

    kind: Literal["full"] = "full"

    def refuse(self, grid: tuple[int, ...]) -> str | None:
        return None

    def build(self, grid: tuple[int, ...], layer: int) -> None:
        return None

    @classmethod
    def tiny(cls) -> Config:
        return cls()
