"""Compares the times that `artok plan --device` estimates with measured sampling times, on the device at hand.

python tools/bench_plan.py [CONFIG ...] [--device cpu|cuda] [--batches 1,64]
"""

from __future__ import annotations

import argparse

import torch

from artok.config import load
from artok.layout import Condition, last
from artok.noise import Noise
from artok.planning.measure import fastest, measure_device
from artok.planning.meta_model import build, tokenizer_section
from artok.planning.sampling_cost import sample
from artok.training.experiment import Experiment

FAMILIES = ["digits/raster", "digits/var", "digits/maskgit", "digits/mar", "digits/dit", "digits/gan"]


@torch.inference_mode()
def generate(experiment: Experiment, batch: int, device: torch.device) -> float:
    """Seconds to generate and decode a batch, with fresh weights."""
    assert experiment.generator is not None
    tokenizer = tokenizer_section(experiment).build(experiment.image).eval().to(device)
    generator = experiment.generator.build(tokenizer.layout, 10).eval().to(device)

    def make() -> None:
        numbers = torch.arange(batch, device=device)
        tokens = last(generator.steps(Condition(numbers * 0), experiment.sampling, Noise(0, numbers), tokenizer))
        tokenizer.decode(tokens)

    return fastest(make, device, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=FAMILIES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", default="1,64")
    arguments = parser.parse_args()
    device = measure_device(arguments.device)
    print(f"{device.source}: {device.flops_per_s['fp32']:.3g} FLOP/s in fp32, {device.bytes_per_s:.3g} bytes/s")
    print(f"{'config':<24}{'batch':>6}{'estimated ms':>14}{'measured ms':>13}{'ratio':>8}")
    for name in arguments.configs:
        experiment = load(Experiment, name)
        design = build(experiment)
        for batch in map(int, arguments.batches.split(",")):
            costs = sample(design, experiment.sampling, batch, device.chip)
            estimated = costs.total(device.seconds)
            taken = generate(experiment, batch, torch.device(arguments.device))
            print(f"{name:<24}{batch:>6}{1000 * estimated:>14.2f}{1000 * taken:>13.2f}{estimated / taken:>8.2f}")


if __name__ == "__main__":
    main()
