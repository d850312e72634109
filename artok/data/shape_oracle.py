"""Whether images show what captions ask for, exactly and by attribute; nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from artok.data.drawing import SHAPES
from artok.data.shape_captions import BESIDE, TOGETHER, Request, Thing, parse
from artok.data.shape_reading import ReadBack, read_back
from artok.data.shape_scenes import COLOURS, PLACES, SIZES
from artok.oracle import Oracle

NAMES = {"shape": tuple(SHAPES), "colour": tuple(COLOURS), "place": PLACES, "size": SIZES}
ATTRIBUTES = (*NAMES, "count", "relation")


class ShapesOracle(Oracle):
    """Attributes: shape, colour, place and size of every thing asked for, their count and their relation.

    An image that shows no clear shape is wrong in all that is asked. Two shapes are matched to what was asked in the
    order that gets more shapes and colours right; where both orders get as many, in that with the wrong relation.
    """

    def things(self, caption: str) -> int:
        request = parse(caption)
        return len(request.things) if request is not None else 0

    def match(self, images: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        seen = read_back(images)
        rows = [_match(seen, row, parse(caption)) for row, caption in enumerate(captions)]
        found = {name: torch.tensor([float(row.get(name, math.nan)) for row in rows]) for name in ATTRIBUTES}
        exact = torch.tensor([all(row.values()) if row else math.nan for row in rows], dtype=torch.float32)
        return {"exact": exact, **found}


def _match(seen: ReadBack, row: int, request: Request | None) -> dict[str, bool]:
    """What is asked, and whether it is there; nothing for a request that was not understood."""
    if request is None:
        return {}
    clear = bool(seen.clear[row])
    shown = list(range(int(seen.number[row])))
    things = request.things
    orders = [shown, shown[::-1]] if len(shown) > 1 else [shown]

    def rights(order: list[int], name: str) -> list[bool]:
        asked = [
            (thing, k) for thing, k in zip(things, [*order, None], strict=False) if getattr(thing, name) is not None
        ]
        return [k is not None and _is(seen, row, k, thing, name) for thing, k in asked]

    def quality(order: list[int]) -> tuple[int, bool, int]:
        kinds = sum(rights(order, "shape")) + sum(rights(order, "colour"))
        others = sum(rights(order, "place")) + sum(rights(order, "size"))
        return kinds, not _related(seen, row, order, request.relation), others

    order = max(orders, key=quality)
    found = {name: clear and all(right) for name in NAMES if (right := rights(order, name))}
    found["count"] = clear and len(shown) == len(things)
    if request.relation is not None:
        found["relation"] = clear and _related(seen, row, order, request.relation)
    return found


def _is(seen: ReadBack, row: int, k: int, thing: Thing, name: str) -> bool:
    return NAMES[name][int(getattr(seen, name)[row, k])] == getattr(thing, name)


def _related(seen: ReadBack, row: int, order: list[int], relation: str | None) -> bool:
    """Whether the first shape of an order stands so to the second; False where there are not two."""
    if relation is None or len(order) < 2:
        return False
    x, y = (seen.centre[row, order[1]] - seen.centre[row, order[0]]).tolist()
    if relation in TOGETHER:
        return (abs(x) > abs(y)) == (relation == TOGETHER[0])
    if relation in ("left of", "right of"):
        return abs(x) > abs(y) and (x > 0) == (relation == "left of")
    assert relation in BESIDE
    return abs(y) > abs(x) and (y > 0) == (relation == "above")
