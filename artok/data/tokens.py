"""Token caches: the tokens of a data set, written once by a tokenizer and read by generators.

A cache is a folder of safetensors shards and an index.json, which says of what and how it was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import Self

from artok.config import find
from artok.data.base import Captions
from artok.data.captions import StoredCaptions, first_captions
from artok.data.controls.base import ControlConfig
from artok.data.order import Order, check_shares, choose_rows, rank_positions
from artok.data.transforms import REVISION
from artok.errors import DataError
from artok.layout import TokenLayout, Tokens
from artok.noise import Noise, fold

INDEX = "index.json"
VERSION = 2
CONTROL = "control"  # in a shard, the packed maps (rows, copies, ...)
CAPTIONS, CAPTION_ENDS = "captions", "caption_ends"  # in a shard, the tensors of `StoredCaptions`
IN_MEMORY = 2 * 2**30  # bytes of tokens up to which a cache is loaded whole

Precision = Literal["float16", "float32"]


@dataclass(frozen=True)
class Shard:
    file: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class TokenIndex:
    """What a cache holds and how it was made, the contents of index.json.

    tokenizer, data: fingerprints of the tokenizer and of the encoded split.
    captions: the captions of the images are stored as well. control: what the stored maps are, as text; empty without.
    images: their number; each has `copies` rows of tokens, the first without augmentation. augment: of the others, as
    text; empty with one copy. dtype: of the stored values. revision: of the code that decodes and augments images.
    """

    layout: TokenLayout
    tokenizer: str
    data: str
    classes: tuple[str, ...]
    images: int
    copies: int
    augment: str
    dtype: str
    captions: bool = False
    control: str = ""
    revision: int = REVISION
    version: int = VERSION

    @classmethod
    def of(
        cls,
        layout: TokenLayout,
        tokenizer: str,
        data: str,
        classes: Sequence[str],
        images: int,
        copies: int = 1,
        augment: str = "",
        precision: Precision = "float16",
        captions: bool = False,
        control: ControlConfig | None = None,
    ) -> Self:
        dtype = str(storage(layout, precision)).removeprefix("torch.")
        changes = augment if copies > 1 else ""
        maps = "" if control is None else json.dumps(control.model_dump(mode="json"))
        return cls(layout, tokenizer, data, tuple(classes), images, copies, changes, dtype, captions, maps)

    @cached_property
    def maps(self) -> ControlConfig | None:
        """What the stored maps are."""
        if not self.control:
            return None
        section = json.loads(self.control)
        return cast(ControlConfig, find("data.controls", section["kind"]).model_validate(section))

    def map_shape(self) -> list[int]:
        """Shape of one packed map."""
        assert self.maps is not None
        channels, *size = self.layout.image
        blank = torch.zeros(1, self.maps.count_channels(channels), *size, dtype=torch.uint8)
        return list(self.maps.pack(blank).shape[1:])

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "layout": self.layout.to_dict(), "classes": list(self.classes)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokenIndex:
        layout, classes = TokenLayout.from_dict(data["layout"]), tuple(map(str, data["classes"]))
        return cls(**{**data, "layout": layout, "classes": classes})

    def refuse(self, wanted: TokenIndex) -> str | None:
        """Why these are not the tokens that are wanted, and what to do; None if they are."""
        again = "encode the data again"
        if self.tokenizer != wanted.tokenizer:
            theirs = f"({self.tokenizer}) than the one given ({wanted.tokenizer})"
            return f"come from another tokenizer {theirs}; {again}"
        if self.layout != wanted.layout:
            return f"are {self.layout}, but {wanted.layout} are expected; {again}"
        if self.data != wanted.data or self.images != wanted.images:
            return f"are of other images than data names; {again}"
        if self.classes != wanted.classes:
            return f"have the classes {', '.join(self.classes)}, but the data {', '.join(wanted.classes)}; {again}"
        if self.captions != wanted.captions:
            return f"are stored {'with' if self.captions else 'without'} the captions of their images; {again}"
        if self.control != wanted.control:
            return f"are stored with the control {self.control or None}, not {wanted.control or None}; {again}"
        if self.copies != wanted.copies:
            asked = f"but tokens.copies asks for {wanted.copies}"
            return f"hold {self.copies} of each image, {asked}: set tokens.copies={self.copies}, or {again}"
        if self.augment != wanted.augment:
            return f"were augmented by {self.augment}, but data.augment is {wanted.augment}; {again}"
        if self.dtype != wanted.dtype:
            return f"are stored as {self.dtype} instead of {wanted.dtype}; {again}"
        if self.revision != wanted.revision:
            return f"were made when artok decoded or augmented images in another way; {again}"
        return None


def storage(layout: TokenLayout, precision: Precision = "float16") -> torch.dtype:
    """The smallest type that holds every code, or `precision` for continuous tokens."""
    if layout.vocab is None:
        return torch.float16 if precision == "float16" else torch.float32
    if layout.vocab <= 2**8:
        return torch.uint8
    return torch.int16 if layout.vocab <= 2**15 else torch.int32


def read_index(folder: Path) -> tuple[TokenIndex, list[Shard]] | None:
    """Index and shards; None when the file is missing or damaged, or of another version."""
    try:
        data = json.loads((folder / INDEX).read_text())
        shards = [Shard(**shard) for shard in data.pop("shards")]
        index = TokenIndex.from_dict(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return (index, shards) if index.version == VERSION else None


def holds(folder: Path, index: TokenIndex) -> bool:
    """Whether a folder is a whole cache of just these tokens."""
    read = read_index(folder)
    return read is not None and read[0] == index and find_damage(folder, *read) is None


def find_damage(folder: Path, index: TokenIndex, shards: Sequence[Shard]) -> str | None:
    for shard in shards:
        path = folder / shard.file
        if not path.is_file():
            return f"{shard.file} is missing"
        if path.stat().st_size != shard.bytes:
            return f"{shard.file} has {path.stat().st_size} bytes instead of {shard.bytes}"
        if not is_shard(path, index, shard.rows):
            return f"{shard.file} is damaged or does not fit its index"
    return None if sum(shard.rows for shard in shards) == index.images else "shards are missing from its index"


def is_shard(path: Path, index: TokenIndex, rows: int) -> bool:
    """Whether a file holds the tokens of so many images of a cache, by its header."""
    try:
        with safe_open(path, "pt") as file:
            values, labels = file.get_slice("values"), file.get_slice("labels")
            ends = [file.get_slice(CAPTION_ENDS).get_shape()] if index.captions else []
            shapes = [values.get_shape(), labels.get_shape(), *ends]
            wanted = [[rows, index.copies, *index.layout.value_shape()]] + [[rows]] * (len(shapes) - 1)
            if index.control:
                shapes.append(file.get_slice(CONTROL).get_shape())
                wanted.append([rows, index.copies, *index.map_shape()])
            return shapes == wanted
    except (OSError, SafetensorError):
        return False


# ---------------------------------------------------------------------------------------------- reading


class TokenCache:
    """A complete cache. index: its description. labels: (images,) int64. captions: of all images, if it has them.

    values, packed: tokens and packed maps (rows, copies, ...) of each shard, or of all as one.
    """

    def __init__(
        self,
        index: TokenIndex,
        values: Sequence[Tensor],
        labels: Tensor,
        captions: StoredCaptions | None = None,
        packed: Sequence[Tensor] | None = None,
    ) -> None:
        self.index, self.labels, self.captions = index, labels, captions
        self._values, self._packed = list(values), None if packed is None else list(packed)
        self._starts = torch.tensor([0, *[len(part) for part in values]]).cumsum(0)[:-1]

    @classmethod
    def open(cls, folder: Path, wanted: TokenIndex | None = None) -> Self:
        """Open the cache in a folder. Up to 2 GiB are loaded; a larger cache is memory-mapped.

        DataError: it is missing or damaged, or does not hold the tokens that are wanted.
        """
        if not (folder / INDEX).is_file():
            raise DataError(f"there are no tokens in {folder}; `artok encode` writes them")
        read = read_index(folder)
        if read is None:
            raise DataError(f"{folder / INDEX} is damaged or of another version of artok; encode the data again")
        index, shards = read
        if wanted is not None and (reason := index.refuse(wanted)):
            raise DataError(f"the tokens in {folder} {reason}")
        if broken := find_damage(folder, index, shards):
            raise DataError(f"the token cache {folder} is damaged ({broken}); encode the data again")
        values, labels, captions, packed = _load(folder, shards, index)
        vocab = index.layout.vocab
        inside = vocab is None or all(0 <= int(part.min()) <= int(part.max()) < vocab for part in values)
        if not inside or not 0 <= int(labels.min()) <= int(labels.max()) < len(index.classes):
            raise DataError(f"the token cache {folder} is damaged (a code or label is out of range); encode again")
        return cls(index, values, labels, captions, packed)

    def __len__(self) -> int:
        return self.index.images

    def read(self, indices: Tensor, copies: Tensor | int = 0) -> tuple[Tokens, Tensor]:
        """Tokens and labels (B,) of images `indices` (B,) int64, each in its copy (B,) int64 or the same for all."""
        layout = self.index.layout
        stored = self._take(self._values, indices, copies)
        values = stored.to(torch.int64 if layout.discrete else torch.float32)
        return Tokens(values, layout), self.labels[indices]

    def read_control(self, indices: Tensor, copies: Tensor | int = 0) -> Tensor | None:
        """The maps (B, channels, *size) uint8 of these images, in these copies; None where none are stored."""
        maps = self.index.maps
        if maps is None or self._packed is None:
            return None
        return maps.unpack(self._take(self._packed, indices, copies), self.index.layout.image[1:])

    def _take(self, parts: Sequence[Tensor], indices: Tensor, copies: Tensor | int) -> Tensor:
        which = torch.as_tensor(copies).expand(len(indices))
        if len(parts) == 1:
            return parts[0][indices, which]
        shards = torch.searchsorted(self._starts, indices, right=True) - 1
        stored = torch.empty(len(indices), *parts[0].shape[2:], dtype=parts[0].dtype)
        for shard in shards.unique().tolist():
            rows = shards == shard
            stored[rows] = parts[shard][indices[rows] - self._starts[shard], which[rows]]
        return stored

    def batch(self, indices: Tensor, positions: Tensor, copies: Tensor | int = 0) -> TokenBatch:
        """What is stored of these images. positions, copies: as in `TokenBatch` and `read`."""
        captions = None if self.captions is None else self.captions[indices]
        return TokenBatch(*self.read(indices, copies), positions, captions, self.read_control(indices, copies))


def _load(
    folder: Path, shards: Sequence[Shard], index: TokenIndex
) -> tuple[list[Tensor], Tensor, StoredCaptions | None, list[Tensor] | None]:
    stored = [load_file(folder / shard.file) for shard in shards]
    values = [part["values"] for part in stored]
    packed = [part[CONTROL] for part in stored] if index.control else None
    if sum(shard.bytes for shard in shards) < IN_MEMORY:
        values = [torch.cat(values)]
        packed = None if packed is None else [torch.cat(packed)]
    captions = None
    if index.captions:
        captions = StoredCaptions.join([StoredCaptions(part[CAPTIONS], part[CAPTION_ENDS]) for part in stored])
    return values, torch.cat([part["labels"] for part in stored]), captions, packed


@dataclass
class TokenBatch:
    """tokens: of B images. labels: (B,) int64. positions: (B,) int64, images seen before. captions: of the images.

    control: (B, channels, *size) uint8. known: what a mask leaves of the tokens.
    """

    tokens: Tokens
    labels: Tensor
    positions: Tensor
    captions: Captions | None = None
    control: Tensor | None = None
    known: Tokens | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def texts(self) -> list[str] | None:
        """The first caption of each image; the empty text of one without captions."""
        return None if self.captions is None else first_captions(self.captions)

    def __getitem__(self, rows: slice | Tensor) -> TokenBatch:
        captions = self.captions
        if captions is not None:
            captions = captions[rows] if isinstance(rows, slice) else [captions[row] for row in rows.tolist()]
        control = None if self.control is None else self.control[rows]
        known = None if self.known is None else self.known[rows]
        return TokenBatch(self.tokens[rows], self.labels[rows], self.positions[rows], captions, control, known)

    def to(self, device: torch.device | str) -> TokenBatch:
        control = None if self.control is None else self.control.to(device)
        known = None if self.known is None else self.known.to(device)
        moved = self.tokens.to(device), self.labels.to(device), self.positions.to(device)
        return TokenBatch(*moved, self.captions, control, known)


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
        return self._cache.batch(self._order(positions), positions, copies)


def evaluation_tokens(cache: TokenCache, batch: int, limit: int | None = None) -> Iterator[TokenBatch]:
    """All images of a cache, or a fixed random subset of `limit`, in order, of the plain copy."""
    for positions in choose_rows(len(cache), limit).split(batch):
        yield cache.batch(positions, positions)
