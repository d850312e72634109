"""The contract of every metric, closed forms, and agreement with the libraries of the field."""

import contextlib
import io
import json
import math
from dataclasses import fields, replace

import numpy as np
import prdc as published_prdc
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.fid import _compute_fid

from artok.config import find, kinds
from artok.errors import ArtokError
from artok.layout import TokenLayout
from artok.metrics import memorisation, prdc
from artok.metrics.base import FIELDS, HELD_OUT, EvalBatch, MetricContext
from artok.metrics.catalogue import describe, title
from artok.metrics.codebook import Config as Codebook
from artok.metrics.consistency import Config as Consistency
from artok.metrics.cost import flops, latency, parameters, peak_memory, throughput
from artok.metrics.frechet import Config as Frechet
from artok.metrics.frechet import Moments, frechet_distance
from artok.metrics.kid import Config as Kid
from artok.metrics.kid import polynomial_mmd
from artok.metrics.likelihood import Config as Likelihood
from artok.metrics.memorisation import Memorisation, Search, nearest, reduce
from artok.metrics.prdc import precision_recall
from artok.metrics.reconstruction import PSNR_CAP, l1, psnr, ssim
from artok.oracle import Motion, MotionOracle, Oracle

LAYOUT = TokenLayout(((1, 1), (2, 2)), width=4, vocab=8, image=(3, 12, 12), codes=2)


class Brightness(Oracle):
    """Understands texts that end in a number: whether an image is brighter than the number says, in tenths of it."""

    def things(self, caption):
        return 1 + int(caption.split()[-1]) % 2

    def match(self, images, captions):
        asked = torch.tensor([float(caption.split()[-1]) for caption in captions])
        mean = images.float().mean(dim=(1, 2, 3)) if len(images) else torch.zeros(0)
        return {"exact": (mean > 127 + asked / 10).float(), "odd": torch.where(asked % 2 == 1, 1.0, math.nan)}


