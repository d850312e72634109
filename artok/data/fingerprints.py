"""Short digests of data, stored with cached tokens and results to identify their source."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

WHOLE = 256 * 2**20  # bytes; larger data are digested by names, sizes and the ends of files
END = 64 * 1024


def digest_parts(*parts: object) -> str:
    """16 hexadecimal digits of values with a stable `str`."""
    return hashlib.blake2b("\n".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def digest_tensor(values: Tensor) -> str:
    return hashlib.blake2b(values.contiguous().numpy().tobytes(), digest_size=8).hexdigest()


def digest_files(paths: Sequence[str | Path], names: Sequence[str]) -> str:
    """Digest files, under names that do not depend on the machine.

    Up to 256 MiB in total are read in full. Larger data are digested by name, size and, when the files are few, the
    first and last 64 KiB of each (a parquet file ends with the statistics of its columns), since reading ImageNet at
    every start would take minutes.
    """
    sizes = [os.stat(path).st_size for path in paths]
    digest = hashlib.blake2b(digest_size=8)
    whole, ends = sum(sizes) <= WHOLE, len(paths) * 2 * END <= WHOLE
    for path, name, size in zip(paths, names, sizes, strict=True):
        digest.update(os.fsencode(name) + f"\n{size}\n".encode())
        if whole:
            digest.update(Path(path).read_bytes())
        elif ends:
            with open(path, "rb") as file:
                digest.update(file.read(END))
                file.seek(max(0, size - END))
                digest.update(file.read(END))
    return digest.hexdigest()


def digest_contents(paths: Sequence[str]) -> str:
    """Digest of all bytes of files."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def find_originals(paths: Sequence[str]) -> list[int]:
    """For each file the first index of a file with the same bytes, which may be its own.

    In data of more than 256 MiB only links to one file are found, since reading all would take too long.
    """
    stats = [os.stat(path) for path in paths]
    whole = sum(stat.st_size for stat in stats) <= WHOLE
    alike = Counter(stat.st_size for stat in stats)
    first: dict[object, int] = {}
    originals = []
    for index, (path, stat) in enumerate(zip(paths, stats, strict=True)):
        key: object = (stat.st_dev, stat.st_ino)
        if whole and alike[stat.st_size] > 1:
            key = hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()
        originals.append(first.setdefault(key, index))
    return originals
