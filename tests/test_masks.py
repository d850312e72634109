"""Masks of editing: what they hide, what replaces hidden pixels before an image is encoded, and how results fade in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from artok.errors import ConfigError, LayoutError
from artok.layout import TokenLayout
from artok.masks import blank, draw_masks, fade, find_known, name_mask, paste, require_places
from artok.noise import Noise

LAYOUT = TokenLayout(((2, 2), (4, 4)), 1, 8, (1, 16, 16))


def hide(height: int, width: int, rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, rows, columns] = True
    return mask


def random_images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mask", ["left", "box", "outpaint", "random"])
def test_nothing_hidden_is_left_and_known_pixels_stay(mask: str) -> None:
    images = random_images(3, 2, 16, 16)
    hidden = name_mask(mask, LAYOUT, torch.arange(3)).expand(3, -1, -1)
    filled = blank(images, hidden)
    known = ~hidden[:, None].expand_as(images)
    assert torch.equal(filled[known], images[known])
    for other in (0.0, 7.0, float("nan")):
        assert torch.equal(blank(torch.where(hidden[:, None], other, images), hidden), filled)
    assert torch.equal(blank(images[1:2], hidden[1:2]), filled[1:2])


def test_an_image_without_known_pixels_becomes_zero() -> None:
    images = random_images(1, 1, 6, 9)
    assert torch.equal(blank(images, torch.ones(1, 6, 9, dtype=torch.bool)), torch.zeros_like(images))


@pytest.mark.parametrize("size", [(16, 16), (33, 20), (5, 64)])
def test_a_hole_in_a_slope_is_filled_with_the_slope(size: tuple[int, int]) -> None:
    """A plane solves Laplace's equation, and the hole reaches no edge of the image, where the border is flat."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="ij")
    image = (0.3 * y + 0.7 * x)[None, None]
    mask = hide(*size, slice(2, size[0] - 2), slice(size[1] // 4, size[1] // 2))
    filled = blank(image, mask)
    error = (filled - image).abs().max()
    flat = image[~mask[:, None]].mean()
    assert error < 0.25 * (flat - image)[mask[:, None]].abs().max()


def test_a_hidden_side_continues_the_pixels_beside_it_row_by_row() -> None:
    """Far from the border a solution tends to the mean of the border; beside it it equals its neighbour's value."""
    image = torch.zeros(1, 1, 16, 16)
    image[..., :8, :] = 1
    image[..., 12:] = 0.5  # away from the border: it must not matter
    filled = blank(image, hide(16, 16, slice(None), slice(0, 8)))
    assert filled[..., 2, 7] > 0.9 and filled[..., 13, 7] < 0.1
    far = filled[0, 0, :, 0]
    assert far.max() - far.min() < 0.6 and abs(float(far.mean()) - 0.5) < 0.05


def test_only_the_rim_of_the_known_part_decides_the_fill() -> None:
    """A line one pixel behind the rim shares a pixel with it at half the size, and leaves the fill as it is."""
    image = torch.zeros(1, 1, 16, 16)
    image[..., 9] = 1
    assert blank(image, hide(16, 16, slice(None), slice(0, 8)))[..., :8].max() < 0.01


def test_a_token_is_known_when_no_pixel_of_its_cell_is_hidden() -> None:
    known = find_known(hide(16, 16, slice(3, 5), slice(9, 10)), LAYOUT)[0]
    assert known[:4].tolist() == [True, False, True, True]
    fine = torch.ones(4, 4, dtype=torch.bool)
    fine[0:2, 2] = False
    assert torch.equal(known[4:].view(4, 4), fine)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("left", hide(16, 16, slice(None), slice(0, 8))),
        ("right:.25", hide(16, 16, slice(None), slice(12, 16))),
        ("top", hide(16, 16, slice(0, 8), slice(None))),
        ("bottom:0.5", hide(16, 16, slice(8, 16), slice(None))),
        ("box", hide(16, 16, slice(4, 12), slice(4, 12))),
        ("box:1,2,5,16", hide(16, 16, slice(2, 16), slice(1, 5))),
        ("outpaint:.25", ~hide(16, 16, slice(2, 14), slice(2, 14))),
    ],
)
def test_named_masks_hide_what_they_say(text: str, hidden: Tensor) -> None:
    assert torch.equal(name_mask(text, LAYOUT), hidden)


def test_random_masks_hide_a_share_of_the_cells_and_belong_to_their_sample() -> None:
    masks = name_mask("random:.25", LAYOUT, torch.arange(5))
    cells = masks.view(5, 4, 4, 4, 4).transpose(2, 3).flatten(3)
    assert torch.equal(cells.any(3), cells.all(3)) and cells.all(3).flatten(1).sum(1).tolist() == [4] * 5
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(name_mask("random:.25", LAYOUT, torch.tensor([3]))[0], masks[3])


@pytest.mark.parametrize("text", ["middle", "left:0", "left:1", "box:nan", "box:3,3,3,9", "box:0,0,17,4", "box:1,2,3"])
def test_a_text_that_names_no_mask_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="mask"):
        name_mask(text, LAYOUT)


def test_tokens_without_places_have_no_masks() -> None:
    with pytest.raises(LayoutError, match="editing needs tokens on grids"):
        require_places(TokenLayout(((32,),), 1, 8, (1, 16, 16)))


def test_training_masks_are_of_every_kind_and_belong_to_their_sample() -> None:
    noise = Noise(0, torch.arange(400))
    masks = draw_masks(noise, LAYOUT)
    share = masks.flatten(1).double().mean(1)
    assert masks.any() and (masks.flatten(1).any(1)).all()
    assert 20 < int((share == 1).sum()) < 90  # an eighth hides everything: 50, and its deviation is 6.6
    sides = [masks[:, :, 0].all(1), masks[:, :, -1].all(1), masks[:, 0].all(1), masks[:, -1].all(1)]
    assert all(int(side.sum()) > 50 for side in sides)
    border = torch.stack([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]]).any(0).any(1)
    assert int((~border).sum()) > 5  # boxes that touch no edge
    assert torch.equal(draw_masks(Noise(0, torch.tensor([7, 3])), LAYOUT), masks[[7, 3]])


def test_feathering_falls_with_the_distance_and_never_reads_hidden_pixels() -> None:
    mask = hide(16, 16, slice(None), slice(0, 8))
    assert fade(mask, 2.0)[0, 5, 6:12].tolist() == pytest.approx([1, 1, 0.6, 0.2, 0, 0])
    corner = fade(hide(16, 16, slice(0, 4), slice(0, 4)), 2.0)[0]
    assert corner[4, 4] == pytest.approx(1 - 2**0.5 / 2.5)
    made, images = torch.ones(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    images[..., :8] = float("nan")
    assert paste(made, images, mask, 2.0)[0, 0, 0, 7:11].tolist() == pytest.approx([1, 0.6, 0.2, 0])
    assert paste(made, images, mask)[0, 0, 0, 7:9].tolist() == [1, 0]
