"""Trade-offs over a grid of settings: values of every point, Pareto fronts and dominated settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from artok.evaluation.code_usage import perturbed_name
from artok.evaluation.statistics import Value
from artok.metrics.catalogue import describe, head, title
from artok.metrics.quantity import Quantity
from artok.studies.pareto import Dominated, Objective, dominated, front
from artok.studies.results import EntryResults, Outcome, Side

TIMED = ("latency_s", "throughput_images_per_s", "train_core_seconds")


@dataclass(frozen=True)
class Column:
    """A metric or cost of every point's tokenizer or generator."""

    side: Side
    metric: str
    extractor: str

    @property
    def quantity(self) -> Quantity:
        return describe(self.metric)

    @property
    def better(self) -> str:
        """The direction; none for likelihoods, which cannot be compared between different tokens."""
        return "" if self.quantity.group == "Likelihood" else self.quantity.better

    @property
    def title(self) -> str:
        return f"{self._prefix}{title(self.metric, self.extractor)}"

    @property
    def head(self) -> str:
        """The title with the unit."""
        return f"{self._prefix}{head(self.metric, self.extractor)}"

    @property
    def _prefix(self) -> str:
        return (
            "r" if self.side == "tokenizer" and self.quantity.names_extractor else ""
        )  # r as in rFID, of reconstructions

    def of(self, one: EntryResults) -> Value | None:
        return one.value(self.metric, self.side)


@dataclass(frozen=True)
class Front:
    """quality against cost. names: of the points that no other point dominates."""

    quality: Column
    cost: Column
    names: tuple[str, ...]


@dataclass(frozen=True)
class Tradeoffs:
    """columns: those that any point has. dominated: points that another dominates in `objectives`."""

    columns: tuple[Column, ...]
    fronts: tuple[Front, ...]
    objectives: tuple[Column, ...]
    dominated: tuple[Dominated, ...]


def find_tradeoffs(outcome: Outcome) -> Tradeoffs:
    study = outcome.plan.study
    extractor = study.evaluation.extractor.split("@")[0]
    shares = study.robustness.shares if study.robustness else ()

    def columns(side: Side, *metrics: str) -> list[Column]:
        every = [Column(side, metric, extractor) for metric in metrics]
        return [column for column in every if any(column.of(one) is not None for one in outcome.entries)]

    lost, made = columns("tokenizer", "fd"), columns("generator", "fd")
    sizes = columns("tokenizer", "tokens_per_image", "bits_per_image")
    costs = [
        *((q, c) for q in [*lost, *made] for c in sizes),
        *((q, c) for q in made for c in columns("generator", "latency_s")),
    ]
    # Latency is no objective: it follows from the tokens, and its noise would change the result between runs.
    objectives = (*lost, *columns("tokenizer", "psnr_db"), *made, *sizes)
    return Tradeoffs(
        columns=(
            *sizes,
            *columns("tokenizer", "bits_per_pixel", "fd", *map(perturbed_name, shares), "psnr_db", "ssim"),
            *columns("tokenizer", "codebook_usage", "perplexity", "code_entropy_by_position_bits", "parameters"),
            *columns("tokenizer", "train_core_seconds"),
            *columns("generator", "fd", "bits_per_dim", "recall", "class_consistency", "images_trained", "train_flops"),
            *columns("generator", "parameters", "network_passes", "flops_per_image", "latency_s"),
            *columns("generator", "throughput_images_per_s", "peak_memory_bytes_per_image", "train_core_seconds"),
        ),
        fronts=tuple(Front(q, c, tuple(front(*_settings(outcome, (q, c))))) for q, c in costs),
        objectives=objectives,
        dominated=tuple(dominated(*_settings(outcome, objectives))),
    )


def _settings(outcome: Outcome, columns: Sequence[Column]) -> tuple[dict[str, dict[str, Value]], list[Objective]]:
    settings = {
        one.name: {column.title: value for column in columns if (value := column.of(one)) is not None}
        for one in outcome.entries
    }
    return settings, [Objective(each.title, "higher" if each.better == "higher" else "lower") for each in columns]


def tradeoffs_json(outcome: Outcome) -> dict[str, Any]:
    """Fronts and dominated settings as plain values; fronts of times under `times_fronts`."""
    found = find_tradeoffs(outcome)

    def fronts(timed: bool) -> dict[str, list[str]]:
        return {
            f"{each.quality.title} against {each.cost.title}": list(each.names)
            for each in found.fronts
            if (each.cost.metric in TIMED) == timed
        }

    return {
        "fronts": fronts(False) | {"times": fronts(True)},
        "objectives": [column.title for column in found.objectives],
        "dominated": [asdict(each) for each in found.dominated],
    }
