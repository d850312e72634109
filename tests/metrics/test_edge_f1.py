"""Edge F1 of lines that are moved, shortened and left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from artok.metrics.base import EvalBatch, MetricContext
from artok.metrics.edge_f1 import Config, f1


def line(column: int, length: int = 10) -> Tensor:
    """A vertical line of pixels in an image of 12 x 12, (1, 1, 12, 12)."""
    edges = torch.zeros(1, 1, 12, 12, dtype=torch.bool)
    edges[..., :length, column] = True
    return edges


def test_an_edge_counts_within_the_tolerance() -> None:
    for moved, tolerance, wanted in ((0, 0, 1.0), (1, 0, 0.0), (1, 1, 1.0), (2, 1, 0.0), (2, 2, 1.0)):
        assert float(f1(line(4), line(4 + moved), tolerance)) == pytest.approx(wanted)


def test_half_of_an_edge_has_full_precision_and_half_the_recall() -> None:
    half = line(4, 5)
    assert float(f1(line(4), half, 0)) == pytest.approx(2 / 3)
    assert float(f1(half, line(4), 0)) == pytest.approx(2 / 3)
    assert float(f1(line(4), half, 1)) == pytest.approx(2 * 0.6 / 1.6)  # the sixth pixel is one away


def test_twice_the_edges_have_half_the_precision() -> None:
    assert float(f1(line(2), line(2) | line(8), 1)) == pytest.approx(2 / 3)


def test_images_without_edges_agree_with_each_other_alone() -> None:
    none = line(0, 0)
    assert [float(f1(*pair, 1)) for pair in ((none, none), (none, line(3)), (line(3), none))] == [1.0, 0.0, 0.0]


def test_the_value_is_the_mean_over_images() -> None:
    metric = Config().build(MetricContext(control="edges"))
    asked = torch.cat([line(4), line(4)]).to(torch.uint8) * 255
    metric.update(EvalBatch(controls=asked, made_controls=torch.cat([line(5), line(9)]).to(torch.uint8) * 255))
    metric.update(EvalBatch(samples=asked))
    metric.update(EvalBatch(controls=asked[:1], made_controls=asked[:1]))
    assert metric.compute() == {"edge_f1": pytest.approx(2 / 3)} and metric.count == 3


def test_it_suits_generators_that_are_given_edges() -> None:
    assert Config().suits(MetricContext(control="edges"))
    assert not Config().suits(MetricContext()) and not Config().suits(MetricContext(control="low_resolution"))
