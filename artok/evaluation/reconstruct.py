"""`artok reconstruct`: pictures beside their reconstructions, differences and maps of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from artok.data.clip_files import read_clips
from artok.data.pictures import read_pictures
from artok.errors import RunError
from artok.images import from_uint8, save_grid, to_pil, to_uint8
from artok.layout import Tokens
from artok.metrics.reconstruction import psnr, ssim
from artok.noise import Noise
from artok.tokenizers.base import Tokenizer

PANEL = 256  # pixels of a panel's side
MARGIN, CAPTION = 8, 34


@dataclass
class Reconstructed:
    """The metrics of one picture. bits: of its tokens at a fixed code length, or None for continuous ones."""

    path: Path
    psnr: float
    ssim: float
    bits: float | None
    bits_per_pixel: float | None


@torch.no_grad()
def reconstruct(tokenizer: Tokenizer, paths: Sequence[Path], folder: Path) -> list[Reconstructed]:
    """A sheet for each picture, `<name>.png` in `folder`: original, reconstruction, difference, map of tokens.

    Pictures are cropped to a square and resized to the tokenizer's images. A tokenizer of videos takes video files, of
    which the first frames make a clip; its sheet has a row of frames for each of the first three, and a GIF beside it
    shows them moving. DataError: a file is missing, no image or no video, or too short.
    """
    layout = tokenizer.layout
    channels, side = layout.image[0], layout.image[-1]
    moving = len(layout.image) == 4
    originals = read_clips(paths, channels, layout.image[1], side) if moving else read_pictures(paths, channels, side)
    device = next(tokenizer.parameters(), originals).device  # pixels have no parameters
    tokens = tokenizer.encode(from_uint8(originals).to(device))
    decoded = to_uint8(tokenizer.decode(tokens)).cpu()
    bits = layout.bits if layout.discrete else None
    results = []
    for index, path in enumerate(paths):
        pair = originals[index : index + 1], decoded[index : index + 1]
        figures = Reconstructed(
            path, float(psnr(*pair)), float(ssim(*pair)), bits, layout.bits_per_pixel if layout.discrete else None
        )
        panels = originals[index], decoded[index]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if moving:
                rows, enlarged = torch.stack([*panels, subtract(*panels)]), max(1, PANEL // 4 // side)
                save_grid(rows, folder / f"{path.stem}.png", columns=len(rows), scale=enlarged)
            else:
                draw(*panels, token_map(tokens[index : index + 1]), figures).save(folder / f"{path.stem}.png")
        except OSError as error:
            raise RunError(f"could not write to {folder}: {error.strerror or error}") from None
        results.append(figures)
    return results


def token_map(tokens: Tokens) -> Tensor:
    """One image's tokens as colours (3, h, w) uint8, on the finest grid: a colour per code, or three components."""
    finest = list(tokens.layout.scales())[-1]
    values = tokens.values[0, finest].cpu()
    if tokens.layout.discrete:
        colours = Noise(0, values[:, -1]).integers(224, 3) + 32
    else:
        parts = torch.cat([values, values.new_zeros(len(values), 3)], dim=1)[:, :3]
        low, high = parts.amin(0), parts.amax(0)
        colours = (parts - low) / (high - low).clamp(min=1e-6) * 255
    width = tokens.layout.grid[-1]  # a sequence is a row, a video its frames one below another
    return colours.T.unflatten(1, (-1, width)).to(torch.uint8)


def subtract(original: Tensor, decoded: Tensor) -> Tensor:
    """Half of the difference of uint8 images, around grey."""
    return ((decoded.short() - original.short()) / 2 + 128).clamp(0, 255).to(torch.uint8)


def draw(original: Tensor, decoded: Tensor, codes: Tensor, figures: Reconstructed) -> Image.Image:
    """The four panels with their captions."""
    bits = (
        f"{figures.bits:,.0f} bits, {figures.bits_per_pixel:.3f} a pixel" if figures.bits is not None else "continuous"
    )
    panels = [
        (original, "original"),
        (decoded, f"reconstruction\nPSNR {figures.psnr:.2f} dB, SSIM {figures.ssim:.3f}"),
        (subtract(original, decoded), "difference\nhalf of it, around grey"),
        (codes, f"tokens, {codes.shape[1]}x{codes.shape[2]}\n{bits}"),
    ]
    width = len(panels) * (PANEL + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, PANEL + CAPTION + 2 * MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for index, (pixels, caption) in enumerate(panels):
        left = MARGIN + index * (PANEL + MARGIN)
        enlarged = to_pil(pixels).convert("RGB").resize((PANEL, PANEL), _filter(pixels))
        sheet.paste(enlarged, (left, MARGIN))
        pen.multiline_text((left, PANEL + MARGIN + 4), caption, fill="black", font=font, spacing=2)
    return sheet


def _filter(pixels: Tensor) -> Image.Resampling:
    return Image.Resampling.LANCZOS if pixels.shape[-1] > PANEL else Image.Resampling.NEAREST
