"""The central types: token layouts, tokens and conditions. A sample is an image, sound or video.

Legend of the shape letters used in names and docstrings throughout artok:

    B  batch            C  image channels or feature channels     V  vocabulary (codes)
    H  height           W  width                                  K  codes at one position (residual levels)
    N  positions        D  width of a vector                      S  scales
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor

from artok.errors import LayoutError


@dataclass(frozen=True)
class TokenLayout:
    """The grids, vocabulary and width of a sample's tokens.

    grids: the grid of each scale, coarse to fine; a plain tokenizer has one, such as ``((16, 16),)``.
    width: length D of the vector at one position, in the tokenizer's latent space.
    vocab: number of different codes V, or None for continuous tokens.
    codes: codes K at one position (residual quantizers have several; continuous tokens have one vector).
    image: (channels, *size) of the samples behind the tokens, such as (3, 256, 256), or (3, 17, 128, 128) for video.
    """

    grids: tuple[tuple[int, ...], ...]
    width: int
    vocab: int | None
    image: tuple[int, ...]
    codes: int = 1

    def __post_init__(self) -> None:
        sides = [side for grid in self.grids for side in grid]
        if not sides or min(sides) < 1:
            raise LayoutError(f"a token layout needs at least one grid of positive sides, got {self.grids}")
        if self.width < 1 or self.codes < 1 or (self.vocab is not None and self.vocab < 2):
            raise LayoutError(f"a token layout needs width >= 1, codes >= 1 and vocab >= 2, got {self}")
        if self.vocab is None and self.codes != 1:
            raise LayoutError("continuous tokens have one vector per position, so codes must be 1")

    @property
    def discrete(self) -> bool:
        return self.vocab is not None

    @property
    def grid(self) -> tuple[int, ...]:
        """The finest grid, equal to the latent's."""
        return self.grids[-1]

    @property
    def spatial(self) -> bool:
        """Whether the grid has as many axes as the sample, so that each position has a place in it."""
        return len(self.grids) == 1 and len(self.grid) == len(self.image) - 1

    @property
    def length(self) -> int:
        """Positions N, over all scales."""
        return sum(math.prod(grid) for grid in self.grids)

    @property
    def bits(self) -> float:
        """Bits of one image's tokens at a fixed code length, log2 V each; not defined for continuous tokens."""
        if self.vocab is None:
            raise LayoutError("continuous tokens have no fixed number of bits")
        return self.length * self.codes * math.log2(self.vocab)

    @property
    def bits_per_pixel(self) -> float:
        return self.bits / math.prod(self.image[1:])

    @property
    def dimensions(self) -> int:
        """Numbers per image, channels times pixels: the divisor of "bits per dimension"."""
        return math.prod(self.image)

    def scales(self) -> Iterator[slice]:
        """The slice of positions that each scale takes, coarse to fine."""
        start = 0
        for grid in self.grids:
            yield slice(start, start + math.prod(grid))
            start += math.prod(grid)

    def scale_names(self) -> list[str]:
        """Names of the scales for logs and messages, such as "2x2"."""
        return ["x".join(map(str, grid)) for grid in self.grids]

    def value_shape(self) -> tuple[int, int]:
        """Shape of one image's token values: (N, K) for codes, (N, D) for continuous tokens."""
        return (self.length, self.codes if self.discrete else self.width)

    def __str__(self) -> str:
        grids = ", ".join(self.scale_names())
        what = f"{self.vocab} codes" if self.discrete else "continuous"
        if self.codes > 1:
            what += f", {self.codes} per position"
        return f"{self.length} tokens in {grids} ({what}, width {self.width})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "grids": [list(grid) for grid in self.grids],
            "width": self.width,
            "vocab": self.vocab,
            "image": list(self.image),
            "codes": self.codes,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokenLayout:
        return cls(
            grids=tuple(tuple(grid) for grid in data["grids"]),
            width=data["width"],
            vocab=data["vocab"],
            image=tuple(data["image"]),
            codes=data["codes"],
        )


@dataclass(frozen=True)
class Tokens:
    """Tokens of a batch of images.

    values: (B, N, K) int64 codes, or (B, N, D) float vectors.
    known: (B, N) bool, whether a token is decided; None when all are. Values of undecided tokens are arbitrary.
    """

    values: Tensor
    layout: TokenLayout
    known: Tensor | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or tuple(self.values.shape[1:]) != self.layout.value_shape():
            raise LayoutError(
                f"token values of shape {tuple(self.values.shape)} do not fit the layout {self.layout}, "
                f"which has (batch, {self.layout.value_shape()[0]}, {self.layout.value_shape()[1]})"
            )

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | Tensor) -> Tokens:
        return replace(self, values=self.values[rows], known=None if self.known is None else self.known[rows])

    def to(self, device: torch.device | str) -> Tokens:
        return replace(self, values=self.values.to(device), known=None if self.known is None else self.known.to(device))

    @property
    def flags(self) -> Tensor:
        """`known` as (B, N) bool; all True when it is None."""
        return torch.ones_like(self.values[..., 0], dtype=torch.bool) if self.known is None else self.known

    def first_scales(self, scales: int) -> Tokens:
        """The tokens with all scales after the first `scales` undecided; unchanged when there are no others."""
        if scales >= len(self.layout.grids):
            return self
        start = list(self.layout.scales())[scales].start
        known = (torch.arange(self.layout.length, device=self.values.device) < start).expand(len(self), -1)
        return replace(self, known=known if self.known is None else known & self.known)

    @staticmethod
    def cat(parts: Sequence[Tokens]) -> Tokens:
        """Concatenate batches of finished tokens of one layout."""
        return Tokens(torch.cat([part.values for part in parts]), parts[0].layout)


