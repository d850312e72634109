"""Values of small metrics that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from artok.errors import ArtokError
from artok.metrics.base import EvalBatch, MetricContext, Rows, enough
from artok.metrics.catalogue import catalogue, describe, head
from artok.metrics.classes import Config as Classes
from artok.metrics.diversity import classes_covered, distinct, measure_diversity, nearest
from artok.metrics.evaluate import Evaluation
from artok.metrics.floor import class_counts, largest, stratified
from artok.metrics.frechet import Config as Frechet
from artok.metrics.kid import Config as Kid
from artok.metrics.prdc import Config as Prdc
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
        "1e+04",
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


def test_a_reference_without_images_has_none(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import numpy as np

    np.savez(tmp_path / "a.npz", arr_0=np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3))
    (images,) = Reference.open(tmp_path / "a.npz").images()
    assert images.shape == (2, 3, 4, 5) and images[1, 2, 3, 4] == 2 * 4 * 5 * 3 - 1 and images[0, 1, 0, 0] == 1
