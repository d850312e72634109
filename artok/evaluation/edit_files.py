"""`artok edit`: the hidden part of a picture made anew, as files beside the original and the mask."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from artok.data.pictures import read_pictures
from artok.errors import ConfigError, RunError
from artok.images import from_uint8, grid, to_pil, to_uint8
from artok.layout import TokenLayout
from artok.masks import name_mask

SIDE = 64  # pixels of an image on the sheet, at least
WHITE = 128  # of a mask's picture: from here on a pixel is hidden


def read_edit(image: Path, mask: str, layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """A picture (1, C, H, W) in [-1, 1], and a mask (1, H, W) bool, True where hidden.

    mask: what `name_mask` reads, or a picture that is white where the image is hidden, as large as the picture or as
    the model's images. The picture is cropped to a square and resized to the model's images, and its mask with it.
    DataError: a file is missing or no picture. ConfigError: the mask has another size, or its text says nothing.
    """
    channels, *size = layout.image
    pixels = from_uint8(read_pictures([image], channels, size[-1]))
    path = Path(mask)
    if not path.suffix or (not path.exists() and ":" in mask):
        return pixels, name_mask(mask, layout)
    drawn = read_pictures([path], 1, size[-1])
    sizes = [_size(path), _size(image)]
    if sizes[0] not in (sizes[1], (size[-1], size[-2])):
        raise ConfigError(
            f"the mask {path} has {sizes[0][0]}x{sizes[0][1]} pixels; draw it as large as the picture "
            f"({sizes[1][0]}x{sizes[1][1]}) or as the model's images ({size[-1]}x{size[-2]})"
        )
    return pixels, drawn[:, 0] >= WHITE


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"{path} cannot be read as a picture ({error})") from None


def write_edit(image: Tensor, mask: Tensor, made: Tensor, folder: Path) -> None:
    """`original.png`, `mask.png`, each result as `00000.png`, and `sheet.png` with all of them side by side.

    image: (1, C, H, W). mask: (1, H, W) bool. made: (n, C, H, W), in [-1, 1].
    RunError: the folder cannot be written to.
    """
    white = torch.where(mask[:, None], 1.0, -1.0).expand_as(image)
    hidden = torch.where(mask[:, None], 0.0, image)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, pixels in (("original", image), ("mask", white)):
            to_pil(pixels[0]).save(folder / f"{name}.png")
        for number, result in enumerate(made):
            to_pil(result).save(folder / f"{number:05d}.png")
        sheet = torch.cat([to_uint8(part) for part in (image, hidden, made)])
        grid(sheet, columns=len(sheet), scale=max(1, SIDE // image.shape[-1])).save(folder / "sheet.png")
    except OSError as error:
        raise RunError(f"could not write to {folder}: {error.strerror or error}") from None
