"""The README's picture, from a finished demo: samples of all families beside quality against time per image.

python tools/readme_picture.py [--demo runs/demo] [--out docs/images/demo.png]
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from artok.config import read_yaml, validate
from artok.data.loader import evaluation_batches
from artok.pipeline import Pipeline
from artok.training.encode import DataOnly

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FAMILIES = {
    "raster": "raster",
    "var": "VAR",
    "mar": "MAR",
    "maskgit": "MaskGIT",
    "dit": "DiT",
    "gan": "GAN",
}
PER_CLASS = 2


def one_of_each(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The first images of every class, (PER_CLASS * classes, C, H, W), class after class."""
    return torch.cat([images[labels == label][:PER_CLASS] for label in range(classes)])


@torch.no_grad()
def strips(demo: Path) -> dict[str, Tensor]:
    """Rows of the picture: real images, reconstructions, a sample while it is made, samples of each family."""
    raster = Pipeline.from_pretrained(demo / "trained" / "raster" / "seed0")
    config = read_yaml(demo / "trained" / "raster" / "seed0" / "config.yaml")
    data = validate(DataOnly, {"data": config["data"]}, "the demo").data
    batch = next(evaluation_batches(data.open("test"), data, 540))
    classes = len(raster.classes)
    real = one_of_each(batch.images, batch.labels, classes)
    decoded = raster.tokenizer.decode(raster.tokenizer.encode(real)).clamp(-1, 1)
    steps = list(raster.steps(raster.condition([5]), raster.sampling))
    places = torch.linspace(0, len(steps) - 1, len(real)).round().int().tolist()
    found = {
        "real images": real,
        f"VQ, {raster.tokenizer.layout.length} tokens": decoded,
        "token by token": torch.cat([raster.decode(steps[place]) for place in places]),
    }
    for name, label in FAMILIES.items():
        pipeline = Pipeline.from_pretrained(demo / "trained" / name / "seed0")
        found[label] = pipeline(list(range(classes)), n=PER_CLASS, seed=0)
    return found


def figures(demo: Path) -> dict[str, tuple[float, float]]:
    """Milliseconds to one image and Fréchet distance of each family."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    with (demo / "results.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            measured = {"fd": row["point"] == "final", "latency_s": row["point"].startswith("round=")}
            if row["entry"] in FAMILIES and measured.get(row["metric"]):
                values[row["entry"], row["metric"]].append(float(row["value"]))
    return {
        name: (1000 * float(np.mean(values[name, "latency_s"])), float(np.mean(values[name, "fd"])))
        for name in FAMILIES
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/demo.png"))
    arguments = parser.parse_args()
    rows, points = strips(arguments.demo), figures(arguments.demo)
    figure = plt.figure(figsize=(12.4, 4.9), dpi=100, facecolor="white")
    sides = figure.add_gridspec(
        1, 2, width_ratios=(2.05, 1), left=0.1, right=0.985, top=0.965, bottom=0.115, wspace=0.14
    )
    left = sides[0].subgridspec(len(rows), 1, hspace=0.12)
    for place, (label, images) in enumerate(rows.items()):
        axes = figure.add_subplot(left[place])
        strip = torch.cat(list(torch.nn.functional.pad(images, (1, 1), value=1.0)), dim=-1)[0]
        axes.imshow(strip, cmap="gray", vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
        axes.spines[:].set_visible(False)
    axes = figure.add_subplot(sides[1])
    for name, (milliseconds, distance) in points.items():
        axes.plot(milliseconds, distance, "o", markersize=8)
        offset = {"dit": (7, -13), "var": (-30, 5)}.get(name, (7, 5))  # so that no name lies on another
        axes.annotate(FAMILIES[name], (milliseconds, distance), xytext=offset, textcoords="offset points", fontsize=10)
    axes.set_xscale("log")
    axes.set_xlim(min(x for x, _ in points.values()) / 1.6, max(x for x, _ in points.values()) * 2.6)
    axes.set_ylim(0, None)
    axes.set_xlabel("milliseconds to one image, 2 CPU cores")
    axes.set_ylabel("FD[classifier], lower is better")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
