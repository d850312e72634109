"""Values of small metrics that can be worked out by hand."""

from __future__ import annotations

import io
import math
import resource
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from artok.errors import ArtokError, DataError
from artok.layout import TokenLayout
from artok.metrics import prdc
from artok.metrics.base import HELD_OUT, EvalBatch, MetricContext, Rows, enough
from artok.metrics.catalogue import catalogue, describe, head
from artok.metrics.classes import Config as Classes
from artok.metrics.codebook import Config as Codebook
from artok.metrics.cost import latency, peak_memory, throughput
from artok.metrics.diversity import classes_covered, distinct, measure_diversity, nearest
from artok.metrics.evaluate import Evaluation
from artok.metrics.features import (
    Extractor,
    ExtractorName,
    TrainingImages,
    extract,
    open_extractor,
    weights_fingerprint,
)
from artok.metrics.floor import class_counts, largest, stratified
from artok.metrics.frechet import Config as Frechet
from artok.metrics.frechet import Moments
from artok.metrics.kid import Config as Kid
from artok.metrics.memorisation import Memorisation, Search, reduce
from artok.metrics.per_channel import PerChannel, maps_of_channels
from artok.metrics.prdc import Config as Prdc
from artok.metrics.prdc import distance_blocks, precision_recall
from artok.metrics.quantity import Quantity, number
from artok.metrics.reference import Reference

SUBJECT = MetricContext(extractor="classifier")


def covered(real: list[int], fake: list[int]) -> float:
    metric = Classes().build(SUBJECT)
    metric.update(EvalBatch(real_predicted=torch.tensor(real)))
    metric.update(EvalBatch(fake_predicted=torch.tensor(fake)))
    assert metric.count == len(fake)
    return metric.compute()["classes_covered"]


def test_classes_are_covered_from_a_tenth_of_their_share_on() -> None:
    assert covered([0, 2], [0, 0]) == 0.5  # class 1 is none of the real images'
    assert covered([0, 2], [0, 1, 1, 2]) == 1
    half = [0] * 10 + [1] * 10
    assert covered(half, [0] * 19 + [1]) == 1  # a twentieth of the samples, for half of the images
    assert covered(half, [0] * 20 + [1]) == 0.5


def test_an_unknown_value_has_its_name_as_its_label() -> None:
    assert describe("new_thing/part") == Quantity("new_thing", "new thing", "", "", "Other", "")
    assert head("latency_s") == "latency at batch 1 (ms)" and describe("latency_s").scale(0.5) == 500
    assert head("psnr_db") == "PSNR (dB)" and head("ssim") == "SSIM"
    assert all(catalogue()[name].names_extractor for name in ("precision", "recall", "density", "coverage", "fd"))
    assert catalogue()["kid"].better == "lower"


def test_numbers_are_rounded_for_people() -> None:
    assert [number(value) for value in (3.0, 12345.0, 0.123456, 9999.5, 12345.6)] == [
        "3",
        "12,345",
        "0.1235",
        "10,000",
        "12,346",
    ]
    assert (number(10000.5), number(-10000.5), number(9998.5)) == ("10,000", "-10,000", "9998")
    quantity = catalogue()["latency_s"]
    assert quantity.format(0.0123456, 0.001, digits=3, unit=True) == "12.3 ± 1 ms"
    assert quantity.format(0.0123456) == "12.35"


def test_nearest_neighbours_leave_the_image_itself_out() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0]])
    distances, indices = nearest(line)
    assert distances.tolist() == [1, 1, 2] and indices.tolist() == [1, 0, 1]
    assert nearest(line, torch.tensor([[2.5], [-4.0]]))[0].tolist() == [2.5, 1.5, 0.5]


def test_samples_that_lie_close_are_not_distinct() -> None:
    real = torch.arange(5.0)[:, None] * 4  # neighbours at 4, so that samples within 1 are one
    samples = torch.tensor([[0.0], [0.9], [10.0], [12.0], [20.0]])
    values = distinct(samples, real)
    assert values["distinct"] == 0.6 and values["neighbour_ratio"] == 0.5
    assert distinct(samples, torch.zeros(4, 1))["neighbour_ratio"] == 1  # half of the real ones are copies