class Brightest(MotionOracle):
    """Follows the brightest pixel; its class is its value modulo 3."""

    fastest = 2.0

    def follow(self, clips):
        frames = clips[:, 0].flatten(2)
        value, place = frames.max(2)
        centre = torch.stack([place % clips.shape[-1], place // clips.shape[-1]], dim=-1).float()
        margin = torch.minimum(centre, clips.shape[-1] - 1 - centre).amin(-1)
        return Motion(value.long() % 3, centre, value / 255, margin)


SUBJECT = MetricContext(
    layout=LAYOUT, extractor="classifier", train_images=24, oracle=Brightness(), motion_oracle=Brightest(), clips=True
)
LATE = ("train_images",)  # fields that come after all others


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(seed, high, *shape):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def pictures(seed, count=12, shape=(3, 12, 12)):
    return integers(seed, 256, count, *shape).to(torch.uint8)


def everything(count=12):
    """A batch with every field filled."""
    return EvalBatch(
        images=pictures(0, count),
        labels=integers(1, 3, count),
        reconstructions=pictures(2, count),
        codes=integers(3, 8, count, 5, 2),
        log_likelihood=-normal(4, count).abs(),
        real_features=normal(5, count, 4).float(),
        real_predicted=integers(6, 3, count),
        samples=pictures(7, count),
        conditions=integers(8, 3, count),
        prompted=pictures(13, count),
        prompts=[f"text {row}" for row in range(count)],
        unseen=torch.zeros(count, dtype=torch.bool),
        controls=pictures(13, count, (1, 12, 12)) // 250,
        made_controls=pictures(14, count, (1, 12, 12)) // 250,
        edited=pictures(15, count),
        originals=pictures(16, count),
        pasted=pictures(17, count),
        hidden=integers(18, 2, count, 12, 12).bool(),
        clips=pictures(19, count, (3, 9, 12, 12)),
        clip_classes=integers(20, 3, count),
        true_clips=pictures(21, count, (3, 9, 12, 12)),
        fake_features=normal(9, count, 4).float(),
        fake_predicted=integers(10, 3, count),
        train_images=pictures(11, count),
        train_log_likelihood=-normal(12, count).abs(),
    )


def rows(seen, part):
    def take(values):
        return (
            values[part] if isinstance(values, torch.Tensor) or isinstance(part, slice) else [values[at] for at in part]
        )

    return EvalBatch(**{field.name: take(getattr(seen, field.name)) for field in fields(EvalBatch)})


def tiny(kind):
    return find("metrics", kind).tiny().build(SUBJECT)


def rounding(metric):
    """Of sums in float64, and of a network of the metric's own in float32, whose rounding depends on the batch."""
    return 1e-9 if metric.reference is None else 1e-5


# ---------------------------------------------------------------------------------------------- the contract


def test_the_metrics_of_the_issue_are_found():
    wanted = {"reconstruction", "frechet", "kid", "prdc", "consistency", "memorisation", "codebook", "likelihood"}
    assert wanted <= set(kinds("metrics"))


@pytest.mark.parametrize("kind", kinds("metrics"))
class TestContract:
    def test_it_declares_fields_that_exist(self, kind):
        metric = tiny(kind)
        assert metric.needs and metric.needs | metric.optional <= FIELDS
        assert find("metrics", kind).tiny().kind == kind

    def test_what_it_needs_is_enough_and_gives_finite_named_values(self, kind):
        metric, seen = tiny(kind), everything()
        assert metric.count == 0
        metric.update(EvalBatch(**{name: getattr(seen, name) for name in metric.needs}))
        values = metric.compute()
        assert values and metric.count == 12
        assert all(isinstance(value, float) and math.isfinite(value) for value in values.values())
        json.dumps(values, allow_nan=False)

    def test_its_quantities_stand_beside_it(self, kind):
        metric = tiny(kind)
        metric.update(everything())
        names = {name.removesuffix(HELD_OUT).partition("/")[0] for name in metric.compute()}
        assert names == {quantity.name for quantity in find("metrics", kind).quantities}
        assert all(describe(name).group != "Other" for name in names)

    def test_batches_of_any_size_give_what_one_batch_gives(self, kind):
        whole, parts, seen = tiny(kind), tiny(kind), everything()
        whole.update(seen)
        batches = [rows(seen, part) for part in (slice(0, 1), slice(1, 6), slice(6, 12))]
        for batch in batches:
            parts.update(replace(batch, **dict.fromkeys(LATE)))
        for batch in batches:
            parts.update(EvalBatch(**{field: getattr(batch, field) for field in LATE}))
        assert parts.compute() == pytest.approx(whole.compute(), rel=rounding(whole), abs=1e-12)

    def test_the_order_of_images_does_not_matter(self, kind):
        one, other, seen = tiny(kind), tiny(kind), everything()
        one.update(seen)
        other.update(rows(seen, torch.arange(11, -1, -1)))
        assert other.compute() == pytest.approx(one.compute(), rel=rounding(one), abs=1e-12)

    def test_having_seen_nothing_it_refuses_in_one_sentence(self, kind):
        with pytest.raises(ArtokError, match=r"needs at least \d+ images, but has 0") as caught:
            tiny(kind).compute()
        assert "\n" not in str(caught.value)

    def test_batches_for_other_metrics_are_ignored(self, kind):
        metric, seen = tiny(kind), everything()
        used = metric.needs | metric.optional
        metric.update(replace(seen, **dict.fromkeys(used)))
        assert metric.count == 0

    def test_an_unknown_key_is_refused(self, kind):
        with pytest.raises(ValueError, match="extra"):
            find("metrics", kind).model_validate({"kind": kind, "no_such_key": 1})


# ---------------------------------------------------------------------------------------------- reconstruction


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 24, 17), (3, 11, 11)])
def test_psnr_and_ssim_agree_with_scikit_image(shape):
    images = pictures(0, 4, shape)
    noisy = (images.double() + 20 * normal(1, 4, *shape)).clamp(0, 255).round().to(torch.uint8)
    for index in range(4):
        a, b = images[index].numpy(), noisy[index].numpy()
        expected = structural_similarity(
            a, b, channel_axis=0, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert float(ssim(images, noisy)[index]) == pytest.approx(expected, rel=1e-9)
        assert float(psnr(images, noisy)[index]) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255))


