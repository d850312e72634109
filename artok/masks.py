"""Masks of editing: which pixels are hidden and to be made anew, and what they leave of the image's tokens."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from artok.errors import ConfigError, LayoutError, shorten
from artok.layout import TokenLayout
from artok.noise import Noise

SIDES = ("left", "right", "top", "bottom")
NAMES = "left, right, top, bottom, box, outpaint, random, each with :share, or box:x0,y0,x1,y1 in pixels"
SHARES = (0.25, 0.75)  # of a side, hidden in training
SWEEPS = 16  # of averaging at each size; what is far is settled at the smaller ones


def name_mask(text: str, layout: TokenLayout, samples: Tensor | None = None) -> Tensor:
    """The mask (B, H, W) bool that a text names, True where hidden; one row unless it is drawn for `samples` (B,).

    left, right, top, bottom: that share of the image, half of it unless given. box: a central box with that share of
    both sides, or `box:x0,y0,x1,y1` in pixels, x1 and y1 excluded. outpaint: all but such a central box, of which
    `share` of both sides is hidden. random: that share of the cells of the finest grid, drawn for each sample.
    ConfigError: another text, a share outside 0 to 1, or a box without pixels.
    """
    grid = require_places(layout)
    height, width = layout.image[1:]
    name, _, given = text.partition(":")
    if name == "box" and "," in given:
        corners = [float(word) if _is_number(word) else -1.0 for word in given.split(",")]
        if len(corners) != 4 or not (0 <= corners[0] < corners[2] <= width and 0 <= corners[1] < corners[3] <= height):
            raise ConfigError(
                f"mask {shorten(repr(text))} must be box:x0,y0,x1,y1 with x0 < x1 up to {width} and y0 < y1 up to "
                f"{height}"
            )
        x0, y0, x1, y1 = (round(corner) for corner in corners)
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        mask[:, y0:y1, x0:x1] = True
        return mask
    share = 0.5 if not given else float(given) if _is_number(given) else 0.0
    if name not in (*SIDES, "box", "outpaint", "random") or not 0 < share < 1:
        raise ConfigError(f"mask {shorten(repr(text))} is neither a picture nor one of {NAMES}; a share is from 0 to 1")
    if name == "random":
        cells = Noise(0, torch.zeros(1, dtype=torch.int64) if samples is None else samples).uniform(*grid)
        ranks = cells.flatten(1).argsort(1).argsort(1).view_as(cells)
        return enlarge(ranks < max(1, round(share * cells[0].numel())), (height, width))
    full, kept = torch.ones(1), torch.full((1,), share)
    middle = torch.full((1,), 0.5)
    if name == "outpaint":
        return ~draw_box(1 - kept, 1 - kept, middle, middle, (height, width))
    if name == "box":
        return draw_box(kept, kept, middle, middle, (height, width))
    tall, wide = (full, kept) if name in ("left", "right") else (kept, full)
    end = torch.full((1,), float(name in ("right", "bottom")))
    return draw_box(tall, wide, end, end, (height, width))


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False


def draw_box(tall_B: Tensor, wide_B: Tensor, down_B: Tensor, right_B: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (B, H, W) bool with shares of both sides, placed by shares of the room that is left beside them."""
    sides = []
    for share, place, length in ((tall_B, down_B, size[0]), (wide_B, right_B, size[1])):
        extent = (share * length).round().clamp(min=1)
        first = (place * (length - extent)).round()
        at = torch.arange(length, device=share.device)
        sides.append((at >= first[:, None]) & (at < (first + extent)[:, None]))
    return sides[0][:, :, None] & sides[1][:, None]


def draw_masks(noise: Noise, layout: TokenLayout) -> Tensor:
    """Training masks (B, H, W) bool, True where hidden: a side, a box, all but a box, random cells, or everything.

    Half of them follow the cells of the finest grid. Each sample's mask depends on its own noise.
    """
    grid, (height, width) = require_places(layout), layout.image[1:]
    kind, aligned, tall, wide, down, right = noise.uniform(6).unbind(1)
    cells = noise.uniform(*grid)
    low, high = SHARES
    tall, wide, one = low + (high - low) * tall, low + (high - low) * wide, torch.ones_like(tall)
    kind = (kind * 8).long()
    across, along = (kind == 0) | (kind == 1), (kind == 2) | (kind == 3)  # left and right, top and bottom
    end = torch.where(across | along, (kind % 2).float(), one)
    tall_, wide_ = torch.where(across, one, tall), torch.where(along, one, wide)
    down, right = (torch.where(across | along, end, place) for place in (down, right))

    def at(size: tuple[int, int]) -> Tensor:
        mask = draw_box(tall_, wide_, down, right, size)
        mask = mask ^ (kind == 5)[:, None, None]  # all but a box
        return mask | (kind == 7)[:, None, None]

    fine, coarse = at((height, width)), enlarge(at(grid), (height, width))
    mask = torch.where((aligned < 0.5)[:, None, None], coarse, fine)
    scattered = enlarge(cells < tall[:, None, None], (height, width))
    return torch.where((kind == 6)[:, None, None], scattered, mask)


