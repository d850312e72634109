"""A short benchmark of this machine's CPU, from which `artok plan` tells times on it: artok plan --calibrate.

It measures matrix products by size and precision, how fast weights are read and pointwise operators run, and what an
operator costs beside its work, in a small transformer that is sampled from.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from artok.config import Config, read_yaml, validate
from artok.errors import ConfigError
from artok.generators import diffusion, raster
from artok.generators.base import Generator, GeneratorConfig
from artok.generators.networks import dit
from artok.layout import Condition, TokenLayout
from artok.metrics.cost import parameters
from artok.metrics.features import cache_directory
from artok.noise import Noise
from artok.planning.roofline import CORE, DTYPES, Curve, Device, Precision
from artok.planning.sampling_cost import sample_tokens
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.settings import Sampling
from artok.saved import write_config
from artok.training.progress import Progress

Points = tuple[tuple[float, float], ...]

SIDES = (32, 64, 128, 256, 512, 1024)  # of square products
WEIGHTS = ((128, 1), (512, 1), (512, 4), (512, 16), (512, 64))  # side and number of matrices that are read in turn
ROWS = 4  # that they are multiplied with: few, so that reading takes the time
NUMBERS = (2**10, 2**14, 2**18, 2**22)  # of pointwise operators
CONVOLUTIONS = ((1, 8, 4), (1, 24, 16), (1, 64, 16), (16, 64, 16))  # images, channels, side
ATTENTION = ((1, 16), (16, 16), (64, 64), (256, 256))  # queries and keys of a head
SECONDS = 0.08  # spent on each point


class Calibration(Config):
    """What was measured, on which machine and with how many threads. The curves are as in `Device`."""

    processor: str
    threads: int
    torch: str
    memory: float
    products: dict[Precision, Points]
    reading: Points
    pointwise: Points
    operator: float
    view: float
    convolutions: Points
    batched: Points

    def device(self) -> Device:
        source = f"measured here by 'artok plan --calibrate', {self.threads} thread{'s' * (self.threads > 1)}"
        names = ("memory", "products", "reading", "pointwise", "operator", "view", "convolutions", "batched")
        return replace(CORE, source=source, **{name: getattr(self, name) for name in names})


def place() -> Path:
    return cache_directory() / f"calibration-{torch.get_num_threads()}.yaml"


def this_cpu() -> Device:
    """This machine as it was calibrated with as many threads, or a typical core."""
    if not place().exists():
        return CORE
    try:
        found = validate(Calibration, read_yaml(place()), str(place()))
    except ConfigError:  # of another version
        return CORE
    return found.device() if found.processor == processor() else CORE


def calibrate(progress: Progress) -> Path:
    """Measure this machine, in about 10 seconds, and keep the figures in the user's cache."""
    progress.say(f"measuring {processor()}, {torch.get_num_threads()} threads")
    with torch.inference_mode():
        products = {name: product_rates(dtype) for name, dtype in DTYPES.items() if name != "fp16"}
        measured = replace(
            CORE, memory=memory(), operator=0.0, view=0.0, convolutions=convolution_rates(), batched=batched_rates(),
            products=products | {"fp16": products["bf16"]}, reading=reading_rates(products["fp32"]),
            pointwise=pointwise_rates(),
        )  # fmt: skip
        operator, view = overheads(measured)
    calibration = Calibration(
        processor=processor(), threads=torch.get_num_threads(), torch=torch.__version__, memory=measured.memory,
        products={name: tuple(curve) for name, curve in measured.products.items()},
        reading=tuple(measured.reading), pointwise=tuple(measured.pointwise), operator=operator, view=view,
        convolutions=tuple(measured.convolutions), batched=tuple(measured.batched),
    )  # fmt: skip
    write_config(place(), calibration)
    return place()


def processor() -> str:
    """Its name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def memory() -> float:
    """Bytes of the machine's memory; 0 where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return 0.0


def fastest(call: Callable[[], object], seconds: float = SECONDS) -> float:
    """Seconds of a call, the fastest of those that fit into `seconds`."""
    return min(timings(call, seconds))


