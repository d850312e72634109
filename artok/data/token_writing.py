"""Writes token caches, by any number of processes at once.

Each process encodes the shards that are missing and that no other is encoding. So the processes of a training, and
several trainings, share the work, and none waits in a collective. Shards are written into a folder aside and renamed
when they are whole; the folder is renamed when all are. A stopped writing loses the shards under way.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from artok.data.base import Captions
from artok.data.captions import StoredCaptions
from artok.data.fingerprints import digest_parts
from artok.data.tokens import (
    CAPTION_ENDS,
    CAPTIONS,
    CONTROL,
    INDEX,
    Shard,
    TokenIndex,
    holds,
    is_shard,
)
from artok.errors import DataError, RunError
from artok.files import move
from artok.locks import hold_lock, try_lock

SHARD_BYTES, SHARD_IMAGES = 64 * 2**20, 8192  # at most
ALIGNED = 64  # a shard is a multiple of so many images, so that batches of them do not depend on the shards
POLL = 0.5  # seconds between looks at the shards of other processes


class EncodedImages(NamedTuple):
    """values: (B, copies, N, K or D). labels: (B,). control: (B * copies, channels, *size) uint8."""

    values: Tensor
    labels: Tensor
    captions: Captions | None = None
    control: Tensor | None = None


Encode = Callable[[int, int, int], Iterator[EncodedImages]]


def write_tokens(
    folder: Path,
    index: TokenIndex,
    encode: Encode,
    skipped: Mapping[int, str],
    check: Callable[[dict[int, str]], None],
    shard_images: int | None = None,
) -> None:
    """Write a cache into `folder`, unless it is there; it replaces another cache once it is complete.

    encode(first, last, done): these images in order, in parts of any size; `done` images are in whole shards. skipped:
    the unreadable images that this process met. check: called with those of all processes before the end; what it
    raises ends the writing.
    shard_images: images per shard; by default at most 64 MiB and 8,192 images.
    RunError: writing failed, such as on a full disk. Shards that were written are used by the next attempt.
    """
    if folder.exists() and not (folder / INDEX).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is no token cache; name another folder for the tokens")
    aside = aside_of(folder, index)
    missing_above = [path for path in folder.parents if not path.exists()]
    starts = range(0, index.images, shard_images or _shard_images(index))
    paths = [aside / f"tokens-{number:05}.safetensors" for number in range(len(starts))]
    rows = [min(starts.step, index.images - start) for start in starts]
    try:
        while not holds(folder, index):
            aside.mkdir(parents=True, exist_ok=True)
            missing = [each for each in range(len(starts)) if not is_shard(paths[each], index, rows[each])]
            worked = not missing
            for each in missing:
                with try_lock(aside / f"{each:05}") as mine:
                    if mine and not is_shard(paths[each], index, rows[each]) and not holds(folder, index):
                        done = sum(size for path, size in zip(paths, rows, strict=True) if path.exists())
                        known = set(skipped)
                        parts = encode(starts[each], starts[each] + rows[each], done)
                        tensors = _gather(index, parts, rows[each])
                        met = {number: reason for number, reason in skipped.items() if number not in known}
                        _write_shard(paths[each], tensors, met)
                        if not is_shard(paths[each], index, rows[each]):
                            raise RunError(f"{str(paths[each])!a} cannot be read after it was written")
                        worked = True
            if not missing:
                with hold_lock(aside / "finish"):
                    _finish(folder, aside, index, paths, rows, check)
            elif not worked:
                time.sleep(POLL)
    except DataError:
        if not any(aside.glob("*.safetensors")):
            shutil.rmtree(aside, ignore_errors=True)
            for path in missing_above:
                with suppress(OSError):
                    path.rmdir()
        raise
    except (OSError, SafetensorError) as error:
        if not holds(folder, index):  # on a disk without locks another process may have finished meanwhile
            raise RunError(
                f"the tokens could not be written to {folder} ({error}); "
                "free some space and start again: what is stored already is kept"
            ) from None
    shutil.rmtree(aside, ignore_errors=True)


def aside_of(folder: Path, index: TokenIndex) -> Path:
    """Where the shards of a cache are collected; of other tokens, elsewhere."""
    return folder.with_name(f"{folder.name}.{digest_parts(json.dumps(index.to_dict()))}.partial")


def _shard_images(index: TokenIndex) -> int:
    positions, width = index.layout.value_shape()
    row_bytes = index.copies * positions * width * getattr(torch, index.dtype).itemsize
    row_bytes += index.copies * math.prod(index.map_shape()) if index.control else 0
    most = min(SHARD_IMAGES, max(1, SHARD_BYTES // row_bytes))
    return most // ALIGNED * ALIGNED or most


def _gather(index: TokenIndex, parts: Iterator[EncodedImages], rows: int) -> dict[str, Tensor]:
    """The tensors of a shard, as they are stored. ValueError: wrong shapes or numbers."""
    values, labels, packed = [], [], []
    captions: Captions = []
    for each, of, told, maps in parts:
        values.append(_stored(index, each, of))
        labels.append(of.to("cpu", torch.int64))
        captions += told or []
        if index.maps is not None and maps is not None:
            packed.append(index.maps.pack(maps).unflatten(0, (len(of), index.copies)))
    if (given := sum(map(len, labels))) != rows:
        raise ValueError(f"{given} images were encoded instead of {rows}")
    if index.captions and len(captions) != rows:
        raise ValueError(f"{len(captions)} images had captions instead of {rows}")
    tensors = {"values": torch.cat(values), "labels": torch.cat(labels)}
    if index.captions:
        stored = StoredCaptions.of(captions)
        tensors |= {CAPTIONS: stored.text, CAPTION_ENDS: stored.ends}
    if index.control:
        tensors[CONTROL] = torch.cat(packed)
    return tensors


def _stored(index: TokenIndex, values: Tensor, labels: Tensor) -> Tensor:
    expected = (len(labels), index.copies, *index.layout.value_shape())
    if tuple(values.shape) != expected:
        raise ValueError(f"token values have shape {tuple(values.shape)}, expected {expected}")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < len(index.classes):
        raise DataError(f"a label lies outside the {len(index.classes)} classes: {labels.tolist()[:8]}")
    vocab = index.layout.vocab
    if vocab is not None and values.numel() and not 0 <= int(values.min()) <= int(values.max()) < vocab:
        raise ValueError(f"a code lies outside the vocabulary of {vocab}")
    stored = values.to("cpu", getattr(torch, index.dtype))
    if vocab is None and not bool(stored.isfinite().all()):
        raise DataError(f"a token is not finite as {index.dtype}; store them as float32")
    return stored


def _write_shard(path: Path, tensors: Mapping[str, Tensor], skipped: Mapping[int, str]) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")
    met = {str(number): reason for number, reason in skipped.items()}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, aside, metadata={"skipped": json.dumps(met)})
    move(aside, path)


def _finish(
    folder: Path,
    aside: Path,
    index: TokenIndex,
    paths: Sequence[Path],
    rows: Sequence[int],
    check: Callable[[dict[int, str]], None],
) -> None:
    """Write the index and rename the cache, unless another process did."""
    if holds(folder, index):
        return
    skipped: dict[int, str] = {}
    for path in paths:
        with safe_open(path, "pt") as file:
            met = json.loads((file.metadata() or {}).get("skipped", "{}"))
        skipped |= {int(number): reason for number, reason in met.items()}
    check(skipped)
    shards = [Shard(path.name, count, path.stat().st_size) for path, count in zip(paths, rows, strict=True)]
    text = json.dumps({**index.to_dict(), "shards": [asdict(shard) for shard in shards]}, indent=1)
    (aside / INDEX).write_text(text)
    for left in (*aside.glob("*.new"), *aside.glob("*.lock")):
        left.unlink(missing_ok=True)
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    move(aside, folder)
    shutil.rmtree(old, ignore_errors=True)
