"""Decodes batches of pictures and clips, in threads where that is faster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from artok.data.clip_files import decode_clip
from artok.data.pictures import Clip, Encoded, Picture, Unreadable, decode

LARGE = 16 * 1024  # bytes of a file above which decoding in threads is faster, since decoding releases the GIL


def decode_one(encoded: Encoded, channels: int, side: int) -> Picture | Unreadable:
    """A picture (channels, side, side), or a clip (channels, T, side, side)."""
    return decode_clip(encoded, channels, side) if isinstance(encoded, Clip) else decode(encoded, channels, side)


def decode_all(encoded: Sequence[Encoded], channels: int, side: int) -> list[Picture | Unreadable]:
    """`decode_one` for each, in threads if the files are large."""
    threads = min(8, os.cpu_count() or 1)
    in_worker = torch.utils.data.get_worker_info() is not None
    if threads < 2 or in_worker or len(encoded) < 8 or not _large(encoded):
        return [decode_one(each, channels, side) for each in encoded]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda each: decode_one(each, channels, side), encoded))


def _large(encoded: Sequence[Encoded]) -> bool:
    sizes = [len(each) for each in encoded if isinstance(each, bytes)]
    return not sizes or sum(sizes) > LARGE * len(sizes)