def test_an_image_smaller_than_the_window_has_an_ssim():
    images = pictures(0, 2, (1, 8, 6))
    assert ssim(images, images).tolist() == pytest.approx([1, 1])
    assert float(ssim(images, 255 - images).max()) < 0
    others = pictures(1, 2, (1, 8, 6))  # its window is symmetric, so that nothing changes when both are turned
    assert ssim(images.flip(2, 3), others.flip(2, 3)).tolist() == pytest.approx(ssim(images, others).tolist())


def test_reconstruction_error_in_closed_form():
    images = torch.full((2, 1, 12, 12), 100, dtype=torch.uint8)
    assert psnr(images, images).tolist() == [PSNR_CAP, PSNR_CAP]
    assert l1(images, images + 51).tolist() == pytest.approx([0.4, 0.4])
    assert psnr(images, images + 51).tolist() == pytest.approx([20 * math.log10(5)] * 2)


def test_the_mean_is_over_images_not_over_errors():
    metric = tiny("reconstruction")
    images = torch.zeros(2, 1, 12, 12, dtype=torch.uint8)
    reconstructions = images.clone()
    reconstructions[0] += 51
    metric.update(EvalBatch(images=images, reconstructions=reconstructions))
    similar = float(ssim(images, reconstructions)[0])
    expected = {"psnr_db": (20 * math.log10(5) + PSNR_CAP) / 2, "ssim": (similar + 1) / 2, "l1": 0.4 / 2}
    assert metric.compute() == pytest.approx(expected)


def test_reconstructions_that_do_not_fit_are_refused():
    images = pictures(0)
    with pytest.raises(ArtokError, match="must be uint8"):
        psnr(images, images.float())
    with pytest.raises(ArtokError, match="do not fit"):
        l1(images, images[:, :1])
    with pytest.raises(ArtokError, match="same rows, got 12 and 3"):
        tiny("reconstruction").update(EvalBatch(images=images, reconstructions=images[:3]))


# ---------------------------------------------------------------------------------------------- sets of features


def distance(real, fake, config=None):
    metric = (config or Frechet()).build(SUBJECT)
    metric.update(EvalBatch(real_features=real, fake_features=fake))
    return next(iter(metric.compute().values()))


def test_frechet_in_closed_form():
    eye = torch.eye(1, dtype=torch.float64)
    mean = torch.zeros(1, dtype=torch.float64)
    assert frechet_distance(mean, 4 * eye, mean + 3, 25 * eye) == pytest.approx(9 + (2 - 5) ** 2)
    first, second = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([16.0, 4.0, 1.0]).double()
    turn = torch.linalg.qr(normal(0, 3, 3)).Q  # commuting covariances: the sum of squared differences of deviations
    covariances = [turn @ torch.diag(values) @ turn.T for values in (first, second)]
    zero = torch.zeros(3, dtype=torch.float64)
    assert frechet_distance(zero, covariances[0], zero, covariances[1]) == pytest.approx(9 + 0 + 4)


def test_moments_of_batches_are_those_of_numpy():
    vectors = normal(0, 50, 6) + 1e3
    moments = Moments()
    for part in vectors.split(7):
        moments.update(part)
    assert moments.mean.numpy() == pytest.approx(vectors.numpy().mean(0), rel=1e-12)
    assert moments.covariance.numpy() == pytest.approx(np.cov(vectors.numpy().T), rel=1e-9)


@pytest.mark.parametrize(("count", "width"), [(200, 8), (300, 64), (20, 64)])
def test_frechet_agrees_with_torchmetrics(count, width):
    real, fake = normal(0, count, width), normal(1, count, width) * 1.5 + 0.2
    expected = _compute_fid(real.mean(0), real.T.cov(), fake.mean(0), fake.T.cov())
    # With fewer images than dimensions torchmetrics takes roots of rounding noise: it is the reference only so far.
    assert distance(real, fake) == pytest.approx(float(expected), rel=1e-9 if count > width else 1e-4)


