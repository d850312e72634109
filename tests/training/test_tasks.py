"""What a task logs of a step, measures on held-out data and shows, in closed form."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import generator_experiment, tokenizer_experiment
from PIL import Image
from torch import Tensor, nn

from artok.data.loader import Batch
from artok.data.tokens import TokenBatch, TokenCache, evaluation_tokens
from artok.images import to_uint8
from artok.layout import Condition, Tokens
from artok.metrics.reconstruction import psnr
from artok.noise import Noise
from artok.saved import Facts, Saved
from artok.training.encode import open_or_encode
from artok.training.progress import Progress
from artok.training.tasks import GeneratorTask, TokenData, TokenizerTask

CPU = torch.device("cpu")
CRITIC = {"discriminator": {"kind": "dcgan", "base_channels": 8, "norm": "none"}, "r1": 0.1}


def tokenizer_task(**changes: Any) -> TokenizerTask:
    experiment = tokenizer_experiment(**changes)
    torch.manual_seed(0)
    return TokenizerTask(experiment, experiment.data.open("train"), experiment.data.open("test"), CPU)


def batch_of(images: Tensor) -> Batch:
    return Batch(images, torch.zeros(len(images), dtype=torch.int64), torch.arange(len(images)))


def test_the_logged_psnr_is_the_mean_of_the_images() -> None:
    task = tokenizer_task()
    images = torch.zeros(3, 1, 16, 16)
    images[2] = 1.0
    made = torch.stack(
        [torch.full((1, 16, 16), value) for value in (0.2, -0.02, 9.0)]
    )  # the last is 1 within the range

    def model(given: Tensor) -> Any:
        return SimpleNamespace(images=made, losses={"commit": torch.tensor(2.0)}, monitors={"own": torch.tensor(3.0)})

    step = task.losses({"model": model}, "model", batch_of(images), 0)  # type: ignore[dict-item]
    assert float(step.monitors["psnr"]) == pytest.approx(
        (20 + 40 + 100) / 3
    )  # 10 lg of 1/.1^2, 1/.01^2, at most 100 dB
    assert set(step.losses) >= {"commit"} and len(step.losses) == 2
    assert float(step.monitors["own"]) == 3


def test_a_critic_sees_the_reconstructions_of_the_same_part_and_only_from_its_start_on() -> None:
    loss = {"kind": "adversarial", "weight": 0.5, "start": 32, "critic": CRITIC}
    task = tokenizer_task(losses=[{"kind": "reconstruction"}, loss])
    parts = [batch_of(torch.full((4, 1, 16, 16), value)) for value in (-0.5, 0.5)]
    seen: list[tuple[Tensor, Tensor, int, float]] = []

    def critic(real: Tensor, fake: Tensor, labels: None, noise: Noise, step: int, share: float) -> Any:
        seen.append((real, fake, step, share))
        return SimpleNamespace(losses={"critic": torch.tensor(0.0)}, monitors={"told": torch.tensor(1.0)})

    modules: Any = {"model": task.tokenizer, "critic": critic}
    assert [task.plays("critic", step) for step in range(4)] == [False, False, True, True]
    assert all(task.plays("model", step) for step in range(4))
    assert task.joins_after("critic") == 32 and task.joins_after("model") == 0
    early = task.losses(modules, "model", parts[0], 16)
    assert not task.made and "adversarial" not in early.losses
    task.tokenizer.eval()  # reconstructs the same again
    made = [task.tokenizer(part.images).images for part in parts]
    late = [task.losses(modules, "model", part, 32) for part in parts]
    assert all("adversarial" in step.losses for step in late)
    assert all("adversarial_factor" in step.monitors for step in late) and "adversarial_factor" not in early.monitors
    assert len(task.made) == 2
    told = [task.losses(modules, "critic", part, 32) for part in parts]
    for (real, fake, step, share), part, wanted in zip(seen, parts, made, strict=True):
        assert torch.equal(real, part.images) and torch.equal(fake, wanted) and not fake.requires_grad
        assert step == 2 and share == 32 / 128
    assert told[0].losses.keys() == {"critic"} and told[0].monitors.keys() == {"told"} and not task.made


@pytest.fixture(scope="module")
def multiscale() -> TokenizerTask:
    quantizer = {"kind": "multiscale", "scales": [1, 2, 4], "codebook_size": 16, "code_dim": 4}
    task = tokenizer_task(tokenizer={"quantizer": quantizer}, training={"validate_images": 80})
    task.tokenizer.eval()
    return task


def test_held_out_figures_are_those_of_the_metrics(multiscale: TokenizerTask) -> None:
    task, values = multiscale, multiscale.validate()
    batches = list(task._held_out(80))
    assert [len(batch.images) for batch in batches] == [64, 16]
    images = torch.cat([batch.images for batch in batches])
    tokens = task.tokenizer.encode(images)
    names = ["psnr, 1x1", "psnr, 2x2", "psnr"]
    assert [name for name in values if name.startswith("psnr")] == ["psnr", *names[:2]]
    for count, name in enumerate(names, 1):
        made = task.tokenizer.decode(tokens.first_scales(count))
        wanted = float(psnr(to_uint8(images), to_uint8(made)).mean())
        assert values[name] == pytest.approx(wanted, rel=1e-4), name  # a pixel may round the other way in a batch of 80
    assert values["codes_used"] == len(tokens.values.unique())
    assert values["codebook_usage"] == pytest.approx(values["codes_used"] / 16)


def test_a_preview_shows_originals_above_their_reconstructions(multiscale: TokenizerTask, tmp_path: Path) -> None:
    multiscale.preview(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        sheet = torch.from_numpy(np.array(picture))
    assert sheet.shape == (2 * 64 + 1, 8 * 65 - 1)  # 16 px enlarged 4 times, a line of 1 px between
    images = next(multiscale._held_out(8)).images
    made = multiscale.tokenizer.decode(multiscale.tokenizer.encode(images)).clamp(-1, 1)
    for row, each in enumerate((images, made)):
        for column in range(8):
            shown = sheet[65 * row : 65 * row + 64 : 4, 65 * column : 65 * column + 64 : 4]
            assert torch.equal(shown, to_uint8(each)[column, 0])


def test_statistics_are_measured_of_continuous_tokens_only(
    multiscale: TokenizerTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiscale.tokenizer, "measure", lambda batches: pytest.fail("codes have no scale"))
    assert multiscale.measure() == {}
    task = tokenizer_task(tokenizer={"quantizer": {"kind": "gaussian"}})
    task.tokenizer.eval()
    assert task.measure() and "codes_used" not in task.validate()


# ---------------------------------------------------------------------------------------------- generators

FACTS = Facts(image=(1, 16, 16), classes=tuple("0123456789"), data="", version="")


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GeneratorTask:
    monkeypatch.setenv("ARTOK_CACHE", str(tmp_path / "cache"))
    tokenizer = tokenizer_task().tokenizer.eval()
    experiment = generator_experiment("runs/none", training={"validate_images": 80})
    progress = Progress("test", quiet=True)
    train, test = (
        open_or_encode(tokenizer, "mark", experiment.data, name, 1, None, CPU, progress) for name in ("train", "test")
    )
    saved = Saved(tokenizer=tokenizer_experiment().tokenizer, facts=FACTS)
    return GeneratorTask(experiment, TokenData(tokenizer, saved, FACTS, train, test), CPU)


def test_a_tokenizer_is_frozen_and_its_tokens_come_in_equal_parts(task: GeneratorTask) -> None:
    assert not any(parameter.requires_grad for parameter in task.tokenizer.parameters()) and not task.tokenizer.training
    batch = next(task.batches(32, 0, 1))
    assert isinstance(batch, TokenBatch) and len(batch) == 16
    parts = task.split(batch, 4)
    assert [len(part) for part in parts] == [4] * 4
    for name in ("labels", "positions"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert torch.equal(torch.cat([part.tokens.values for part in parts]), batch.tokens.values)
    shares = [next(task.batches(32, rank, 2)) for rank in range(2)]
    assert sorted(torch.cat([share.positions for share in shares]).tolist()) == sorted(batch.positions.tolist())


def test_validation_is_in_nats_per_token(task: GeneratorTask, monkeypatch: pytest.MonkeyPatch) -> None:
    def likelihood(tokens: Tokens, condition: Condition, codec: object) -> Tensor:
        assert codec is task.tokenizer and condition.labels is not None
        return -16.0 * (2 + condition.labels.double())  # 16 tokens per image

    monkeypatch.setattr(task.generator, "log_likelihood", likelihood)
    values = task.validate()
    assert isinstance(task.source, TokenCache)
    for name, cache in (("nll_held_out", task.held_out), ("nll_train", task.source)):
        labels = torch.cat([batch.labels for batch in evaluation_tokens(cache, 80, 80)]).double()
        assert len(labels) == 80 and values[name] == pytest.approx(2 + float(labels.mean())), name
    assert values.keys() == {"nll_held_out", "nll_train"}


def test_without_a_likelihood_the_loss_is_taken_at_fixed_noise(
    task: GeneratorTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Losses(nn.Module):
        def condition(self, labels: Tensor, texts: None, control: None) -> Condition:
            return Condition(labels)

        def log_likelihood(self, tokens: Tokens, condition: Condition, codec: object) -> None:
            return None

        def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: object) -> dict[str, Tensor]:
            return {"one": noise.uniform().mean(), "two": torch.tensor(3.0)}

    monkeypatch.setattr(task, "generator", Losses())
    values = task.validate()
    assert values.keys() == {"loss_held_out", "loss_train"} and values == task.validate()
    # 80 uniform numbers, whose mean has a deviation of .032
    assert all(abs(value - 3.5) < 4 / math.sqrt(12 * 80) for value in values.values())


def test_a_preview_has_eight_samples_of_each_class(task: GeneratorTask, tmp_path: Path) -> None:
    asked: list[tuple[list[int], int]] = []

    def sample(classes: list[int], n: int) -> Tensor:
        asked.append((classes, n))
        return torch.zeros(len(classes) * n, 1, 16, 16, dtype=torch.uint8)

    task.pipeline = lambda: sample  # type: ignore[method-assign, assignment, return-value]
    for classes, rows in ((3, 3), (10, 10), (12, 10)):
        task.facts = FACTS.model_copy(update={"classes": tuple(str(index) for index in range(classes))})
        task.preview(tmp_path / "a.png")
        assert asked[-1] == (list(range(rows)), 8)
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.size == (8 * 33 - 1, rows * 33 - 1)  # 16 px enlarged 2 times, a line of 1 px between


def test_without_a_monitor_nothing_is_sampled(task: GeneratorTask) -> None:
    assert task.monitor() == {}
    pipeline = task.pipeline()
    assert pipeline.generator is task.generator and pipeline.tokenizer is task.tokenizer
    assert pipeline.classes == FACTS.classes and pipeline.sampling == task.experiment.sampling
