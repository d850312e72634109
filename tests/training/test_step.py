"""Three training steps by hand: schedule, clipping, AdamW, weight decay, turns of players, accumulation, averages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from helpers.models import tokenizer_experiment
from torch import Tensor, nn

from artok.training.loop import Meter, Trainer
from artok.training.progress import Progress
from artok.training.run import make_accelerator
from artok.training.tasks import Step, Stream, Task

STEPS, IMAGES, EMA = 3, 48, 0.15
MODEL = {"lr": 0.1, "betas": (0.5, 0.8), "eps": 0.05, "weight_decay": 0.3, "grad_clip": 2.0, "min_lr_ratio": 0.1}
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
    """A cosine from .1 to .01 over 48 images, and a warm-up over 32 of them (straight down after it), 16 a step."""
    cosine = 0.1 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 3)) / 2)
    return cosine, 0.02 * (1 / 32, 17 / 32, 1.0)[step]


def test_three_steps_are_those_made_by_hand(tmp_path: Path) -> None:
    training = {
        "images": IMAGES, "optimizer": MODEL, "critic": CRITIC, "ema": EMA, "gradient_accumulation_steps": 2,
    }  # fmt: skip
    experiment = tokenizer_experiment(training=training)
    task = Slopes(experiment)
    accelerator = make_accelerator(experiment, tmp_path, torch.device("cpu"))
    trainer = Trainer(task, tmp_path, accelerator, Progress("test", quiet=True))
    model, critic = ByHand(flat(task.players["model"]), MODEL), ByHand(flat(task.players["critic"]), CRITIC)
    averages, norms = model.weights.clone(), []
    rng = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        slopes = {name: torch.randn(4, 6, generator=rng, dtype=torch.float64) * (1 + step) for name in task.players}
        trainer.seen = 16 * step
        trainer.step(slopes, Meter())
        norms.append(model.step(slopes["model"].mean(0) * factor(critic.weights), rates(step)[0]))
        critic.step(slopes["critic"].mean(0) * factor(model.weights), rates(step)[1])
        decay = min(EMA, (1 + step) / (10 + step))
        averages = decay * averages + (1 - decay) * model.weights
    assert min(norms) < MODEL["grad_clip"] < max(norms)  # one step is bounded, one is not
    close = {"rtol": 1e-5, "atol": 1e-6}  # accelerate bounds with + 1e-6 below the line
    torch.testing.assert_close(flat(task.players["model"]), model.weights, **close)
    torch.testing.assert_close(flat(task.players["critic"]), critic.weights, **close)
    with trainer.shared_weights():
        torch.testing.assert_close(flat(task.players["model"]), averages, **close)
