"""Three training steps by hand: schedule, clipping, AdamW, weight decay, turns of players, accumulation, averages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import tokenizer_experiment
from torch import Tensor, nn

from artok.config import validate
from artok.training.loop import Trainer
from artok.training.meter import Meter
from artok.training.progress import Progress
from artok.training.run import make_accelerator
from artok.training.settings import Optimizer, Training, settle_precision
from artok.training.task import Step, Stream, Task

STEPS, IMAGES, EMA = 3, 48, 0.15
MODEL = {"lr": 0.1, "betas": (0.5, 0.8), "eps": 0.05, "weight_decay": 0.3, "grad_clip": 2.0, "min_lr_ratio": 0.1}
# What the critic leaves out is as in the model's.
CRITIC = {"lr": 0.02, "betas": (0.0, 0.9), "eps": 0.1, "schedule": "linear", "warmup": 32, "grad_clip": None}


class Player(nn.Module):
    """A matrix, which decays, and a vector, which does not."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[start, -start], [0.5, 1.0]], dtype=torch.float64))
        self.vector = nn.Parameter(torch.tensor([start, 2.0], dtype=torch.float64))

    def forward(self, slopes: Tensor) -> Tensor:
        """Linear in the weights, so that the gradient is the mean of the slopes (rows, 6)."""
        return (slopes * whole(self)).sum(1).mean()


class Slopes(Task):
    """Each player's gradient is what its batch says, times a number that depends on the other player's weights."""

    def __init__(self, experiment: Any) -> None:
        self.experiment = experiment
        self.players = {"model": Player(1.0), "critic": Player(-2.0)}

    def losses(self, modules: Mapping[str, nn.Module], player: str, batch: dict[str, Tensor], seen: int) -> Step:
        other = modules["critic" if player == "model" else "model"]
        return Step({"loss": modules[player](batch[player]) * factor(whole(other))})

    def joins_after(self, player: str) -> int:
        return 16 if player == "critic" else 0

    def plays(self, player: str, step: int) -> bool:
        return player == "model" or step >= 1

    def split(self, batch: dict[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
        chunks = {name: rows.chunk(parts) for name, rows in batch.items()}
        return [{name: rows[part] for name, rows in chunks.items()} for part in range(parts)]

    def batches(self, start: int, rank: int, world: int) -> Stream[Any]:
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        raise NotImplementedError

    def preview(self, path: Path) -> None:
        raise NotImplementedError


def factor(weights: Tensor) -> Tensor:
    return 1 + 0.1 * weights.sum()


def whole(module: nn.Module) -> Tensor:
    return torch.cat([parameter.flatten() for parameter in module.parameters()])


def flat(module: nn.Module) -> Tensor:
    return whole(module).detach().clone()


class ByHand:
    """AdamW as published (Loshchilov and Hutter 2019, algorithm 2), its gradient bounded before."""

    def __init__(self, weights: Tensor, settings: Mapping[str, Any]) -> None:
        self.weights, self.settings, self.steps = weights, settings, 0
        self.first, self.second = torch.zeros_like(weights), torch.zeros_like(weights)

    def step(self, gradient: Tensor, rate: float) -> float:
        """Returns the norm of the gradient."""
        norm, bound = float(gradient.norm()), self.settings["grad_clip"]
        if bound is not None and norm > bound:
            gradient = gradient * bound / norm
        one, two = self.settings["betas"]
        self.steps += 1
        self.first = one * self.first + (1 - one) * gradient
        self.second = two * self.second + (1 - two) * gradient.square()
        decayed = torch.tensor([1.0] * 4 + [0.0] * 2, dtype=torch.float64) * self.settings.get("weight_decay", 0.0)
        size = (self.second / (1 - two**self.steps)).sqrt() + self.settings["eps"]
        self.weights = self.weights - rate * (decayed * self.weights + self.first / (1 - one**self.steps) / size)
        return norm


def rates(step: int) -> tuple[float, float]:
    """A cosine from .1 to .01 over 48 images, and a warm-up over the last 32 of them, 16 a step.

    The critic joins after 16 images, and the steps of its schedule are counted from there.
    """
    cosine = 0.1 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 3)) / 2)
    return cosine, 0.02 * (0.0, 1 / 32, 17 / 32)[step]


