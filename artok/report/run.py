"""The page of trained runs: pictures, table of metrics, findings, learning curves, and how to make them again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from artok import __version__
from artok.errors import ArtokError, RunError
from artok.evaluation.run_directory import Run, open_runs
from artok.metrics.quantity import number
from artok.report import images as gallery
from artok.report.clips import clips_part
from artok.report.data_uris import Picture
from artok.report.images import GeneratorGallery, Near, Real, RealImages, TokenizerGallery
from artok.report.plots.learning_curves import learning_curves
from artok.report.plots.style import write_png
from artok.report.provenance import commands, config_text, machine
from artok.report.tables import Figures, figures
from artok.report.text import alarm, findings, joined, notes
from artok.saved import write_aside
from artok.training.log import duration

TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class TokenizerPart:
    run: Run
    shown: TokenizerGallery


@dataclass(frozen=True)
class GeneratorPart:
    """real: the held-out images that it is compared with."""

    run: Run
    shown: GeneratorGallery
    real: Real


@dataclass(frozen=True)
class RealPart:
    """The generators of one data set, beside held-out images. rows: held-out images by class. near: some of them with
    their nearest training image."""

    real: Real
    rows: list[tuple[str, Picture]]
    near: list[Near]
    generators: list[GeneratorPart]


@dataclass(frozen=True)
class Source:
    """How to train and measure a run again. cost: of its training."""

    run: Run
    cost: str
    commands: list[str]
    config: str


def write_report(
    path: Path,
    folders: Sequence[Path],
    title: str = "",
    intro: str = "",
    device: str = "cpu",
    plots: Path | None = None,
) -> Path:
    """Write a page on trained and evaluated run directories to `path`, and return it.

    title, intro: by default the names of the runs and how they were measured. plots: folder for the page's plots as
    PNG. Generators show the same labels with the same seed.

    Raises ArtokError when there is no run or results cannot stand side by side; CheckpointError when a run is missing,
    unfinished or not evaluated; DataError when its images cannot be read; RunError when the page cannot be written.
    """
    runs = open_runs(folders)
    if not runs:
        raise ArtokError("a report needs at least one run")
    tables = tables_of(runs)  # results that cannot be compared end here, before pictures are made
    known = RealImages()
    tokenizers, generators = split(runs)
    side = gallery.SIDE if len(generators) < 2 else gallery.NARROW
    curves = [
        picture for part in (tokenizers, generators) for picture in learning_curves([(r.name, r.log) for r in part])
    ]
    parts = [tokenizer_part(run, known, device) for run in tokenizers]
    page = template(TEMPLATE).render(
        title=title or joined([run.name for run in runs]),
        intro=intro or introduction(runs),
        tokenizers=parts,
        clips=clips_part([(run.name, run, run.results) for run in generators], generators[0].data, device)
        if generators
        else None,
        groups=real_parts([generator_part(run, known, side, device) for run in generators], side),
        tables=tables,
        findings=[(run.name, findings(run)) for run in runs],
        notes=notes(runs),
        curves=curves,
        sources=[Source(run, cost(run), commands(run), config_text(run)) for run in runs],
        facts=facts(runs),
        seed=gallery.SEED,
        alarms={run.name: text for run in runs if (text := alarm(run))},
    )
    write_aside(path, lambda aside: aside.write_text(page, encoding="utf-8"))
    if plots is not None:
        write_pngs([*curves, *(part.shown.codes for part in parts if part.shown.codes)], plots)
    return path


def split(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Tokenizers and generators."""
    tokenizers = [run for run in runs if run.saved.generator is None]
    return tokenizers, [run for run in runs if run.saved.generator is not None]


def tables_of(runs: Sequence[Run]) -> list[tuple[str, Figures]]:
    """A table for the tokenizers and one for the generators: their distances are between different sets."""
    tokenizers, generators = split(runs)
    tables = []
    if tokenizers:
        tables.append(("Tokenizers", figures([run.results for run in tokenizers])))
    if generators:
        same = len({run.saved.facts.tokenizer for run in generators}) == 1
        tables.append(("Generators", figures([run.results for run in generators], same_tokens=same)))
    return tables


def introduction(runs: Sequence[Run]) -> str:
    """How many models, on which images, measured with which features."""
    counts = [
        f"{len(part)} {name}{'s' * (len(part) > 1)}"
        for name, part in zip(("tokenizer", "generator"), split(runs), strict=True)
        if part
    ]
    entries = [entry for run in runs for entry in run.results.measurements]
    n = max((entry.n for entry in entries), default=0)
    extractors = sorted({str(entry.extractor) for entry in entries if entry.extractor})
    features = f" with {joined(extractors)} features" if extractors else ""
    return f"{joined(counts).capitalize()}, measured on {n:,} images{features}."


def write_pngs(pictures: Sequence[Picture], folder: Path) -> None:
    """Plots as PNG, named by what they show. RunError: the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures, 1):
            name = re.sub(r"[^a-z0-9]+", "-", picture.alt.partition(":")[0].lower()).strip("-")
            write_png(picture, folder / f"{number:02d}-{name}.png")
    except OSError as error:
        raise RunError(f"could not write to {folder}: {error.strerror or error}") from None


def template(name: str) -> Template:
    """The template of a page."""
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
    return TokenizerPart(run, gallery.show_tokenizer(run, known.of(run.data), device))


def generator_part(run: Run, known: RealImages, side: int, device: str) -> GeneratorPart:
    real = known.of(run.data)
    return GeneratorPart(run, gallery.show_generator(run, real, side, device), real)


def real_parts(parts: Sequence[GeneratorPart], side: int) -> list[RealPart]:
    """Groups the generators by data set, each beside the same held-out images."""
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
    """What training took, in words."""
    spent = run.spent
    if spent is None:
        return "unknown: trained elsewhere, without a log"
    many = f", {spent.processes} processes" if spent.processes > 1 else ""
    cores = f", {spent.core_seconds:,.0f} core-seconds" if spent.core_seconds and spent.device == "cpu" else ""
    return f"{spent.images:,} images in {duration(spent.seconds)} of wall time on {spent.device}{many}{cores}"


def facts(runs: Sequence[Run]) -> dict[str, str]:
    """What all figures of the page share, term to text."""
    entries = [entry for run in runs for entry in run.results.measurements]
    features = {
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
        "features": "; ".join(sorted(features)) or "none",
        "seeds": ", ".join(sorted(seeds)),
        "machine": machine(),
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
