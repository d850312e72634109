"""What `artok plan` was asked for, from its arguments to the text it prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields

from artok.errors import ConfigError
from artok.planning.calibrate_cpu import calibrate, place
from artok.planning.from_numbers import Wish
from artok.planning.plan import Asked, all_families, families_of_config, plan_config, plan_wish
from artok.planning.roofline import DTYPES, Precision
from artok.planning.text import families_text, text
from artok.training.progress import Progress

NUMBERS = tuple(field.name for field in fields(Wish))  # options that describe a design without a config


def refuse_numbers(config: str, given: Sequence[str]) -> None:
    """A ConfigError when a config is planned and options say its numbers anew: they would change nothing."""
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(
            f"{options} would change nothing of {config}: options describe a design that has no config; change this "
            "one by key.sub=value, such as data.size=64 or training.global_batch=32"
        )


def calibrated() -> str:
    """Measure this machine; where the figures are."""
    calibrate(Progress("calibrate"))
    return f"measured; the figures are in {place()}"


def wished(
    size: int,
    downsample: int,
    codes: int,
    scales: str,
    frames: int,
    frame_downsample: int,
    family: str,
    depth: int,
    width: int | None,
    batch: int,
) -> Wish:
    """The numbers of a design. ConfigError: they do not fit together."""
    try:
        sides = tuple(int(side) for side in scales.split(",")) if scales else None
    except ValueError:
        raise ConfigError(f"scales must be whole numbers separated by commas, got {scales!r}") from None
    return Wish(
        size=size, downsample=downsample, codes=codes, scales=sides, frames=frames, frame_downsample=frame_downsample,
        family={"dit": "diffusion"}.get(family, family), depth=depth, width=width, batch=batch,
    )  # fmt: skip


def known(precision: str | None) -> Precision | None:
    """A precision by its name. ConfigError: it is none."""
    if precision is None:
        return None
    found = next((name for name in DTYPES if name == precision), None)
    if found is None:
        raise ConfigError(f"there is no precision {precision!r}; there are: {', '.join(DTYPES)}")
    return found


def planned(
    config: str | None, overrides: Sequence[str], wish: Wish, asked: Asked, every_family: bool, as_json: bool
) -> str:
    """The text of one plan, or of all families side by side."""
    if wish.scales and wish.family != "var" and not every_family:
        raise ConfigError(f"scales are for the family var, and {wish.family} has none")
    if every_family:
        plans = families_of_config(config, overrides, asked) if config else all_families(wish, asked)
        return json.dumps([asdict(plan) for plan in plans], indent=2) if as_json else families_text(plans)
    plan = plan_config(config, overrides, asked) if config else plan_wish(wish, asked)
    return json.dumps(asdict(plan), indent=2) if as_json else text(plan)