def test_three_steps_are_those_made_by_hand(tmp_path: Path) -> None:
    training = {
        "images": IMAGES, "optimizer": MODEL, "critic": CRITIC, "ema": EMA, "gradient_accumulation_steps": 2,
    }  # fmt: skip
    experiment = tokenizer_experiment(training=training)
    task = Slopes(experiment)
    accelerator = make_accelerator(experiment, tmp_path, torch.device("cpu"))
    trainer = Trainer(task, tmp_path, accelerator, Progress("test", quiet=True))
    model, critic = ByHand(flat(task.players["model"]), MODEL), ByHand(flat(task.players["critic"]), MODEL | CRITIC)
    averages, norms = model.weights.clone(), []
    rng = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        slopes = {name: torch.randn(4, 6, generator=rng, dtype=torch.float64) * (1 + step) for name in task.players}
        trainer.seen = 16 * step
        trainer.step(slopes, Meter())
        norms.append(model.step(slopes["model"].mean(0) * factor(critic.weights), rates(step)[0]))
        if step >= 1:
            critic.step(slopes["critic"].mean(0) * factor(model.weights), rates(step)[1])
        decay = min(EMA, (1 + step) / (10 + step))
        averages = decay * averages + (1 - decay) * model.weights
    assert min(norms) < MODEL["grad_clip"] < max(norms)  # one step is bounded, one is not
    close = {"rtol": 1e-5, "atol": 1e-6}  # accelerate bounds with + 1e-6 below the line
    torch.testing.assert_close(flat(task.players["model"]), model.weights, **close)
    torch.testing.assert_close(flat(task.players["critic"]), critic.weights, **close)
    with trainer.shared_weights():
        torch.testing.assert_close(flat(task.players["model"]), averages, **close)


def test_logged_means_are_over_the_steps_that_had_a_value(tmp_path: Path) -> None:
    accelerator = make_accelerator(tokenizer_experiment(), tmp_path, torch.device("cpu"))
    meter = Meter()
    for step in range(5):
        for part in range(2):
            value = torch.tensor(float(10 * step + part))
            meter.add({"always": value} | ({"turns": value} if step % 2 else {}), 0.5)
        if step >= 3:
            meter.add({"late": torch.tensor(7.0)}, 1.0)
        meter.steps, meter.images = meter.steps + 1, meter.images + 16
    values = meter.read(accelerator)
    assert {name: values[name] for name in ("always", "turns", "late")} == {"always": 20.5, "turns": 20.5, "late": 7.0}
    meter.add({"always": torch.tensor(1.0)}, 1.0)
    assert meter.read(accelerator).keys() == {"always", "images_per_second"}  # nothing of the interval before


@pytest.mark.parametrize(("emulated", "native", "expected"), [(True, False, "fp16"), (True, True, "bf16")])
def test_auto_takes_bfloat16_where_a_gpu_multiplies_it_itself(
    monkeypatch: pytest.MonkeyPatch, emulated: bool, native: bool, expected: str
) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or (emulated and including_emulation)
    )
    assert settle_precision("auto", torch.device("cuda")) == expected


def test_auto_takes_bfloat16_on_a_cpu_with_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for units, expected in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda units=units: units)
        assert settle_precision("auto", torch.device("cpu")) == expected
    assert settle_precision("auto", torch.device("mps")) == "no"
    assert settle_precision("fp32", torch.device("cuda")) == "no"


def test_a_critic_is_trained_as_the_model_in_what_its_section_leaves_out() -> None:
    section = {"images": 1, "optimizer": {"lr": 3e-4, "betas": [0.5, 0.9]}}
    assert validate(Training, section, "test").critic == Optimizer(lr=3e-4, betas=(0.5, 0.9))
    own = validate(Training, section | {"critic": {"betas": [0.0, 0.9], "grad_clip": None}}, "test")
    assert own.critic == Optimizer(lr=3e-4, betas=(0.0, 0.9), grad_clip=None)
    assert validate(Training, own.model_dump(mode="json"), "test") == own
