"""What is kept of an evaluation (results.json), its table, and tables of several side by side.

A value means little without its N, its extractor and its floor, so they travel together, and values that differ in the
first two are refused in one table: a Fréchet distance falls with N and changes with the features.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from artok.errors import ArtokError, CheckpointError, RunError
from artok.metrics.catalogue import describe, head, title

FORMAT = 2  # of results.json


@dataclass(frozen=True)
class Measurement:
    """One value and what it was computed from.

    name: identifier, as `compute` gave it. n: images measured, the model's where it compares them with real ones.
    seed: of the samples and subsets. extractor, fingerprint, dim: of the features, where it looked through any.
    reference: what the real images are; reference_n: their number, for distances between sets. floor: the same value
    for real images. k: the neighbour that the value depends on, if any.
    """

    name: str
    value: float
    n: int
    seed: int
    extractor: str | None = None
    fingerprint: str | None = None
    dim: int | None = None
    reference: str = "held-out"
    reference_n: int | None = None
    floor: float | None = None
    k: int | None = None

    @property
    def title(self) -> str:
        """What people read for its name: `FD[classifier]`."""
        return title(self.name, self.extractor, self.k)

    @property
    def head(self) -> str:
        """The same with the unit."""
        return head(self.name, self.extractor, self.k)

    @property
    def text(self) -> str:
        """The value as people read it."""
        return describe(self.name).format(self.value)

    @property
    def floor_text(self) -> str:
        """The floor as people read it; empty where there is none."""
        return "" if self.floor is None else describe(self.name).format(self.floor)

    @property
    def note(self) -> str:
        """What a reader should know before trusting the value, or an empty text."""
        least = min(self.n, self.reference_n or self.n)
        if self.dim is not None and self.name.partition("/")[0] == "fd" and least <= self.dim:
            return (
                f"only {least} images for {self.dim} dimensions: covariances are singular, compare with the floor only"
            )
        return ""


@dataclass(frozen=True)
class Results:
    """name: of what was evaluated. measurements: in the order to print. cost: identifier to value.
    sampling: the settings that samples were made with, none for reconstructions. weights: digest of what was measured
    (`artok.saved.digest_weights`), empty where it is not known. images_seen, images_wanted: in training, by those
    weights and by the end of it, where there is a record. notes: sentences that a reader should know. series:
    identifier to the values of each frame of clips.
    """

    name: str
    measurements: tuple[Measurement, ...]
    cost: Mapping[str, float] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    images_seen: int | None = None
    images_wanted: int | None = None
    notes: tuple[str, ...] = ()
    series: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)

    @property
    def finished(self) -> bool | None:
        """Whether training had ended; None where that is not known."""
        if self.images_seen is None or self.images_wanted is None:
            return None
        return self.images_seen >= self.images_wanted

    def describe_stale(self, folder: Path, weights: str) -> str | None:
        """Why these are not the results of a run whose weights have this digest, in a sentence; None when they are."""
        if self.weights == weights:
            return None
        of = "of other weights than it has now" if self.weights else "of an older artok, which noted no weights"
        return f"the results of {folder} are {of}; measure it again with 'artok evaluate {folder}'"

    def __getitem__(self, name: str) -> Measurement:
        """The measurement of that name; a KeyError when it was not made."""
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        return found

    def find(self, name: str) -> Measurement | None:
        """The measurement of that name, or None when it was not made."""
        return next((entry for entry in self.measurements if entry.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "format": FORMAT,
            "name": self.name,
            "metrics": [asdict(measurement) for measurement in self.measurements],
            "cost": dict(self.cost),
            "sampling": dict(self.sampling),
            "weights": self.weights,
            "images_seen": self.images_seen,
            "images_wanted": self.images_wanted,
            "notes": list(self.notes),
            "series": {name: list(values) for name, values in self.series.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Results:
        """The inverse of `to_dict`; raises KeyError or ValueError when keys are missing or values of a wrong type."""
        return _CHECKED.validate_python({**data, "measurements": data["metrics"]})

    def save(self, path: Path) -> None:
        """Writes results.json aside and renames it; a RunError when the disk refuses."""
        aside = path.with_name(path.name + ".part")
        try:
            aside.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
            os.replace(aside, path)
        except OSError as error:
            raise RunError(f"{path} could not be written: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> Results:
        """Reads results.json; a CheckpointError when it is missing, damaged or of another format."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise CheckpointError(
                    f"{path} has results of format {data['format']}, and this artok reads format {FORMAT}: "
                    "measure the run again with 'artok evaluate'"
                )
            return cls.from_dict(data)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} holds no results of artok: {error!r}") from None


