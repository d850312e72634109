"""The typed config of a study: entries by name or a grid over a tokenizer, and how they are measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from artok.config import OPEN, SHIPPED, Config, load, locate, of_kind, read_yaml
from artok.data.base import DataConfig
from artok.errors import ConfigError, RunError
from artok.metrics.features import ExtractorName, parse
from artok.metrics.selection import MetricChoice
from artok.noise import Seed
from artok.renamed import say_renamed
from artok.training.experiment import Experiment

NAME = r"^[A-Za-z0-9][\w.-]*$"
ROOM = "studies"  # folder of the shipped configs
MOST_PARAMETERS = 1e12
MOST_POINTS = 1_000  # of a grid
LOCK = ".study"  # lock file of a running study
SECTIONS = tuple(Experiment.model_fields)  # axes of a grid that start with one of these are settings


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class EntryConfig(Config):
    """An entry of a study: a generator on a tokenizer, trained for the study, or finished runs.

    tokenizer: its config, trained once for all entries that share it, or the directory of a trained one. It is omitted
    if the generator's config has a tokenizer that needs no training, such as pixels. generator: its config; omitted to
    compare tokenizers. settings, tokenizer_settings: sections on top of the two configs.
    teacher: the entry before it that a config with a `distill` section learns from, seed by seed. An `init` that names
    the same run as `distill.teacher` follows it.
    init: the entry before it whose weights its training starts from, in the place of its config's `init`.
    run: instead of these, a finished or imported run, or several that differ only in their seed; used unchanged.
    """

    tokenizer: str | None = None
    generator: str | None = None
    teacher: str | None = None
    init: str | None = None
    settings: dict[str, Any] = Field({})
    tokenizer_settings: dict[str, Any] = Field({})
    run: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()

    @model_validator(mode="after")
    def _check_parts(self) -> EntryConfig:
        if bool(self.run) == bool(self.generator or self.tokenizer):
            raise ValueError("give either a 'generator' config to train, a 'tokenizer' or both, or a finished 'run'")
        if self.run and (self.settings or self.tokenizer_settings):
            raise ValueError("a finished 'run' is used unchanged; leave tokenizer and settings out")
        if self.tokenizer_settings and not self.tokenizer:
            raise ValueError("'tokenizer_settings' are for a 'tokenizer' config, and there is none")
        if (self.teacher or self.init) and not self.generator:
            raise ValueError("'teacher' and 'init' are for a 'generator' config, and there is none")
        if self.settings and not self.generator:
            raise ValueError("'settings' are for a 'generator' config, and there is none")
        return self


class Budget(Config):
    """The budget of every entry's generator, met within `tolerance`. Tokenizers are trained by their configs.

    kind: `parameters` changes the size (width, then depth, in the proportions of the config); `flops` (of training)
    and `seconds` (of training steps) change the number of images; `images` sets it.
    `seconds` are processor seconds on a CPU and wall seconds on a GPU. Each entry's speed is measured by a short
    training, which fixes its number of images and its schedule. speeds: images per second of each entry from an
    earlier study, to repeat that study exactly.
    """

    kind: Literal["parameters", "flops", "images", "seconds"]
    amount: float = Field(gt=0)
    tolerance: float = Field(0.05, gt=0, le=0.5)
    speeds: dict[str, Annotated[float, Field(gt=0)]] = Field({})

    @model_validator(mode="after")
    def _check_amounts(self) -> Budget:
        if self.kind == "parameters" and self.amount > MOST_PARAMETERS:
            raise ValueError(
                f"amount {self.amount:,.0f} is more than the {MOST_PARAMETERS:,.0f} parameters that a budget may name; "
                "for a budget of training FLOPs use kind flops"
            )
        if self.speeds and self.kind != "seconds":
            raise ValueError(f"'speeds' belong to a budget of seconds, not to one of {self.kind}")
        return self


class EvaluationConfig(MetricChoice):
    """extractor: of the features for distances. n: number of images, default all held-out ones."""

    extractor: ExtractorName = "classifier"
    n: int | None = Field(None, ge=4)


class Curve(Config):
    """Learning curves: EMA weights are kept and measured during training.

    points: number of evenly spaced points, the last at the end. seeds: number of the study's seeds. n: images per
    point.
    """

    points: int = Field(4, ge=1)
    seeds: int = Field(1, ge=1)
    n: int | None = Field(None, ge=4)


class SamplingGrid(Config):
    """Quality by sampling settings, varied one at a time around the entry's own.

    steps: for families that have a choice; impossible numbers are left out. cfg_scale: for generators trained with
    class dropout. seeds, n: as for the curve.
    """

    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    cfg_scale: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
    seeds: int = Field(1, ge=1)
    n: int | None = Field(None, ge=4)

    @model_validator(mode="after")
    def _check_settings(self) -> SamplingGrid:
        if any(steps < 1 for steps in self.steps) or len(set(self.steps)) < len(self.steps):
            raise ValueError(f"steps {list(self.steps)} must be different whole numbers from 1 on")
        if any(scale < 0 for scale in self.cfg_scale) or len(set(self.cfg_scale)) < len(self.cfg_scale):
            raise ValueError(
                f"cfg_scale {list(self.cfg_scale)} must be different numbers from 0 on, of which 1 is none"
            )
        return self


class TimingConfig(Config):
    """batches: sizes tried for the best throughput. rounds: independent timings, which give the spread. repeats: of the
    timed call in each round."""

    batches: tuple[int, ...] = (16, 64, 256)
    rounds: int = Field(3, ge=1)
    repeats: int = Field(5, ge=1)

    @field_validator("batches")
    @classmethod
    def _check_batches(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if not batches or min(batches) < 1:
            raise ValueError("name at least one batch of at least one image")
        return batches


class Robustness(Config):
    """The effect of replaced codes on reconstructions.

    shares: of an image's codes. neighbours: number of nearest codes from which the replacement is drawn.
    """

    shares: tuple[float, ...] = (0.1, 0.3)
    neighbours: int = Field(4, ge=1)

    @field_validator("shares")
    @classmethod
    def _check_shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < share <= 1 for share in shares) or list(shares) != sorted(set(shares)):
            raise ValueError("must be increasing shares above 0 and up to 1")
        return shares


# Defaults of a study with a grid: one seed, and no sampling grid.
GRID_DEFAULTS: dict[str, Any] = {
    "seeds": (0,),
    "tokenizer_seeds": True,
    "curve": {"points": 1},
    "sampling_grid": {"steps": (), "cfg_scale": ()},
    "timing": {"batches": (64,)},
    "robustness": {},
}


class Study(Config):
    """A study: `entries` by name, or a `grid` over a tokenizer whose points are the entries.

    tokenizer, generator: of a grid. Each point trains the tokenizer's config with its settings, and the generator's
    config on its tokens and data; without a generator, tokenizers are compared.
    grid: axis to its settings. An axis such as `tokenizer.quantizer.codebook_size` is a key of the tokenizer's config.
    An axis of any other name lists sections of settings, such as {label: f8, tokenizer: {downsample: 8,
    channel_multipliers: [1, 2, 2, 4]}}; the label defaults to the first value.
    impossible: whether points that cannot be trained are refused, or skipped with their reason.

    data: of all trainings and measurements, instead of the configs' own. settings, tokenizer_settings: on top of every
    entry's configs, below its own. seeds: one training of every generator for each. tokenizer_seeds: whether each seed
    also trains every tokenizer; otherwise all seeds share one tokenizer with its config's seed. budget: default none,
    which leaves the configs unchanged. robustness: of the tokenizers' codes; default only for a grid.
    beside: a second study, such as one with a grid, shown on the same page.
    launch: the command that starts each training, such as "torchrun --nproc_per_node 2"; default Python. workers:
    parallel jobs, one per GPU if there are GPUs. executor: `local`, this machine, or `slurm`, with submitit's settings
    in `slurm`, such as {timeout_min: 600, gpus_per_node: 1, slurm_partition: gpu}.
    """

    name: str = Field(pattern=NAME, description="names the folder, runs/<name>")
    title: str = ""
    intro: str = ""
    entries: dict[Annotated[str, Field(pattern=NAME)], EntryConfig] = Field({})
    tokenizer: str | None = None
    generator: str | None = None
    grid: dict[str, list[Any]] = Field({})
    impossible: Literal["refuse", "skip"] = "refuse"
    data: Annotated[DataConfig | None, of_kind("data"), OPEN] = None
    teacher: str | None = None
    settings: dict[str, Any] = Field({})
    tokenizer_settings: dict[str, Any] = Field({})
    budget: Budget | None = None
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)
    tokenizer_seeds: bool = False
    evaluation: EvaluationConfig = EvaluationConfig()
    curve: Curve = Curve()
    sampling_grid: SamplingGrid = SamplingGrid()
    timing: TimingConfig = TimingConfig()
    robustness: Robustness | None = None
    beside: str | None = None
    launch: str = ""
    workers: int | None = Field(None, ge=1)
    executor: Literal["local", "slurm"] = "local"
    slurm: dict[str, Any] = Field({})

    @model_validator(mode="before")
    @classmethod
    def _fill_grid(cls, section: object) -> object:
        """Apply a grid's defaults, and turn its nested keys into dotted ones, so that `grid.tokenizer.downsample=[2,4]`
        on a command line replaces an axis. Before 0.2 `grid` was the sampling grid."""
        if not isinstance(section, Mapping) or not isinstance(section.get("grid"), Mapping) or not section["grid"]:
            return section
        if "contestants" in section and "sampling_grid" not in section:
            say_renamed("grid", "sampling_grid")
            return {("sampling_grid" if key == "grid" else key): value for key, value in section.items()}
        if section.get("entries"):
            raise ValueError("give either 'entries' or a 'grid'; sampling settings to compare are a 'sampling_grid'")

        def flatten(nested: Mapping[Any, Any], place: str) -> Iterator[tuple[str, Any]]:
            for key, value in nested.items():
                if isinstance(value, Mapping):
                    yield from flatten(value, f"{place}{key}.")
                else:
                    yield f"{place}{key}", value

        return GRID_DEFAULTS | dict(section) | {"grid": dict(flatten(section["grid"], ""))}

    @model_validator(mode="after")
    def _check_consistency(self) -> Study:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} must be different")
        if self.slurm and self.executor != "slurm":
            raise ValueError("'slurm' settings are for 'executor: slurm'")
        if not self.grid and not self.entries:
            raise ValueError("name the 'entries' to compare, or the axes of a 'grid' over a tokenizer")
        self._check_grid() if self.grid else self._check_entries()
        return self

    def _check_entries(self) -> None:
        if self.tokenizer or self.generator:
            raise ValueError("'tokenizer' and 'generator' are for a 'grid'; entries name their own")
        if unknown := set(self.budget.speeds if self.budget else ()) - set(self.entries):
            raise ValueError(f"budget.speeds names {sorted(unknown)[0]!r}, which is no entry")
        seen: dict[str, str] = {}
        for name, entry in self.entries.items():
            other = seen.setdefault(repr(entry), name)
            if other != name:
                raise ValueError(f"the entries {other} and {name} are the same")
            many = len(entry.run)
            if many > 1 and many != len(self.seeds):
                raise ValueError(f"{name} names {many} runs for {len(self.seeds)} seeds; give one, or one per seed")

    def _check_grid(self) -> None:
        if self.tokenizer is None:
            raise ValueError("a 'grid' needs the 'tokenizer' config that it varies")
        if self.generator is None and (self.budget is not None or self.settings):
            raise ValueError("'budget' and 'settings' are for a 'generator' config, and there is none")
        for name, values in self.grid.items():
            if not values:
                raise ValueError(f"the axis '{name}' of the grid has no entries")
            if is_free(name) and not all(isinstance(value, Mapping) for value in values):
                raise ValueError(
                    f"the axis '{name}' is no setting of a tokenizer's config (they begin with {', '.join(SECTIONS)}), "
                    "so each of its entries must be a section of settings"
                )
        count = math.prod(map(len, self.grid.values()))
        if count > MOST_POINTS:
            raise ValueError(f"the grid has {count:,} points, more than {MOST_POINTS:,}; take out entries or axes")


def is_free(axis: str) -> bool:
    """Whether an axis is not a key of the tokenizer's config."""
    return axis.split(".")[0] not in SECTIONS


