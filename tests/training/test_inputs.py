"""What a task gives its players to see: augmented images, dropped labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import TOKENIZER, tokenizer_experiment
from torch import Tensor

from artok.config import merge, validate
from artok.layout import Codec, Condition, Tokens
from artok.noise import Noise, fold
from artok.training.experiment import Experiment
from artok.training.progress import Progress
from artok.training.run import build_task, make_accelerator
from artok.training.task import Task
from artok.training.tasks import GeneratorTask

FLIP = {"flip": True, "shift": 0.1}


def task_of(experiment: Experiment, folder: Path) -> Task:
    accelerator = make_accelerator(experiment, folder, torch.device("cpu"))
    return build_task(experiment, folder, accelerator, Progress("test", quiet=True))


def first_images(folder: Path, **data: Any) -> Tensor:
    batches = task_of(tokenizer_experiment(data=data), folder).batches(0, 0, 1)
    try:
        images: Tensor = next(batches).images
        return images
    finally:
        batches.close()


def test_training_images_are_augmented(tmp_path: Path) -> None:
    plain, changed = first_images(tmp_path), first_images(tmp_path, augment=FLIP)
    assert plain.shape == changed.shape
    differs = (plain - changed).flatten(1).abs().amax(1) > 0
    assert differs.float().mean() > 0.5
    assert torch.equal(changed, first_images(tmp_path, augment=FLIP))


class Heard:
    """Stands for a generator and keeps the labels of its conditions."""

    def __init__(self) -> None:
        self.labels: list[Tensor] = []

    def __call__(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        kept = condition.labels
        assert kept is not None
        self.labels.append(kept.clone())
        return {"loss": torch.zeros(())}


@pytest.fixture(scope="module")
def pixel_task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GeneratorTask]:
    folder = tmp_path_factory.mktemp("task")
    generator = {
        "kind": "diffusion",
        "network": {"kind": "dit", "depth": 1, "width": 16, "heads": 2, "patch_size": 4},
        "class_dropout": 0.25,
    }
    section = merge(TOKENIZER, {"name": "tiny-dit", "generator": generator, "training": {"monitor_images": 0}})
    task = task_of(validate(Experiment, section | {"tokenizer": {"kind": "pixels"}}, "test"), folder)
    assert isinstance(task, GeneratorTask)
    yield task


def test_labels_are_dropped_as_often_as_said_and_by_the_place_of_an_image(pixel_task: GeneratorTask) -> None:
    batches = pixel_task.batches(0, 0, 1)
    labels, places = [], []
    model: Any = Heard()
    for _, batch in zip(range(40), batches, strict=False):
        pixel_task.losses({"model": model}, "model", batch, 0)
        labels.append(batch.labels)
        places.append(batch.positions)
    batches.close()
    before, after = torch.cat(labels), torch.cat(model.labels)
    dropped = before != after
    expected = Noise(fold("training", pixel_task.experiment.seed), torch.cat(places)).uniform() < 0.25
    assert torch.equal(dropped, expected)
    # a share of 1/4 of 640 draws is known to .017
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=4 * 0.017)


def test_without_dropout_every_label_is_heard(pixel_task: GeneratorTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_task, "class_dropout", 0.0)
    batches = pixel_task.batches(0, 0, 1)
    batch, model = next(batches), Heard()
    batches.close()
    pixel_task.losses({"model": model}, "model", batch, 0)  # type: ignore[dict-item]
    assert torch.equal(model.labels[0], batch.labels)
