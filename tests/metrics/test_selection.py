"""Which metrics an evaluation computes, and that a new one is one file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import artok.metrics
from artok.config import validate
from artok.data.digits import Config as Digits
from artok.errors import ConfigError
from artok.evaluation.evaluator import Evaluator
from artok.layout import TokenLayout
from artok.metrics import catalogue
from artok.metrics.base import FIELDS, MetricContext
from artok.metrics.results import side_by_side
from artok.metrics.selection import MetricChoice
from artok.tokenizers.base import Tokenizer
from artok.training.progress import Progress

LAYOUT = TokenLayout(((4, 4),), width=4, vocab=8, image=(1, 16, 16))
SUBJECT = MetricContext(layout=LAYOUT, extractor="classifier")
BRIGHTNESS = """
from typing import ClassVar, Literal

from artok.metrics.base import Metric, MetricConfig
from artok.metrics.quantity import Quantity


class Config(MetricConfig):
    kind: Literal["brightness"] = "brightness"
    quantities: ClassVar = (Quantity("brightness_pct", "brightness", "%", "", "Other", "Mean pixel."),)

    def build(self, subject):
        return Brightness()

    @classmethod
    def tiny(cls):
        return cls()


class Brightness(Metric):
    needs: ClassVar = frozenset({"reconstructions"})

    def __init__(self):
        self.total, self.images = 0.0, 0

    @property
    def count(self):
        return self.images

    def update(self, seen):
        if seen.reconstructions is not None:
            self.total += float(seen.reconstructions.double().mean((1, 2, 3)).sum()) / 2.55
            self.images += len(seen.reconstructions)

    def compute(self):
        return {"brightness_pct": self.total / self.images}
"""


def kinds_of(choice: MetricChoice, subject: MetricContext = SUBJECT, fields: frozenset[str] = FIELDS) -> list[str]:
    return [config.kind for config in choice.select(subject, fields)]


def test_a_choice_holds_kinds_and_sections() -> None:
    choice = validate(MetricChoice, {"metrics": ["prdc", {"kind": "kid", "subsets": 10}]}, "evaluation")
    assert choice.metrics is not None
    assert [config.kind for config in choice.metrics] == ["prdc", "kid"]
    assert choice.metrics[1].model_dump()["subsets"] == 10
    with pytest.raises(ConfigError, match="prdc"):
        validate(MetricChoice, {"metrics": ["prcd"]}, "evaluation")


def test_what_does_not_suit_is_left_out() -> None:
    assert {"codebook", "likelihood", "consistency", "classes"} <= set(kinds_of(MetricChoice()))
    assert "modes" not in kinds_of(MetricChoice())
    other = MetricContext(layout=TokenLayout(((4, 4),), width=4, vocab=None, image=(1, 16, 16)), extractor="pixels")
    assert not {"codebook", "consistency", "classes"} & set(kinds_of(MetricChoice(), other))
    assert kinds_of(MetricChoice(), fields=frozenset({"real_features", "fake_features"})) == ["frechet", "kid", "prdc"]


def test_a_new_metric_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brightness.py").write_text(BRIGHTNESS)
    monkeypatch.setattr(artok.metrics, "__path__", [*artok.metrics.__path__, str(tmp_path)])
    catalogue.catalogue.cache_clear()
    try:
        evaluator = Evaluator(Digits(size=16), "pixels", "cpu", 20, Progress("test", quiet=True))
        results = evaluator.tokenizer(tokenizer(), "vq")
        table = side_by_side([results])
        row = table.rows[table.names.index("brightness_pct")]
        assert results["brightness_pct"].n == 20
        assert row[0] == "brightness (%)" and float(row[1]) == pytest.approx(results["brightness_pct"].value, rel=1e-3)
    finally:
        sys.modules.pop("artok.metrics.brightness", None)
        catalogue.catalogue.cache_clear()


def tokenizer() -> Tokenizer:
    from artok.tokenizers.conv import Config

    return Config.tiny().build((1, 16, 16))
