"""Metrics of clips: the oracle of moving digits, and what each metric says of clips that are spoilt in a known way."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from artok.data import moving_digits
from artok.data.moving_digits import STEPS, MovingDigitsSplit
from artok.errors import ArtokError
from artok.images import from_uint8, to_uint8
from artok.metrics import frames, motion, reconstruction, tracking
from artok.metrics.base import HELD_OUT, EvalBatch, MetricContext
from artok.metrics.evaluate import Evaluation
from artok.metrics.extractors import classifier
from artok.metrics.extractors import motion as network
from artok.metrics.extractors.motion import reduce, spoil
from artok.metrics.features import TrainingImages, extract, open_extractor
from artok.metrics.frechet import Config as Frechet
from artok.metrics.tracking import count_tracked

COUNT = 60


def opened(**settings: object) -> MovingDigitsSplit:
    split = moving_digits.Config(**settings).open("test")
    assert isinstance(split, MovingDigitsSplit)
    return split


SPLIT = opened()
CLIPS, LABELS = SPLIT.read(range(COUNT)).images, SPLIT.read(range(COUNT)).labels
SUBJECT = MetricContext(motion_oracle=SPLIT.motion_oracle)


def shuffled(clips: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([clip[:, torch.randperm(clips.shape[2], generator=generator)] for clip in clips])


def jittered(clips: Tensor) -> Tensor:
    """Each frame a pixel away, in one of four directions."""
    generator = torch.Generator().manual_seed(0)
    found = clips.clone()
    for clip in found:
        for frame in clip.unbind(1):
            way = torch.randint(4, (1,), generator=generator)
            frame.copy_(frame.roll(((1, -1, 0, 0)[way], (0, 0, 1, -1)[way]), dims=(-2, -1)))
    return found


def swapped(clips: Tensor) -> Tensor:
    """From the ninth frame on another digit."""
    return torch.cat([clips[:, :, :8], clips.roll(1, 0)[:, :, 8:]], dim=2)


def frozen(clips: Tensor) -> Tensor:
    return clips[:, :, :1].expand_as(clips)


def measured(kind: motion.Config | tracking.Config, clips: Tensor, true: Tensor = CLIPS) -> dict[str, float]:
    metric = kind.build(SUBJECT)
    metric.update(EvalBatch(clips=clips, clip_classes=LABELS, true_clips=true))
    return metric.compute()


# ---------------------------------------------------------------------------------------------- the oracle


@pytest.mark.parametrize("settings", [{}, {"glyphs": 2}, {"channels": 3}, {"size": 64, "frames": 5}], ids=str)
def test_true_clips_are_read_exactly(settings: dict[str, object]) -> None:
    split = opened(**settings)
    assert split.motion_oracle is not None
    examples, moving = split.read(range(100)), split.trajectories(range(100))
    seen = split.motion_oracle.follow(examples.images)
    assert torch.equal(seen.label, examples.labels[:, None].expand_as(seen.label))
    corners = moving.corners(split.shape[1]) / STEPS
    # The centre of mass goes with the glyph; what is faint and is left out moves it by less than a tenth of a pixel.
    apart = seen.centre - corners
    still = apart - apart.mean(1, keepdim=True)
    assert still.norm(dim=-1).max() < 0.15 and still.norm(dim=-1).mean() < 0.05
    assert (seen.mass - 1).abs().max() < 0.05
    room = split.shape[-1] - split.glyphs.shape[-1]
    margin = torch.minimum(corners, room - corners).amin(-1)
    assert (seen.margin - margin).abs().max() < 0.15
    assert split.motion_oracle.fastest == split.shape[-1] / 32


def test_what_a_decoder_leaves_is_read_through() -> None:
    assert SPLIT.motion_oracle is not None
    pixels = from_uint8(CLIPS)
    soft = functional.avg_pool3d(functional.pad(pixels, (1,) * 4, value=-1), (1, 3, 3), stride=1)
    noise = 0.05 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    true, seen = (SPLIT.motion_oracle.follow(clips) for clips in (CLIPS, to_uint8(soft + noise)))
    assert (seen.label == LABELS[:, None]).double().mean() > 0.99
    assert (seen.centre - true.centre).norm(dim=-1).max() < 0.3
    assert (seen.mass - true.mass).abs().max() < 0.15


def test_an_empty_frame_shows_nothing() -> None:
    assert SPLIT.motion_oracle is not None
    clips = CLIPS[:4].clone()
    clips[0, :, 3] = 0
    clips[1, :, 5] = clips[1, :, 5] // 8
    seen = SPLIT.motion_oracle.follow(clips)
    gone = torch.zeros(4, 17, dtype=torch.bool)
    gone[0, 3] = gone[1, 5] = True
    assert torch.equal(seen.label < 0, gone) and torch.equal(seen.centre.isnan().any(-1), gone)
    assert not seen.mass.isnan().any()


# ---------------------------------------------------------------------------------------------- motion


def test_true_clips_keep_class_speed_and_mass() -> None:
    found = measured(motion.Config(), CLIPS)
    speed = float(SPLIT.trajectories(range(COUNT)).velocity.double().norm(dim=1).mean() / STEPS)
    assert found["class_kept"] == 1 and found["jumps"] == 0
    assert found["speed_px"] == pytest.approx(speed, abs=0.05)  # a bounce shortens a step
    assert found["acceleration_px"] < 0.1 and found["mass"] == pytest.approx(1, abs=0.03)


def test_each_way_of_spoiling_shows_in_some_value() -> None:
    true = measured(motion.Config(), CLIPS)
    jitter = measured(motion.Config(), jittered(CLIPS))
    assert jitter["class_kept"] > 0.98 and jitter["acceleration_px"] > 10 * true["acceleration_px"]
    mixed = measured(motion.Config(), shuffled(CLIPS))
    assert mixed["jumps"] > 0.5 and mixed["speed_px"] > 3 * true["speed_px"]
    swap = measured(motion.Config(), swapped(CLIPS))
    same = float((LABELS.roll(1) == LABELS).double().mean())
    assert swap["class_kept"] == pytest.approx((8 + 9 * same) / 17, abs=1e-9) and 0 < swap["jumps"] <= 1 / 16
    assert measured(motion.Config(), frozen(CLIPS))["speed_px"] == 0
    faded = measured(motion.Config(), CLIPS // 2)
    assert faded["mass"] < 0.6 and faded["class_kept"] == 1
    gone = measured(motion.Config(), torch.zeros_like(CLIPS))
    assert gone == {"class_kept": 0.0, "mass": 0.0}


def test_held_out_clips_give_the_floors_and_frames_their_series() -> None:
    evaluation = Evaluation([motion.Config().build(SUBJECT), tracking.Config().build(SUBJECT)])
    evaluation.update(EvalBatch(images=CLIPS, labels=LABELS))
    evaluation.update(EvalBatch(clips=swapped(CLIPS), clip_classes=LABELS, true_clips=CLIPS))
    results = evaluation.results("x", 0)
    assert results["class_kept"].floor == 1 and results["class_kept"].n == COUNT
    assert results["speed_px"].floor == pytest.approx(measured(motion.Config(), CLIPS)["speed_px"])
    assert results.series["class_kept"][:8] == (1.0,) * 8 and max(results.series["class_kept"][8:]) < 0.5
    assert results.series["trajectory_error_px"][:8] == (0.0,) * 8 and results.series["trajectory_error_px"][8] > 2
    again = type(results).from_dict(results.to_dict())
    assert again.series == results.series and not any(name.endswith(HELD_OUT) for name in results.series)


def test_data_without_an_oracle_are_refused() -> None:
    for config in (motion.Config(), tracking.Config()):
        assert not config.suits(MetricContext())
        with pytest.raises(ArtokError, match="needs data that know how things move"):
            config.build(MetricContext())


# ---------------------------------------------------------------------------------------------- tracking


def test_an_object_is_lost_at_the_first_of_two_far_frames() -> None:
    errors = torch.tensor(
        [
            [0.0, 2.0, 1.0, 0.0],
            [0.0, 2.1, 1.0, 3.0],  # far, but never twice in a row
            [0.0, 2.1, math.nan, 0.0],
            [3.0, 3.0, 0.0, 0.0],
            [0.0, 0.0, math.nan, math.nan],
        ]
    )
    assert count_tracked(errors).tolist() == [4, 4, 1, 0, 2]


def test_a_still_picture_is_lost_after_two_pixels() -> None:
    assert measured(tracking.Config(), CLIPS) == {
        "tracked_frames": 17.0,
        "tracked_frames/standard_error": 0.0,
        "trajectory_error_px": 0.0,
    }
    found = measured(tracking.Config(), frozen(CLIPS))
    # at .4 to 1 pixel a frame 2 pixels take 2 to 5 frames, mean 2 ln(2.5) / .6 = 3.05, and bounces take longer
    assert 3 < found["tracked_frames"] < 6 and 0 < found["tracked_frames/standard_error"] < 0.5
    assert measured(tracking.Config(), torch.zeros_like(CLIPS))["tracked_frames"] == 0


# ---------------------------------------------------------------------------------------------- frames


def test_psnr_and_ssim_of_a_clip_are_means_of_its_frames() -> None:
    noisy = (CLIPS.int() + torch.randint(-9, 10, CLIPS.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
    noisy = noisy.to(torch.uint8)
    for measure in (reconstruction.psnr, reconstruction.ssim):
        each = torch.stack([measure(a, b) for a, b in zip(CLIPS.unbind(2), noisy.unbind(2), strict=True)])
        assert torch.allclose(measure(CLIPS, noisy), each.mean(0))
        metric = frames.Config().build(SUBJECT)
        metric.update(EvalBatch(clips=noisy, true_clips=CLIPS))
        name = "psnr_db" if measure is reconstruction.psnr else "ssim"
        assert metric.series()[name] == pytest.approx(each.mean(1).tolist())


def test_change_error_is_that_of_changes_not_of_pixels() -> None:
    """Steps of a grey picture from 0 to 1 differ by 1 at each of the three scales."""
    plain = torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8)
    flicker = plain.clone()
    flicker[:, :, 1] = 51  # a fifth
    assert frames.change_error(plain, flicker).tolist() == pytest.approx([3 / 5])
    assert frames.change_error(flicker, flicker + 100).tolist() == pytest.approx([0], abs=1e-12)
    assert frames.change_error(plain[:, :, :1], flicker[:, :, :1]).tolist() == [0]
    ordered, mixed = (float(frames.change_error(each, CLIPS).mean()) for each in (CLIPS, shuffled(CLIPS)))
    assert ordered == 0 and mixed > 0.05
    assert float(frames.change_error(frozen(CLIPS), CLIPS).mean()) > 0.05


# ---------------------------------------------------------------------------------------------- the motion network


def small_training(classes: int = 10) -> TrainingImages:
    examples = moving_digits.Config(size=16, frames=5).open("train").read(range(40))
    return TrainingImages(examples.images, examples.labels % classes, classes)


def test_the_network_is_trained_once_and_the_same_for_the_same_clips(tmp_path: Path) -> None:
    training = small_training()
    first = network.Config(clips_seen=64).build(training, "cpu", tmp_path / "a")
    torch.manual_seed(3)
    second = network.Config(clips_seen=64).build(training, "cpu", tmp_path / "b")
    assert first.fingerprint == second.fingerprint
    (path,) = (tmp_path / "a").glob("motion-*.safetensors")
    written = path.stat().st_mtime_ns
    again = network.Config(clips_seen=64).build(training, "cpu", tmp_path / "a")
    assert again.fingerprint == first.fingerprint and path.stat().st_mtime_ns == written
    features, logits = extract(first, training.images)
    assert features.shape == (40, first.dim) and logits is not None and logits.shape == (40, 10)
    assert features.mean(0).abs().max() < 1e-3
    assert float(features.double().var(0, correction=0).sum()) == pytest.approx(4 * first.dim, rel=1e-3)
    other = network.Config(clips_seen=64, seed=1).build(training, "cpu", tmp_path / "a")
    assert other.fingerprint != first.fingerprint
    unlabelled = network.Config(clips_seen=32).build(small_training(1), "cpu", tmp_path / "c")
    assert extract(unlabelled, training.images)[1] is None


def test_the_network_takes_clips_of_its_own_shape_alone(tmp_path: Path) -> None:
    training = small_training()
    built = network.Config(clips_seen=32).build(training, "cpu", tmp_path)
    with pytest.raises(ArtokError, match=r"trained on clips of \(1, 5, 16, 16\), and cannot judge \(1, 4, 16, 16\)"):
        extract(built, training.images[:, :, 1:])
    pictures = TrainingImages(training.images[:, :, 0], training.labels, 10)
    with pytest.raises(ArtokError, match="looks at clips of 3 frames or more"):
        network.Config().build(pictures, "cpu", tmp_path)
    with pytest.raises(ArtokError, match="clips need the extractor motion"):
        classifier.Config().build(training, "cpu", tmp_path)
    with pytest.raises(ArtokError, match="none were given"):
        network.Config().build(None, "cpu", tmp_path)


def test_spoilt_clips_are_what_they_are_called() -> None:
    clips = reduce(CLIPS)
    found, way = spoil(clips, torch.Generator().manual_seed(0))
    names = [network.WAYS[kind] for kind in way.tolist()]
    assert set(names) == set(network.WAYS) and 0.25 < names.count("whole") / COUNT < 0.75
    for row, name in enumerate(names):
        before, after = clips[row], found[row]
        frames_before = {frame.numpy().tobytes() for frame in before.unbind(1)}
        frames_after = [frame.numpy().tobytes() for frame in after.unbind(1)]
        if name == "whole":
            assert torch.equal(before, after)
        elif name == "shuffled":
            assert not torch.equal(before, after) and set(frames_after) == frames_before
        elif name == "jittered":
            assert torch.allclose(before.sum((0, 2, 3)), after.sum((0, 2, 3)), atol=1e-3)
            assert not torch.equal(before, after)
        elif name == "swapped":
            assert torch.equal(after[:, -1], clips[row - 1, :, -1]) and torch.equal(after[:, 0], before[:, 0])
        elif name == "frozen":
            assert len(set(frames_after)) < 17 and set(frames_after) <= frames_before
            assert torch.equal(after[:, 0], before[:, 0])
        elif name == "slow":
            assert torch.equal(after[:, 16], before[:, 8]) and torch.equal(after[:, 9], after[:, 8])


def test_pixels_of_clips_are_three_parts_of_time() -> None:
    features, _ = extract(open_extractor("pixels"), CLIPS[:, :, :9])
    assert features.shape == (COUNT, 192)
    grey = CLIPS[:, 0, 3:6].float().mean(1) / 127.5 - 1
    assert torch.allclose(features[:, 64:128], functional.avg_pool2d(grey, 4).flatten(1), atol=1e-5)


@pytest.mark.slow
def test_distance_of_clips_sees_what_single_frames_do_not(tmp_path: Path) -> None:
    split = moving_digits.Config().open("train")
    train, other = split.read(range(2000)), split.read(range(3000, 3600)).images
    built = network.Config().build(TrainingImages(train.images, train.labels, 10), "cpu", tmp_path)
    real = extract(built, SPLIT.read(range(600)).images)[0]

    def distance(clips: Tensor) -> float:
        metric = Frechet().build(MetricContext())
        metric.update(EvalBatch(real_features=real, fake_features=extract(built, clips)[0]))
        return metric.compute()["fd"]

    floor = distance(other)
    assert floor < 4
    stopped = torch.cat([other[:, :, :8], other[:, :, 8:9].expand(-1, -1, 9, -1, -1)], dim=2)
    for spoilt in (shuffled(other), jittered(other), swapped(other)):
        assert distance(spoilt) > 50 * floor
    assert distance(stopped) > 4 * floor and distance(other // 2) > 50 * floor