def load_study(name: str, overrides: list[str]) -> Study:
    """Load the study of a YAML file or shipped name such as "digits-quick", with key.sub=value overrides."""
    inside = any((root / ROOM / f"{name}.yaml").exists() for root in SHIPPED)
    name = f"{ROOM}/{name}" if inside else name
    if "training" in read_yaml(locate(name)):
        raise ConfigError(f"{name} has 'training', which 'artok compare' does not take: try 'artok train {name}'")
    return load(Study, name, overrides)


def refuse_two(folder: Path) -> None:
    """Raise the RunError for a study that another process runs."""
    raise RunError(f"another 'artok compare' is at work in {folder}; let it end, or stop it first")


def require_extractor(evaluation: EvaluationConfig) -> None:
    """Raise an ArtokError when a published extractor is not available, before anything is trained."""
    config = parse(evaluation.extractor)
    if not config.trained:
        config.build(None, "cpu", None)


def require_trained(study: Study) -> None:
    """Raise a ConfigError when a budget is set but nothing is trained."""
    if study.budget and not study.generator and not any(entry.generator for entry in study.entries.values()):
        raise ConfigError(
            f"the study has a budget of {study.budget.kind}, but only finished runs, which cannot be changed; "
            "leave the budget out, or name configs to train"
        )
