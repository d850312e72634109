"""Decoding pictures of every mode, unreadable files, and random changes of batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.images import encoded, paint, values
from PIL import Image

from artok.data import folder
from artok.data.base import Augment
from artok.data.pictures import Picture, Unreadable, decode, square
from artok.data.transforms import REVISION, augment, augmented_copies, plain
from artok.errors import DataError
from artok.images import from_uint8
from artok.noise import Noise

POSITIONS = torch.arange(5, 17)
GREY = 1e-4  # a hundredth of a grey level in [-1, 1]: rotation works in float32 coordinates


def pixels(data: bytes, channels: int = 3, side: int = 8) -> torch.Tensor:
    picture = decode(data, channels, side)
    assert isinstance(picture, Picture), picture
    assert picture.pixels.dtype == torch.uint8 and picture.pixels.shape == (channels, side, side)
    return picture.pixels


def some_images(side: int = 12, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (12, channels, side, side), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


# ---------------------------------------------------------------------------------------------- modes


def test_rgb_is_kept_exactly_and_grey_is_repeated() -> None:
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(pixels(encoded(Image.fromarray(array))).permute(1, 2, 0).numpy(), array)
    grey = pixels(encoded(Image.fromarray(array[..., 0])))
    assert np.array_equal(grey[1].numpy(), array[..., 0]) and torch.equal(grey[0], grey[2])


def test_transparency_shows_white() -> None:
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 255))
    image.paste((0, 0, 200, 0), (0, 0, 4, 8))
    seen = pixels(encoded(image))
    assert seen[:, 0, 0].tolist() == [255, 255, 255] and seen[:, 0, 7].tolist() == [200, 0, 0]
    half = pixels(encoded(Image.new("LA", (8, 8), (0, 128))))
    assert half[0, 0, 0] == 127


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("RGB", (8, 8), (10, 200, 30)).quantize(4)
    assert pixels(encoded(image))[:, 3, 3].tolist() == [10, 200, 30]
    index = image.getpixel((0, 0))
    assert pixels(encoded(image, transparency=index))[:, 3, 3].tolist() == [255, 255, 255]


def test_cmyk_is_not_inverted() -> None:
    image = Image.new("RGB", (16, 16), (220, 30, 40)).convert("CMYK")
    seen = pixels(encoded(image, "JPEG", quality=95))[:, 4, 4].float()
    assert (seen - torch.tensor([220.0, 30.0, 40.0])).abs().max() < 8


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_not_clipped(channels: int) -> None:
    array = np.full((8, 8), 1000, dtype=np.uint16)
    array[:, 4:] = 65535 // 2
    seen = pixels(encoded(Image.fromarray(array)), channels)
    assert seen[0, 0, 0] == round(1000 / 257) and abs(int(seen[0, 0, 7]) - 127) <= 1


def test_one_bit_and_colour_to_one_channel() -> None:
    assert pixels(encoded(Image.new("1", (8, 8), 1)), channels=1)[0, 0, 0] == 255
    assert pixels(encoded(Image.new("RGB", (8, 8), (255, 0, 0))), channels=1)[0, 0, 0] == 76  # ITU-R 601


def test_orientation_of_photographs_is_applied() -> None:
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 4))  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    assert pixels(encoded(image, exif=exif))[0, :, 0].tolist() == [0] * 4 + [255] * 4


# ---------------------------------------------------------------------------------------------- resizing


def test_square_is_the_resize_of_adm() -> None:
    """The reference is center_crop_arr of guided-diffusion, written out."""
    array = np.random.default_rng(0).integers(0, 256, (75, 101, 3), dtype=np.uint8)
    side = 16
    reference = Image.fromarray(array)
    while min(*reference.size) >= 2 * side:
        reference = reference.resize(tuple(x // 2 for x in reference.size), resample=Image.Resampling.BOX)
    scale = side / min(*reference.size)
    reference = reference.resize(tuple(round(x * scale) for x in reference.size), resample=Image.Resampling.BICUBIC)
    whole = np.array(reference)
    top, left = (whole.shape[0] - side) // 2, (whole.shape[1] - side) // 2
    expected = whole[top : top + side, left : left + side]
    assert np.array_equal(np.asarray(square(Image.fromarray(array), side)), expected)


def test_small_images_are_enlarged_and_noted() -> None:
    small, large = encoded(Image.new("RGB", (5, 9), (9, 8, 7))), encoded(Image.new("RGB", (50, 9), (9, 8, 7)))
    first, second = decode(small, 3, 8), decode(large, 3, 8)
    assert isinstance(first, Picture) and isinstance(second, Picture)
    assert first.enlarged and not second.enlarged
    assert first.pixels.unique().tolist() == [7, 8, 9]


def test_extreme_shapes_stay_small() -> None:
    assert square(Image.new("L", (1, 50_000), 7), 32).size == (32, 32)


@pytest.mark.parametrize("data", [b"", b"not a picture", None, "no/such/file.png"])
def test_unreadable_is_a_reason_in_words(data: bytes | str | None) -> None:
    failure = decode(data, 3, 8)
    assert isinstance(failure, Unreadable) and failure.reason and not failure.transient


def test_truncated_file_is_unreadable() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "WEBP"):
        data = encoded(noise, kind)
        assert isinstance(decode(data, 3, 8), Picture)
        assert isinstance(decode(data[: len(data) // 2], 3, 8), Unreadable), kind


# ---------------------------------------------------------------------------------------------- unreadable images


def break_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.fixture
def large_folder(tmp_path: Path) -> Path:
    for index in range(200):
        paint(tmp_path / "a" / f"{index:03}.png", index)
    return tmp_path


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_next_readable_image_takes_the_place(large_folder: Path, in_memory: bool) -> None:
    break_file(large_folder / "a" / "010.png")
    (large_folder / "a" / "199.png").write_bytes(b"")
    split = folder.Config(root=large_folder, size=8, holdout=0, in_memory=in_memory).open("train")
    assert split.read([9, 10, 11, 199, 10]).images[:, 0, 0, 0].tolist() == [9, 11, 11, 0, 11]
    assert set(split.skipped) == {10, 199} and "a/010.png" in split.skipped[10]
    assert values(split) == [*range(10), 11, *range(11, 199), 0] and len(split.skipped) == 2


def test_more_than_one_percent_unreadable_stops(large_folder: Path) -> None:
    for index in (3, 50, 120):
        break_file(large_folder / "a" / f"{index:03}.png")
    split = folder.Config(root=large_folder, size=8, holdout=0).open("train")
    assert len(split.read(range(100)).labels) == 100
    with pytest.raises(DataError, match=r"3 of 200 images cannot be read, more than 1%, such as a/003.png"):
        split.read(range(100, 200))


def test_small_images_are_noted(tmp_path: Path) -> None:
    paint(tmp_path / "0.png", 1)
    paint(tmp_path / "1.png", 1, (40, 20))
    split = folder.Config(root=tmp_path, size=16, holdout=0).open("train")
    split.read([0, 1])
    assert split.enlarged == {0}


# ---------------------------------------------------------------------------------------------- augmentation


def test_switched_off_is_the_centre_exactly() -> None:
    images = some_images()
    result = augment(images, Augment(), 8, Noise(0, POSITIONS))
    assert torch.equal(result, from_uint8(images[..., 2:10, 2:10])) and torch.equal(result, plain(images, 8))


def test_flips_mirror_about_half_and_nothing_else() -> None:
    images, positions = some_images(8).repeat(50, 1, 1, 1), torch.arange(600)
    result = augment(images, Augment(flip=True), 8, Noise(0, positions))
    straight = from_uint8(images)
    flipped = (result == straight.flip(-1)).flatten(1).all(1)
    assert torch.equal(flipped, ~(result == straight).flatten(1).all(1))
    assert 240 < int(flipped.sum()) < 360


def test_random_crops_are_cut_out_unchanged_and_reach_everywhere() -> None:
    images = torch.arange(144).view(1, 1, 12, 12).expand(400, 3, 12, 12).to(torch.uint8)
    result = augment(images, Augment(crop="random"), 8, Noise(0, torch.arange(400)))
    corners = ((result[:, 0, 0, 0] + 1) * 127.5).round().long()
    assert set(corners.tolist()) == {row * 12 + column for row in range(5) for column in range(5)}
    steps = result[:, 0, :, 1:] - result[:, 0, :, :-1]
    assert torch.allclose(steps, torch.full_like(steps, 1 / 127.5), atol=1e-5)


def test_each_sample_has_its_own_noise() -> None:
    images = some_images()
    changes = Augment(flip=True, shift=0.1, rotate=15, scale=0.1, shear=0.1, crop="random")
    together = augment(images, changes, 8, Noise(3, POSITIONS))
    alone = torch.cat([augment(images[i : i + 1], changes, 8, Noise(3, POSITIONS[i : i + 1])) for i in range(12)])
    assert torch.allclose(together, alone, atol=GREY)
    assert not torch.allclose(together, augment(images, changes, 8, Noise(4, POSITIONS)))
    assert together.shape == (12, 3, 8, 8) and together.abs().max() <= 1


def test_float_images_are_taken_too() -> None:
    changes = Augment(flip=True, rotate=20)
    images = some_images(8)
    expected = augment(images, changes, 8, Noise(0, POSITIONS))
    assert torch.equal(augment(from_uint8(images), changes, 8, Noise(0, POSITIONS)), expected)


def test_shift_moves_by_whole_shares_and_repeats_the_border() -> None:
    image = torch.zeros(300, 1, 16, 16, dtype=torch.uint8)
    image[:, :, 8, 8] = 255
    image[:, :, :, 0] = 255  # a border column: shifted right, it fills what comes in
    result = augment(image, Augment(shift=0.25), 16, Noise(0, torch.arange(300)))
    spot = (result[:, 0, :, 5:] + 1) / 2
    row = (spot.sum(2) * torch.arange(16)).sum(1) / spot.sum((1, 2))
    assert 7.8 < float(row.mean()) < 8.2 and float((row - 8).abs().max()) <= 4.3 and float(row.std()) > 2
    right = result[:, 0, 0, 1] > 0.9  # column 0 shows in column 1 once the image moves right by 1 or more
    assert 60 < int(right.sum()) < 150


def test_rotation_turns_about_the_centre() -> None:
    image = torch.zeros(200, 1, 17, 17, dtype=torch.uint8)
    image[:, :, 8, :] = 255
    result = augment(image, Augment(rotate=30), 17, Noise(0, torch.arange(200)))
    assert float((result[:, 0, 8, 8] - 1).abs().max()) < 0.05
    axis = torch.arange(17) - 8.0
    bright = (result[:, 0] + 1) / 2
    angle = torch.atan2((bright * axis[:, None] * axis).sum((1, 2)), (bright * axis**2).sum((1, 2)))
    assert float(angle.abs().max()) < np.radians(32) and float(angle.std()) > np.radians(10)


def test_scale_keeps_the_middle_and_changes_the_area() -> None:
    image = torch.zeros(200, 1, 32, 32, dtype=torch.uint8)
    image[:, :, 8:24, 8:24] = 255
    area = ((augment(image, Augment(scale=0.2), 32, Noise(0, torch.arange(200))) + 1) / 2).sum((1, 2, 3)) / 256
    assert 0.62 < float(area.min()) < 0.72 and 1.36 < float(area.max()) < 1.46


def test_affine_crop_is_the_centre_when_the_changes_are_tiny() -> None:
    images = some_images(12)
    result = augment(images, Augment(shift=1e-6), 8, Noise(0, POSITIONS))
    assert torch.allclose(result, plain(images, 8), atol=1e-3)


def test_two_copies_under_mirroring_are_plain_and_mirrored() -> None:
    images = some_images(8)
    copies = augmented_copies(images, Augment(flip=True), 8, POSITIONS, 2, seed=0)
    assert torch.equal(copies[:, 0], from_uint8(images)) and torch.equal(copies[:, 1], from_uint8(images).flip(-1))
    with pytest.raises(DataError, match="2 different copies"):
        augmented_copies(images, Augment(flip=True), 8, POSITIONS, 3, seed=0)
    with pytest.raises(DataError, match="would be the same"):
        augmented_copies(images, Augment(), 8, POSITIONS, 2, seed=0)


def test_copies_differ_and_depend_on_index_alone() -> None:
    images = some_images(8)
    changes = Augment(rotate=20)
    copies = augmented_copies(images, changes, 8, POSITIONS, 3, seed=0)
    assert torch.equal(copies[:, 0], plain(images, 8)) and not torch.equal(copies[:, 1], copies[:, 2])
    later = augmented_copies(images[4:], changes, 8, POSITIONS[4:], 3, seed=0)
    assert torch.allclose(copies[4:], later, atol=GREY)


# ---------------------------------------------------------------------------------------------- cached tokens

DECODED = [
    [[31, 82, 135]] * 3,
    [[7, 7, 7], [87, 87, 87], [167, 167, 167]],
    [[2, 3, 4], [13, 33, 54], [24, 64, 104]],
]
AUGMENTED = [
    [-0.5529, -0.0431, -0.5529, -0.0431, -0.6314, -0.6314, 0.1529, 0.1529, -0.898, -0.7882, -0.6941, -0.349],
    [-0.6243, -0.0916, -0.669, -0.1249, -0.8372, -0.7392, -0.0004, 0.0764, -0.9654, -0.8591, -0.799, -0.4411],
    [0.1102, -0.4334, 0.1361, -0.4087, -0.9153, -0.9266, -0.0696, -0.0807, -0.9449, -0.9772, -0.3723, -0.6803],
]


def test_pixels_are_those_of_their_revision() -> None:
    """Cached tokens are used as long as REVISION is the same: whoever changes these pixels raises it."""
    rows, columns = np.mgrid[0:40, 0:52]
    array = np.stack([columns * 4, rows * 6, (columns * rows) // 9], -1).astype(np.uint8)
    decoded = pixels(encoded(Image.fromarray(array)), side=12)
    changes = Augment(flip=True, shift=0.1, rotate=20, scale=0.1, shear=0.1, crop="random")
    copies = augmented_copies(decoded[None], changes, 8, torch.tensor([5]), 3, seed=0)
    assert REVISION == 1
    assert (decoded[:, ::4, ::4].int() - torch.tensor(DECODED)).abs().max() <= 1  # resizing rounds once an axis
    assert torch.allclose(copies[0, :, :, ::5, ::5].flatten(1), torch.tensor(AUGMENTED), atol=2 / 127.5)