def timings(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of a call, again and again for that long.

    With one thread it is time on the core, which other programs do not disturb.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    call()
    taken, end = list[float](), clock() + seconds
    while clock() < end or not taken:
        count = 1 if taken and taken[-1] > 1e-3 else 50  # below the resolution of the clock, many at once
        start = clock()
        for _ in range(count):
            call()
        taken.append((clock() - start) / count)
    return taken


def beside_launch(call: Callable[[], object], seconds: float = SECONDS) -> float:
    """Seconds of an operator's work, without those that any operator takes."""
    taken = fastest(call, seconds)
    return max(taken - launch(), taken / 10)


def launch() -> float:
    """Seconds of an operator on a few numbers."""
    x = torch.zeros(4, 4)
    return fastest(lambda: x + x, SECONDS / 10)


def convolution_rates() -> Points:
    points = []
    for batch, channels, side in CONVOLUTIONS:
        x, weight = torch.randn(batch, channels, side, side), torch.randn(channels, channels, 3, 3)
        flops = 2.0 * batch * channels**2 * 9 * side**2
        points.append((flops, flops / beside_launch(partial(F.conv2d, x, weight, padding=1))))
    return tuple(points)


def batched_rates() -> Points:
    points = []
    for queries, keys in ATTENTION:
        q, k = torch.randn(256, queries, 32), torch.randn(256, keys, 32).transpose(1, 2)
        flops, moved = 2.0 * 256 * queries * keys * 32, 4.0 * 256 * (32 * (queries + keys) + queries * keys)
        points.append((flops / moved, flops / beside_launch(partial(torch.bmm, q, k))))
    return tuple(sorted(points))


def product_rates(dtype: torch.dtype) -> Points:
    points = []
    for side in SIDES:
        a, b = torch.randn(side, side, dtype=dtype), torch.randn(side, side, dtype=dtype)
        flops = 2.0 * side**3
        points.append((flops, flops / beside_launch(partial(torch.mm, a, b))))
    return tuple(points)


def reading_rates(products: Curve) -> Points:
    """By the bytes of all weights, which a cache holds or not; without the time of the arithmetic."""
    points = []
    for side, count in WEIGHTS:
        matrices, x = [torch.randn(side, side) for _ in range(count)], torch.randn(ROWS, side)
        size, flops = 4.0 * side**2, 2.0 * ROWS * side**2

        def read(matrices: list[Tensor] = matrices, x: Tensor = x) -> None:
            for matrix in matrices:
                F.linear(x, matrix)

        taken = fastest(read) / count - launch()
        points.append((size * count, size / max(taken - flops / products[-1][1], taken / 10)))
    return tuple(points)


def pointwise_rates() -> Points:
    """Of a mix as transformers have it: a sum, a GELU, a softmax and a norm, each of which reads and writes once."""
    points = []
    for numbers in NUMBERS:
        x = torch.randn(numbers // 64, 64)
        calls: list[tuple[float, Callable[[], object]]] = [
            (3, partial(torch.add, x, x)),
            (2, partial(F.gelu, x)),
            (2, partial(torch.softmax, x, -1)),
            (2, partial(F.layer_norm, x, (64,))),
        ]
        moved = sum(share for share, _ in calls) * 4.0 * numbers
        points.append((moved / len(calls), moved / sum(beside_launch(call, SECONDS / 4) for _, call in calls)))
    return tuple(points)


def overheads(device: Device) -> tuple[float, float]:
    """Seconds for an operator and for a view, Python around them included: what small models take beyond the roofline.

    Their ratio is that of a sum and a view of a few numbers.
    """
    x = torch.zeros(4, 4)
    ratio = fastest(lambda: x.view(2, 8)) / fastest(lambda: x + x)
    layout = TokenLayout(((4, 4),), 4, 64, (1, 16, 16))
    latent = TokenLayout(((4, 4),), 4, None, (1, 16, 16))
    flow = DiffusionConfig(schedule="straight", prediction_type="velocity", solver="euler", steps=8)
    shares = [
        overhead(raster.Config(depth=3, width=64, heads=2, multiple_of=8), layout, device, ratio),
        overhead(
            diffusion.Config(network=dit.Config(depth=3, width=64, heads=2, patch_size=1), diffusion=flow),
            latent, device, ratio,
        ),
    ]  # fmt: skip
    operator = sum(shares) / len(shares)
    return operator, ratio * operator


def overhead(config: GeneratorConfig, layout: TokenLayout, device: Device, ratio: float) -> float:
    generator: Generator = config.build(layout, 10).eval()
    sampling = Sampling()

    def make() -> None:
        for _ in generator.steps(
            Condition(torch.zeros(1, dtype=torch.int64)), sampling, Noise(0, torch.arange(1)), None
        ):
            pass

    taken = statistics.median(timings(make, 4 * SECONDS))
    with torch.device("meta"):
        counted = sample_tokens(config.build(layout, 10).to("meta"), None, sampling, 1)
    resident = 4.0 * parameters(generator)
    work = counted.total(lambda work: device.seconds(work, resident))
    operators = counted.total(lambda work: 1.0 if work.bytes else ratio)
    return max(taken - work, 0.0) / operators