def test_frechet_with_fewer_images_than_dimensions_is_exact():
    """Both sets live in the same 5 of 64 dimensions: the distance is that of the 5."""
    basis = torch.linalg.qr(normal(0, 64, 64)).Q[:5]
    real, fake = normal(1, 20, 5), 2 * normal(2, 20, 5) + 1
    assert distance(real @ basis, fake @ basis) == pytest.approx(distance(real, fake), rel=1e-10)


@pytest.mark.parametrize(("count", "width"), [(100, 8), (20, 64)])
def test_a_set_is_at_no_distance_from_itself(count, width):
    features = normal(0, count, width)
    assert distance(features, features) == pytest.approx(0, abs=1e-10)
    assert distance(features, features.flip(0), Kid()) == pytest.approx(_bias(features), rel=1e-9)
    values = precision_recall(features, features, 5)
    assert values["precision"] == values["recall"] == values["coverage"] == 1


def _bias(x):
    """What the unbiased estimator gives for a set against itself: it leaves the diagonal out on one side only."""
    kernel = (x @ x.T / x.shape[1] + 1) ** 3
    return float(2 * (kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1)) - 2 * kernel.mean())


def test_labels_carry_the_extractor_and_only_inception_makes_an_fid():
    assert title("fd", "classifier") == "FD[classifier]"
    assert title("fd", "timm:vit") == "FD[timm:vit]"
    assert title("fd", "inception") == "FID" and title("fd") == "FD[unnamed]"
    assert title("kid", "inception") == "KID[inception]"
    assert title("recall", "inception", 3) == "recall[inception, k=3]"
    assert title("class_consistency", "classifier") == "class consistency"


