"""Measures how long a start on many images takes, and its memory: a tree of class folders, made for it and deleted.

    python tools/start_large.py --images 1300000

The files have the size of ImageNet's (110 KiB) and take no space on the disk: a start does not read them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLASSES = 1000
BYTES = 110 * 1024


def make_tree(root: Path, images: int) -> None:
    for label in range(CLASSES):
        folder = root / "train" / f"n{label:08}"
        folder.mkdir(parents=True)
        for number in range(label, images, CLASSES):
            handle = os.open(folder / f"n{label:08}_{number}.JPEG", os.O_CREAT | os.O_WRONLY)
            os.ftruncate(handle, BYTES + number % 4096)
            os.close(handle)


def start(root: Path, verify: bool) -> None:
    """Open both splits, as a training does, and print seconds and peak memory."""
    import torch

    from artok.data.folder import Config
    from artok.data.order import Order

    began = time.perf_counter()
    config = Config(root=root, size=256, workers=8, verify=verify)
    train, test = config.open("train"), config.open("test")
    first = Order(len(train), 0)(torch.arange(256))
    told = {"images": len(train) + len(test), "seconds": round(time.perf_counter() - began, 1)}
    told |= {"core_seconds": round(time.process_time(), 1)}  # with the imports
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps(told | {"peak_gib": round(memory / 2**30, 2), "first": int(first[0]), "mark": train.fingerprint}))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--images", type=int, default=1_300_000)
    arguments.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.start:
        start(given.start, verify=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        began = time.perf_counter()
        make_tree(root, given.images)
        print(f"{given.images:,} files made in {time.perf_counter() - began:.0f} s", flush=True)
        environment = os.environ | {"ARTOK_CACHE": str(Path(folder) / "cache")}
        for what in ("first start", "start with a manifest"):
            command = [sys.executable, __file__, "--start", str(root)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            print(f"{what}: {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
