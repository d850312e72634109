"""Scales a generator to a number of parameters, counted on the meta device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from artok.config import validate
from artok.errors import ConfigError
from artok.generators.base import GeneratorConfig
from artok.layout import TokenLayout
from artok.metrics import cost

GRAIN = 4  # widths are multiples of it, since position embeddings need pairs of channels
LEAN = (1.6, 4.0)  # largest factor between a head's width and the config's; the second if the first gives no size
FURTHER = 4.0  # largest width that is tried, as a factor on the expected one
WIDTHS = ("width", "base_channels", "channels")  # names of the width in configs
PROPORTIONAL = ("head_width", "decoder_width", "hidden")  # other widths, scaled with the main one if given


@dataclass(frozen=True)
class Dial:
    """The size settings of a family: `depth`, `width` and `heads` of its section or of its `network`.

    depth and heads are None for a network without them, such as a U-Net, of which only the width is scaled. Of several
    `channels`, width is the largest, and the others are scaled in proportion. lean: largest factor between a head's
    width and the config's.
    """

    section: str | None
    depth: int | None
    width: int
    heads: int | None
    lean: float = LEAN[0]

    @classmethod
    def of(cls, config: GeneratorConfig) -> Dial:
        """The dial of a config. ConfigError: the family has none, or the config names a published size."""
        inside = getattr(config, "network", None)
        part: Any = config if inside is None else inside
        section = None if inside is None else "network"
        if getattr(part, "size", None):
            raise ConfigError(
                f"generator {config.kind} names the published size {part.size}, which a budget of parameters cannot "
                "change; give size: null with depth, width and heads, or another budget"
            )
        depth, heads = getattr(part, "depth", None), getattr(part, "heads", None)
        dial = next((name for name in WIDTHS if name in type(part).model_fields), None)
        given: Any = getattr(part, dial) if dial else None
        width = max(given) if dial == "channels" else given or (64 * depth if depth else None)
        if not isinstance(width, int):
            raise ConfigError(f"generator {config.kind} has no width to scale; use another budget than parameters")
        return cls(section, depth, width, (heads or depth) if "heads" in type(part).model_fields else None)

    def fits(self, width: int) -> bool:
        """Whether a width can be divided into heads of about the config's width."""
        return self.heads is None or choose_heads(width, self.width / self.heads, self.lean) is not None

    def scale_width(self, old: int, width: int) -> int:
        """Scale another width of the config in proportion."""
        return max(GRAIN, GRAIN * round(old * width / self.width / GRAIN))

    def resize(self, config: GeneratorConfig, depth: int | None, width: int) -> GeneratorConfig | None:
        """The config at another size, or None when the width is impossible."""
        part: Any = config if self.section is None else getattr(config, self.section)
        dial = next(name for name in WIDTHS if name in type(part).model_fields)
        levels = tuple(self.scale_width(each, width) for each in part.channels) if dial == "channels" else width
        changes: dict[str, Any] = {dial: levels}
        if depth is not None:
            changes["depth"] = depth
        if self.heads is not None:
            heads = choose_heads(width, self.width / self.heads, self.lean)
            if heads is None:
                return None
            changes["heads"] = heads
        for name in PROPORTIONAL:
            old = getattr(part, name, None)
            if old is not None:
                changes[name] = self.scale_width(old, width)
        section = part.model_dump() | changes
        whole = section if self.section is None else config.model_dump() | {self.section: section}
        try:
            return validate(type(config), whole, config.kind)
        except ConfigError:
            return None


@cache
def choose_heads(width: int, head_width: float, lean: float) -> int | None:
    """The number of heads of an even width nearest to `head_width`, or None if the factor is above `lean`."""
    least, most = math.ceil(width / head_width / lean), math.floor(width / head_width * lean)
    fitting = [heads for heads in range(max(1, least), most + 1) if width % (2 * heads) == 0]
    off = {heads: abs(math.log(width / heads / head_width)) for heads in fitting}
    best = min(off, key=lambda heads: (off[heads], heads), default=None)
    return best if best is not None and off[best] <= math.log(lean) else None