def test_a_class_is_covered_when_half_of_it_is_recognised() -> None:
    reference, labels = torch.tensor([[0.0], [10.0], [20.0]]), torch.tensor([0, 1, 2])
    samples = torch.tensor([[0.0], [10.0], [10.0], [20.0], [0.0], [10.0]])
    assert classes_covered(reference, labels, samples, torch.tensor([0, 0, 1, 1, 2, 2])) == pytest.approx(2 / 3)
    several = torch.arange(12.0)[:, None]
    two = torch.arange(12) % 6
    assert "classes_covered" in measure_diversity(several, several, several, two, two, two)  # two samples a class
    assert "classes_covered" not in measure_diversity(several, several, several[:11], two, two, two[:11])
    one = torch.zeros(12, dtype=torch.int64)
    assert "classes_covered" not in measure_diversity(
        several, several, several, one, one, one
    )  # one class is no choice


def test_rows_are_joined_once_and_counted() -> None:
    rows = Rows("samples")
    for value in (1, 2, 3):
        rows.update(EvalBatch(samples=torch.full((2, 1), value), labels=torch.zeros(9)))
    assert rows.count("samples") == 6
    whole = rows.joined("samples")
    assert whole[:, 0].tolist() == [1, 1, 2, 2, 3, 3] and rows.joined("samples") is whole
    rows.update(EvalBatch(samples=torch.full((1, 1), 4)))
    assert rows.count("samples") == 7 and rows.joined("samples")[-1] == 4


def test_metrics_of_sets_share_one_collection() -> None:
    metrics = [config.build(SUBJECT) for config in (Frechet(), Kid(), Prdc(neighbours=1), Classes())]
    evaluation = Evaluation(metrics, _Features())
    assert metrics[1].rows is metrics[2].rows is metrics[3].rows  # type: ignore[attr-defined]
    pictures = torch.arange(48, dtype=torch.uint8).reshape(12, 1, 2, 2)
    seen = evaluation.update(EvalBatch(images=pictures, samples=pictures.flip(0)))
    assert seen.fake_features is not None and metrics[1].rows.count("fake_features") == 12  # type: ignore[attr-defined]
    results = evaluation.results("one", seed=3, floor={"recall": 0.5})
    assert [entry.name for entry in results.measurements] == [
        "fd", "kid", "precision", "recall", "density", "coverage", "classes_covered",
    ]  # fmt: skip
    assert (results["recall"].k, results["fd"].k, results["recall"].floor, results["kid"].floor) == (1, None, 0.5, None)
    assert [entry.title for entry in results.measurements[:3]] == ["FD[two]", "KID[two]", "precision[two, k=1]"]
    assert all(entry.title.endswith("[two, k=1]") for entry in results.measurements[2:6])
    covering = results["classes_covered"]
    assert (covering.extractor, covering.fingerprint, covering.dim, covering.reference_n) == ("two", "ab", None, None)


class _Features:
    name, fingerprint, dim, device = "two", "ab", 2, torch.device("cpu")

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = images.float().flatten(2).mean(1)[:, :2]
        return features, features


def test_floors_share_out_by_largest_remainder() -> None:
    like = torch.tensor([0, 0, 0, 1, 2, 2])
    assert class_counts(like, 4).tolist() == [2, 1, 1]
    assert class_counts(like, 5).tolist() == [2, 1, 2]
    assert largest(torch.tensor([0] * 9 + [1] * 2 + [2] * 4), like) == 13  # 7 of the first, 2, and 4
    assert largest(torch.tensor([0, 0]), like) == 1
    for n, labels in ((0, like), (1, like[:0])):
        with pytest.raises(ArtokError, match="needs images on both sides"):
            stratified(like, labels, n)


def test_a_count_that_is_too_low_is_named() -> None:
    enough("it", {"a": 2, "b": 3}, 2)
    with pytest.raises(ArtokError, match="it needs at least 3 images, but has 2 a and 3 b"):
        enough("it", {"a": 2, "b": 3}, 3)


def test_images_of_a_reference_are_turned_channels_first(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3))
    (images,) = Reference.open(tmp_path / "a.npz").images()
    assert images.shape == (2, 3, 4, 5) and images[1, 2, 3, 4] == 2 * 4 * 5 * 3 - 1 and images[0, 1, 0, 0] == 1


