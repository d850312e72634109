"""Decodes pictures of any mode to (R, R) pixels.

Resizing follows ADM's `center_crop_arr` (Dhariwal and Nichol 2021, guided-diffusion/image_datasets.py), which the
published reference statistics of ImageNet use: halve with a box filter while the shorter side is at least 2 R, bicubic
to R, crop the centre.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import fsspec
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

Encoded: TypeAlias = bytes | str | None  # the bytes of a file, its path or URL, or a missing image

LARGE = 16 * 1024  # bytes of a file above which decoding in threads is faster, since decoding releases the GIL
PANORAMA = 4  # images of a larger aspect ratio are cropped before resizing, which would need too much memory


@dataclass
class Picture:
    """pixels: (C, R, R) uint8. enlarged: the shorter side of the file was below R."""

    pixels: Tensor
    enlarged: bool


def decode(encoded: Encoded, channels: int, side: int) -> Picture | str:
    """Decode a picture. Returns the reason as text if it cannot be read."""
    try:
        if encoded is None:
            return "the image is missing"
        data = _read(encoded)
        if not data:
            return "the file is empty"
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image) if "exif" in image.info else image
            plain = convert(upright, channels)
        pixels = torch.from_numpy(np.array(square(plain, side))).view(side, side, channels).permute(2, 0, 1)
        return Picture(pixels, min(plain.size) < side)
    except UnidentifiedImageError:
        return "it is no picture, or its beginning is damaged"
    except OSError as error:
        return error.strerror or str(error)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise many kinds of errors on damaged bytes
        return " ".join(str(error).split())[:120] or type(error).__name__


def decode_all(encoded: Sequence[Encoded], channels: int, side: int) -> list[Picture | str]:
    """`decode` for each picture, in threads if the files are large."""
    threads = min(4, os.cpu_count() or 1)
    in_worker = torch.utils.data.get_worker_info() is not None
    if threads < 2 or in_worker or len(encoded) < 8 or not _large(encoded):
        return [decode(each, channels, side) for each in encoded]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda each: decode(each, channels, side), encoded))


def _large(encoded: Sequence[Encoded]) -> bool:
    sizes = [len(each) for each in encoded if isinstance(each, bytes)]
    return not sizes or sum(sizes) > LARGE * len(sizes)


def _read(encoded: bytes | str) -> bytes:
    if isinstance(encoded, bytes):
        return encoded
    if "://" in encoded:
        with fsspec.open(encoded, "rb") as file:
            return bytes(file.read())
    return Path(encoded).read_bytes()


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Convert any mode to L (channels 1) or RGB (channels 3): transparency over white, 16 bits scaled to 8."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        scaled = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def square(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to `side` and crop the centre square."""
    if image.size == (side, side):
        return image
    reach = PANORAMA * min(image.size)
    image = _centre(image, min(image.width, reach), min(image.height, reach))
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _centre(resized, side, side)


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
