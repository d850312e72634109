"""The language of the shapes: what a caption asks for, its several wordings, and how they are read.

A request is what a wording says, no more: "a red circle left of a blue square" asks for no places. `word` writes a
request in each of its wordings and `parse` is its inverse, so every prompt of the language can be scored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from artok.data.drawing import SHAPES
from artok.data.shape_scenes import COLOURS, PLACES, SIZES, Scene

BESIDE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}  # and their converses
TOGETHER = ("side by side", "one above the other")  # two of a kind


@dataclass(frozen=True)
class Thing:
    """What is asked of one shape: names, and None where nothing is asked."""

    shape: str
    colour: str | None = None
    place: str | None = None
    size: str | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, (self.size, self.colour, self.shape)))

    @property
    def plural(self) -> str:
        return f"{self}es" if self.shape.endswith("s") else f"{self}s"


@dataclass(frozen=True)
class Request:
    """relation: of the first thing to the second, or of two of a kind to each other; None where none is asked."""

    things: tuple[Thing, ...]
    relation: str | None = None


def word(request: Request) -> tuple[str, ...]:
    """The wordings of a request."""
    first, *others = request.things
    if not others:
        what = f"a {first}"
        if first.place is None:
            return (what, f"there is {what}")
        return (f"{what} {first.place}", f"{first.place} is {what}", f"there is {what} {first.place}")
    second = others[0]
    if request.relation in TOGETHER:
        return (f"two {first.plural} {request.relation}", f"there are two {first.plural} {request.relation}")
    if request.relation is not None:
        back = BESIDE[request.relation]
        return (f"a {first} {request.relation} a {second}", f"a {second} {back} a {first}")
    if first == second:
        return (f"two {first.plural}", f"there are two {first.plural}")
    if replace(first, place=second.place) == second:
        return (f"two {first.plural} {first.place} and {second.place}",)
    here, there = (" ".join(filter(None, (f"a {thing}", thing.place))) for thing in request.things)
    return (f"{here} and {there}", f"{there} and {here}")


def requests(scene: Scene) -> list[tuple[Request, ...]]:
    """What can be said of each image: of one shape all at once; of two their relation, or their places."""
    shapes, colours = list(SHAPES), list(COLOURS)
    said: list[tuple[Request, ...]] = []
    for row, number in enumerate(scene.number.tolist()):
        things = [
            Thing(
                shapes[int(scene.shape[row, k])],
                colours[int(scene.colour[row, k])],
                PLACES[int(scene.place[row, k])],
                None if scene.size is None else SIZES[int(scene.size[row, k])],
            )
            for k in range(number)
        ]
        if number == 1:
            said.append((Request(tuple(things)),))
            continue
        bare = tuple(replace(thing, place=None) for thing in things)
        across = int(scene.place[row, 0]) // 3 == int(scene.place[row, 1]) // 3
        relation = TOGETHER[not across] if bare[0] == bare[1] else "left of" if across else "above"
        said.append((Request(bare, relation), Request(tuple(things))))
    return said


def write_captions(scene: Scene) -> list[tuple[str, ...]]:
    """All captions of each image: every wording of all that can be said of it."""
    return [tuple(text for request in each for text in word(request)) for each in requests(scene)]


def _either(words: object) -> str:
    return "|".join(sorted(map(re.escape, map(str, words)), key=len, reverse=True))  # type: ignore[call-overload]


_KIND = (
    rf"(?:(?P<size{{k}}>{_either(SIZES)}) )?(?:(?P<colour{{k}}>{_either(COLOURS)}) )?(?P<shape{{k}}>{_either(SHAPES)})"
)
_PLACE = rf"(?P<place{{k}}>{_either(PLACES)})"
_A = "an? " + _KIND
_OPENING = "(?:there (?:is|are) )?"
_FORMS = [
    re.compile(_OPENING + form.format(k=0) if second is None else _OPENING + form.format(k=0) + second.format(k=1))
    for form, second in (
        (rf"{_A}(?: {_PLACE})?", None),
        (rf"{_PLACE},? (?:is )?{_A}", None),
        (rf"two {_KIND}e?s(?: (?P<relation>{_either(TOGETHER)}))?", None),
        (rf"two {_KIND}e?s {_PLACE}", rf" and {_PLACE}"),
        (_A, rf" (?P<relation>{_either(BESIDE)}) {_A}"),
        (rf"{_A}(?: {_PLACE})?", rf" and {_A}(?: {_PLACE})?"),
    )
]


def parse(prompt: str) -> Request | None:
    """What a prompt asks for; None when it is none of the language. Case and a full stop do not matter."""
    text = " ".join(prompt.lower().strip(" .").split())
    for form in _FORMS:
        found = form.fullmatch(text)
        if found is None:
            continue
        said = found.groupdict()
        things = [
            Thing(said[f"shape{k}"], said.get(f"colour{k}"), said.get(f"place{k}"), said.get(f"size{k}"))
            for k in (0, 1)
            if said.get(f"shape{k}")
        ]
        if len(things) == 1 and re.match(rf"{_OPENING}two ", text):
            things.append(replace(things[0], place=said.get("place1")))
        return Request(tuple(things), said.get("relation"))
    return None