def count(config: GeneratorConfig, layout: TokenLayout, classes: int) -> int | None:
    """Parameters of a generator, or None when it cannot be built, such as for a width that its norms cannot divide."""
    try:
        with torch.device("meta"):
            return cost.parameters(config.build(layout, classes))
    except (ConfigError, ValueError, AssertionError):
        return None


@dataclass(frozen=True)
class Size:
    """skew: logarithm of its width per depth over the config's."""

    config: GeneratorConfig
    parameters: int
    skew: float


def resize_to(
    config: GeneratorConfig, layout: TokenLayout, classes: int, target: float, tolerance: float
) -> tuple[GeneratorConfig, int]:
    """Scale a config to within `tolerance` of `target` parameters, with nearly the same proportions.

    Returns the config and its number of parameters. A config within the tolerance is unchanged. ConfigError: no size
    is that close; the message names the nearest.
    """
    own = count(config, layout, classes)
    if own is not None and abs(own / target - 1) <= tolerance:
        return config, own
    dial = Dial.of(config)
    scale = (target / own) ** (1 / 3 if dial.depth else 1 / 2) if own else 1.0
    near: list[int] = []
    for lean in LEAN:
        found = [
            each
            for depth in _depths(dial, scale)
            for each in _at_depth(
                replace(dial, lean=lean), config, depth, scale, target, lambda it: count(it, layout, classes)
            )
        ]
        fitting = [each for each in found if abs(each.parameters / target - 1) <= tolerance]
        if fitting:
            best = min(fitting, key=lambda each: abs(each.skew) + abs(each.parameters / target - 1))
            return best.config, best.parameters
        near += [each.parameters for each in found]
    told = f"; the nearest has {min(near, key=lambda each: abs(each - target)):,}" if near else ""
    raise ConfigError(f"generator {config.kind} has no size within {tolerance:.0%} of {target:,.0f} parameters{told}")


def _depths(dial: Dial, scale: float) -> list[int | None]:
    """Depths to try, around the proportional one."""
    if dial.depth is None:
        return [None]
    middle = dial.depth * scale
    return list(range(max(1, math.floor(middle) - 2), math.ceil(middle) + 3))


def _at_depth(
    dial: Dial,
    config: GeneratorConfig,
    depth: int | None,
    scale: float,
    target: float,
    parameters: Callable[[GeneratorConfig], int | None],
) -> Iterator[Size]:
    """Find the sizes on both sides of the target at one depth, by bisection of the width."""
    most = max(2 * GRAIN, int(dial.width * max(scale, 1.0) * FURTHER))
    widths = [width for width in range(GRAIN, most, GRAIN) if dial.fits(width)]
    low, high = 0, len(widths)
    known: dict[int, Size] = {}
    ratio = dial.width * (depth or 1) / (dial.depth or 1) if dial.depth else float(dial.width)

    def look(index: int) -> int:
        """Parameters at a width, or at the next larger one that can be built."""
        while index < len(widths):
            candidate = dial.resize(config, depth, widths[index])
            found = None if candidate is None else parameters(candidate)
            if candidate is not None and found is not None:
                known[index] = Size(candidate, found, math.log(widths[index] / ratio))
                return found
            index += 1
        return int(2 * target)

    while low < high:
        middle = (low + high) // 2
        if look(middle) < target:
            low = middle + 1
        else:
            high = middle
    for index in (low - 1, low):
        if 0 <= index < len(widths):
            look(index)
    yield from known.values()


def describe_size(config: GeneratorConfig) -> str:
    """A config's size as text, such as "depth 3, width 160, 5 heads"."""
    dial = Dial.of(config)
    depth = f"depth {dial.depth}, " if dial.depth else ""
    return f"{depth}width {dial.width}" + (f", {dial.heads} heads" if dial.heads else "")
