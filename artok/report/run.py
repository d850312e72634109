"""One self-contained HTML page about finished runs: what they make, what they cost, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from artok import __version__
from artok.errors import ArtokError
from artok.evaluation.run_directory import Run, open_runs
from artok.metrics.quantity import number
from artok.report import images as gallery
from artok.report import text as summary
from artok.report.data_uris import Picture
from artok.report.images import GeneratorGallery, Near, Real, RealImages, TokenizerGallery
from artok.report.plots.learning_curves import learning_curves
from artok.report.provenance import commands, config_text, machine
from artok.report.tables import Figures, figures
from artok.saved import write_aside
from artok.training.log import duration

TEMPLATE = "report.html.jinja"
NO_NOTES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class TokenizerPart:
    run: Run
    shown: TokenizerGallery
    text: str


@dataclass(frozen=True)
class GeneratorPart:
    """real: the held-out images that it is compared with."""

    run: Run
    shown: GeneratorGallery
    text: str
    real: Real


@dataclass(frozen=True)
class RealPart:
    """Held-out images beside the generators of one data set: by class, and with their nearest training images."""

    real: Real
    rows: list[tuple[str, Picture]]
    near: list[Near]
    generators: list[GeneratorPart]


@dataclass(frozen=True)
class Source:
    """How a run came about."""

    run: Run
    cost: str
    commands: list[str]
    config: str


def write_report(
    path: Path,
    title: str,
    intro: str,
    tokenizers: Sequence[Path],
    generators: Sequence[Path],
    notes: Mapping[str, str] = NO_NOTES,
    device: str = "cpu",
) -> Path:
    """Write a page on finished and evaluated run directories to `path`, and return it.

    intro: one or two sentences on what was done. notes: term to text, for what only the caller knows (a budget, a
    machine). Generators show the same labels with the same seed. Raises ArtokError: no run at all, a generator among
    the tokenizers or the reverse, results that cannot stand side by side; CheckpointError: a run is missing, unfinished
    or not evaluated; DataError: its images cannot be read; RunError: the page cannot be written.
    """
    runs = open_runs([*tokenizers, *generators])
    if not runs:
        raise ArtokError("a report needs at least one run")
    first, second = runs[: len(tokenizers)], runs[len(tokenizers) :]
    for wanted, members in (("tokenizer", first), ("generator", second)):
        for run in members:
            held = "tokenizer" if run.saved.generator is None else "generator"
            if held != wanted:
                raise ArtokError(f"{run.folder} holds a {held}, but it was given as a {wanted}")
    tables = tables_of(first, second)  # before any picture: results that cannot be compared end here
    page = render(title, intro, notes, tables, first, second, device)
    write_aside(path, lambda aside: aside.write_text(page, encoding="utf-8"))
    return path


def tables_of(tokenizers: Sequence[Run], generators: Sequence[Run]) -> list[tuple[str, Figures]]:
    """A table for the tokenizers and one for the generators: their distances are between different sets."""
    tables = []
    if tokenizers:
        tables.append(("Tokenizers", figures([run.results for run in tokenizers])))
    if generators:
        same = len({run.saved.facts.tokenizer for run in generators}) == 1
        tables.append(("Generators", figures([run.results for run in generators], same_tokens=same)))
    return tables


def render(
    title: str,
    intro: str,
    notes: Mapping[str, str],
    tables: Sequence[tuple[str, Figures]],
    tokenizers: Sequence[Run],
    generators: Sequence[Run],
    device: str,
) -> str:
    """The page's HTML."""
    runs, known = [*tokenizers, *generators], RealImages()
    side = gallery.SIDE if len(generators) < 2 else gallery.NARROW
    return template(TEMPLATE).render(
        title=title,
        intro=intro,
        tokenizers=[tokenizer_part(run, known, device) for run in tokenizers],
        comparison=summary.comparison(generators),
        hedges=summary.hedges(runs),
        groups=real_parts([generator_part(run, known, side, device) for run in generators], side),
        curves=[
            *learning_curves([(run.name, run.log) for run in tokenizers]),
            *learning_curves([(run.name, run.log) for run in generators]),
        ],
        tables=tables,
        sources=[Source(run, cost(run), commands(run), config_text(run)) for run in runs],
        facts={**facts(runs), **notes},
        seed=gallery.SEED,
        alarms={run.name: text for run in runs if (text := summary.alarm(run))},
    )


def template(name: str) -> Template:
    """A page's template, from the file of that name here."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals |= {"number": number}
    return environment.get_template(name)


def tokenizer_part(run: Run, known: RealImages, device: str) -> TokenizerPart:
    shown = gallery.show_tokenizer(run, known.of(run.data), device)
    return TokenizerPart(run, shown, summary.about_tokenizer(run, shown.layout))


def generator_part(run: Run, known: RealImages, side: int, device: str) -> GeneratorPart:
    real = known.of(run.data)
    return GeneratorPart(run, gallery.show_generator(run, real, side, device), summary.about_generator(run), real)


def real_parts(parts: Sequence[GeneratorPart], side: int) -> list[RealPart]:
    """The generators by data set, each beside the same held-out images."""
    groups: dict[int, list[GeneratorPart]] = {}
    for part in parts:
        groups.setdefault(id(part.real), []).append(part)
    found = []
    for members in groups.values():
        real = members[0].real
        rows = gallery.class_rows(real, real.rows, "held-out images", side)
        found.append(RealPart(real, rows, gallery.closest(real, real.rows, "held-out image"), members))
    return found


def cost(run: Run) -> str:
    """What training took."""
    spent = run.spent
    if spent is None:
        return "trained elsewhere: there is no log"
    many = f", {spent.processes} processes" if spent.processes > 1 else ""
    cores = f", {spent.core_seconds:,.0f} core-seconds" if spent.core_seconds and spent.device == "cpu" else ""
    return f"{spent.images:,} images in {duration(spent.seconds)} of wall time on {spent.device}{many}{cores}"


def facts(runs: Sequence[Run]) -> dict[str, str]:
    """Term to text: what all figures of the page share."""
    entries = [entry for run in runs for entry in run.results.measurements]
    judges = {
        f"{entry.extractor}, fingerprint {entry.fingerprint}, {entry.dim} dimensions" for entry in entries if entry.dim
    }
    data = {
        f"{run.data.kind}, {'x'.join(map(str, run.saved.facts.image))}, fingerprint {run.saved.facts.data}"
        for run in runs
    }
    sizes = {f"{entry.n:,}" for entry in entries}
    seeds = {str(entry.seed) for entry in entries} | {str(run.config.get("seed", "unknown")) for run in runs}
    distance = next((entry for run in runs if (entry := run.results.find("fd"))), None)
    return {
        "artok": f"{__version__}; models saved by {', '.join(sorted({run.saved.facts.version for run in runs}))}",
        "data": "; ".join(sorted(data)),
        "images measured": ", ".join(sorted(sizes))
        + (f", against {distance.reference_n:,} held out" if distance else ""),
        "features": "; ".join(sorted(judges)) or "none",
        "seeds": ", ".join(sorted(seeds)),
        "machine of this page": machine(),
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
