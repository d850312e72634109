"""Pictures inside a page: images, strips of images, animations and plots as data URIs, each with its text."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from artok.images import FRAME_RATE, to_pil

LARGEST = 96  # pixels of an image's side on a page; larger ones are made smaller, to keep the page small
CRISP = 64  # up to this side images are enlarged by whole pixels, and kept to the bit unless they are photographs
COLOURS = 256  # more of them in one picture make it a photograph, which takes five times less space with a small loss
GAP = 1  # pixels between the images of a strip, transparent


@dataclass(frozen=True)
class Picture:
    """uri: all of the file. alt: what it shows, in words. width, height: CSS pixels to show it at.

    crisp: enlarged pixel by pixel. still: an animation's last frame, shown on paper and to readers who asked for less
    motion. figure: a plot's, to write it in other formats.
    """

    uri: str
    alt: str
    width: int
    height: int
    crisp: bool = False
    still: str | None = None
    figure: Figure | None = field(default=None, repr=False, compare=False)


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def strip(images: Tensor, alt: str, side: int, columns: int | None = None) -> Picture:
    """Images (B, C, H, W) uint8 in rows of `columns`, one row unless told, each about `side` CSS pixels wide; clips
    (B, C, T, H, W) likewise, moving."""
    if images.ndim == 5:
        count = images.shape[2]
        return animation(images.unbind(2), alt, side, columns or len(images), count / FRAME_RATE, 1 / FRAME_RATE)
    sheet, scale = _sheet(images, columns or len(images), side)
    return _picture(sheet, alt, scale, crisp=images.shape[-1] <= CRISP)


def animation(
    frames: Sequence[Tensor], alt: str, side: int, columns: int, seconds: float = 4.0, hold: float = 2.0
) -> Picture:
    """An endless GIF of frames (B, C, H, W) uint8: `seconds` for all of them, `hold` for the last."""
    sheets = [_sheet(images, columns, side) for images in frames]
    scale, crisp = sheets[0][1], frames[0].shape[-1] <= CRISP
    still = _picture(sheets[-1][0], alt, scale, crisp)
    stream = io.BytesIO()
    pages = [_palette(sheet) for sheet, _ in sheets]
    each = max(20, round(1000 * seconds / len(pages)))
    durations = [each] * (len(pages) - 1) + [round(1000 * hold)]
    pages[0].save(
        stream,
        "GIF",
        save_all=True,
        append_images=pages[1:],
        duration=durations,
        loop=0,
        disposal=2,
        transparency=255,
        optimize=False,
    )
    uri = data_uri(stream.getvalue(), "image/gif")
    return Picture(uri, alt, still.width, still.height, crisp, still.uri)


def svg(text: str, alt: str, width: int, height: int, figure: Figure | None = None) -> Picture:
    return Picture(data_uri(text.encode(), "image/svg+xml"), alt, width, height, figure=figure)


def _sheet(images: Tensor, columns: int, side: int) -> tuple[Image.Image, float]:
    """Images on a transparent sheet, and CSS pixels for each of its pixels."""
    pictures = [to_pil(image).convert("RGB") for image in images]
    width, height = pictures[0].size
    if width > CRISP:
        height, width = max(1, round(height * LARGEST / width)), LARGEST
        pictures = [picture.resize((width, height), Image.Resampling.LANCZOS) for picture in pictures]
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGBA", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, ((index % columns) * (width + GAP), (index // columns) * (height + GAP)))
    return sheet, max(1, round(side / width)) if width <= CRISP else side / width


def _picture(sheet: Image.Image, alt: str, scale: float, crisp: bool) -> Picture:
    stream = io.BytesIO()
    exact = crisp and sheet.getcolors(COLOURS + 1) is not None  # and one for the gaps
    if exact:
        sheet.save(stream, "PNG", optimize=True)
    else:
        sheet.save(stream, "WEBP", quality=92 if crisp else 85)
    uri = data_uri(stream.getvalue(), "image/png" if exact else "image/webp")
    return Picture(uri, alt, round(sheet.width * scale), round(sheet.height * scale), crisp)


def _palette(sheet: Image.Image) -> Image.Image:
    """255 colours and a transparent one, which is all that a GIF can hold."""
    page = sheet.convert("RGB").quantize(255, dither=Image.Dither.NONE)
    page.paste(255, mask=sheet.getchannel("A").point(lambda alpha: 255 - alpha))
    return page


def thin(total: int, most: int) -> list[int]:
    """At most `most` indices spread evenly over range(total), the first and the last among them."""
    return sorted({round(index) for index in torch.linspace(0, total - 1, min(most, total)).tolist()})
