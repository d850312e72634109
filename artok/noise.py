"""Random numbers as a pure function of (seed, sample, draw), the same on every device and for every batch size.

Used for data augmentation, label dropout and sampling. Sample i's numbers depend on the seed and i only. So resuming is
bit-exact without stored generator state, several processes draw the same numbers as one, and a sample does not depend
on its batch. The hash is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

SEEDS = 2**32  # NumPy takes seeds below this
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]  # of a config

AT_ONCE = 2**18  # numbers of several draws that are computed together

DRAW = 0x5851F42D4C957F2D  # times its number, what a draw adds to a stream
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # the increment of SplitMix64; constants are signed 64-bit integers
MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own is arithmetic)."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = _shift(x, 30).bitwise_xor_(x).mul_(MIX_1)
    x = _shift(x, 27).bitwise_xor_(x).mul_(MIX_2)
    return _shift(x, 31).bitwise_xor_(x)


def _spread(streams: Tensor, count: int) -> Tensor:
    """(..., count) random int64 of streams (...)."""
    counter = torch.arange(1, count + 1, device=streams.device, dtype=torch.int64) * GOLDEN
    return _mix(streams[..., None] + counter)


def _normal(bits: Tensor, count: int) -> Tensor:
    """(..., count) standard normal numbers of half as many random int64, rounded up."""
    radius = _shift(bits, 32).add_(1).to(torch.float32).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = (bits & 0xFFFFFFFF).to(torch.float32).mul_(2.0**-32 * 2 * math.pi)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(-2)[..., :count]


def _wrap(x: int) -> int:
    """A Python integer as the signed 64-bit one with the same low bits."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)


def fold(*parts: int | str) -> int:
    """A 63-bit seed from any parts, stable across processes and Python versions."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Noise:
    """One stream of random numbers per sample. Each call takes the next draw of every stream.

    seed: any integer. samples: (B,) int64, the index of each sample, on the device where numbers are wanted.
    """

    def __init__(self, seed: int, samples: Tensor) -> None:
        base = torch.tensor(fold("noise", seed), dtype=torch.int64, device=samples.device)
        self._keys_B = _mix(_mix(samples.to(torch.int64) * GOLDEN) + base)
        self._draws = 0

    def __len__(self) -> int:
        return len(self._keys_B)

    def __getitem__(self, rows: slice | Tensor) -> Noise:
        part = object.__new__(Noise)
        part._keys_B, part._draws = self._keys_B[rows], self._draws
        return part

    def split(self, count: int) -> Noise:
        """(B * count) streams, `count` of each sample one after the other."""
        part = object.__new__(Noise)
        part._keys_B, part._draws = _spread(self._keys_B, count).flatten(), 0
        return part

    def branch(self, name: str) -> Noise:
        """Other streams of the same samples, whose draws leave those of these untouched."""
        part = object.__new__(Noise)
        part._keys_B, part._draws = _mix(self._keys_B + _wrap(fold(name))), 0
        return part

    def _bits(self, count: int) -> Tensor:
        """(B, count) random int64."""
        self._draws += 1
        return _spread(_mix(self._keys_B + _wrap(self._draws * DRAW)), count)

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) float32 in [0, 1)."""
        bits = self._bits(math.prod(shape))
        return (_shift(bits, 40).to(torch.float32) * 2.0**-24).reshape(len(self), *shape)

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) float32, standard normal (Box and Muller 1958)."""
        count = math.prod(shape)
        return _normal(self._bits((count + 1) // 2), count).reshape(len(self), *shape)

    def normals(self, expected: int, *shape: int) -> Iterator[Tensor]:
        """What calls of `normal(*shape)` give, without end, with about as many operators as one call takes for all the
        `expected` ones. No other draw may come between two of them."""
        count = math.prod(shape)
        together = max(1, min(expected, AT_ONCE // max(len(self) * count, 1)))
        while True:
            draws = torch.arange(self._draws + 1, self._draws + together + 1, device=self._keys_B.device) * DRAW
            bits = _spread(_mix(self._keys_B + draws[:, None]), (count + 1) // 2)
            for drawn in _normal(bits, count).reshape(together, len(self), *shape).unbind():
                self._draws += 1
                yield drawn

    def gumbel(self, places: Tensor, width: int) -> Tensor:
        """(B, N, width) float32, standard Gumbel: the rows `places` (B, N) int64 of each stream's own table, with rows
        of `width` numbers. Takes no draw: a row is the same whenever it is asked for."""
        streams = self.branch("gumbel")._keys_B[:, None, None]
        counter = places[..., None] * width + torch.arange(1, width + 1, device=places.device)
        bits = _mix(streams + counter * GOLDEN)
        uniform = (_shift(bits, 32) + 1).to(torch.float32) * 2.0**-32  # near 0, where it decides, in the finest steps
        return -torch.log(-torch.log1p(-uniform))

    def keep(self, share: float, place: int, *shape: int) -> Tensor:
        """(B, *shape) bool, false for a share of the entries, to 2^-16. Takes no draw: the numbers of a `place` are the
        same whenever they are asked for. Four entries come of each 64 bits."""
        count = math.prod(shape)
        bits = _spread(_mix(self._keys_B + _wrap((place + 1) * DRAW)), (count + 3) // 4).view(torch.int16)
        return (bits[:, :count] >= round(share * 2**16) - 2**15).reshape(len(self), *shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """(B, *shape) int64 in [0, high)."""
        return (_shift(self._bits(math.prod(shape)), 1) % high).reshape(len(self), *shape)

    def permutation(self, n: int) -> Tensor:
        """(B, n) int64: a random order of 0..n-1 for each sample."""
        return self._bits(n).argsort(dim=1)


class Drawing(nn.Module):
    """A module that draws random numbers in training. noise: those of the samples of its next pass."""

    noise: Noise | None = None

    def draws(self, batch: Tensor) -> Noise:
        """The random numbers of a batch (B, ...) of this pass; by torch's generator where none were set."""
        if self.noise is None:
            self.noise = Noise(int(torch.randint(2**62, ())), torch.arange(len(batch), device=batch.device))
        return self.noise