def test_diversity_stands_beside_that_of_training_images() -> None:
    random = torch.Generator().manual_seed(0)
    real, train, fake = (torch.randn(count, 3, generator=random).double() for count in (24, 30, 20))
    labels = [torch.arange(count) % 2 for count in (24, 30, 20)]
    fake[:10] += 40 * labels[2][:10, None]  # some of one class lie where no real image does
    values = measure_diversity(real, train, fake, *labels)
    expected = distinct(fake, real)
    for suffix, made in (("", fake), ("_floor", train)):
        balls = precision_recall(real, made, 5)
        expected |= {f"{name}{suffix}": balls[name] for name in ("precision", "recall", "coverage")}
    both = torch.cat([real, train]), torch.cat([labels[0], labels[1]])
    expected["classes_covered"] = classes_covered(*both, fake, labels[2])
    expected["classes_covered_floor"] = classes_covered(train, labels[1], real, labels[0])
    assert values == expected


def test_codes_that_are_not_whole_numbers_are_refused_and_parts_are_named_where_there_are_several() -> None:
    def usage(codes: torch.Tensor, grids: tuple[tuple[int, int], ...] = ((1, 2),)) -> dict[str, float]:
        layout = TokenLayout(grids, width=4, vocab=4, image=(1, 4, 4), codes=codes.shape[2])
        metric = Codebook().build(MetricContext(layout=layout))
        metric.update(EvalBatch(codes=codes))
        metric.update(EvalBatch(codes=codes[:0]))
        assert metric.count == len(codes)
        return metric.compute()

    with pytest.raises(ArtokError, match=r"torch\.float32, do not fit the layout"):
        usage(torch.zeros(3, 2, 1))
    for code in (-1, 4):
        with pytest.raises(ArtokError, match=r"are outside 0\.\.3"):
            usage(torch.tensor([[[0], [code]]]))
    plain = usage(torch.tensor([[[0], [3]]]))
    assert not any("/" in name for name in plain) and plain["code_entropy_by_position_bits"] == 0
    parts = usage(torch.tensor([[[0, 0], [1, 0], [2, 0]]]), ((1, 1), (1, 2)))
    assert {name for name in parts if "/" in name} == {
        f"{name}/{part}" for name in ("codebook_usage", "perplexity") for part in ("level_1", "level_2", "1x1", "1x2")
    }
    assert (parts["codebook_usage/level_1"], parts["codebook_usage/1x2"]) == (0.75, 0.375)  # (2 + 1) / 2 of 4
    assert parts["perplexity/1x2"] == pytest.approx(1.5) and parts["code_entropy_bits"] == pytest.approx(
        math.log2(3) / 2
    )


def test_units_for_people_are_powers_of_ten() -> None:
    for name, value in {
        "latency_s": 1e-3,
        "peak_memory_bytes_per_image": 1e6,
        "flops_per_image": 1e6,
        "train_flops": 1e12,
    }.items():
        assert catalogue()[name].scale(2 * value) == pytest.approx(2) and f"({catalogue()[name].display})" in head(name)
    assert number(2.0**60) == "1,152,921,504,606,846,976"


def test_costs_are_measured_a_few_times_after_a_warm_up() -> None:
    calls = list[int]()
    assert latency(lambda: calls.append(1)).repeats == 5 and len(calls) == 2 + 5
    calls.clear()
    assert throughput(lambda: calls.append(1), images=8) > 0 and len(calls) == 1 + 3


def test_peak_memory_is_in_bytes_where_its_mark_cannot_be_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()
    assert peak_memory(lambda: calls.append(1)) % 1024 == 0  # the system counts in KiB
    marked = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 0.1 * marked < peak_memory(lambda: None) <= marked * 1.1

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr("artok.metrics.cost.Path.write_text", refuse)
    monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=7))
    assert peak_memory(lambda: calls.append(2)) == 7 * 1024 and calls == [1, 2]
    monkeypatch.setattr("artok.metrics.cost.sys.platform", "darwin")
    assert peak_memory(lambda: None) == 7, "there it is in bytes"
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(lambda: None) == 0