def test_kid_agrees_with_torch_fidelity_subset_by_subset():
    real, fake = normal(0, 60, 8), normal(1, 50, 8) + 0.3
    expected = kid_features_to_metric(
        real, fake, kid_subsets=7, kid_subset_size=20, rng_seed=3, verbose=False, kid_kernel="poly",
        kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1,
    )  # fmt: skip
    metric = Kid(subsets=7, subset_size=20).build(MetricContext(extractor="x", seed=3))
    metric.update(EvalBatch(real_features=real, fake_features=fake))
    assert metric.compute()["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)


def test_kid_in_closed_form_and_without_bias():
    zero, one = torch.zeros(4, 1), torch.ones(3, 1)
    assert polynomial_mmd(zero, one) == pytest.approx(1 + 8 - 2)
    values = [polynomial_mmd(normal(2 * i, 30, 4), normal(2 * i + 1, 30, 4)) for i in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20


def test_kid_of_subsets_hardly_depends_on_their_order_and_follows_its_seed():
    real, fake = normal(0, 300, 8).float(), normal(1, 300, 8).float() + 0.5

    def value(seed, order=slice(None)):
        metric = Kid(subsets=40, subset_size=100).build(MetricContext(seed=seed))
        metric.update(EvalBatch(real_features=real[order], fake_features=fake))
        return metric.compute()["kid"]

    whole = polynomial_mmd(real, fake)
    values = [value(0), value(1), value(0, torch.arange(299, -1, -1))]
    assert value(0) == values[0] and len(set(values)) == 3  # another order draws other subsets, of the same mean
    one = [polynomial_mmd(real[i : i + 100], fake[i : i + 100]) for i in range(0, 300, 100)]
    assert values == pytest.approx([whole] * 3, abs=4 * float(np.std(one)) / 40**0.5 + 0.02)


def test_kid_of_whole_sets_ignores_their_order():
    real, fake = normal(0, 30, 4), normal(1, 30, 4)
    assert distance(real, fake, Kid()) == pytest.approx(distance(real.flip(0), fake.flip(0), Kid()), rel=1e-10)


@pytest.mark.parametrize("block", [1, 500, 1 << 24])
@pytest.mark.parametrize("neighbours", [1, 5])
def test_precision_recall_density_coverage_equal_the_published_code(monkeypatch, block, neighbours):
    monkeypatch.setattr(prdc, "BLOCK", block)
    real, fake = normal(0, 90, 6) + 5, 0.7 * normal(1, 70, 6) + 5.2
    with contextlib.redirect_stdout(io.StringIO()):
        expected = published_prdc.compute_prdc(real.numpy(), fake.numpy(), neighbours)
    assert precision_recall(real, fake, neighbours) == pytest.approx(expected, abs=1e-12)
    assert expected["precision"] > 0 and 0 < expected["recall"] < 1


def test_precision_recall_tell_a_dropped_mode_from_noise():
    real = torch.cat([normal(0, 100, 2), normal(1, 100, 2) + 50])
    dropped = precision_recall(real, normal(2, 200, 2), 5)
    assert dropped["precision"] > 0.9 and dropped["recall"] < 0.6 and dropped["coverage"] < 0.6
    noise = precision_recall(real, normal(3, 200, 2) * 30 + 200, 5)
    assert noise["precision"] == noise["density"] == 0


def test_sets_too_small_are_refused():
    for config, count, least in ((Frechet(), 1, 2), (Kid(), 1, 2), (find("metrics", "prdc")(), 5, 6)):
        with pytest.raises(ArtokError, match=f"needs at least {least} images, but has 9 real and {count} generated"):
            distance(normal(0, 9, 3), normal(1, count, 3), config)


# ---------------------------------------------------------------------------------------------- other metrics


def test_class_consistency_and_what_real_images_score():
    metric = Consistency().build(SUBJECT)
    metric.update(EvalBatch(conditions=torch.tensor([0, 1, 2, 2]), fake_predicted=torch.tensor([0, 1, 2, 0])))
    metric.update(EvalBatch(labels=torch.tensor([0, 1]), real_predicted=torch.tensor([0, 1])))
    assert metric.compute() == {"class_consistency": 0.75, "class_consistency" + HELD_OUT: 1.0}
    assert metric.count == 4


def test_nearest_training_image_in_closed_form(monkeypatch):
    train = torch.zeros(5, 1, 2, 2, dtype=torch.uint8)
    train[3] = 255
    samples = torch.stack([train[3], torch.full((1, 2, 2), 51, dtype=torch.uint8)])
    for block in (1, 2, 2048):
        monkeypatch.setattr(memorisation, "ROWS", block)
        assert nearest(samples, train).distance.tolist() == pytest.approx([0, 0.8])  # 4 pixels, each 0.4 of [-1, 1]
    with pytest.raises(ArtokError, match="cannot be compared"):
        nearest(pictures(0), train)


def test_nearest_training_image_is_that_of_brute_force():
    samples, train = pictures(0, 20), pictures(1, 30)
    expected = torch.cdist(samples.flatten(1).double() / 127.5, train.flatten(1).double() / 127.5).min(1).values
    assert nearest(samples, train).distance.numpy() == pytest.approx(expected.numpy(), rel=1e-9)
    metric = Memorisation(None, "cpu")
    metric.update(EvalBatch(samples=samples, images=train, train_images=train))
    values = metric.compute()
    assert values["nearest_train_distance"] == pytest.approx(float(expected.quantile(0.5)))
    assert values["nearest_train_distance" + HELD_OUT] == 0


def test_copies_are_told_from_images_that_are_near_all_others():
    real = pictures(0, 900)
    train, held_out, new = real[:500], real[500:700], real[700:]
    flat = (new.float() * 0.4 + 76).to(torch.uint8)  # nearer to every image than these are to one another

    def values(samples):
        metric = Memorisation(None, "cpu")
        metric.update(EvalBatch(samples=samples, images=held_out, train_images=train))
        found = metric.compute()
        return found["nearest_train_distance"], found["memorised_share"], found["memorised_share" + HELD_OUT]

    assert values(flat)[0] < 0.8 * values(new)[0]
    for fresh in (new, flat):
        _, share, chance = values(fresh)
        assert share < chance
    assert values(train[:200] // 2 * 2)[1] == 1
    _, share, chance = values(torch.cat([new, train[:200]]))
    assert share == pytest.approx(0.5, abs=chance)


def found(distances, which, seen):
    search = Search(torch.zeros(len(which), 1, 1, 1, dtype=torch.uint8))
    search.distance, search.which, search.seen = torch.as_tensor(distances).double(), torch.as_tensor(which), seen
    return search


def test_copies_in_closed_form():
    near, far = found([1, 1, 1, 1], [0, 1, 2, 2], 12), found([2, 2, 2, 0.5], [0, 1, 2, 2], 6)
    share, chance = memorisation.copies(near, far)
    assert share == pytest.approx(1 - 0.25 * 3)  # one of four has a held-out image nearest, where a third should
    assert chance == 1
    _, chance = memorisation.copies(near, found([2, 2, 2, 0.5], [0, 1, 2, 2], 60))
    assert chance == pytest.approx(2 * (12 / 60 / 4) ** 0.5)  # image 2 of training and image 2 held out are two images
    share, chance = memorisation.copies(found([1] * 50, range(50), 60), found([0] * 50, range(50), 60))
    assert (share, chance) == (0, pytest.approx(2 / 50**0.5))


def test_the_search_for_copies_is_streamed_and_corrected_for_what_was_not_searched():
    train, held_out = pictures(0, 600), pictures(1, 150)
    metric = Memorisation(600, "cpu")
    metric.update(EvalBatch(samples=train[torch.randperm(600, generator=torch.Generator().manual_seed(0))[:300]]))
    metric.update(EvalBatch(images=held_out))
    for part in train.split(7):
        metric.update(EvalBatch(train_images=part))
    assert metric.compute()["memorised_share"] == 1 and metric.compute()["nearest_train_distance"] == 0
    with pytest.raises(ArtokError, match="once all samples are there"):
        metric.update(EvalBatch(samples=train[:2]))
    with pytest.raises(ArtokError, match="has 0 samples"):
        Memorisation(600, "cpu").update(EvalBatch(train_images=train))
    half = Memorisation(600, "cpu")  # of which the half that is shown holds half of the copied images
    half.update(EvalBatch(samples=train[150:450], images=held_out, train_images=train[:300]))
    values, fresh = (
        half.compute(),
        nearest(train[300:450], held_out).distance < nearest(train[300:450], train[:300]).distance,
    )
    assert values["train_searched_share"] == 0.5
    expected = 2 * (1 - float(fresh.double().mean()) / 2 * 450 / 150)
    assert values["memorised_share"] == pytest.approx(min(1, expected))
    assert values["memorised_share"] > 0.75  # without the correction 0.5 at most, but for chance
    whole = Memorisation(300, "cpu")
    whole.update(EvalBatch(samples=train[150:450], images=held_out, train_images=train[:300]))
    assert values["memorised_share" + HELD_OUT] == pytest.approx(2 * whole.compute()["memorised_share" + HELD_OUT])


def test_large_images_are_searched_by_their_means():
    large = pictures(0, 6, (3, 64, 96))
    small = reduce(large)
    assert small.shape == (6, 3, 21, 32) and small.dtype == torch.uint8
    assert reduce(small) is small
    blocks = reduce(pictures(0, 2, (1, 64, 64)))
    assert blocks[0, 0, 0, 0] == pictures(0, 2, (1, 64, 64))[0, 0, :2, :2].float().mean().round()
    metric = Memorisation(None, "cpu")
    metric.update(EvalBatch(samples=large[:4], images=pictures(1, 6, (3, 64, 96)), train_images=large))
    assert metric.compute()["memorised_share"] == 1


def usage(values, **layout):
    metric = Codebook().build(MetricContext(layout=TokenLayout(image=(1, 4, 4), width=2, **layout)))
    metric.update(EvalBatch(codes=torch.as_tensor(values)))
    return metric, metric.compute()


def test_codebook_entropy_in_closed_form():
    # Two images of two positions: the first always code 0, the second 1 or 2; shares 1/2, 1/4, 1/4.
    metric, values = usage([[[0], [1]], [[0], [2]]], grids=((1, 2),), vocab=8)
    assert values["code_entropy_bits"] == pytest.approx(1.5)
    assert values["perplexity"] == pytest.approx(2**1.5)
    assert values["codes_used"] == 3 and values["dead_codes"] == 5
    assert values["codebook_usage"] == pytest.approx(3 / 8)
    assert metric.by_position().tolist() == [[0.0], [1.0]]
    assert values["code_entropy_by_position_bits"] == pytest.approx(0.5)


def test_a_uniform_code_uses_everything():
    codes = torch.arange(16).reshape(4, 4, 1)
    _, values = usage(codes, grids=((2, 2),), vocab=16)
    assert values["codebook_usage"] == 1 and values["dead_codes"] == 0
    assert values["perplexity"] == pytest.approx(16)


def test_levels_and_scales_are_told_apart():
    _, values = usage([[[0, 1]], [[0, 2]]], grids=((1, 1),), vocab=4, codes=2)
    assert values["codebook_usage/level_1"] == 0.25 and values["codebook_usage/level_2"] == 0.5
    assert values["perplexity/level_1"] == 1 and values["perplexity/level_2"] == pytest.approx(2)
    assert values["codes_used"] == 1.5 and values["dead_codes"] == 5
    _, values = usage([[[0], [1], [2], [3], [3]]], grids=((1, 1), (2, 2)), vocab=4)
    assert values["codebook_usage/1x1"] == 0.25 and values["codebook_usage/2x2"] == 0.75
    assert values["perplexity/2x2"] == pytest.approx(2**1.5)


def test_codes_that_do_not_fit_are_refused():
    metric = tiny("codebook")
    with pytest.raises(ArtokError, match="do not fit the layout"):
        metric.update(EvalBatch(codes=integers(0, 8, 3, 4, 2)))
    with pytest.raises(ArtokError, match=r"outside 0\.\.7"):
        metric.update(EvalBatch(codes=integers(0, 8, 3, 5, 2) + 1))
    with pytest.raises(ArtokError, match="continuous"):
        Codebook().build(MetricContext(layout=replace(LAYOUT, vocab=None, codes=1)))
    with pytest.raises(ArtokError, match="needs the token layout"):
        Likelihood().build(MetricContext())


def test_likelihood_of_a_uniform_model_is_the_code_length():
    metric = Likelihood().build(SUBJECT)
    nats = LAYOUT.bits * math.log(2)
    metric.update(EvalBatch(log_likelihood=torch.full((3,), -nats, dtype=torch.float64)))
    metric.update(EvalBatch(train_log_likelihood=torch.full((2,), -nats / 2, dtype=torch.float64)))
    values = metric.compute()
    assert values["nats_per_token"] == pytest.approx(math.log(8))
    assert values["bits_per_dim"] == pytest.approx(LAYOUT.bits / (3 * 12 * 12))
    assert values["nats_per_token_train"] == pytest.approx(math.log(8) / 2)
    assert metric.count == 3


# ---------------------------------------------------------------------------------------------- cost


def test_parameters_and_operations_of_a_linear_layer():
    layer = torch.nn.Linear(10, 20)
    assert parameters(layer) == 220
    layer.bias.requires_grad_(False)
    assert parameters(layer, trained_only=True) == 200
    x = torch.zeros(4, 10)
    assert flops(lambda: layer(x)) == 2 * 4 * 10 * 20


def test_latency_counts_its_calls_and_throughput_divides(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 13.0, 20.0, 27.0] * 2)
    monkeypatch.setattr("artok.metrics.cost.time.perf_counter", lambda: next(clock))
    calls = []
    timing = latency(lambda: calls.append(1), warmup=4, repeats=3)
    assert len(calls) == 7
    assert (timing.median, timing.fastest, timing.repeats) == (3.0, 2.0, 3)
    assert throughput(lambda: None, images=12, repeats=3) == 4.0


def test_peak_memory_sees_what_a_call_allocates():
    size = 200 * 2**20
    base = peak_memory(lambda: None)
    assert peak_memory(lambda: torch.ones(size, dtype=torch.uint8)) >= base + 0.9 * size
