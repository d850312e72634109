"""Prompt match: shares of images that show what was asked, against an oracle whose answers are known."""

import math

import pytest
import torch

from artok.errors import ArtokError
from artok.metrics.base import EvalBatch, MetricContext
from artok.metrics.prompt_match import Config
from artok.oracle import Oracle


class Level(Oracle):
    """Understands "level N [pale]": whether all pixels are N, and whether they are above 100 where that is asked."""

    def things(self, caption):
        return 1 if caption.startswith("level") else 0

    def match(self, images, captions):
        rows = [caption.split() for caption in captions]
        level = [float(image.float().mean()) for image in images]
        known = [bool(words) and words[0] == "level" for words in rows]
        pale = [
            float(at > 100) if ok and "pale" in words else math.nan
            for at, words, ok in zip(level, rows, known, strict=True)
        ]
        exact = [
            float(at == float(words[1]) and light != 0) if ok else math.nan
            for at, words, light, ok in zip(level, rows, pale, known, strict=True)
        ]
        return {"exact": torch.tensor(exact), "pale": torch.tensor(pale)}


def images(*levels):
    return torch.tensor(levels, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def build():
    return Config().build(MetricContext(oracle=Level()))


def test_shares_are_of_what_was_asked_and_understood():
    metric = build()
    metric.update(EvalBatch(prompted=images(10, 20), prompts=["level 10", "level 21"]))
    metric.update(EvalBatch(prompted=images(150, 40, 7), prompts=["level 150 pale", "level 40 pale", "a dog"]))
    found = metric.compute()
    assert found["prompt_match"] == pytest.approx(2 / 4) and found["prompt_match/pale"] == pytest.approx(1 / 2)
    assert found["prompt_match/one_object"] == pytest.approx(2 / 4)
    assert "prompt_match/two_objects" not in found and metric.count == 5


def test_shuffled_captions_are_those_of_other_images():
    metric, levels = build(), range(50)
    metric.update(EvalBatch(prompted=images(*levels), prompts=[f"level {level}" for level in levels]))
    found = metric.compute()
    assert found["prompt_match"] == 1 and found["prompt_match/shuffled"] == 0
    same = build()
    same.update(EvalBatch(prompted=images(*[3] * 50), prompts=["level 3"] * 50))
    assert same.compute()["prompt_match/shuffled"] == 1  # what ignoring the captions gives


def test_unseen_combinations_are_counted_apart():
    metric = build()
    unseen = torch.tensor([True, False, True])
    prompts = ["level 1", "level 2", "level 4"]
    metric.update(EvalBatch(prompted=images(1, 2, 3), prompts=prompts, unseen=unseen))
    found = metric.compute()
    assert found["prompt_match"] == 1 and found["prompt_match/unseen"] == pytest.approx(1 / 2) and metric.count == 1


def test_what_cannot_be_scored_is_said():
    with pytest.raises(ArtokError, match="2 images for 1 prompts"):
        build().update(EvalBatch(prompted=images(1, 2), prompts=["level 1"]))
    metric = build()
    metric.update(EvalBatch(prompted=images(1), prompts=["a dog"]))
    with pytest.raises(ArtokError, match="understands none of the prompts, such as 'a dog'"):
        metric.compute()
    assert not Config().suits(MetricContext())
    with pytest.raises(ArtokError, match="captions can be checked"):
        Config().build(MetricContext())
