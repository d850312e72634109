"""What a measured value is: its identifier, label, unit, direction, group and meaning; and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "at the floor", ""]
Group = Literal[
    "Reconstruction",
    "Codebook",
    "Quality",
    "Diversity",
    "Fidelity to the condition",
    "Motion",
    "Editing",
    "Memorisation",
    "Likelihood",
    "Cost",
    "Other",
]
GROUPS: tuple[Group, ...] = Group.__args__  # type: ignore[attr-defined]  # in the order of tables
DISPLAY = {"ms": 1e-3, "MB": 1e6, "MFLOPs": 1e6, "TFLOPs": 1e12}  # units for people, in units of the values


@dataclass(frozen=True)
class Quantity:
    """name: the identifier in files, with the unit of the value. label: what people read. unit: of the value.

    better: which values are to be preferred, or an empty text where that depends on the purpose. text: the meaning in
    one line. display: the unit that people read, where another than `unit` is easier (a key of `DISPLAY`).
    names_extractor: whether the label carries the extractor, since values of different ones are not comparable.
    """

    name: str
    label: str
    unit: str
    better: Better
    group: Group
    text: str
    display: str = ""
    names_extractor: bool = False

    def title(self, part: str = "", extractor: str | None = None, k: int | None = None) -> str:
        """The label, such as `FD[classifier]` and `precision[classifier, k=5]`.

        part: of a value of one part, such as `2x2` of `perplexity/2x2`. k: the neighbour that it depends on, if any.
        """
        label = self.label
        if self.names_extractor:
            published = self.name == "fd" and extractor == "inception"  # the one that the field calls FID
            features = (extractor or "unnamed") + (f", k={k}" if k is not None else "")
            label = "FID" if published else f"{label}[{features}]"
        return f"{label}, {part.replace('_', ' ')}" if part else label

    def head(self, part: str = "", extractor: str | None = None, k: int | None = None) -> str:
        """The title with the unit that people read."""
        unit, label = self.display or self.unit, self.title(part, extractor, k)
        return f"{label} ({unit})" if unit else label

    def scale(self, value: float) -> float:
        """The value in the unit that people read."""
        return value / DISPLAY[self.display] if self.display else value

    def format(self, value: float, spread: float = 0.0, digits: int = 4, unit: bool = False) -> str:
        """The value as people read it, `12.5 ± 0.3 ms`. spread: over seeds. digits: significant ones."""
        mean = self.scale(value)
        text = number(mean if digits >= 4 else float(f"{mean:.{digits}g}"))
        if spread:
            text += f" ± {self.scale(spread):.2g}"
        shown = self.display or self.unit
        return f"{text} {shown}" if unit and shown else text


def number(value: float) -> str:
    """Four significant digits; whole numbers in full, with commas from 10,000 on."""
    return f"{value:.4g}" if abs(value) < 9_999.5 else f"{value:,.0f}"
