"""A study, one YAML file: contestants, one budget that all of them meet, seeds, and how they are measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from artok.config import OPEN, SHIPPED, Config, load, locate, of_kind, read_yaml
from artok.data.base import DataConfig
from artok.errors import ConfigError, RunError
from artok.metrics.features import ExtractorName, parse
from artok.metrics.selection import MetricChoice
from artok.training.experiment import SEEDS

NAME = r"^[A-Za-z0-9][\w.-]*$"
ROOM = "studies"  # among the shipped configs
MOST_PARAMETERS = 1e12
LOCK = ".study"  # held by who conducts the study in a folder


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class Contestant(Config):
    """What competes: a generator on a tokenizer, trained for the study, or finished runs.

    tokenizer: its config, which is trained once for all contestants that share it, or the directory of a trained one;
    left out where the generator's config describes one that needs no training, such as pixels. generator: its config.
    settings, tokenizer_settings: sections on top of the two configs.
    run: instead of all these, a finished or imported run, or several that differ in their seed only; used as it is.
    """

    tokenizer: str | None = None
    generator: str | None = None
    settings: dict[str, Any] = Field({})
    tokenizer_settings: dict[str, Any] = Field({})
    run: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()

    @model_validator(mode="after")
    def _one_way(self) -> Contestant:
        if bool(self.run) == bool(self.generator):
            raise ValueError("give either a 'generator' config to train or a finished 'run'")
        if self.run and (self.tokenizer or self.settings or self.tokenizer_settings):
            raise ValueError("a finished 'run' is used as it is; leave tokenizer and settings out")
        if self.tokenizer_settings and not self.tokenizer:
            raise ValueError("'tokenizer_settings' are for a 'tokenizer' config, and there is none")
        return self


class Budget(Config):
    """What every contestant's generator gets, within `tolerance`; the tokenizers are trained as their configs say.

    kind: `parameters` changes the size (width, then depth, in the proportions of the config); `flops` (of training)
    and `seconds` (of training steps) change the images seen; `images` sets them.
    A budget of `seconds` counts processor seconds on a CPU and wall seconds on a GPU. Each contestant's speed is
    measured on a short training, and then its number of images is fixed, so that the schedule is whole and the study
    can be resumed and repeated. speeds: images a second of each contestant, as an earlier study found them, to repeat
    that study to the bit.
    """

    kind: Literal["parameters", "flops", "images", "seconds"]
    amount: float = Field(gt=0)
    tolerance: float = Field(0.05, gt=0, le=0.5)
    speeds: dict[str, Annotated[float, Field(gt=0)]] = Field({})

    @model_validator(mode="after")
    def _amounts_fit(self) -> Budget:
        if self.kind == "parameters" and self.amount > MOST_PARAMETERS:
            raise ValueError(
                f"amount {self.amount:,.0f} is more than the {MOST_PARAMETERS:,.0f} parameters that a budget may name; "
                "for operations of training the kind is flops"
            )
        if self.speeds and self.kind != "seconds":
            raise ValueError(f"'speeds' belong to a budget of seconds, not to one of {self.kind}")
        return self


class Evaluation(MetricChoice):
    """extractor: of the features behind every distance. n: images, all held-out ones unless given."""

    extractor: ExtractorName = "classifier"
    n: int | None = Field(None, ge=4)


class Curve(Config):
    """Quality against images seen: the averaged weights are kept and measured at so many points of training.

    points: evenly spaced, the last of them the end. seeds: of the study's, the first so many. n: images a point.
    """

    points: int = Field(4, ge=1)
    seeds: int = Field(1, ge=1)
    n: int | None = Field(None, ge=4)


class Grid(Config):
    """Quality against sampling settings, one varied at a time around the contestant's own.

    steps: for families that choose their number; what a family cannot do is left out. guidance: for generators trained
    with label dropout. seeds, n: as for the curve.
    """

    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    guidance: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
    seeds: int = Field(1, ge=1)
    n: int | None = Field(None, ge=4)

    @model_validator(mode="after")
    def _settings_are_possible(self) -> Grid:
        if any(steps < 1 for steps in self.steps) or len(set(self.steps)) < len(self.steps):
            raise ValueError(f"steps {list(self.steps)} must be different whole numbers from 1 on")
        if any(guidance < 0 for guidance in self.guidance) or len(set(self.guidance)) < len(self.guidance):
            raise ValueError(f"guidance {list(self.guidance)} must be different numbers from 0 on, of which 1 is none")
        return self


class Timing(Config):
    """batches: tried for the best throughput. rounds: independent timings, which give the spread. repeats: of what is
    timed, in each of them."""

    batches: tuple[int, ...] = (16, 64, 256)
    rounds: int = Field(3, ge=1)
    repeats: int = Field(5, ge=1)

    @field_validator("batches")
    @classmethod
    def _some(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if not batches or min(batches) < 1:
            raise ValueError("name at least one batch of at least one image")
        return batches


class Study(Config):
    """A whole study.

    data: what all train on and are measured on, in place of the configs' own. settings, tokenizer_settings: on top of
    every contestant's configs, below its own. seeds: each trains every generator once. tokenizer_seeds: and every
    tokenizer too; otherwise all seeds share the one tokenizer that its config's seed gives. budget: none leaves the
    configs as they are.
    sweep: the study of a sweep whose cells are trained and measured beside all this, and shown on the same page.
    launch: what starts each training, such as "torchrun --nproc_per_node 2"; plain Python unless given. workers:
    jobs side by side, on a GPU each where there are GPUs.
    """

    name: str = Field(pattern=NAME)
    title: str = ""
    intro: str = ""
    contestants: dict[Annotated[str, Field(pattern=NAME)], Contestant] = Field(min_length=1)
    data: Annotated[DataConfig | None, of_kind("data"), OPEN] = None
    settings: dict[str, Any] = Field({})
    tokenizer_settings: dict[str, Any] = Field({})
    budget: Budget | None = None
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    tokenizer_seeds: bool = False
    evaluation: Evaluation = Evaluation()
    curve: Curve = Curve()
    grid: Grid = Grid()
    timing: Timing = Timing()
    sweep: str | None = None
    launch: str = ""
    workers: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _told_apart(self) -> Study:
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0 or max(self.seeds) >= SEEDS:
            raise ValueError(f"seeds {list(self.seeds)} must be different whole numbers from 0 to {SEEDS - 1:,}")
        if unknown := set(self.budget.speeds if self.budget else ()) - set(self.contestants):
            raise ValueError(f"budget.speeds names {sorted(unknown)[0]!r}, which is no contestant")
        seen: dict[str, str] = {}
        for name, contestant in self.contestants.items():
            other = seen.setdefault(repr(contestant), name)
            if other != name:
                raise ValueError(f"the contestants {other} and {name} are the same")
            many = len(contestant.run)
            if many > 1 and many != len(self.seeds):
                raise ValueError(f"{name} names {many} runs for {len(self.seeds)} seeds; give one, or one a seed")
        return self


def load_study(name: str, overrides: list[str]) -> Study:
    """The study of a YAML file, or of a shipped name such as "digits-quick", with key.sub=value settings on top."""
    return load(Study, shipped_study(name, "compare"), overrides)


def shipped_study(name: str, command: str) -> str:
    """The config's name, from among the shipped studies if it is one; a ConfigError when another command takes it."""
    inside = any((root / ROOM / f"{name}.yaml").exists() for root in SHIPPED)
    name = f"{ROOM}/{name}" if inside else name
    found = read_yaml(locate(name))
    for other, sign in (("compare", "contestants"), ("sweep", "grid"), ("train", "training")):
        if sign in found and other != command:
            raise ConfigError(f"{name} has '{sign}', which 'artok {command}' does not take: try 'artok {other} {name}'")
        if sign in found:
            break
    return name


def refuse_two(command: str, folder: Path) -> None:
    """A RunError for a study that another process is at."""
    raise RunError(f"another 'artok {command}' is at work in {folder}; let it end, or stop it first")


def require_extractor(evaluation: Evaluation) -> None:
    """An ArtokError, before anything is trained, when a published extractor cannot be had."""
    config = parse(evaluation.extractor)
    if not config.trained:
        config.build(None, "cpu", None)


def trains(study: Study) -> bool:
    return any(contestant.generator for contestant in study.contestants.values())


def require_trained(study: Study) -> None:
    """A ConfigError when a budget is set but nothing is trained that could meet it."""
    if study.budget and not trains(study):
        raise ConfigError(
            f"the study has a budget of {study.budget.kind}, but only finished runs, which stay as they are; "
            "leave the budget out, or name configs to train"
        )
