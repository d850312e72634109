"""Features of texts on the disk: encoded once by a frozen encoder, memory-mapped by every process that needs them.

A store is a folder of safetensors shards and an index.json. Several processes that write the same store share the work:
each encodes the shards that are missing and that no other is encoding. A stopped writing keeps its whole shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from typing_extensions import Self

from artok.files import move
from artok.locks import hold_lock, try_lock

INDEX = "index.json"
SHARD_BYTES, SHARD_TEXTS = 64 * 2**20, 8192  # at most
POLL = 0.2  # seconds between looks at the shards of other processes

Encode = Callable[[Sequence[str]], Sequence[NDArray[Any]]]


class StoredTexts:
    """The entries of many texts by text, (n, E) float16 each."""

    def __init__(self, shards: Sequence[dict[str, torch.Tensor]]) -> None:
        keys = torch.cat([shard["keys"] for shard in shards]).numpy()
        self._order = keys.argsort()
        self._keys = keys[self._order]
        self._values = [shard["values"].numpy() for shard in shards]
        self._ends = [shard["ends"].numpy() for shard in shards]
        self._starts = np.cumsum([0, *[len(ends) for ends in self._ends]])[:-1]

    @classmethod
    def open(cls, folder: Path) -> Self | None:
        """The store in a folder; None when it is missing, unfinished or damaged."""
        try:
            count = json.loads((folder / INDEX).read_text())["shards"]
            return cls([load_file(_shard(folder, number)) for number in range(count)])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, texts: Sequence[str]) -> list[NDArray[Any] | None]:
        """The entries of each text, or None where the store has not got it."""
        wanted = _keys(texts)
        places = np.minimum(self._keys.searchsorted(wanted), len(self) - 1)
        rows = np.where(self._keys[places] == wanted, self._order[places], -1)
        return [None if row < 0 else self._row(row) for row in rows.tolist()]

    def _row(self, row: int) -> NDArray[Any]:
        shard = int(self._starts.searchsorted(row, side="right")) - 1
        inside, ends = row - int(self._starts[shard]), self._ends[shard]
        return self._values[shard][ends[inside - 1] if inside else 0 : ends[inside]]


def write_texts(
    folder: Path, texts: Sequence[str], encode: Encode, text_bytes: int, advance: Callable[[int], None]
) -> None:
    """Write a store of distinct texts. OSError: the disk is full or cannot be written.

    encode: float16 entries of each text. text_bytes: most bytes of a text's entries. advance: called with the number of
    texts that are stored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = max(1, min(SHARD_TEXTS, SHARD_BYTES // text_bytes))
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    paths = [_shard(folder, number) for number in range(len(parts))]
    while missing := [each for each in range(len(parts)) if not _holds(paths[each], parts[each])]:
        worked = False
        for each in missing:
            with try_lock(paths[each]) as mine:
                if mine and not _holds(paths[each], parts[each]):  # another process may have written it meanwhile
                    _write_shard(paths[each], parts[each], encode(parts[each]))
                    advance(sum(len(part) for part, path in zip(parts, paths, strict=True) if path.exists()))
                    worked = True
        if not worked:
            time.sleep(POLL)
    with hold_lock(folder / INDEX):
        aside = folder / f"{INDEX}.new"
        aside.write_text(json.dumps({"shards": len(parts), "texts": len(texts)}))
        move(aside, folder / INDEX)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"texts-{number:05}.safetensors"


def _keys(texts: Sequence[str]) -> NDArray[Any]:
    """(N,) int64 digests. Of ten million texts two have the same one with probability 3e-6."""
    digests = b"".join(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<i8")


def _holds(path: Path, texts: Sequence[str]) -> bool:
    """Whether a file is the shard of these texts."""
    try:
        with safe_open(path, "pt") as file:
            return bool(np.array_equal(file.get_tensor("keys").numpy(), _keys(texts)))
    except (OSError, SafetensorError):
        return False


def _write_shard(path: Path, texts: Sequence[str], entries: Sequence[NDArray[Any]]) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")
    tensors = {
        "keys": torch.from_numpy(_keys(texts).copy()),
        "ends": torch.tensor([len(each) for each in entries], dtype=torch.int64).cumsum(0),
        "values": torch.from_numpy(np.concatenate(entries)),
    }
    save_file(tensors, aside)
    move(aside, path)
