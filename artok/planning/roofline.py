"""What devices can do: peak arithmetic by precision, memory and its bandwidth, as their makers publish them."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from artok.errors import ConfigError
from artok.planning.autocast_on_meta import Chip
from artok.planning.op_trace import Work

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS: dict[torch.dtype, Precision] = {dtype: name for name, dtype in DTYPES.items()}

Curve = Sequence[tuple[float, float]]  # a rate at growing sizes


@dataclass(frozen=True)
class Device:
    """A device under a roofline (Williams et al. 2009): an operator takes its overhead, and then as long as its
    arithmetic or its memory traffic, whichever is longer; or both, where nothing hides one behind the other, as on a
    core of a CPU, where a product's time is measured to be that sum.

    memory: bytes, 0 when not known. products: FLOPs a second of matrix products that are reached, by the FLOPs of one,
    for each precision. reading: bytes a second that products read their weights with, by the bytes of all weights.
    pointwise: bytes a second of all other operators, by their bytes. operator, view: seconds to launch a kernel, and
    for a view, which has none. source: where the figures are from.
    """

    name: str
    chip: Chip
    memory: float
    products: dict[Precision, Curve]
    reading: Curve
    pointwise: Curve
    operator: float
    view: float
    overlaps: bool
    source: str
    convolutions: Curve = ()
    batched: Curve = ()

    def seconds(self, work: Work, resident: float = 0.0) -> float:
        """Of one operator, in a computation whose weights take `resident` bytes."""
        if not work.bytes:
            return self.view
        if not work.flops:
            return self.operator + work.bytes / at(self.pointwise, work.bytes)
        curve = self.products[PRECISIONS.get(work.dtype, "fp32")]
        if self.convolutions and work.name.startswith("convolution") and work.dtype == torch.float32:
            return self.operator + work.flops / at(self.convolutions, work.flops)
        if self.batched and work.name == "bmm":
            return self.operator + work.flops / at(self.batched, work.flops / work.bytes)
        parts = (work.flops / at(curve, work.flops), work.bytes / at(self.reading, resident))
        return self.operator + (max(parts) if self.overlaps else sum(parts))


def at(curve: Curve, size: float) -> float:
    """The rate at a size, straight between the points on a logarithmic axis and level beyond the ends."""
    if len(curve) == 1 or size <= curve[0][0]:
        return curve[0][1]
    if size >= curve[-1][0]:
        return curve[-1][1]
    right = bisect([point for point, _ in curve], size)
    (low, before), (high, after) = curve[right - 1], curve[right]
    return before * (after / before) ** (math.log(size / low) / math.log(high / low))


# ---------------------------------------------------------------------------------------------- published figures

MULTIPLYING = 0.5  # share of the peak that matrix products of transformers reach on a GPU, by experience
MOVING = 0.8  # share of the memory bandwidth that is reached
LAUNCH = 8e-6  # seconds from Python to a kernel of eager PyTorch
TERA, GIB = 1e12, 2**30


@dataclass(frozen=True)
class Published:
    """Dense peaks in TFLOP/s with fp32 accumulation, memory in GiB, bandwidth in TB/s."""

    fp32: float
    half: float
    memory: int
    bandwidth: float
    source: str


GPUS = {
    "H100": Published(66.9, 989.4, 80, 3.35, "NVIDIA H100 SXM datasheet"),
    "H200": Published(66.9, 989.4, 141, 4.8, "NVIDIA H200 SXM datasheet"),
    "A100": Published(19.5, 312.0, 80, 2.039, "NVIDIA A100 80GB SXM datasheet"),
    "L4": Published(30.3, 121.0, 24, 0.3, "NVIDIA L4 datasheet"),
    "RTX 4090": Published(82.6, 165.2, 24, 1.008, "NVIDIA Ada architecture whitepaper, appendix A"),
}
CORE = Device(
    name="cpu",
    chip="cpu",
    memory=0,
    products={"fp32": [(1.0, 50e9)], "bf16": [(1.0, 50e9)], "fp16": [(1.0, 50e9)]},
    reading=[(1.0, 10e9)],
    pointwise=[(1.0, 5e9)],
    operator=8e-6,
    view=2e-6,
    overlaps=False,
    source="a typical core, not this one: run 'artok plan --calibrate'",
)


def published(name: str) -> Device:
    """A GPU by its name, in any writing. ConfigError: it is not in the table."""
    wanted = name.lower().replace(" ", "").replace("-", "").removeprefix("nvidia")
    for known, figures in GPUS.items():
        if known.lower().replace(" ", "") in (wanted, f"rtx{wanted}"):
            half = [(1.0, figures.half * TERA * MULTIPLYING)]
            moving = [(1.0, figures.bandwidth * TERA * MOVING)]
            return Device(
                name=known,
                chip="gpu",
                memory=figures.memory * GIB,
                products={"fp32": [(1.0, figures.fp32 * TERA * MULTIPLYING)], "bf16": half, "fp16": half},
                reading=moving,
                pointwise=moving,
                operator=LAUNCH,
                view=0.0,
                overlaps=True,
                source=f"{figures.source}; {MULTIPLYING:.0%} of its peak and {MOVING:.0%} of its bandwidth reached",
            )
    raise ConfigError(f"there is no device {name!r}; there are: {', '.join(GPUS)}, cpu")