def test_kid_draws_subsets_from_whichever_set_is_larger() -> None:
    assert (Kid().subsets, Kid().subset_size) == (100, 1000)  # what torch-fidelity takes
    random = torch.Generator().manual_seed(0)
    small, large = torch.randn(10, 2, generator=random), torch.randn(20, 2, generator=random)

    def value(real: torch.Tensor, fake: torch.Tensor, seed: int) -> float:
        metric = Kid(subsets=2).build(MetricContext(seed=seed))
        metric.update(EvalBatch(real_features=real, fake_features=fake))
        return metric.compute()["kid"]

    assert value(small, large, 0) != value(small, large, 1) and value(large, small, 0) != value(large, small, 1)
    assert value(small, small + 1, 0) == value(small, small + 1, 1)


def test_images_are_compared_by_means_of_areas_above_32_pixels() -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(
        reduce(images).float(), images.float().unflatten(2, (32, 2)).unflatten(4, (32, 2)).mean((3, 5)).round()
    )
    for shape, reduced in (((32, 32), (32, 32)), ((33, 8), (32, 8)), ((8, 66), (4, 32)), ((1, 200), (1, 32))):
        assert reduce(torch.zeros(1, 3, *shape, dtype=torch.uint8)).shape[2:] == reduced


def test_the_nearest_of_a_stream_keeps_its_number_and_the_first_of_equals() -> None:
    samples = torch.tensor([0, 200, 90], dtype=torch.uint8).reshape(3, 1, 1, 1)
    search = Search(samples)
    for part in ([255, 100], [100, 200, 4], [90, 4]):
        search.update(torch.tensor(part, dtype=torch.uint8).reshape(-1, 1, 1, 1))
    assert search.which.tolist() == [4, 3, 5] and search.seen == 7
    assert (search.distance * 127.5).tolist() == pytest.approx([4, 0, 0])


def test_pixels_are_means_of_an_eight_by_eight_grid() -> None:
    extractor = open_extractor("pixels")
    grid = torch.arange(192, dtype=torch.uint8).reshape(1, 3, 8, 8)
    expected = (grid.double() / 127.5 - 1).flatten(1).numpy()
    for images in (grid, grid.repeat_interleave(2, 2).repeat_interleave(3, 3)):
        features, logits = extract(extractor, images)
        assert features.numpy() == pytest.approx(expected, abs=1e-6) and logits is None
    assert extract(extractor, grid[:, :1])[0].numpy() == pytest.approx(np.tile(expected[:, :64], 3), abs=1e-6)
    assert (extractor.name, extractor.dim) == ("pixels", 192)
    assert extractor.fingerprint == "95903618dd815138", "the same everywhere, or results could not be compared"


class Counting(Extractor):
    """Notes how many images it is given at once; features are the first pixel times a weight."""

    def __init__(self) -> None:
        self.name, self.fingerprint, self.dim, self.device = "counting", "", 1, torch.device("cpu")
        self.given, self.weight = list[int](), torch.ones((), requires_grad=True)

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.given.append(len(images))
        features = images[:, :1, 0, 0] * self.weight
        return features, features.repeat(1, 2)


def test_features_are_taken_in_batches_without_gradients() -> None:
    extractor, images = Counting(), torch.arange(300).reshape(300, 1, 1, 1).to(torch.uint8)
    features, logits = extract(extractor, images)
    assert extractor.given == [256, 44] and not features.requires_grad
    assert features[:, 0].tolist() == images.flatten().tolist() and logits is not None and logits.shape == (300, 2)
    assert extract(extractor, images[:1], 1)[0].shape == (1, 1)
    none = extract(extractor, images[:0])
    assert none[0].shape == (0, 1) and none[1] is None
    for wrong in (images.float(), images[0], images.repeat(1, 2, 1, 1), images.repeat(1, 4, 1, 1), images[:, :0]):
        with pytest.raises(ArtokError, match="features are taken of uint8 images"):
            extract(extractor, wrong)
    with pytest.raises(ArtokError, match="gives no maps to train on"):
        extractor.maps(images.float(), None)


