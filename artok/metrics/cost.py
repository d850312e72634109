"""What a model costs: parameters, floating-point operations, time and memory, measured rather than estimated."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from artok.metrics.quantity import Quantity

Call = Callable[[], object]

QUANTITIES = (
    Quantity("tokens_per_image", "tokens per image", "", "lower", "Cost", "What a generator has to model."),
    Quantity("bits_per_image", "bits per image", "", "lower", "Cost", "At a fixed code length."),
    Quantity("bits_per_pixel", "bits per pixel", "", "lower", "Cost", "At a fixed code length."),
    Quantity("parameters", "parameters", "", "", "Cost", "Trained numbers, shared ones counted once."),
    Quantity(
        "network_passes",
        "network passes",
        "",
        "lower",
        "Cost",
        "Passes for one sample; both halves of guidance count as one.",
    ),
    Quantity(
        "flops_per_image",
        "operations per image",
        "FLOPs",
        "lower",
        "Cost",
        "Floating-point operations to sample one image, or to encode and decode it; a multiply-add is two.",
        display="MFLOPs",
    ),
    Quantity(
        "peak_memory_bytes_per_image",
        "peak memory per image",
        "bytes",
        "lower",
        "Cost",
        "Tensors alive at once while it is made, weights aside.",
        display="MB",
    ),
    Quantity(
        "latency_s",
        "latency at batch 1",
        "s",
        "lower",
        "Cost",
        "Median time to one image, decoded, where it was evaluated.",
        display="ms",
    ),
    Quantity(
        "throughput_images_per_s",
        "throughput",
        "images/s",
        "higher",
        "Cost",
        "Decoded images, where it was evaluated, at the best batch.",
    ),
    Quantity("best_batch", "best batch", "", "", "Cost", "The batch, of those tried, with that throughput."),
    Quantity("images_trained", "images trained on", "", "", "Cost", "Images that come again are counted again."),
    Quantity(
        "train_flops",
        "training operations",
        "FLOPs",
        "lower",
        "Cost",
        "Operations of the generator's training, forward and backward.",
        display="TFLOPs",
    ),
    Quantity(
        "train_core_seconds",
        "training time",
        "core-seconds",
        "lower",
        "Cost",
        "Processor time of the training loop.",
    ),
)


def parameters(module: nn.Module, trained_only: bool = False) -> int:
    """Number of parameters, shared ones once; buffers (statistics, EMA codebooks) are none."""
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad or not trained_only)


def flops(call: Call) -> int:
    """Floating-point operations of matrix products, convolutions and attention in one call, forward and backward.

    A multiply-add counts as two, so this is twice the "GFLOPs" of papers that count multiply-adds.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median and the fastest of `repeats` calls after the warm-up."""

    median: float
    fastest: float
    repeats: int


def latency(call: Call, device: torch.device | str = "cpu", warmup: int = 2, repeats: int = 5) -> Timing:
    """Seconds that `call` takes until its result is there (a GPU is waited for).

    For latency in the usual sense the call makes one image; see `throughput` for many.
    """
    device = torch.device(device)
    for _ in range(warmup):
        call()
    times = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - start)
    return Timing(statistics.median(times), min(times), repeats)


def throughput(call: Call, images: int, device: torch.device | str = "cpu", warmup: int = 1, repeats: int = 3) -> float:
    """Images a second of a call that makes `images` of them, from its median time."""
    return images / latency(call, device, warmup, repeats).median


def peak_memory(call: Call, device: torch.device | str = "cpu") -> int:
    """Most bytes in use during one call: of torch's allocator on a GPU, resident in the process on a CPU.

    Where the system cannot reset its mark (anything but Linux) the CPU's figure is that of the whole process so far.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        _wait(device)
        return torch.cuda.max_memory_allocated(device)
    mark = Path("/proc/self/clear_refs")
    with suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # pages that were freed but kept would hide what the call takes
    try:
        mark.write_text("5", encoding="ascii")  # resets the peak resident size, proc(5)
    except OSError:
        call()
        return _peak_of_process()
    call()
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return _peak_of_process()


def _peak_of_process() -> int:
    """Bytes; 0 on a system that does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
