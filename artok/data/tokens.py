"""Token caches: the tokens of a data set, written once by a tokenizer and read by generators.

A cache is a folder of safetensors shards and an index.json. It is written under a temporary name and renamed when it is
complete. A stopped writing resumes after its last whole shard.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import Self

from artok.data.order import Order, check_shares, choose_rows, rank_positions
from artok.errors import DataError, RunError
from artok.layout import TokenLayout, Tokens
from artok.noise import Noise, fold

INDEX = "index.json"
VERSION = 1
SHARD_BYTES = 64 * 2**20
IN_MEMORY = 2 * 2**30  # bytes of tokens up to which a cache is loaded whole

Precision = Literal["float16", "float32"]
Parts = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Shard:
    file: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class TokenIndex:
    """The contents of index.json.

    tokenizer, data: fingerprints of the tokenizer and of the encoded split.
    images: their number; each has `copies` rows of tokens, the first without augmentation. dtype: of the stored values.
    """

    layout: TokenLayout
    tokenizer: str
    data: str
    classes: tuple[str, ...]
    images: int
    copies: int
    dtype: str
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "layout": self.layout.to_dict(), "classes": list(self.classes)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokenIndex:
        layout, classes = TokenLayout.from_dict(data["layout"]), tuple(data["classes"])
        return cls(**{**data, "layout": layout, "classes": classes})


def storage(layout: TokenLayout, precision: Precision = "float16") -> torch.dtype:
    """The smallest type that holds every code, or `precision` for continuous tokens."""
    if layout.vocab is None:
        return torch.float16 if precision == "float16" else torch.float32
    if layout.vocab <= 2**8:
        return torch.uint8
    return torch.int16 if layout.vocab <= 2**15 else torch.int32


# ---------------------------------------------------------------------------------------------- writing


def write_tokens(
    folder: Path,
    layout: TokenLayout,
    tokenizer: str,
    data: str,
    classes: Sequence[str],
    images: int,
    copies: int,
    parts: Parts,
    precision: Precision = "float16",
    shard_images: int | None = None,
) -> TokenIndex:
    """Write a cache of `images` images into `folder`; it replaces an older cache there once it is complete.

    parts(first): pairs of values (B, copies, N, K or D) and labels (B,) of the images from index `first` on, in order,
    for any B. It is called once, with the first image that an earlier, stopped writing of the same tokens lacks.
    shard_images: images per shard; default 64 MiB.
    RunError: writing failed, such as on a full disk. Shards that were written are used by the next attempt.
    """
    dtype = storage(layout, precision)
    index = TokenIndex(layout, tokenizer, data, tuple(classes), images, copies, str(dtype).removeprefix("torch."))
    row_bytes = copies * layout.value_shape()[0] * layout.value_shape()[1] * dtype.itemsize
    writer = TokenWriter(folder, index, shard_images or max(1, SHARD_BYTES // row_bytes))
    try:
        if writer.done < images:
            for values, labels in parts(writer.done):
                writer.add(values, labels)
        writer.finish()
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the tokens could not be written to {folder} ({error}); "
            "free some space and start again: what is stored already is kept"
        ) from None
    return index


class TokenWriter:
    """Writes rows to shards below `folder`.partial. done: images in whole shards."""

    def __init__(self, folder: Path, index: TokenIndex, shard_images: int) -> None:
        if folder.exists() and not (folder / INDEX).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder} exists and is no token cache; name another folder for the tokens")
        self._folder, self._aside = folder, folder.with_name(folder.name + ".partial")
        self._index, self._shard_images = index, shard_images
        self._shards: list[Shard] = []
        self._values: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._waiting = 0
        self._resume()

    @property
    def done(self) -> int:
        return sum(shard.rows for shard in self._shards)

    def _resume(self) -> None:
        with_shards = _read_index(self._aside) if (self._aside / INDEX).is_file() else None
        if with_shards is not None and with_shards[0] == self._index and not _damage(self._aside, with_shards[1]):
            self._shards = with_shards[1]
            return
        shutil.rmtree(self._aside, ignore_errors=True)
        self._aside.mkdir(parents=True)

    def add(self, values: Tensor, labels: Tensor) -> None:
        """Add values (B, copies, N, K or D), codes or vectors, and labels (B,) int64. ValueError: wrong shapes."""
        index = self._index
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
        self._values.append(stored)
        self._labels.append(labels.to("cpu", torch.int64))
        self._waiting += len(labels)
        while self._waiting >= self._shard_images:
            self._write(self._shard_images)

    def _write(self, rows: int) -> None:
        values, labels = torch.cat(self._values), torch.cat(self._labels)
        name = f"tokens-{len(self._shards):05}.safetensors"
        path = self._aside / name
        save_file({"values": values[:rows].contiguous(), "labels": labels[:rows].contiguous()}, f"{path}.new")
        os.replace(f"{path}.new", path)
        self._values, self._labels, self._waiting = [values[rows:]], [labels[rows:]], len(labels) - rows
        self._shards.append(Shard(name, rows, path.stat().st_size))
        _write_index(self._aside, self._index, self._shards)  # last, so that it names whole shards only

    def finish(self) -> None:
        """Write the rest and rename the cache. ValueError: the number of images is not the announced one."""
        if self._waiting:
            self._write(self._waiting)
        if self.done != self._index.images:
            raise ValueError(f"{self.done} images were written, {self._index.images} were announced")
        old = self._folder.with_name(self._folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self._folder.exists():
            os.replace(self._folder, old)
        os.replace(self._aside, self._folder)
        shutil.rmtree(old, ignore_errors=True)


def _write_index(folder: Path, index: TokenIndex, shards: Sequence[Shard]) -> None:
    text = json.dumps({**index.to_dict(), "shards": [asdict(shard) for shard in shards]}, indent=1)
    (folder / f"{INDEX}.new").write_text(text)
    os.replace(folder / f"{INDEX}.new", folder / INDEX)


def _read_index(folder: Path) -> tuple[TokenIndex, list[Shard]] | None:
    """Index and shards; None when the file is damaged or of another version."""
    try:
        data = json.loads((folder / INDEX).read_text())
        shards = [Shard(**shard) for shard in data.pop("shards")]
        return TokenIndex.from_dict(data), shards
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _damage(folder: Path, shards: Sequence[Shard]) -> str | None:
    for shard in shards:
        path = folder / shard.file
        if not path.is_file():
            return f"{shard.file} is missing"
        if path.stat().st_size != shard.bytes:
            return f"{shard.file} has {path.stat().st_size} bytes instead of {shard.bytes}"
    return None


# ---------------------------------------------------------------------------------------------- reading


class TokenCache:
    """A complete cache. index: its description. labels: (images,) int64."""

    def __init__(self, index: TokenIndex, values: Sequence[Tensor], labels: Tensor) -> None:
        self.index, self.labels = index, labels
        self._values = list(values)
        self._starts = torch.tensor([0, *[len(part) for part in values]]).cumsum(0)[:-1]

    @classmethod
    def open(cls, folder: Path, tokenizer: str | None = None, layout: TokenLayout | None = None) -> Self:
        """Open the cache in a folder. Up to 2 GiB are loaded; a larger cache is memory-mapped.

        DataError: it is missing or damaged, or of another tokenizer (by fingerprint) or layout.
        """
        if not (folder / INDEX).is_file():
            raise DataError(f"there are no tokens in {folder}; `artok encode` writes them")
        read = _read_index(folder)
        if read is None or read[0].version != VERSION:
            raise DataError(f"{folder / INDEX} is damaged or of another version; encode the data again")
        index, shards = read
        if tokenizer is not None and index.tokenizer != tokenizer:
            raise DataError(
                f"the tokens in {folder} come from another tokenizer ({index.tokenizer}) than the one given "
                f"({tokenizer}); encode the data again"
            )
        if layout is not None and index.layout != layout:
            raise DataError(f"the tokens in {folder} are {index.layout}, but {layout} are expected; encode again")
        broken = _damage(folder, shards)
        if broken is None and sum(shard.rows for shard in shards) != index.images:
            broken = "shards are missing from its index"
        if broken is not None:
            raise DataError(f"the token cache {folder} is damaged ({broken}); encode the data again")
        return cls(index, *_load(folder, index, shards))

    def __len__(self) -> int:
        return self.index.images

    def read(self, indices: Tensor, copies: Tensor | int = 0) -> tuple[Tokens, Tensor]:
        """Tokens and labels (B,) of images `indices` (B,) int64, each in its copy (B,) int64 or the same for all."""
        layout = self.index.layout
        which = torch.as_tensor(copies).expand(len(indices))
        shards = torch.searchsorted(self._starts, indices, right=True) - 1
        if len(self._values) == 1:
            stored = self._values[0][indices, which]
        else:
            stored = torch.empty(len(indices), *layout.value_shape(), dtype=self._values[0].dtype)
            for shard in shards.unique().tolist():
                rows = shards == shard
                stored[rows] = self._values[shard][indices[rows] - self._starts[shard], which[rows]]
        values = stored.to(torch.int64 if layout.discrete else torch.float32)
        return Tokens(values, layout), self.labels[indices]


def _load(folder: Path, index: TokenIndex, shards: Sequence[Shard]) -> tuple[list[Tensor], Tensor]:
    values, labels = [], []
    for shard in shards:
        try:
            stored = load_file(folder / shard.file)
            values.append(stored["values"])
            labels.append(stored["labels"])
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(f"the token shard {folder / shard.file} is damaged ({error}); encode again") from None
        if values[-1].shape != (shard.rows, index.copies, *index.layout.value_shape()):
            raise DataError(f"the token shard {folder / shard.file} does not fit its index; encode the data again")
    if sum(shard.bytes for shard in shards) < IN_MEMORY:
        values = [torch.cat(values)]
    return values, torch.cat(labels)


@dataclass
class TokenBatch:
    """tokens: of B images. labels: (B,) int64. positions: (B,) int64, images seen before."""

    tokens: Tokens
    labels: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(self.tokens.to(device), self.labels.to(device), self.positions.to(device))


class TokenLoader:
    """Endless training batches of a cache. As in `Loader`, position p decides the image in a random pass, and its copy,
    drawn uniformly.

    batch: images over all processes; this one gets the rows of its `rank` of `world`. start: images seen before.
    """

    def __init__(self, cache: TokenCache, batch: int, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> None:
        check_shares(batch, world)
        self._cache, self._order, self._seed = cache, Order(len(cache), seed), fold("copy", seed)
        self._batch, self._start, self._rank, self._world = batch, start, rank, world
        self._step = 0

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        positions = rank_positions(self._step, self._batch, self._start, self._rank, self._world)
        self._step += 1
        copies = Noise(self._seed, positions).integers(self._cache.index.copies)
        tokens, labels = self._cache.read(self._order(positions), copies)
        return TokenBatch(tokens, labels, positions)


def evaluation_tokens(cache: TokenCache, batch: int, limit: int | None = None) -> Iterator[TokenBatch]:
    """All images of a cache, or a fixed random subset of `limit`, in order, of the plain copy."""
    for positions in choose_rows(len(cache), limit).split(batch):
        yield TokenBatch(*cache.read(positions), positions)