_CHECKED = TypeAdapter(Results)


# ---------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Table:
    """Texts to print. rows: as long as the header. names: the identifier of each row. notes: below the table."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Plain text, the first column to the left, the others to the right."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        texts = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([texts[0], "-" * (sum(widths) + 2 * len(widths) - 2), *texts[1:], *self.notes])


def side_by_side(results: Sequence[Results]) -> Table:
    """A row for each metric with N and floor, a column for each of the results.

    An ArtokError when they were measured with different extractors, or one metric with a different N or reference.
    """
    if not results:
        raise ArtokError("there are no results to compare")
    _refuse_extractors(results)
    first: dict[str, tuple[str, Measurement]] = {}
    floors: dict[str, float] = {}
    for result in results:
        for measurement in result.measurements:
            owner, known = first.setdefault(measurement.name, (result.name, measurement))
            _refuse_numbers(owner, known, result.name, measurement)
            if measurement.floor is not None:
                floors.setdefault(measurement.name, measurement.floor)
    rows = []
    for name, (_, known) in first.items():
        quantity, found = describe(name), [result.find(name) for result in results]
        cells = [quantity.format(entry.value) if entry is not None else "" for entry in found]
        size = str(known.n) if known.reference_n is None else f"{known.n} / {known.reference_n}"
        floor = quantity.format(floors[name]) if name in floors else ""
        rows.append((known.head, *cells, floor, size))
    costs = list(dict.fromkeys(name for result in results for name in result.cost))
    rows += [
        (
            head(name),
            *(describe(name).format(result.cost[name]) if name in result.cost else "" for result in results),
            "",
            "",
        )
        for name in costs
    ]
    notes = [f"{known.title}: {known.note}" for _, known in first.values() if known.note]
    notes += [f"{result.name}: {note}" for result in results for note in result.notes]
    return Table(
        ("metric", *(result.name for result in results), "floor", "N"),
        tuple(rows),
        (*first, *costs),
        tuple(dict.fromkeys(notes)),
    )


def _refuse_extractors(results: Sequence[Results]) -> None:
    owner: tuple[str, dict[str, str | None]] | None = None
    for result in results:
        used = {entry.extractor: entry.fingerprint for entry in result.measurements if entry.extractor is not None}
        if not used:
            continue
        if owner is None:
            owner = (result.name, used)
        elif owner[1] != used:
            sides = [", ".join(f"{key} {value}" for key, value in sorted(side.items())) for side in (owner[1], used)]
            raise ArtokError(
                f"{owner[0]} and {result.name} cannot stand side by side: their features come from different "
                f"extractors ({sides[0]} against {sides[1]}); evaluate both with one"
            )


def _refuse_numbers(owner: str, known: Measurement, name: str, other: Measurement) -> None:
    one = (known.n, known.reference, known.reference_n)
    two = (other.n, other.reference, other.reference_n)
    if known.k != other.k:
        raise ArtokError(
            f"{owner} and {name} cannot stand side by side: {known.title} and {other.title} depend on different "
            "neighbours; evaluate both with the same k"
        )
    if one != two:
        sides = [f"{n} images" + (f" against {m} {real}" if m else f", {real}") for n, real, m in (one, two)]
        raise ArtokError(
            f"{owner} and {name} cannot stand side by side: {known.title} was measured on {sides[0]} and {sides[1]}; "
            "evaluate both with the same number"
        )
