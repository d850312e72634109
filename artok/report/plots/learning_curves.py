"""Learning curves: every logged quantity against images seen, a colour per model, a line style per kind of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from artok.report.data_uris import Picture
from artok.report.plots.lines import Line, line_plot

Log = Sequence[Mapping[str, object]]
Points = list[tuple[int, float]]

TITLES = {  # quantity: title and unit; a quantity that is not here goes by its own name
    "nll": ("Negative log-likelihood", "nats per token"),
    "loss": ("Training loss", "loss"),
    "psnr": ("Reconstruction, held out", "PSNR, dB"),
    "l1": ("Absolute error", "mean, pixels in [-1, 1]"),
    "l2": ("Squared error", "mean, pixels in [-1, 1]"),
    "coverage": ("Coverage of held-out images", "coverage"),
    "recall": ("Recall of held-out images", "recall"),
    "perplexity": ("Codebook perplexity", "perplexity"),
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
BATCHES, HELD_OUT, PLAIN, SAMPLES = "training batches", "held-out images", "training images, not augmented", "samples"
STYLES = {BATCHES: ("-", ""), HELD_OUT: ("--", "o"), PLAIN: (":", "s"), SAMPLES: ("-.", "D")}


def learning_curves(logs: Sequence[tuple[str, Log]]) -> list[Picture]:
    """A plot per quantity in the logs, each a name and its events.

    Logs of one name, such as the seeds of one model, share a colour. An empty log draws nothing and keeps its colour.
    """
    panels: dict[str, list[Line]] = {}
    names = list(dict.fromkeys(name for name, _ in logs))
    for name, log in logs:
        for (quantity, source), points in read_series(log).items():
            images, values = zip(*points, strict=True)
            line = Line(name, images, values, colour=names.index(name), style=source)
            panels.setdefault(quantity, []).append(line)
    pictures = []
    for quantity, lines in panels.items():
        plain = quantity.replace("_", " ")
        title, unit = TITLES.get(quantity, (plain.capitalize(), plain))
        pictures.append(line_plot(title, "images seen", unit, lines, styles=STYLES, log="y"))
    return pictures


def read_series(log: Log) -> dict[tuple[str, str], Points]:
    """The values against images seen, by (quantity, kind of images).

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
            parts = [key for key in numbers if not key.endswith(("_loss", "_gradient_norm")) and _is_shown(key)]
            totals = [key for key in numbers if key.endswith("_loss") and not parts]
            named = [(key, BATCHES, key) for key in parts + totals]
            if "loss" in validated and "model_loss" in numbers:
                named.append(("loss", BATCHES, "model_loss"))
        elif event["event"] == "validation":
            named = [(*_split_source(key), key) for key in numbers if _is_shown(key)]
        elif event["event"] == "monitor":
            named = [(key, SAMPLES, key) for key in MONITORED if key in numbers]
        else:
            continue
        for quantity, source, key in named:
            found.setdefault((quantity, source), []).append((images, float(numbers[key])))
    return found


def _is_shown(key: str) -> bool:
    return key not in BOOKKEEPING and not {"/", ","} & set(key)  # "/" and ",": one level or scale of many


def _split_source(key: str) -> tuple[str, str]:
    for suffix, source in (("_held_out", HELD_OUT), ("_train", PLAIN)):
        if key.endswith(suffix):
            return key.removesuffix(suffix), source
    return key, HELD_OUT
