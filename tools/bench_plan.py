"""How near `artok plan --device cpu` comes: predicted against measured sampling times of shipped configs, here and now.

    python tools/bench_plan.py [CONFIG ...] [--batches 1,64]

The CPU is calibrated first; then each config is measured (the fastest of several runs) right beside its prediction.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from artok.config import load
from artok.layout import Condition, last
from artok.metrics.cost import parameters
from artok.noise import Noise
from artok.planning import calibrate_cpu as calibrate
from artok.planning import meta_model as design
from artok.planning.sampling_cost import sample
from artok.training.experiment import Experiment
from artok.training.progress import Progress

FAMILIES = ["digits/raster", "digits/var", "digits/maskgit", "digits/mar", "digits/dit", "digits/gan"]


@torch.inference_mode()
def measured(experiment: Experiment, batch: int) -> float:
    """Seconds to make and decode a batch, with fresh weights."""
    assert experiment.generator is not None
    tokenizer = design.tokenizer_section(experiment).build(experiment.image).eval()
    generator = experiment.generator.build(tokenizer.layout, 10).eval()

    def make() -> None:
        condition, noise = Condition(torch.zeros(batch, dtype=torch.int64)), Noise(0, torch.arange(batch))
        tokens = last(generator.steps(condition, experiment.sampling, noise, tokenizer))
        tokenizer.decode(tokens)

    return calibrate.fastest(make, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=FAMILIES)
    parser.add_argument("--batches", default="1,64")
    arguments = parser.parse_args()
    calibrate.calibrate(Progress("calibrate"))
    device = calibrate.this_cpu()
    print(f"{'config':<24}{'batch':>6}{'predicted ms':>14}{'measured ms':>13}{'ratio':>8}")
    for name in arguments.configs:
        experiment = load(Experiment, name)
        planned = design.build(experiment)
        resident = 4.0 * parameters(planned.trained)
        for batch in map(int, arguments.batches.split(",")):
            costs = sample(planned, experiment.sampling, batch)
            predicted = costs.total(partial(device.seconds, resident=resident))
            taken = measured(experiment, batch)
            print(f"{name:<24}{batch:>6}{1000 * predicted:>14.2f}{1000 * taken:>13.2f}{predicted / taken:>8.2f}")


if __name__ == "__main__":
    main()
