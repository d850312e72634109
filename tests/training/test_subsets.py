"""What is measured on a part of a split sees all classes, however the data are sorted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.images import paint
from helpers.models import TOKENIZER, generator_experiment, tokenizer_experiment
from PIL import Image
from torch import Tensor

from artok.data import folder, hub
from artok.data.base import Split
from artok.data.loader import evaluation_batches
from artok.data.order import choose_rows
from artok.data.tokens import TokenCache, evaluation_tokens
from artok.evaluation.evaluator import Evaluator
from artok.generators import mar
from artok.layout import Condition, Tokens
from artok.saved import Facts, Saved
from artok.training import tasks
from artok.training.encode import open_or_encode
from artok.training.monitor import Monitor
from artok.training.progress import Progress
from artok.training.tasks import GeneratorTask, TokenData, TokenizerTask

EACH = 60  # images of a class in either split
PART = 30  # images that are looked at
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> folder.Config:
    """Images in class folders, and so in the order of their classes: dark, then bright ones."""
    root = tmp_path_factory.mktemp("pictures")
    for split in ("train", "test"):
        for index in range(2 * EACH):
            value = index if index < EACH else 255 - index + EACH
            paint(root / split / ("bright" if index >= EACH else "dark") / f"{index:03}.png", value)
    return folder.Config(root=root, size=16, channels=1)


def assert_mixed(labels: Tensor, count: int = PART) -> None:
    """Of 120 sorted images 30 are drawn: 15 of a class, with a deviation of 2.4."""
    assert len(labels) == count
    assert all(count * 0.25 <= each <= count * 0.75 for each in torch.bincount(labels, minlength=2).tolist())


def shades(images: Iterable[Tensor]) -> Tensor:
    """The class of an image, by its brightness."""
    return (torch.cat(list(images)).flatten(1).mean(1) > 0).long()


def section(data: folder.Config, **changes: Any) -> dict[str, Any]:
    return {"data": data.model_dump(mode="json"), **changes}


@pytest.fixture
def task(data: folder.Config) -> TokenizerTask:
    tokenizer = {**TOKENIZER["tokenizer"], "quantizer": {"kind": "gaussian"}}
    experiment = tokenizer_experiment(**section(data, tokenizer=tokenizer, training={"validate_images": PART}))
    return TokenizerTask(experiment, data.open("train"), data.open("test"), CPU)


@pytest.fixture
def seen(task: TokenizerTask, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The images that are encoded."""
    seen: list[Tensor] = []
    encode = task.tokenizer.encode

    def watched(images: Tensor) -> Tokens:
        seen.append(images)
        return encode(images)

    monkeypatch.setattr(task.tokenizer, "encode", watched)
    return seen


def test_a_subset_is_fixed_ascending_and_whole_where_it_can_be() -> None:
    rows = choose_rows(1000, 100)
    assert rows.diff().min() > 0 and torch.equal(rows, choose_rows(1000, 100)) and rows[-1] > 900
    assert torch.equal(choose_rows(10, 10), torch.arange(10)) and torch.equal(choose_rows(10), torch.arange(10))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches(data: folder.Config, workers: int) -> None:
    settings = data.model_copy(update={"workers": workers})
    for split in (settings.open("train"), settings.open("test")):
        batches = list(evaluation_batches(split, settings, 7, PART))
        assert_mixed(torch.cat([batch.labels for batch in batches]))
        assert torch.equal(torch.cat([batch.positions for batch in batches]), choose_rows(2 * EACH, PART))


def test_statistics_of_latents(task: TokenizerTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "MEASURED", PART)
    seen: list[Tensor] = []
    monkeypatch.setattr(task.tokenizer, "measure", lambda batches: seen.extend(batches) or {})
    task.measure()
    assert_mixed(shades(seen))


def test_validation(task: TokenizerTask, seen: list[Tensor]) -> None:
    task.tokenizer.eval()
    task.validate()
    assert_mixed(shades(seen))


