"""`artok plan`, from its arguments to the text it prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields

from artok.errors import ConfigError
from artok.planning.from_numbers import DesignSpec
from artok.planning.plan import PlanOptions, plan_config, plan_families, plan_families_of_config, plan_spec
from artok.planning.roofline import DTYPES, Precision
from artok.planning.text import families_text, plan_text

NUMBERS = tuple(field.name for field in fields(DesignSpec))  # options that describe a design without a config


def refuse_numbers(config: str, given: Sequence[str]) -> None:
    """Raises ConfigError when a config is planned and options give numbers that would be ignored."""
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(
            f"{options} would be ignored, since {config} is a config; change it by key.sub=value, such as "
            "data.size=64 or training.global_batch=32"
        )


def parse_scales(text: str) -> tuple[int, ...] | None:
    """Sides from "1,2,4"; None from an empty text. Raises ConfigError for anything else."""
    try:
        return tuple(int(side) for side in text.split(",")) if text else None
    except ValueError:
        raise ConfigError(f"scales must be whole numbers separated by commas, got {text!r}") from None


def parse_family(name: str) -> str:
    return {"dit": "diffusion"}.get(name, name)


def parse_precision(name: str | None) -> Precision | None:
    """Raises ConfigError for an unknown name."""
    found = next((precision for precision in DTYPES if precision == name), None)
    if name is not None and found is None:
        raise ConfigError(f"there is no precision {name!r}; there are: {', '.join(DTYPES)}")
    return found


def plan(
    config: str | None,
    overrides: Sequence[str],
    spec: DesignSpec,
    options: PlanOptions,
    all_families: bool,
    as_json: bool,
) -> str:
    """The text of one plan, or of all families side by side. spec: the design where no config is given."""
    if spec.scales and spec.family != "var" and not all_families:
        raise ConfigError(f"scales are for the family var, and {spec.family} has none")
    if all_families:
        plans = plan_families_of_config(config, overrides, options) if config else plan_families(spec, options)
        return json.dumps([asdict(each) for each in plans], indent=2) if as_json else families_text(plans)
    found = plan_config(config, overrides, options) if config else plan_spec(spec, options)
    return json.dumps(asdict(found), indent=2) if as_json else plan_text(found)
