"""Images a second of a training step, by precision, and the share of it that loading takes.

    python tools/bench_training.py [CONFIG ...] [--steps 20] [--threads 1]

Each config is trained for a few steps in every precision in turn, round after round, so that a machine whose speed
drifts treats them alike: compare the figures of one call with each other.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from artok.config import load
from artok.data.loader import Loader
from artok.training.experiment import Experiment
from artok.training.loop import make_optimizer
from artok.training.tasks import TokenizerTask


class Step:
    """One config's training step in one precision."""

    def __init__(self, experiment: Experiment, dtype: torch.dtype, device: torch.device) -> None:
        assert not isinstance(experiment.tokenizer, str), "a tokenizer's config is wanted"
        torch.manual_seed(0)
        self.experiment, self.dtype, self.device = experiment, dtype, device
        train = experiment.data.open("train")
        self.task = TokenizerTask(experiment, train, experiment.data.open("test"), device)
        self.optimizers = {
            name: make_optimizer(player, experiment.training.optimizer) for name, player in self.task.players.items()
        }
        self.loader = Loader(train, experiment.data, experiment.training.global_batch, 0)
        self.loading: list[float] = []
        self.computing: list[float] = []

    def run(self) -> None:
        began = time.perf_counter()
        batch = next(self.loader)
        loaded = time.perf_counter()
        for player, optimizer in self.optimizers.items():
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                step = self.task.losses(self.task.players, player, batch, self.experiment.training.images)
            torch.stack(list(step.losses.values())).sum().backward()
            optimizer.step()
            for module in self.task.players.values():
                module.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.loading.append(loaded - began)
        self.computing.append(time.perf_counter() - loaded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["digits/vq"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    print(f"{device}, {arguments.threads} threads; medians of {arguments.steps} steps after 3")
    print(f"{'config':<20} {'precision':<10} {'images/s':>9} {'step ms':>9} {'loading ms':>11} {'of it':>6}")
    for name in arguments.configs:
        experiment = load(Experiment, name)
        steps = {dtype: Step(experiment, dtype, device) for dtype in (torch.float32, torch.bfloat16)}
        for _ in range(arguments.steps + 3):
            for step in steps.values():
                step.run()
        for dtype, step in steps.items():
            computing, loading = statistics.median(step.computing[3:]), statistics.median(step.loading[3:])
            whole = computing + loading
            print(
                f"{name:<20} {str(dtype).removeprefix('torch.'):<10} {experiment.training.global_batch / whole:>9.0f} "
                f"{1e3 * computing:>9.1f} {1e3 * loading:>11.2f} {loading / whole:>6.1%}"
            )


if __name__ == "__main__":
    main()
