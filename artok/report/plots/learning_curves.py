"""Plots for a page, as SVG that follows its reader's light or dark colours: learning curves and codebook use."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from artok.evaluation.run_directory import Run
from artok.report.data_uris import Picture, svg, thin

# Okabe and Ito 2008, told apart by colour-blind readers; without black and yellow, which vanish on black or white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#888888")
INK = "#010203"  # stands for the page's own text colour in what matplotlib draws
STYLE = "<style>svg{color:#333}@media (prefers-color-scheme:dark){svg{color:#ddd}}</style>"
MOST = 128  # codes drawn of a larger codebook, evenly spread: a plot is no wider, and a page stays small
WIDTH, HEIGHT, ROW = 3.6, 2.5, 0.18  # inches: of a plot, and of a line of its legend
LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "artok",
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}

TITLES = {  # quantity: title and unit; a quantity that is not here goes by its own name
    "nll": ("Negative log-likelihood", "nats a token"),
    "loss": ("Training loss", "loss"),
    "psnr": ("Reconstruction, held out", "PSNR, dB"),
    "l1": ("Absolute error", "mean, pixels in [-1, 1]"),
    "l2": ("Squared error", "mean, pixels in [-1, 1]"),
    "coverage": ("Real images covered by samples", "coverage"),
    "recall": ("Real images within reach of samples", "recall"),
    "perplexity": ("Codes in effective use", "perplexity"),
}
# Not shown: settings, and what perplexity says already.
BOOKKEEPING = (
    "lr",
    "skipped",
    "images_per_second",
    "core_seconds",
    "usage",
    "codebook_usage",
    "dead_codes",
    "codes_used",
    "code_entropy_bits",
    "code_entropy_by_position_bits",
)
MONITORED = ("coverage", "recall")  # of what a monitor logs: the others hardly move as long as all is well
BATCHES, HELD_OUT, PLAIN, SAMPLES = "training batches", "held-out images", "training images, unchanged", "samples"
LINES: dict[str, Any] = {BATCHES: "-", HELD_OUT: "--", PLAIN: ":", SAMPLES: "-."}
MARKS = {BATCHES: "", HELD_OUT: "o", PLAIN: "s", SAMPLES: "D"}

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """run: its number, which is its colour. source: the images that the values are means over."""

    run: int
    name: str
    source: str
    points: Points


def learning_curves(runs: Sequence[Run], numbers: Sequence[int] | None = None) -> list[Picture]:
    """A plot for each quantity in the logs, against images seen, with a line a run and source of images.

    numbers: of each run's colour, which the seeds of one contestant share; all differ unless given.
    """
    panels: dict[str, list[Curve]] = {}
    for number, run in zip(numbers or range(len(runs)), runs, strict=True):
        for (quantity, source), points in series(run.log).items():
            panels.setdefault(quantity, []).append(Curve(number, run.name, source, points))
    return [_panel(quantity, curves) for quantity, curves in panels.items()]


def series(log: Sequence[Mapping[str, object]]) -> dict[tuple[str, str], Points]:
    """Of each (quantity, source of images) its values against images seen.

    The sum of a player's losses is shown only where the parts are not, or where validation measures that sum.
    """
    validated = {key.removesuffix("_held_out") for event in log if event["event"] == "validation" for key in event}
    found: dict[tuple[str, str], Points] = {}
    for event in log:
        numbers = {
            key: value for key, value in event.items() if isinstance(value, int | float) and math.isfinite(value)
        }
        images = int(numbers.pop("images"))
        numbers.pop("time", None)
        if event["event"] == "train":
            parts = [key for key in numbers if not key.endswith(("_loss", "_gradient_norm")) and _shown(key)]
            totals = [key for key in numbers if key.endswith("_loss") and not parts]
            named = [(key, BATCHES, key) for key in parts + totals]
            if "loss" in validated and "model_loss" in numbers:
                named.append(("loss", BATCHES, "model_loss"))
        elif event["event"] == "validation":
            named = [(*_validated(key), key) for key in numbers if _shown(key)]
        elif event["event"] == "monitor":
            named = [(key, SAMPLES, key) for key in MONITORED if key in numbers]
        else:
            continue
        for quantity, source, key in named:
            found.setdefault((quantity, source), []).append((images, float(numbers[key])))
    return found


def _shown(key: str) -> bool:
    return key not in BOOKKEEPING and not {"/", ","} & set(key)  # "/" and ",": one level or scale of many


def _validated(key: str) -> tuple[str, str]:
    for suffix, source in (("_held_out", HELD_OUT), ("_train", PLAIN)):
        if key.endswith(suffix):
            return key.removesuffix(suffix), source
    return key, HELD_OUT


def _panel(quantity: str, curves: Sequence[Curve]) -> Picture:
    title, unit = TITLES.get(quantity, (quantity.replace("_", " ").capitalize(), quantity.replace("_", " ")))
    with matplotlib.rc_context(LOOK):
        handles = _legend(curves)
        figure, axes = new_axes(title, unit, len(handles))
        for curve in curves:
            images, values = zip(*curve.points, strict=True)
            mark = MARKS[curve.source] or ("." if len(images) < 3 else "")
            axes.plot(images, values, LINES[curve.source], marker=mark, color=_colour(curve))
        every = [value for curve in curves for _, value in curve.points]
        if all(curve.source == SAMPLES for curve in curves):
            axes.set_ylim(0, 1.02)  # shares
        elif min(every) > 0 and max(every) > 10 * min(every):
            axes.set_yscale("log")
        axes.set_xlim(left=0)
        axes.set_xlabel("images seen")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
        figure.legend(handles=handles, loc="outside lower left")
        ends = "; ".join(f"{curve.name} on {curve.source} ends at {curve.points[-1][1]:.4g}" for curve in curves)
        return drawn(figure, f"{title} ({unit}) against images seen: {ends}")


def _legend(curves: Sequence[Curve]) -> list[Line2D]:
    """A line for each curve; for many, a line for each run and one for each source of images."""
    different = {(curve.name, curve.source): curve for curve in curves}
    if len(different) <= 3:
        return [_sample(", ".join(key), _colour(curve), curve.source) for key, curve in different.items()]
    runs = {curve.name: _colour(curve) for curve in curves}
    sources = list(dict.fromkeys(curve.source for curve in curves))
    only = sources[0] if len(sources) == 1 else BATCHES
    by_run = [_sample(name, colour, only) for name, colour in runs.items()]
    return by_run + [_sample(source, INK, source) for source in sources]


def _sample(label: str, colour: str, source: str) -> Line2D:
    return Line2D([], [], color=colour, linestyle=LINES[source], marker=MARKS[source], label=literal(label))


def _colour(curve: Curve) -> str:
    return COLOURS[curve.run % len(COLOURS)]


def codebook_plot(counts: Tensor, images: int, name: str) -> Picture:
    """How often each code is used, the most frequent first. counts: (V,) int64 over so many images."""
    shares = (counts.sort(descending=True).values.double() / counts.sum()).tolist()
    used = sum(share > 0 for share in shares)
    with matplotlib.rc_context(LOOK):
        figure, axes = new_axes("Use of the codebook", "share of all tokens", 2)
        places = thin(len(shares), MOST)
        heights = [shares[place] for place in places]
        axes.fill_between(places, heights, step="mid", color=COLOURS[0], alpha=0.35, linewidth=0)
        axes.step(places, heights, where="mid", color=COLOURS[0], label=f"codes in {images:,} held-out images")
        axes.axhline(1 / len(shares), color=INK, linestyle=":", linewidth=1, label="all codes alike")
        axes.set_xlim(0, len(shares) - 1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("code, the most frequent first")
        figure.legend(loc="outside lower left")
        text = f"Use of the codebook of {name}: {used} of {len(shares)} codes in {images:,} held-out images"
        return drawn(figure, f"{text}; the most frequent has {shares[0]:.2%} of the tokens")


def new_axes(title: str, unit: str, entries: int) -> tuple[Figure, Axes]:
    """A figure with room for so many lines of a legend below its axes. Not through pyplot: nothing global is left."""
    figure = Figure(figsize=(WIDTH, HEIGHT + ROW * entries), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left")
    axes.set_ylabel(unit)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    return figure, axes


def drawn(figure: Figure, alt: str) -> Picture:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue().replace(INK, "currentColor").replace("<defs>", f"{STYLE}<defs>", 1)
    return svg(text, alt, round(figure.get_figwidth() * 96), round(figure.get_figheight() * 96))


def literal(text: str) -> str:
    """A name as it stands: matplotlib would read $ as mathematics, and hide a label that starts with _."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def thousands(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