def test_fingerprints_follow_all_that_they_are_of() -> None:
    images, labels = torch.arange(12, dtype=torch.uint8).reshape(3, 1, 2, 2), torch.tensor([0, 1, 1])
    one = TrainingImages(images, labels, 2)
    others = [
        TrainingImages(images + 1, labels, 2),
        TrainingImages(images, 1 - labels, 2),
        TrainingImages(images, labels, 3),
        TrainingImages(images.reshape(3, 1, 4, 1), labels, 2),
    ]
    prints = {each.fingerprint for each in (one, *others)}
    assert len(prints) == 5 and all(len(each) == 16 for each in prints)
    assert TrainingImages(images, labels.int(), 2).fingerprint == one.fingerprint
    weights = {"a": torch.zeros(2), "b": torch.ones(3, 2).T}
    changed: list[dict[str, torch.Tensor]] = [
        weights | {"a": torch.tensor([0.0, 1.0])},
        weights | {"a": torch.zeros(2, 1)},
        weights | {"a": torch.zeros(2, dtype=torch.int32)},
        {"c": weights["a"], "b": weights["b"]},
    ]
    found = {weights_fingerprint(each, 1) for each in (weights, *changed)} | {weights_fingerprint(weights, 2)}
    assert len(found) == 6 and all(len(each) == 16 for each in found)
    again = {"b": weights["b"].contiguous().requires_grad_(), "a": weights["a"]}
    assert weights_fingerprint(again, 1) == weights_fingerprint(weights, 1)


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (torch.zeros(3, 2, 2, dtype=torch.uint8), [0, 0, 1], "must be uint8"),
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), [0, 1], "with 2 labels"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), [0, 2], "from 0 to 2 are outside the 2 classes"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), [-1, 1], "from -1 to 1 are outside the 2 classes"),
    ],
)
def test_training_images_are_checked(images: torch.Tensor, labels: list[int], reason: str) -> None:
    with pytest.raises(ArtokError, match=reason):
        TrainingImages(images, torch.tensor(labels), 2)
    assert len(TrainingImages(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([1]), 2).images) == 1


def test_an_unknown_extractor_is_refused_in_a_config() -> None:
    names = TypeAdapter(ExtractorName)
    assert names.validate_python("timm:resnet18") == "timm:resnet18"
    with pytest.raises(ValueError, match="did you mean 'pixels'"):
        names.validate_python("pixel")