def enlarge(mask_Bhw: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask of a grid's cells as one of pixels."""
    return F.interpolate(mask_Bhw[:, None].float(), size=size, mode="nearest")[:, 0] > 0.5


def require_places(layout: TokenLayout) -> tuple[int, int]:
    """The finest grid. LayoutError: the tokens have no places in an image, so no mask says which of them are known."""
    if len(layout.image) != 3 or any(len(grid) != 2 for grid in layout.grids):
        raise LayoutError(f"editing needs tokens on grids over an image, and these are {layout}")
    return layout.grid[0], layout.grid[1]


def check_mask(images: Tensor, mask: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and masks (B, H, W) bool of an edit, one for each image.

    ConfigError: they do not fit the model's images or each other, a mask hides nothing, everything, or a part of the
    cell of every token, or its values are no flags.
    """
    cell = "x".join(str(side // cells) for side, cells in zip(layout.image[1:], require_places(layout), strict=True))
    if tuple(images.shape[1:]) != layout.image:
        raise ConfigError(f"the model edits images of {layout.image} (channels, *size), got {tuple(images.shape[1:])}")
    masks = mask if mask.ndim == 3 else mask[None]
    if mask.ndim not in (2, 3) or tuple(masks.shape[1:]) != layout.image[1:] or len(masks) not in (1, len(images)):
        size = "x".join(map(str, layout.image[1:]))
        raise ConfigError(f"a mask of {tuple(mask.shape)} does not go with {len(images)} images of {size} pixels")
    if mask.dtype != torch.bool:
        raise ConfigError(f"a mask holds True where a pixel is hidden and False elsewhere, not {mask.dtype}")
    hidden = masks.flatten(1)
    if not hidden.any(1).all():
        raise ConfigError("the mask hides nothing, so nothing is to be made; hide some pixels")
    if hidden.all(1).any():
        raise ConfigError("the mask hides the whole image, so nothing is kept; sample a new image instead")
    if not find_known(masks, layout).any(1).all():
        raise ConfigError(
            f"the mask reaches into the cell of every token ({cell} pixels), so none is known; hide fewer"
        )
    return images, masks.expand(len(images), -1, -1)


def find_known(mask_BHW: Tensor, layout: TokenLayout) -> Tensor:
    """(B, N) bool: the tokens, of every scale, in whose cell no pixel is hidden."""
    require_places(layout)
    hidden = mask_BHW[:, None].float()
    return torch.cat([F.adaptive_max_pool2d(hidden, grid).flatten(1) == 0 for grid in layout.grids], dim=1)


def blank(images_BCHW: Tensor, mask_BHW: Tensor) -> Tensor:
    """Images whose hidden pixels blend the known ones around them, so that nothing hidden is left.

    Each hidden pixel is about the mean of its four neighbours (Laplace's equation), which puts no edge along the mask
    into the tokens beside it. An image without known pixels becomes 0.
    """
    hidden = mask_BHW[:, None]
    known = (~hidden).to(images_BCHW.dtype)
    return blend(torch.where(hidden, 0, images_BCHW), known)


def blend(values_BCHW: Tensor, known_B1HW: Tensor) -> Tensor:
    """Values, 0 where unknown, with these solved from the others: first at half the size, then by `SWEEPS` sweeps."""
    size = values_BCHW.shape[2:]
    if max(size) == 1:
        return values_BCHW
    half = partial(F.avg_pool2d, kernel_size=2, ceil_mode=True, count_include_pad=False)
    rim = known_B1HW * F.max_pool2d(1 - known_B1HW, 3, stride=1, padding=1)  # known values beside unknown ones
    weight = rim + 1e-4 * known_B1HW  # the others decide nothing but their own place
    share = half(weight)
    coarse = blend(half(weight * values_BCHW) / share.clamp(min=1e-6), (share > 0).to(share.dtype))
    smooth = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    for _ in range(SWEEPS):
        blended = torch.where(known_B1HW > 0, values_BCHW, smooth)
        above, left = (F.pad(blended, edge, mode="replicate") for edge in ((0, 0, 1, 1), (1, 1, 0, 0)))
        smooth = (above[:, :, :-2] + above[:, :, 2:] + left[..., :-2] + left[..., 2:]) / 4
    return torch.where(known_B1HW > 0, values_BCHW, smooth)


def paste(made_BCHW: Tensor, images_BCHW: Tensor, mask_BHW: Tensor, feather: float = 0.0) -> Tensor:
    """The made pixels where hidden and the images' own elsewhere.

    feather: width in pixels of the border, outside the mask, over which one fades into the other; 0 keeps every known
    pixel as it was. Hidden pixels of `images` are never read.
    """
    if feather <= 0:
        return torch.where(mask_BHW[:, None], made_BCHW, images_BCHW)
    share = fade(mask_BHW, feather)[:, None]
    return torch.where(
        share == 1, made_BCHW, torch.where(share == 0, images_BCHW, torch.lerp(images_BCHW, made_BCHW, share))
    )


def fade(mask_BHW: Tensor, width: float) -> Tensor:
    """(B, H, W) float: 1 in the mask, falling linearly to 0 at a distance of `width` pixels and a half from it."""
    reach = int(width) + 1
    at = torch.arange(-reach, reach + 1, device=mask_BHW.device)
    share = mask_BHW.float()
    padded = F.pad(share[:, None], (reach,) * 4)
    for down in at.tolist():
        for right in at.tolist():
            weight = 1 - (down**2 + right**2) ** 0.5 / (width + 0.5)
            if 0 < weight < 1:
                there = padded[:, 0, reach + down :, reach + right :][:, : share.shape[1], : share.shape[2]]
                share = torch.maximum(share, weight * there)
    return share
