"""Writes samples as `.npz` for ADM's evaluator (Dhariwal and Nichol 2021), which most published FIDs use.

`arr_0` holds the images (N, H, W, 3) uint8, `arr_1` their labels (N,) int64.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from artok.errors import ConfigError
from artok.files import move
from artok.images import to_uint8
from artok.layout import last
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling


def to_npz(
    pipeline: Pipeline,
    out: Path,
    n: int,
    sampling: Sampling,
    batch: int = 64,
    advance: Callable[[int], None] = lambda _: None,
) -> Path:
    """Write `n` samples, balanced over the classes, to `out`. Image i depends on the seed and i only.

    Images are kept on the disk beside `out` until all are done. advance: called with the number done.
    """
    if n < 1:
        raise ConfigError(f"ask for at least one sample, not {n}")
    channels, *size = pipeline.tokenizer.layout.image
    if channels not in (1, 3) or len(size) != 2:
        raise ConfigError(f"the evaluator reads colour images, and these are of {channels} channels and size {size}")
    if pipeline.generator.needs_control:
        raise ConfigError(
            "this model was given a control for every image in training, and a reference has classes alone"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    aside, archived = out.with_name(f".{out.stem}.images.npy"), out.with_name(f".{out.name}.tmp")
    try:
        images = np.lib.format.open_memmap(aside, mode="w+", dtype=np.uint8, shape=(n, *size, 3))
        labels = torch.arange(n) % len(pipeline.classes)
        for start in range(0, n, batch):
            condition = pipeline.generator.condition(labels[start : start + batch])
            tokens = last(pipeline.steps(condition, sampling, first=start))
            pixels = to_uint8(pipeline.decode(tokens, sampling.dtype)).cpu().expand(-1, 3, -1, -1)
            images[start : start + len(pixels)] = pixels.permute(0, 2, 3, 1).numpy()
            advance(start + len(pixels))
        images.flush()
        with zipfile.ZipFile(archived, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            archive.write(aside, "arr_0.npy")
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, labels.numpy())
        move(archived, out)
    finally:
        aside.unlink(missing_ok=True)
        archived.unlink(missing_ok=True)
    return out
