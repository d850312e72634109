"""Estimates times from ceilings: the matrix rate by precision and the memory bandwidth of a device (Williams et al.
2009). Ceilings of GPUs are published figures; `measure.py` measures those of the device at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from artok.errors import ConfigError
from artok.planning.autocast_on_meta import Chip
from artok.planning.op_trace import OpCost

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS: dict[torch.dtype, Precision] = {dtype: name for name, dtype in DTYPES.items()}

MATRIX_SHARE = 0.5  # share of the peak that transformers' matrix products typically reach on a GPU
BANDWIDTH_SHARE = 0.8  # of the memory bandwidth that is reached
LAUNCH = 8e-6  # seconds from Python to a kernel of eager PyTorch
TERA, GIB = 1e12, 2**30


@dataclass(frozen=True)
class Device:
    """memory: bytes, 0 when unknown. flops_per_s: of matrix products, by precision. bytes_per_s: of memory. launch:
    seconds per kernel. source: of these figures.
    """

    name: str
    chip: Chip
    memory: float
    flops_per_s: Mapping[Precision, float]
    bytes_per_s: float
    launch: float
    source: str

    def seconds(self, op: OpCost) -> float:
        """The time of one operator: its launch, and the longer of arithmetic and memory traffic. Views take none."""
        if not op.bytes:
            return 0.0
        arithmetic = op.flops / self.flops_per_s[PRECISIONS.get(op.dtype, "fp32")]
        return self.launch + max(arithmetic, op.bytes / self.bytes_per_s)


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


def published(name: str) -> Device:
    """A GPU by its name, in any spelling. Raises ConfigError when it is not listed."""
    wanted = name.lower().replace(" ", "").replace("-", "").removeprefix("nvidia")
    for known, figures in GPUS.items():
        if known.lower().replace(" ", "") in (wanted, f"rtx{wanted}"):
            half = figures.half * TERA * MATRIX_SHARE
            return Device(
                name=known,
                chip="gpu",
                memory=figures.memory * GIB,
                flops_per_s={"fp32": figures.fp32 * TERA * MATRIX_SHARE, "bf16": half, "fp16": half},
                bytes_per_s=figures.bandwidth * TERA * BANDWIDTH_SHARE,
                launch=LAUNCH,
                source=f"{figures.source}, at {MATRIX_SHARE:.0%} of its peak, {BANDWIDTH_SHARE:.0%} of its bandwidth "
                f"and {1e6 * LAUNCH:.0f} us per kernel; not measured",
            )
    raise ConfigError(f"there is no GPU {name!r}; there are: {', '.join(GPUS)}; or plan for this machine by --device")
