"""The README's picture, from a finished demo.

    python tools/readme_picture.py [--demo runs/demo] [--out docs/images/demo.png]

Top: real held-out digits above their reconstructions. Middle: one digit a row while its tokens are drawn. Bottom:
samples, a column a class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from artok.config import read_yaml, validate
from artok.data.loader import evaluation_batches
from artok.images import grid
from artok.pipeline import Pipeline
from artok.training.encode import DataOnly

SCALE, GAP, MARGIN = 3, 2, 12


def one_of_each(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The first image of every class."""
    return torch.stack([images[(labels == label).nonzero()[0, 0]] for label in range(classes)])


@torch.no_grad()
def panels(run: Path) -> list[tuple[str, Image.Image]]:
    """Captions and pictures, top to bottom."""
    pipeline = Pipeline.from_pretrained(run)
    data = validate(DataOnly, {"data": read_yaml(run / "config.yaml")["data"]}, str(run)).data
    batch = next(evaluation_batches(data.open("test"), data, 540))
    classes = len(pipeline.classes)
    real = one_of_each(batch.images, batch.labels, classes)
    decoded = pipeline.tokenizer.decode(pipeline.tokenizer.encode(real)).clamp(-1, 1)
    layout = pipeline.tokenizer.layout
    steps = list(pipeline.steps(pipeline.condition([2, 5, 8]), pipeline.sampling))
    shown = torch.linspace(0, len(steps) - 1, classes).round().int().tolist()
    making = torch.stack([pipeline.decode(steps[index]) for index in shown], dim=1).flatten(0, 1)
    samples = pipeline(list(range(classes)), n=4).unflatten(0, (classes, 4)).transpose(0, 1).flatten(0, 1)
    return [
        (f"real digits, and what {layout.length} tokens keep of them", sheet(torch.cat([real, decoded]), classes)),
        ("generated token by token", sheet(making, classes)),
        ("samples, a column a class", sheet(samples, classes)),
    ]


def sheet(images: Tensor, columns: int) -> Image.Image:
    return grid(images, columns=columns, gap=GAP, scale=SCALE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--run", default="raster", help="the generator to show")
    parser.add_argument("--out", type=Path, default=Path("docs/images/demo.png"))
    arguments = parser.parse_args()
    parts, font = panels(arguments.demo / "trained" / arguments.run / "seed0"), ImageFont.load_default(13)
    width = max(picture.width for _, picture in parts) + 2 * MARGIN
    height = sum(picture.height + 20 + MARGIN for _, picture in parts) + MARGIN
    page = Image.new("RGB", (width, height), "white")
    pen, top = ImageDraw.Draw(page), MARGIN
    for caption, picture in parts:
        pen.text((MARGIN, top), caption, fill="black", font=font)
        page.paste(picture.convert("RGB"), (MARGIN, top + 20))
        top += picture.height + 20 + MARGIN
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    page.save(arguments.out, optimize=True)
    print(arguments.out)


if __name__ == "__main__":
    main()
