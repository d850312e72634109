"""The arithmetic of token layouts, and refusals of values that do not fit them."""

import pytest
import torch

from artok.errors import LayoutError
from artok.layout import NO_LABEL, Condition, Text, TokenLayout, Tokens

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


def test_a_position_is_a_place_only_with_an_axis_for_each_of_the_sample() -> None:
    assert RASTER.spatial
    assert VIDEO.spatial
    assert not SCALES.spatial
    assert not TokenLayout(((32,),), 8, 1024, (3, 64, 64)).spatial


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


PARTS = {
    "labels": torch.tensor([0, 1, 2]),
    "text": Text(torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)),
    "known": Tokens(torch.randn(3, 256, 16), LATENT, torch.rand(3, 256) < 0.5),
    "control": torch.ones(3, 2, 16, 16),
}


def null_of(condition: Condition, part: str) -> torch.Tensor:
    """Where the part is null, (B,) bool."""
    if part == "labels":
        return condition.labels == NO_LABEL
    if part == "control":
        return ~condition.control.flatten(1).any(1)
    return ~(condition.text.mask if part == "text" else condition.known.flags).any(1)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_can_be_dropped_in_some_rows_or_all(part: str) -> None:
    condition = Condition(**PARTS)
    some = condition.dropped(part, torch.tensor([True, False, True]))
    assert null_of(some, part).tolist() == [True, False, True]
    assert null_of(condition.dropped(part), part).all()
    assert not any(null_of(some, other).any() for other in PARTS if other != part)
    without = Condition(**{name: value for name, value in PARTS.items() if name != part})
    assert without.dropped(part) is without


def test_a_condition_has_rows_and_at_least_one_part() -> None:
    condition = Condition(**PARTS)
    assert condition.parts == tuple(PARTS)
    assert len(condition) == len(condition.to("cpu")) == 3
    for rows in (slice(1, 3), torch.tensor([2, 0])):
        part = condition[rows]
        assert len(part) == 2
        assert torch.equal(part.known.values, condition.known.values[rows])
        assert torch.equal(part.text.mask, condition.text.mask[rows])
    with pytest.raises(LayoutError, match="at least one part"):
        Condition()
    with pytest.raises(LayoutError, match="as many rows"):
        Condition(labels=torch.arange(2), control=torch.zeros(3, 1, 4, 4))