@dataclass(frozen=True)
class Text:
    """A batch of texts.

    values: (B, L, E) float features of a text encoder, or (B, L) int64 token ids. mask: (B, L) bool, where a text has
    an entry; a row without any is an empty text. undropped: the mask before texts were dropped, if any were.
    """

    values: Tensor
    mask: Tensor
    undropped: Tensor | None = None

    def __post_init__(self) -> None:
        if self.values.shape[:2] != self.mask.shape:
            raise LayoutError(f"text of shape {tuple(self.values.shape)} has a mask of shape {tuple(self.mask.shape)}")

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, rows: slice | Tensor) -> Text:
        return Text(self.values[rows], self.mask[rows], None if self.undropped is None else self.undropped[rows])

    def to(self, device: torch.device | str) -> Text:
        undropped = None if self.undropped is None else self.undropped.to(device)
        return Text(self.values.to(device), self.mask.to(device), undropped)

    def dropped(self, rows_B: Tensor) -> Text:
        """With the empty text in the rows where it is True."""
        return Text(self.values, self.mask & ~rows_B[:, None], self.mask if self.undropped is None else self.undropped)


NO_LABEL = -1  # in `Condition.labels`: this row has no label

ConditionPart: TypeAlias = Literal["labels", "text", "known", "control"]
GUIDED: tuple[Literal["labels", "text"], ...] = ("labels", "text")  # the parts that guidance drops by default


@dataclass(frozen=True)
class Condition:
    """What a sample is conditioned on: any of these parts, at least one, each with a row for every sample.

    labels: (B,) int64 class indices, or NO_LABEL.
    text: texts or their features.
    known: tokens; those that are `known` are given, the others are generated.
    control: (B, C, *size) float in [-1, 1], a map aligned with the sample, such as edges or depth.
    negative: texts that the unconditional half of guidance is told instead of the empty text.
    """

    labels: Tensor | None = None
    text: Text | None = None
    known: Tokens | None = None
    control: Tensor | None = None
    negative: Text | None = None

    def __post_init__(self) -> None:
        if not self.parts or len({len(field) for field in self._fields().values()}) != 1:
            raise LayoutError("a condition needs at least one part, and all parts need as many rows")

    def _fields(self) -> dict[str, Tensor | Text | Tokens]:
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}

    @property
    def parts(self) -> tuple[ConditionPart, ...]:
        """The names of the parts that are set."""
        return tuple(part for part in get_args(ConditionPart) if getattr(self, part) is not None)

    @property
    def device(self) -> torch.device:
        part = next(iter(self._fields().values()))
        return (part if isinstance(part, Tensor) else part.mask if isinstance(part, Text) else part.values).device

    def __len__(self) -> int:
        return len(next(iter(self._fields().values())))

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        return Condition(**{name: part[rows] for name, part in self._fields().items()})  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Condition:
        return Condition(**{name: part.to(device) for name, part in self._fields().items()})  # type: ignore[arg-type]

    def dropped(self, part: ConditionPart, rows: Tensor | bool = True) -> Condition:
        """Replace a part by its null in the rows where `rows` (B,) bool is True, or in all rows.

        Nulls: NO_LABEL for labels, empty text, no known tokens, zeros for control. A condition without the part is
        returned unchanged.
        """
        if part not in self.parts:
            return self
        drop_B = torch.as_tensor(rows, device=self.device).expand(len(self))
        if part == "labels":
            assert self.labels is not None
            return replace(self, labels=self.labels.masked_fill(drop_B, NO_LABEL))
        if part == "text":
            assert self.text is not None
            return replace(self, text=self.text.dropped(drop_B))
        if part == "known":
            assert self.known is not None
            return replace(self, known=replace(self.known, known=self.known.flags & ~drop_B[:, None]))
        assert self.control is not None
        drop = drop_B.view(-1, *[1] * (self.control.ndim - 1))
        return replace(self, control=self.control.masked_fill(drop, 0))


def last(steps: Iterator[Tokens]) -> Tokens:
    """The last of `steps`, the finished sample. Only one is kept at a time; ``*_, tokens = steps`` would keep all."""
    return deque(steps, maxlen=1)[0]


class Codec(Protocol):
    """A tokenizer's token vectors, for generators. The tokenizer is frozen and not part of the generator's weights."""

    layout: TokenLayout

    def embed(self, tokens: Tokens) -> Tensor:
        """Latent vectors (B, D, *grid) that the tokens stand for; undecided positions are zero."""
        ...

    def prefix(self, tokens: Tokens, scales: int) -> Tensor:
        """Latent vectors (B, D, *grid) of the first `scales` scales alone."""
        ...

    def prefixes(self, tokens: Tokens) -> list[Tensor]:
        """`prefix` for 1, 2, ... scales in one pass; the last is `embed`."""
        ...
