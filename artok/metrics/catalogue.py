"""All quantities that are measured, collected from the metrics and the costs that define them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from artok.config import find, kinds
from artok.metrics.base import MetricConfig
from artok.metrics.cost import QUANTITIES
from artok.metrics.edits import EDIT
from artok.metrics.quantity import Quantity


@cache
def catalogue() -> dict[str, Quantity]:
    """Identifier to quantity."""
    metrics = [kind for name in kinds("metrics") if issubclass(kind := find("metrics", name), MetricConfig)]
    every = [quantity for kind in metrics for quantity in kind.quantities]
    return {quantity.name: quantity for quantity in [*every, *QUANTITIES]}


def describe(name: str) -> Quantity:
    """The quantity of an identifier, which may end in `/part`. One that nothing defines has its name as its label."""
    base, _, part = name.partition("/")
    found = catalogue().get(base) or Quantity(base, base.replace("_", " "), "", "", "Other", "")
    return replace(found, group="Editing") if part.startswith(EDIT) else found


def title(name: str, extractor: str | None = None, k: int | None = None) -> str:
    """What people read for an identifier: `FD[classifier]`, `perplexity, 2x2`."""
    return describe(name).title(name.partition("/")[2], extractor, k)


def head(name: str, extractor: str | None = None, k: int | None = None) -> str:
    """The same with the unit."""
    return describe(name).head(name.partition("/")[2], extractor, k)
