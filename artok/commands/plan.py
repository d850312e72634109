"""`artok plan`, from its arguments to the text it prints."""

from __future__ import annotations

import json as to_json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from threading import Timer
from typing import TYPE_CHECKING, Annotated

import typer

from artok.errors import ConfigError

if TYPE_CHECKING:
    from artok.planning.roofline import Precision

# Heavy imports stay inside the functions, so that --help and a mistyped argument answer at once.

DESIGN = "A design without a config"
VIDEO = "Video, with full and sparse attention"


def plan(
    context: typer.Context,
    config: Annotated[str | None, typer.Argument(help="a config; or describe a design by the options below")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="settings on top, as key.sub=value")] = None,
    gpu: Annotated[str, typer.Option(help="GPU to plan for: H100, H200, A100, L4 or RTX 4090")] = "H100",
    device: Annotated[
        str | None, typer.Option(help="plan for this machine instead, measured now: cpu, cuda, cuda:1 or here")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16; default as the config has it, bf16 to sample on a GPU")
    ] = None,
    sample_batch: Annotated[int, typer.Option(min=1, help="images at a time, for throughput")] = 64,
    all_families: Annotated[bool, typer.Option("--all-families", help="every family at this size")] = False,
    json: Annotated[bool, typer.Option("--json", help="for programs: bytes, seconds, FLOPs")] = False,
    family: Annotated[
        str, typer.Option(help="raster, var, maskgit, mar or diffusion", rich_help_panel=DESIGN)
    ] = "raster",
    size: Annotated[int, typer.Option(min=1, help="side of the images", rich_help_panel=DESIGN)] = 256,
    downsample: Annotated[
        int, typer.Option(min=1, help="image side over side of the token grid", rich_help_panel=DESIGN)
    ] = 16,
    codes: Annotated[int, typer.Option(min=2, help="codebook size", rich_help_panel=DESIGN)] = 16384,
    scales: Annotated[
        str, typer.Option(help="sides of VAR's grids, as 1,2,4; default published or doubling", rich_help_panel=DESIGN)
    ] = "",
    depth: Annotated[int, typer.Option(min=1, max=256, help="layers of the transformer", rich_help_panel=DESIGN)] = 12,
    width: Annotated[int | None, typer.Option(min=1, help="default 64 per layer", rich_help_panel=DESIGN)] = None,
    batch: Annotated[int, typer.Option(min=1, help="training batch", rich_help_panel=DESIGN)] = 256,
    frames: Annotated[int, typer.Option(min=1, help="frames; 1 is an image", rich_help_panel=VIDEO)] = 1,
    frame_downsample: Annotated[int, typer.Option(min=1, help="frames per step of tokens", rich_help_panel=VIDEO)] = 1,
    window: Annotated[int, typer.Option(min=1, help="side of local attention, in tokens", rich_help_panel=VIDEO)] = 16,
    neighbours: Annotated[
        int, typer.Option(min=0, help="frames before and after in local attention", rich_help_panel=VIDEO)
    ] = 1,
    key_frames: Annotated[int, typer.Option(min=0, help="frames that all tokens see", rich_help_panel=VIDEO)] = 1,
    chunk: Annotated[int, typer.Option(min=1, help="frames of tokens per chunk", rich_help_panel=VIDEO)] = 5,
    overlap: Annotated[int, typer.Option(min=0, help="frames that chunks share", rich_help_panel=VIDEO)] = 1,
) -> None:
    """Show what a design costs before training: tokens, parameters, FLOPs, memory, time, and the devices it fits on."""
    from artok.planning.from_numbers import DesignSpec
    from artok.planning.plan import PlanOptions, plan_config, plan_families, plan_families_of_config, plan_spec
    from artok.planning.text import families_text, plan_text

    if config is not None:
        sources = {field.name: context.get_parameter_source(field.name) for field in fields(DesignSpec)}
        refuse_numbers(config, [name for name, source in sources.items() if source and source.name == "COMMANDLINE"])
    options = PlanOptions(
        gpu, device, parse_precision(precision), sample_batch, window, neighbours, key_frames, chunk, overlap
    )
    spec = DesignSpec(
        size=size, downsample=downsample, codes=codes, scales=parse_scales(scales), frames=frames,
        frame_downsample=frame_downsample, family={"dit": "diffusion"}.get(family, family), depth=depth, width=width,
        batch=batch,
    )  # fmt: skip
    if spec.scales and spec.family != "var" and not all_families:
        raise ConfigError(f"scales are for the family var, and {spec.family} has none")
    if all_families:
        with say_when_slow():
            plans = (
                plan_families_of_config(config, overrides or [], options) if config else plan_families(spec, options)
            )
        typer.echo(to_json.dumps([asdict(each) for each in plans], indent=2) if json else families_text(plans))
        return
    with say_when_slow():
        found = plan_config(config, overrides or [], options) if config else plan_spec(spec, options)
    typer.echo(to_json.dumps(asdict(found), indent=2) if json else plan_text(found))


@contextmanager
def say_when_slow(seconds: float = 5.0) -> Iterator[None]:
    """Print a line on stderr when what is inside takes longer."""
    words = "still counting: deep models, many tokens and many sampling steps take minutes"
    timer = Timer(seconds, print, (words,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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


def parse_precision(name: str | None) -> Precision | None:
    """Raises ConfigError for an unknown name."""
    from artok.planning.roofline import DTYPES

    found = next((precision for precision in DTYPES if precision == name), None)
    if name is not None and found is None:
        raise ConfigError(f"there is no precision {name!r}; there are: {', '.join(DTYPES)}")
    return found