def test_channels_by_themselves_are_joined_in_order() -> None:
    channels = PerChannel(Counting(), 3)
    images = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8)[:, :, None, None]
    features, logits = channels(images)
    assert (features.tolist(), channels.dim) == ([[1, 2, 3], [4, 5, 6]], 3)
    assert logits is not None and logits.tolist() == [[6] * 8, [15] * 8]  # of 2 x 2 x 2 modes
    maps = maps_of_channels(lambda pixels, layers: [pixels, pixels.repeat(1, 2, 1, 1) * (layers or [0])[0]])
    found = maps(images.float(), [10])
    assert [each[:, :, 0, 0].tolist() for each in found] == [
        [[1, 2, 3], [4, 5, 6]],
        [[10, 10, 20, 20, 30, 30], [40, 40, 50, 50, 60, 60]],
    ]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 4, 4, 1), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.int8),
        np.asfortranarray(np.zeros((2, 4, 5, 3), np.uint8)),
    ],
    ids=["grey", "one", "signed", "transposed"],
)
def test_arrays_that_are_no_images_are_refused_as_a_reference(tmp_path: Path, images: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", arr_0=images)
    with pytest.raises(DataError, match="must be images"):
        Reference.open(tmp_path / "a.npz")


def test_statistics_of_a_reference_are_whole_and_fit(tmp_path: Path) -> None:
    np.savez(tmp_path / "half.npz", mu=np.zeros(3))
    np.savez(tmp_path / "empty.npz", arr_0=np.zeros((0, 4, 4, 3), np.uint8))
    for name in ("half", "empty"):
        with pytest.raises(DataError, match="holds neither"):
            Reference.open(tmp_path / f"{name}.npz")
    np.savez(tmp_path / "wide.npz", mu=np.zeros(3), sigma=np.zeros((3, 4)))
    with pytest.raises(DataError, match=r"do not fit each other: \(3,\) and \(3, 4\)"):
        Reference.open(tmp_path / "wide.npz")
    np.savez(tmp_path / "more.npz", mu=np.zeros(2), sigma=np.eye(2), other=np.zeros(1))
    assert Reference.open(tmp_path / "more.npz").count == 0


def test_images_of_a_reference_come_in_batches_and_a_cut_file_is_named(tmp_path: Path) -> None:
    pixels = np.arange(300 * 2 * 3 * 3, dtype=np.int64).astype(np.uint8).reshape(300, 2, 3, 3)
    header, whole = io.BytesIO(), pixels.tobytes()
    np.lib.format.write_array_header_2_0(header, np.lib.format.header_data_from_array_1_0(pixels))
    for name, content in (("whole", whole), ("cut", whole[:-1])):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive:
            archive.writestr("arr_0.npy", header.getvalue() + content)
    parts = list(Reference.open(tmp_path / "whole.npz").images())
    assert [len(part) for part in parts] == [256, 44]
    assert torch.equal(torch.cat(parts), torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with pytest.raises(DataError, match="end after 256 of 300"):
        list(Reference.open(tmp_path / "cut.npz").images())


def test_what_is_held_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prdc.BLOCK * 8 == 128 * 2**20  # bytes of distances
    monkeypatch.setattr(prdc, "BLOCK", 20)
    x, y = torch.arange(16.0).reshape(8, 2), torch.arange(12.0).reshape(6, 2)
    blocks = list(distance_blocks(x, y))
    assert [start for start, _ in blocks] == [0, 3, 6]
    assert torch.cat([block for _, block in blocks]).numpy() == pytest.approx(torch.cdist(x, y).numpy(), abs=1e-5)
    assert [len(block) for _, block in distance_blocks(x, y.repeat(9, 1))] == [1] * 8
    merged = list[int]()
    moments = Moments()
    monkeypatch.setattr(moments, "_merge", lambda part: merged.append(len(part)))
    moments.update(torch.zeros(5_000, 1))
    assert merged == [4_096, 904]


def test_an_empty_batch_changes_no_moments() -> None:
    moments = Moments()
    for part in (torch.zeros(0, 2), torch.tensor([[1.0, 2.0]]), torch.zeros(0, 2), torch.tensor([[3.0, 8.0]])):
        moments.update(part)
    assert moments.count == 2 and moments.mean.tolist() == [2, 5] and moments.covariance.tolist() == [[2, 6], [6, 18]]


def ones(values: list[int]) -> torch.Tensor:
    """Images of one pixel each."""
    return torch.tensor(values, dtype=torch.uint8).reshape(-1, 1, 1, 1)


def test_as_many_held_out_images_are_compared_as_samples_evenly_over_all() -> None:
    metric = Memorisation(None, "cpu")
    metric.update(EvalBatch(samples=ones([10, 30]), images=ones([0, 50, 50, 50, 100])))
    metric.update(EvalBatch(train_images=ones([10])))
    values = metric.compute()
    assert values["nearest_train_distance"] * 127.5 == pytest.approx(10)
    assert values["nearest_train_distance" + HELD_OUT] * 127.5 == pytest.approx((10 + 90) / 2)  # of 0 and of 100
    assert "train_searched_share" not in values
    alone = Memorisation(1, "cpu")
    alone.update(EvalBatch(samples=ones([10]), train_images=ones([12])))
    assert alone.compute() == {"nearest_train_distance": pytest.approx(2 / 127.5)}


def test_a_share_that_was_found_in_a_part_is_no_more_than_all() -> None:
    metric = Memorisation(8, "cpu")
    metric.update(EvalBatch(samples=ones([1, 2]), images=ones([200, 210]), train_images=ones([1, 2])))
    values = metric.compute()
    assert values["train_searched_share"] == 0.25
    assert values["memorised_share"] == values["memorised_share" + HELD_OUT] == 1
    metric = Memorisation(4, "cpu")  # a half of the samples are copies of the half that was searched
    metric.update(EvalBatch(samples=ones([1, 200] * 50), images=ones([200] * 50), train_images=ones([1, 2])))
    values = metric.compute()
    share = 1 - 0.5 * 52 / 50
    assert values["memorised_share"] == pytest.approx(2 * share)
    assert values["memorised_share" + HELD_OUT] == pytest.approx(2 * 2 * (2 / 50 * 0.5) ** 0.5)


def test_a_sample_as_near_to_either_kind_is_taken_for_a_copy() -> None:
    metric = Memorisation(None, "cpu")
    metric.update(EvalBatch(samples=ones([9]), images=ones([9, 9]), train_images=ones([9])))
    assert metric.compute()["memorised_share"] == 1
