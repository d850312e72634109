"""Short digests of data, which tie cached tokens and results to what they were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

WHOLE = 256 * 2**20  # bytes that are read in full; of more, only names and sizes and the ends of each file
END = 64 * 1024


def digest_parts(*parts: object) -> str:
    """16 hexadecimal digits of anything with a stable text."""
    return hashlib.blake2b("\n".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def digest_tensor(values: Tensor) -> str:
    return hashlib.blake2b(values.contiguous().numpy().tobytes(), digest_size=8).hexdigest()


def digest_files(paths: Sequence[Path], names: Sequence[str]) -> str:
    """Of files under names that do not depend on the machine.

    Up to 256 MiB altogether are read in full. Beyond that a file counts by its name, its size and, when the files are
    few, its first and last 64 KiB (a parquet file's end holds the statistics of its columns), since reading ImageNet
    at every start would take minutes.
    """
    sizes = [path.stat().st_size for path in paths]
    digest = hashlib.blake2b(digest_size=8)
    whole, ends = sum(sizes) <= WHOLE, len(paths) * 2 * END <= WHOLE
    for path, name, size in zip(paths, names, sizes, strict=True):
        digest.update(f"{name}\n{size}\n".encode())
        if whole:
            digest.update(path.read_bytes())
        elif ends:
            with path.open("rb") as file:
                digest.update(file.read(END))
                file.seek(max(0, size - END))
                digest.update(file.read(END))
    return digest.hexdigest()
