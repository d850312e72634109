"""What a token costs with the cache, early and late in an image, against decoding without one.

    python tools/bench_decoding.py [--depth 6] [--batch 8] [--grid 16] [--device cuda]

Prints milliseconds a token around several places of the sequence, split into attention (which reads the cache, so it
grows) and all the rest (which must not), and what a pass over the whole prefix would cost there instead.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from artok.generators import raster
from artok.layout import Condition, TokenLayout
from artok.nn import transformer
from artok.nn.attention import attend
from artok.noise import Noise
from artok.sampling.settings import Sampling

AROUND = 5  # tokens on either side that a figure is the median of


class Clock:
    """Seconds, with a GPU's work finished."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def timed_attention(clock: Clock, spent: list[float]) -> Callable[..., Tensor]:
    """`attend`, adding its seconds to the last entry of `spent`."""

    def timed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
        began = clock.now()
        result = attend(q, k, v, mask, scale)
        spent[-1] += clock.now() - began
        return result

    return timed


@torch.inference_mode()
def decode(model: raster.Raster, batch: int, clock: Clock) -> tuple[list[float], list[float]]:
    """Seconds of each token, and of the attention in it."""
    labels = torch.zeros(batch, dtype=torch.int64, device=clock.device)
    samples = torch.arange(batch, device=clock.device)
    attention: list[float] = [0.0]
    transformer.attend = timed_attention(clock, attention)
    total, before = [], clock.now()
    for _ in model.steps(Condition(labels), Sampling(), Noise(0, samples), None):
        now = clock.now()
        total.append(now - before)
        attention.append(0.0)
        before = clock.now()
    transformer.attend = attend
    return total, attention[:-1]


@torch.inference_mode()
def without_cache(model: raster.Raster, batch: int, place: int, clock: Clock) -> float:
    """Seconds of a pass over the prefix that ends at a place."""
    codes = torch.zeros(batch, place, dtype=torch.int64, device=clock.device)
    times = []
    for _ in range(3):
        began = clock.now()
        model.logits(codes, model.context(Condition(codes[:, 0])))
        times.append(clock.now() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    clock = Clock(torch.device(arguments.device))
    layout = TokenLayout(((arguments.grid, arguments.grid),), 8, 4096, (3, 16 * arguments.grid, 16 * arguments.grid))
    model = raster.Config(depth=arguments.depth).build(layout, 10).eval().to(clock.device)
    decode(model, arguments.batch, clock)
    runs = [decode(model, arguments.batch, clock) for _ in range(arguments.runs)]
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{millions:.1f}M parameters, {layout.length} tokens, batch {arguments.batch}, {arguments.device}")
    print(f"{'token':>6} {'total ms':>10} {'attention ms':>14} {'the rest ms':>13} {'without cache ms':>18}")
    last = layout.length - 1 - AROUND
    for place in sorted({10, last // 4, last // 2, last}):
        around = range(place - AROUND, place + AROUND + 1)
        total = statistics.median(run[0][token] for run in runs for token in around)
        attention = statistics.median(run[1][token] for run in runs for token in around)
        whole = without_cache(model, arguments.batch, place, clock)
        rest = total - attention
        print(f"{place:>6} {1e3 * total:>10.2f} {1e3 * attention:>14.2f} {1e3 * rest:>13.2f} {1e3 * whole:>18.2f}")


if __name__ == "__main__":
    main()
