"""The arithmetic of token layouts, and refusals of values that do not fit them."""

import pytest
import torch

from artok.errors import LayoutError
from artok.layout import Condition, TokenLayout, Tokens

RASTER = TokenLayout(((16, 16),), 8, 16384, (3, 256, 256))
SCALES = TokenLayout(((1, 1), (2, 2), (3, 3)), 32, 4096, (3, 48, 48))
RESIDUAL = TokenLayout(((4, 4),), 8, 64, (1, 16, 16), codes=3)
LATENT = TokenLayout(((16, 16),), 16, None, (3, 256, 256))
VIDEO = TokenLayout(((3, 16, 16),), 8, 1024, (3, 17, 128, 128))


@pytest.mark.parametrize(
    ("layout", "length", "bits", "per_pixel"),
    [
        (RASTER, 256, 256 * 14, 256 * 14 / 65536),
        (SCALES, 14, 14 * 12, 14 * 12 / 2304),
        (RESIDUAL, 16, 16 * 3 * 6, 288 / 256),
        (VIDEO, 768, 7680, 7680 / (17 * 128 * 128)),
    ],
)
def test_length_and_bits(layout: TokenLayout, length: int, bits: float, per_pixel: float) -> None:
    assert layout.length == length
    assert layout.bits == pytest.approx(bits)
    assert layout.bits_per_pixel == pytest.approx(per_pixel)


def test_scales_cover_all_positions_in_order() -> None:
    assert [(part.start, part.stop) for part in SCALES.scales()] == [(0, 1), (1, 5), (5, 14)]
    assert SCALES.grid == (3, 3)


def test_continuous_tokens_have_vectors_and_no_bits() -> None:
    assert LATENT.value_shape() == (256, 16)
    assert RESIDUAL.value_shape() == (16, 3)
    with pytest.raises(LayoutError, match="bits"):
        _ = LATENT.bits


@pytest.mark.parametrize("layout", [RASTER, SCALES, RESIDUAL, LATENT, VIDEO])
def test_a_layout_survives_json(layout: TokenLayout) -> None:
    assert TokenLayout.from_dict(layout.to_dict()) == layout


def test_values_that_do_not_fit_are_refused_with_both_shapes() -> None:
    with pytest.raises(LayoutError, match=r"\(2, 15, 3\).*16, 3"):
        Tokens(torch.zeros(2, 15, 3), RESIDUAL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"grids": ()},
        {"grids": ((0, 4),)},
        {"vocab": 1},
        {"width": 0},
        {"vocab": None, "codes": 2},
    ],
)
def test_an_impossible_layout_is_refused(wrong: dict) -> None:
    with pytest.raises(LayoutError):
        TokenLayout(**{"grids": ((4, 4),), "width": 8, "vocab": 4, "image": (1, 8, 8)} | wrong)


def test_a_dropped_condition_says_no_label() -> None:
    condition = Condition(torch.tensor([0, 1, 2]))
    assert condition.dropped(torch.tensor([True, False, True]), 10).labels.tolist() == [10, 1, 10]
    assert condition.dropped(True, 10).labels.tolist() == [10, 10, 10]
