"""What generating costs, family against family: passes, FLOPs, latency and throughput of shipped configs.

    python tools/bench_generators.py [CONFIG ...] [--batch 64] [--rounds 5]

Weights are fresh: cost does not depend on them. The configs take turns, round after round, so that a machine whose
speed drifts treats them alike: compare the figures of one call with each other.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import torch

from artok.config import load
from artok.generators.base import Generator
from artok.layout import Condition, last
from artok.metrics.cost import flops, parameters
from artok.noise import Noise
from artok.sampling.settings import Sampling
from artok.tokenizers.base import Tokenizer
from artok.training.experiment import Experiment


def built(name: str, device: str) -> tuple[Generator, Tokenizer, Sampling]:
    """A config's generator on its tokenizer, which is found by the run directory that the config names."""
    experiment = load(Experiment, name)
    section, image = experiment.tokenizer, experiment.image
    if isinstance(section, str):
        other = load(Experiment, section.removeprefix("runs/").replace("-", "/", 1))
        section, image = other.tokenizer, other.image
    assert experiment.generator is not None, f"{name} trains a tokenizer"
    assert not isinstance(section, str)
    tokenizer = section.build(image).to(device).eval()
    generator = experiment.generator.build(tokenizer.layout, 10).to(device).eval()
    return generator, tokenizer, experiment.sampling


@torch.inference_mode()
def generate(parts: tuple[Generator, Tokenizer, Sampling], batch: int, device: str) -> float:
    """Seconds to make and decode a batch."""
    generator, tokenizer, sampling = parts
    condition = Condition(torch.zeros(batch, dtype=torch.int64, device=device))
    noise = Noise(0, torch.arange(batch, device=device))
    began = time.perf_counter()
    tokens = last(generator.steps(condition, sampling, noise, tokenizer))
    tokenizer.decode(tokens)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["digits/raster", "digits/var"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    families = {name: built(name, device) for name in arguments.configs}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in families}
    for _ in range(arguments.rounds + 1):
        for name, parts in families.items():
            times[name].append((generate(parts, 1, device), generate(parts, arguments.batch, device)))
    print(f"{device}, {torch.get_num_threads()} threads; medians of {arguments.rounds} rounds after one")
    print(f"{'config':<20} {'millions':>9} {'passes':>7} {'MFLOPs':>8} {'batch 1 ms':>11} {'images/s':>9}")
    for name, parts in families.items():
        one = statistics.median(pair[0] for pair in times[name][1:])
        many = statistics.median(pair[1] for pair in times[name][1:])
        work = flops(partial(generate, parts, 1, device)) / 1e6
        generator, _, sampling = parts
        print(
            f"{name:<20} {parameters(generator) / 1e6:>9.2f} {generator.passes(sampling):>7} {work:>8.0f} "
            f"{1e3 * one:>11.1f} {arguments.batch / many:>9.0f}"
        )


if __name__ == "__main__":
    main()
