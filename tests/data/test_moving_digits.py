"""Clips of moving digits: exact trajectories, exact drawing, and clips in every room of data."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional

from artok.config import validate
from artok.data import moving_digits
from artok.data.base import Augment
from artok.data.loader import Loader, evaluation_batches
from artok.data.memory import read_into_memory
from artok.data.moving_digits import STEPS, MovingDigitsSplit, Trajectories, draw, typical_digits
from artok.data.transforms import augment, augmented_copies, plain
from artok.errors import ConfigError
from artok.images import SHOWN, film_strips, grid, save_grid
from artok.noise import Noise

SMALL = moving_digits.Config(frames=5, size=16, train=30, test=10)


def opened(**settings: object) -> MovingDigitsSplit:
    split = moving_digits.Config(**settings).open("train")
    assert isinstance(split, MovingDigitsSplit)
    return split


# ---------------------------------------------------------------------------------------------- motion


def bounce(start: int, velocity: int, room: int, frames: int) -> list[int]:
    """One coordinate step by step, with the border met in the middle of a step."""
    place, way, found = Fraction(start), Fraction(velocity), []
    for _ in range(frames):
        found.append(int(place))
        place += way
        while not 0 <= place <= room:
            place, way = (-place if place < 0 else 2 * room - place), -way
    return found


def test_digits_bounce_off_the_borders() -> None:
    starts, velocities = torch.tensor([[0, 70], [90, 100], [50, 0]]), torch.tensor([[-7, 13], [9, -100], [0, 33]])
    corners = Trajectories(torch.zeros(3), starts, velocities, room=100).corners(60)
    for row in range(3):
        for axis in range(2):
            wanted = bounce(int(starts[row, axis]), int(velocities[row, axis]), 100, 60)
            assert corners[row, :, axis].tolist() == wanted


def test_speed_start_and_direction_are_drawn_over_their_whole_range() -> None:
    split = opened()
    moving = split.trajectories(range(4000))
    assert moving.room == 18 * STEPS
    speed = moving.velocity.double().norm(dim=1) / STEPS
    rounding = 0.5 * 2**0.5 / STEPS
    assert 0.4 - rounding <= speed.min() < 0.41 and 0.99 < speed.max() <= 1.0 + rounding
    assert (moving.start >= 0).all() and (moving.start <= moving.room).all() and moving.start.max() > 0.99 * moving.room
    quarters = (moving.velocity > 0).long() @ torch.tensor([1, 2])
    assert torch.bincount(quarters, minlength=4).min() > 850  # 1,000, and 5 deviations of 27
    assert torch.bincount(split.read(range(1000)).labels, minlength=10).min() > 50  # 100, and 5 deviations of 9.5


def test_a_clip_depends_on_seed_split_and_index_alone_and_a_longer_one_continues_it() -> None:
    split = opened()
    whole = split.read([7, 900_000])
    assert torch.equal(whole.images[1], split.read([900_000]).images[0])
    longer = opened(frames=65).read([7, 900_000])
    assert torch.equal(longer.images[:, :, :17], whole.images) and torch.equal(longer.labels, whole.labels)
    assert not torch.equal(opened(seed=1).read([7]).images, whole.images[:1])
    assert not torch.equal(moving_digits.Config().open("test").read([7]).images, whole.images[:1])
    changes: list[dict[str, object]] = [{"frames": 65}, {"glyphs": 2}, {"digit": 0.5}, {"speed": (0.0, 0.1)}]
    marks = {opened(**change).fingerprint for change in [{}, {"seed": 1}, *changes]}
    assert len(marks) == 6


def test_the_clips_are_those_that_they_always_were() -> None:
    examples = opened().read([0, 1, 123_456])
    assert hashlib.blake2b(examples.images.numpy().tobytes(), digest_size=8).hexdigest() == "7fe33f053a89dfc0"
    assert examples.labels.tolist() == [6, 4, 8]


def test_too_fast_a_digit_is_refused() -> None:
    for wrong in ([0.1, 0.05], [0.1, 0.6], [-0.1, 0.1]):
        with pytest.raises(ConfigError, match=r"must ascend from 0 to at most 0\.5625"):
            validate(moving_digits.Config, {"speed": wrong}, "x.yaml")


# ---------------------------------------------------------------------------------------------- drawing


def test_a_glyph_at_whole_pixels_is_copied() -> None:
    glyphs, _ = typical_digits(14, 1)
    clip = draw(glyphs[:1], torch.tensor([[[3, 5], [18, 0]]]) * STEPS, 32)
    assert torch.equal(clip[0, 0, 5:19, 3:17], glyphs[0]) and clip[0, 0].sum() == glyphs[0].sum()
    assert torch.equal(clip[0, 1, 0:14, 18:32], glyphs[0])


def test_drawing_is_bilinear_interpolation() -> None:
    glyphs, _ = typical_digits(14, 3)
    glyph = glyphs[11]
    clip = draw(glyph[None], torch.tensor([[[3 * STEPS + 40, 5 * STEPS + 101]]]), 32)
    padded = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    padded[0, 0, 5:19, 3:17] = glyph
    x, y = 40 / STEPS, 101 / STEPS
    weights = torch.tensor([[x * y, (1 - x) * y], [x * (1 - y), (1 - x) * (1 - y)]], dtype=torch.float64)
    padded = functional.pad(padded, (1, 0, 1, 0))
    wanted = functional.conv2d(padded, weights[None, None])[0, 0, :32, :32]
    assert torch.equal(clip[0, 0], wanted.round().to(torch.uint8))


def test_typical_digits_are_different_pictures_of_every_class() -> None:
    glyphs, labels = typical_digits(8, 3)
    assert labels.tolist() == [digit for digit in range(10) for _ in range(3)]
    assert len(glyphs.flatten(1).unique(dim=0)) == 30
    assert torch.equal(typical_digits(8, 1)[0], glyphs[::3])


# ---------------------------------------------------------------------------------------------- clips as data


def test_all_frames_of_a_clip_are_changed_alike() -> None:
    clips = SMALL.open("train").read(range(6)).images
    changes = Augment(flip=True, shift=0.1, rotate=20, scale=0.1, shear=0.1, crop="random")
    noise = Noise(3, torch.arange(6))
    whole = augment(clips, changes, 12, noise)
    assert whole.shape == (6, 1, 5, 12, 12)
    for frame in range(5):
        alone = augment(clips[:, :, frame], changes, 12, Noise(3, torch.arange(6)))
        assert torch.equal(whole[:, :, frame], alone)
    cut = augment(clips, Augment(flip=True, crop="random"), 12, Noise(3, torch.arange(6)))
    for frame in range(5):
        alone = augment(clips[:, :, frame], Augment(flip=True, crop="random"), 12, Noise(3, torch.arange(6)))
        assert torch.equal(cut[:, :, frame], alone)
    copies = augmented_copies(clips, Augment(flip=True), 16, torch.arange(6), 2, 0)
    assert torch.equal(copies[:, 0], plain(clips, 16)) and torch.equal(copies[:, 1], plain(clips, 16).flip(-1))


def test_loader_and_memory_give_clips() -> None:
    split = SMALL.open("test")
    with Loader(split, SMALL, 4, seed=0) as loader:
        batch = next(loader)
    assert batch.pixels.dtype == torch.uint8 and batch.images.shape == (4, 1, 5, 16, 16) == (4, *SMALL.image)
    read = torch.cat([part.pixels for part in evaluation_batches(split, SMALL, 4)])
    images, labels = read_into_memory(split, 12)
    assert images.shape == (10, 1, 5, 12, 12) and torch.equal(images, read[..., 2:14, 2:14])
    assert torch.equal(labels, split.read(range(10)).labels)


def test_a_sheet_of_clips_has_a_row_of_frames_each_and_a_moving_copy(tmp_path: Path) -> None:
    clips = opened(size=16).read(range(3)).images
    strips, count = film_strips(clips)
    assert count == SHOWN and strips.shape == (27, 1, 16, 16)
    assert torch.equal(strips[9], clips[1, :, 0]) and torch.equal(strips[17], clips[1, :, 16])
    assert torch.equal(strips[1], clips[0, :, 2])
    save_grid(clips, tmp_path / "sheet.png", columns=2, scale=2)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (9 * 33 - 1, 3 * 33 - 1)
    moving = Image.open(tmp_path / "sheet.gif")
    assert moving.n_frames == 17 and moving.size == (2 * 33 - 1, 2 * 33 - 1)
    for number in (0, 16):
        moving.seek(number)
        shown = torch.frombuffer(bytearray(moving.convert("L").tobytes()), dtype=torch.uint8).view(65, 65)
        assert torch.equal(shown[::2, ::2][:16, :16], clips[0, 0, number])
    save_grid(clips[:, :, 0], tmp_path / "plain.png")
    assert grid(clips[:, :, 0]).size == (33, 33) and not (tmp_path / "plain.gif").exists()
