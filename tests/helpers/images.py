"""Small images as files and as bytes."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from artok.data.base import Split


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def paint(path: Path, value: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def values(split: Split) -> list[int]:
    return split.read(range(len(split))).images[:, 0, 0, 0].tolist()
