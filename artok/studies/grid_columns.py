"""What a sweep measures of each cell: the figures' names, units, meaning, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from artok.evaluation.code_usage import perturbed_name
from artok.evaluation.statistics import Value
from artok.metrics.catalogue import describe, title
from artok.metrics.quantity import Better, Quantity
from artok.metrics.results import Results

Side = Literal["tokenizer", "generator"]


@dataclass(frozen=True)
class Column:
    """name: as in results.json. source: name of the measurement or cost in the results of that side, or an empty text
    for what the sweep measures itself. quantity: what it is. label: where it is not the quantity's own. timed: depends
    on the machine and its load, so that it differs from one run of a study to the next."""

    name: str
    side: Side
    source: str
    quantity: Quantity
    label: str
    timed: bool = False

    @property
    def head(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def unit(self) -> str:
        """That people read."""
        return self.quantity.display or self.quantity.unit

    @property
    def better(self) -> Better:
        """None for likelihoods: settings have tokens of their own, and a lower rate may say less of the image."""
        return "" if self.quantity.group == "Likelihood" else self.quantity.better

    def scaled(self, value: Value) -> Value:
        """In the unit that people read."""
        return replace(value, mean=self.quantity.scale(value.mean), spread=self.quantity.scale(value.spread))

    def text(self, value: Value, digits: int = 4) -> str:
        """A value of this column as people read it."""
        return self.quantity.format(value.mean, value.spread, digits)


def _column(
    side: Side, name: str, label: str = "", source: str | None = "", key: str = "", timed: bool = False
) -> Column:
    """A column of the catalogue's quantity `name`."""
    quantity = describe(name)
    source = name if source == "" else source or ""
    return Column(key or name, side, source, quantity, label or quantity.label, timed)


TOKENS = _column("tokenizer", "tokens_per_image", "tokens")
BITS = _column("tokenizer", "bits_per_image", "bits")
BITS_PER_PIXEL = _column("tokenizer", "bits_per_pixel")
PSNR = _column("tokenizer", "psnr_db")
SSIM = _column("tokenizer", "ssim")
USAGE = _column("tokenizer", "codebook_usage")
PERPLEXITY = _column("tokenizer", "perplexity")
ENTROPY = _column("tokenizer", "code_entropy_by_position_bits")
TOKENIZER_SIZE = _column("tokenizer", "parameters", "tokenizer parameters", key="tokenizer_parameters")
TOKENIZER_TIME = _column(
    "tokenizer", "train_core_seconds", "tokenizer training", None, "tokenizer_train_core_seconds", timed=True
)
SIZE = _column("generator", "parameters", "generator parameters")
IMAGES = _column("generator", "images_trained", source=None)
FLOPS = _column("generator", "train_flops", source=None)
RATE = _column("generator", "bits_per_dim")
RECALL = _column("generator", "recall")
CONSISTENCY = _column("generator", "class_consistency")
PASSES = _column("generator", "network_passes")
WORK = _column("generator", "flops_per_image")
LATENCY = _column("generator", "latency_s", "latency", timed=True)
SPEED = _column("generator", "throughput_images_per_s", timed=True)
MEMORY = _column("generator", "peak_memory_bytes_per_image")
GENERATOR_TIME = _column("generator", "train_core_seconds", "generator training", None, timed=True)


def _distance(extractor: str) -> str:
    return title("fd", extractor.split("@")[0])


def reconstruction_distance(extractor: str) -> Column:
    return _column("tokenizer", "fd", f"r{_distance(extractor)}", key="rfd")


def perturbed_distance(extractor: str, share: float) -> Column:
    name = perturbed_name(share)
    return _column("tokenizer", name, f"r{_distance(extractor)}, {100 * share:.3g}% of codes replaced", key=f"r{name}")


def generation_distance(extractor: str) -> Column:
    return _column("generator", "fd", _distance(extractor))


def distances(extractor: str) -> tuple[Column, Column]:
    """Of reconstructions, and of samples."""
    return reconstruction_distance(extractor), generation_distance(extractor)


def columns(extractor: str, replaced: Sequence[float]) -> list[Column]:
    """All that a sweep reports, in the order of its tables."""
    return [
        TOKENS,
        BITS,
        BITS_PER_PIXEL,
        reconstruction_distance(extractor),
        *(perturbed_distance(extractor, share) for share in replaced),
        PSNR,
        SSIM,
        USAGE,
        PERPLEXITY,
        ENTROPY,
        TOKENIZER_SIZE,
        TOKENIZER_TIME,
        generation_distance(extractor),
        RATE,
        RECALL,
        CONSISTENCY,
        IMAGES,
        FLOPS,
        SIZE,
        PASSES,
        WORK,
        LATENCY,
        SPEED,
        MEMORY,
        GENERATOR_TIME,
    ]


def values_of(
    wanted: Sequence[Column], results: Mapping[Side, Results], own: Mapping[str, float]
) -> Iterator[tuple[str, float]]:
    """Name and value of every column that there is: of the results of both sides, or of the sweep's `own`."""
    for column in wanted:
        found = own.get(column.name)
        if column.source and column.side in results:
            result = results[column.side]
            entry = result.find(column.source)
            found = entry.value if entry is not None else result.cost.get(column.source)
        if found is not None:
            yield column.name, found