def test_preview(task: TokenizerTask, seen: list[Tensor], tmp_path: Path) -> None:
    task.tokenizer.eval()
    task.preview(tmp_path / "a.png")
    assert_mixed(shades(seen), 8)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 8 * 16


@pytest.fixture
def caches(data: folder.Config, task: TokenizerTask) -> dict[str, TokenCache]:
    tokenizer, progress = task.tokenizer.eval(), Progress("test", quiet=True)
    return {name: open_or_encode(tokenizer, "sorted", data, name, 1, None, CPU, progress) for name in ("train", "test")}


def test_likelihoods_in_training(
    data: folder.Config, task: TokenizerTask, caches: dict[str, TokenCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    for cache in caches.values():
        assert_mixed(torch.cat([batch.labels for batch in evaluation_tokens(cache, 7, PART)]))
    generator = mar.Config.tiny().model_dump(mode="json")
    training = {"validate_images": PART}
    experiment = generator_experiment("runs/none", **section(data, generator=generator, training=training))
    facts = Facts(image=(1, 16, 16), classes=("bright", "dark"), data="", version="")
    saved = Saved(tokenizer=experiment.tokenizer, facts=facts)
    built = GeneratorTask(experiment, TokenData(task.tokenizer, saved, facts, caches["train"], caches["test"]), CPU)
    labels: list[Tensor] = []

    def watched(tokens: Tokens, condition: Condition, codec: object) -> Tensor:
        assert condition.labels is not None
        labels.append(condition.labels)
        return torch.zeros(len(condition.labels))

    monkeypatch.setattr(built.generator, "log_likelihood", watched)
    built.validate()
    assert_mixed(torch.cat(labels[: len(labels) // 2]))
    assert_mixed(torch.cat(labels[len(labels) // 2 :]))


def test_likelihoods_in_evaluation(data: folder.Config, task: TokenizerTask) -> None:
    evaluator = Evaluator(data, "pixels", "cpu", PART, Progress("test", quiet=True))
    labels: list[Tensor] = []

    def watched(tokens: Tokens, condition: Condition, codec: object) -> Tensor:
        assert condition.labels is not None
        labels.append(condition.labels)
        return torch.zeros(len(condition.labels))

    generator = SimpleNamespace(
        log_likelihood=watched, condition=lambda labels, texts, control=None: Condition(labels), hears={"labels"}
    )
    pipeline: Any = SimpleNamespace(tokenizer=task.tokenizer.eval(), generator=generator)
    assert sum(1 for _ in evaluator.likelihoods(pipeline)) == 2
    for each in labels:
        assert_mixed(each)


def test_monitor_of_images_without_known_labels(data: folder.Config) -> None:
    monitor = Monitor("pixels", PART, data.open("train"), data.open("test"), None, None, 16, CPU)
    assert_mixed(monitor.train_labels)
    assert_mixed(monitor.real_labels)


def test_measuring_leaves_the_stream_that_is_trained_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    section = hub.Config.tiny(tmp_path).model_dump() | {"streaming": True, "classes": ["a", "b", "c"], "size": 16}
    tokenizer = {**TOKENIZER["tokenizer"], "quantizer": {"kind": "gaussian"}}
    data = hub.Config(**section)
    experiment = tokenizer_experiment(data={**data.model_dump(mode="json"), "kind": "hub"}, tokenizer=tokenizer)
    task = TokenizerTask(experiment, data.open("train"), data.open("test"), CPU)
    read: list[Split] = []
    monkeypatch.setattr(tasks, "evaluation_batches", lambda split, *rest, **named: read.append(split) or [])
    monkeypatch.setattr(task.tokenizer, "measure", lambda batches: {})
    task.measure()
    assert read[0].sequential and read[0] is not task.train_split
    assert read[0].fingerprint == task.train_split.fingerprint
