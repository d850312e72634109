"""How fast images reach the training loop: reading, decoding and random changes, by number of worker processes.

    python tools/bench_loading.py [--cifar DIR] [--videos DIR] [--seconds 5] [--workers 0 1 2]

With videos, the last row is what decoding has to keep up with: clips per second of a training step of a small video
tokenizer at 64x64 (forward, backward and the optimizer).

"first pass" decodes; "later passes" look up what the first one kept in memory (in_memory), or decode again.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from artok.data.base import Augment, DataConfig, Split
from artok.data.digits import Config as Digits
from artok.data.hub import Config as Hub
from artok.data.loader import Loader
from artok.data.moving_digits import Config as MovingDigits
from artok.data.shapes import Config as Shapes
from artok.data.video import Config as Video
from artok.quantizers.fsq import Config as Fsq
from artok.tokenizers.conv3d import Config as VideoTokenizer

NOTHING = Augment()
FLIP = Augment(flip=True)
EVERYTHING = Augment(flip=True, shift=0.1, rotate=10, scale=0.1, shear=0.1)


def cases(cifar: Path, workers: list[int]) -> dict[str, DataConfig]:
    """Settings under the names that the table shows."""
    found: dict[str, DataConfig] = {}
    for changes, name in ((NOTHING, "unchanged"), (EVERYTHING, "affine")):
        found[f"digits 16x16, {name}"] = Digits(augment=changes)
    found["shapes 32x32, unchanged"] = Shapes()
    if (cifar / "train.parquet").is_file():
        files: dict[str, str | list[str]] = {split: str(cifar / f"{split}.parquet") for split in ("train", "test")}
        for changes, name in ((FLIP, "flip"), (EVERYTHING, "affine")):
            found[f"CIFAR-10, {name}, in memory"] = Hub(size=32, files=files, augment=changes)
        for count in workers:
            found[f"CIFAR-10, flip, {count} workers"] = Hub(
                size=32, files=files, augment=FLIP, workers=count, in_memory=False
            )
        found["CIFAR-10, flip, streamed"] = Hub(size=32, files=files, augment=FLIP, streaming=True)
    return found


def clip_cases(folder: Path, workers: list[int]) -> dict[str, DataConfig]:
    """Clips of 17 frames at 64x64: drawn, and decoded again in each pass."""
    found: dict[str, DataConfig] = {"moving digits 64x64, 17 frames": MovingDigits(size=64)}
    for count in workers:
        found[f"videos 64x64, 17 frames, {count} workers"] = Video(
            root=folder, size=64, stride=4, holdout=0, workers=count, in_memory=False
        )
    return found


def step_rate(seconds: float, batch: int = 4) -> float:
    """Clips per second of training steps of a video tokenizer."""
    image = (3, 17, 64, 64)
    quantizer = Fsq(levels=(8, 5, 5, 5))
    config = VideoTokenizer(
        downsample=(4, 8, 8), base_channels=32, channel_multipliers=(1, 2, 2, 4), quantizer=quantizer
    )
    tokenizer = config.build(image)
    optimizer = torch.optim.AdamW(tokenizer.parameters())
    clips = torch.rand(batch, *image) * 2 - 1
    start, seen = 0.0, -batch  # the first step allocates
    while seen <= 0 or time.perf_counter() - start < seconds:
        start = time.perf_counter() if seen < 0 else start
        answer = tokenizer(clips)
        ((answer.images - clips).abs().mean() + sum(answer.losses.values())).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen += batch
        start = time.perf_counter() if seen == 0 else start
    return seen / (time.perf_counter() - start)


def rate(loader: Loader, batch: int, images: int, seconds: float) -> float:
    """Images a second over the next `images` of them, or over `seconds`, whichever ends first."""
    start, seen = time.perf_counter(), 0
    while seen < images and time.perf_counter() - start < seconds:
        next(loader)
        seen += batch
    return seen / (time.perf_counter() - start)


def measure(split: Split, config: DataConfig, batch: int, seconds: float) -> tuple[float, float, float]:
    """Seconds to the first batch, then images per second in the first pass and later.

    A kept split is read whole in between, so that "later" is what training sees after its first pass.
    """
    start = time.perf_counter()
    with Loader(split, config, batch, seed=0) as loader:
        next(loader)
        opened = time.perf_counter() - start
        first = rate(loader, batch, len(split) - batch, seconds)
    if split.decodes and not split.sequential and not config.workers and getattr(config, "in_memory", None) is None:
        for begin in range(0, len(split), 1024):
            split.read(range(begin, min(begin + 1024, len(split))))
    with Loader(split, config, batch, seed=0, start=0 if split.sequential else len(split)) as loader:
        next(loader)
        later = rate(loader, batch, 10 * len(split), seconds)
    return opened, first, later


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cifar",
        type=Path,
        default=Path(os.environ.get("ARTOK_DATA", ".")) / "cifar10",
        help="folder of the parquet files",
    )
    parser.add_argument("--videos", type=Path, help="folder of videos, as for data kind video")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0, help="longest time for one figure")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    arguments = parser.parse_args()
    table = Table(title=f"loading, batch {arguments.batch}, {torch.get_num_threads()} threads of torch")
    for column in ("data", "open s", "first batch s", "first pass images/s", "later passes images/s"):
        table.add_column(column, justify="left" if column == "data" else "right")
    chosen = cases(arguments.cifar, arguments.workers)
    if arguments.videos is not None:
        chosen = clip_cases(arguments.videos, arguments.workers)
    for name, config in chosen.items():
        start = time.perf_counter()
        split = config.open("train")
        opening = time.perf_counter() - start
        opened, first, later = measure(split, config, arguments.batch, arguments.seconds)
        table.add_row(name, f"{opening:.2f}", f"{opened:.2f}", f"{first:,.4g}", f"{later:,.4g}")
    if arguments.videos is not None:
        table.add_row("a training step of conv3d", "", "", "", f"{step_rate(arguments.seconds):,.1f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
