"""Decodes pictures of any mode to (R, R) pixels.

Resizing follows ADM's `center_crop_arr` (Dhariwal and Nichol 2021, guided-diffusion/image_datasets.py), which the
published reference statistics of ImageNet use: halve with a box filter while the shorter side is at least 2 R, bicubic
to R, crop the centre.

Only formats that Pillow decodes by itself are opened: it would hand PostScript, whatever a file's name, to ghostscript.
"""

from __future__ import annotations

import errno
import io
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import fsspec
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from artok.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")  # AVIF from Pillow 11.3 on
ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".pbm"
)  # fmt: skip
WAITS = (0.1, 0.5, 2.5)  # seconds before another attempt at a read that failed
LASTING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}
PANORAMA = 4  # images of a larger aspect ratio are cropped before resizing, which would need too much memory

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # on odd metadata of a picture that is read


@dataclass
class Picture:
    """pixels: (C, R, R) uint8. size: width and height of the file's picture. enlarged: the shorter one was below R."""

    pixels: Tensor
    size: tuple[int, int]
    enlarged: bool


@dataclass(frozen=True)
class Unreadable:
    """Why a picture cannot be read. transient: the disk or the network failed, so a later read may succeed."""

    reason: str
    transient: bool = False


@dataclass(frozen=True)
class Mapped:
    """An image and the map of so many channels that comes with it."""

    image: Encoded
    map: Encoded
    channels: int


@dataclass(frozen=True)
class VideoLength:
    """frames of a video, and how many a second has, on average."""

    frames: int
    rate: float


@dataclass(frozen=True)
class Clip:
    """Some frames of a video file, from number `first` on, at `fps` frames per second or as the file has them.

    length: of the video, where it is known.
    """

    file: bytes | str | Unreadable | None
    first: int
    frames: int
    fps: float | None
    length: VideoLength | None = None


Encoded: TypeAlias = bytes | str | Mapped | Clip | Unreadable | None  # the bytes of a file, its path or URL, or nothing


def decode(encoded: Encoded, channels: int, side: int) -> Picture | Unreadable:
    """Decode a picture; of an animation its first frame. A read that fails is repeated for some seconds.

    A map's channels follow those of its image.
    """
    if isinstance(encoded, Mapped):
        return _decode_mapped(encoded, channels, side)
    assert not isinstance(encoded, Clip), "of videos, see artok.data.decoding"
    data = read_bytes(encoded)
    if isinstance(data, Unreadable):
        return data
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            image.load()
            if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):  # others hold 16 bits in "I"
                return Unreadable("pixels of 32 bits have no fixed range; store 8 or 16 bits")
            upright = ImageOps.exif_transpose(image) if "exif" in image.info else image
            plain = convert(upright, channels)
        pixels = torch.from_numpy(np.array(square(plain, side))).view(side, side, channels).permute(2, 0, 1)
        return Picture(pixels, plain.size, min(plain.size) < side)
    except UnidentifiedImageError:
        return Unreadable(f"it is no picture of a known format ({', '.join(_formats())}), or its beginning is damaged")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise many kinds of errors on damaged bytes
        return Unreadable(_text(error))


def read_bytes(encoded: bytes | str | Unreadable | None) -> bytes | Unreadable:
    """The bytes of a file. A read that fails is repeated for some seconds."""
    if encoded is None:
        return Unreadable("the image is missing")
    if isinstance(encoded, Unreadable):
        return encoded
    try:
        data = _read(encoded)
    except MemoryError:
        raise
    except Exception as error:  # clients of remote files raise errors of their own
        return Unreadable(_text(error), _may_pass(error))
    return data or Unreadable("the file is empty")


def _decode_mapped(encoded: Mapped, channels: int, side: int) -> Picture | Unreadable:
    image = decode(encoded.image, channels, side)
    if isinstance(image, Unreadable):
        return image
    if encoded.map is None:
        return Unreadable("its map is missing")
    found = decode(encoded.map, encoded.channels, side)
    if isinstance(found, Unreadable):
        return Unreadable(f"its map: {found.reason}", found.transient)
    width, height = image.size
    if abs(found.size[0] * height - found.size[1] * width) > max(width, height):  # up to a pixel of rounding
        sizes = (f"{across}x{down}" for across, down in (found.size, image.size))
        return Unreadable("its map has {} pixels and the image {}, which are other proportions".format(*sizes))
    return Picture(torch.cat([image.pixels, found.pixels]), image.size, image.enlarged)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _text(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:120] or type(error).__name__


def _may_pass(error: Exception) -> bool:
    """Whether another attempt at a failed read makes sense."""
    if isinstance(error, OSError):
        return error.errno not in LASTING and not isinstance(error, FileNotFoundError | PermissionError)
    return not isinstance(error, ImportError | ValueError | MemoryError)  # no client for such a URL, an impossible path


def read_pictures(paths: Sequence[Path], channels: int, side: int) -> Tensor:
    """Files as (N, channels, side, side) uint8. DataError: one is missing or no picture."""
    pixels = []
    for path in paths:
        if not path.is_file():
            raise DataError(f"there is no picture {path}")
        picture = decode(str(path), channels, side)
        if isinstance(picture, Unreadable):
            raise DataError(f"{path} cannot be read as a picture ({picture.reason})")
        pixels.append(picture.pixels)
    return torch.stack(pixels)


def _read(encoded: bytes | str) -> bytes:
    """The bytes of a file. Errors that may pass are raised after further attempts only."""
    if isinstance(encoded, bytes):
        return encoded
    for wait in WAITS:
        try:
            return _read_once(encoded)
        except Exception as error:
            if not _may_pass(error):
                raise
        time.sleep(wait)
    return _read_once(encoded)


def _read_once(place: str) -> bytes:
    if "://" in place:
        with fsspec.open(place, "rb") as file:
            return bytes(file.read())
    path = Path(place)
    if path.exists() and not path.is_file():  # a pipe would wait for its writer
        raise IsADirectoryError(errno.EISDIR, "it is no file")
    return path.read_bytes()


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Convert any mode to L (channels 1) or RGB (channels 3): transparency over white, 16 bits scaled to 8."""
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
