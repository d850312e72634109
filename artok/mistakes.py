"""Sentences about mistakes in configs: what is wrong at a place, and the nearest right word."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from omegaconf.errors import OmegaConfBaseException
from pydantic_core import ErrorDetails
from yaml import YAMLError

from artok.errors import shorten

UNREADABLE = (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError)  # what reading YAML raises
EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a section of keys",
    "mapping": "a section of keys",
    "model": "a section of keys",
    "finite": "a finite number",
}


def is_tag(part: int | str) -> bool:
    """Whether a part of a location is a union's type, which pydantic adds, and not a key."""
    return isinstance(part, str) and ("[" in part or part in ("int", "float", "str", "bool", "none"))


def sentence(detail: ErrorDetails, place: tuple[int | str, ...]) -> str:
    path, kind, given = shorten(".".join(map(str, place))), detail["type"], shorten(repr(detail.get("input")))
    if kind == "missing":
        return f"key '{path}' is missing"
    if kind == "literal_error":
        choices = [choice.strip().strip("'") for choice in detail["ctx"]["expected"].replace(" or ", ",").split(",")]
        near = nearest(str(detail["input"]), choices, "")
        return f"'{path}' is {given}, but must be one of {', '.join(choices)}{near}"
    if kind == "unknown_kind":
        return f"'{path}': {detail['msg']}"
    expected = EXPECTED.get(kind.split("_")[0])
    if expected and kind.endswith(("_type", "_parsing", "_from_float", "_number")):
        return f"'{path}' must be {expected}, got {given}"
    if kind == "string_pattern_mismatch":
        return f"'{path}' must be of letters, digits, '_', '-' and '.', a letter or digit first, got {given}"
    if kind == "too_short":
        least = detail["ctx"]["min_length"]
        return f"'{path}' needs at least {least} entr{'y' if least == 1 else 'ies'}, got {given}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "value_error":  # from a validator of artok, whose message names the values
        return f"'{path}': {message}" if path else message
    return f"'{path}' {message}, got {given}"


def nearest(word: str, choices: Sequence[str], otherwise: str | None = None) -> str:
    """The end of a sentence on an unknown word. otherwise: when none is near; all the choices unless given."""
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    if otherwise is not None:
        return otherwise
    return f"; there are: {', '.join(choices)}" if choices else ""


def reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return shorten(" ".join(str(error).replace('in "<unicode string>", ', "").split()))
