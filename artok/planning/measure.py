"""Measures the ceilings of this machine's device in about a second: matrix rate by precision, memory bandwidth."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from artok.device import resolve_device
from artok.errors import ConfigError
from artok.planning.roofline import DTYPES, LAUNCH, Device

SIDES = {"cpu": 512, "cuda": 8192}  # of the matrices
BUFFERS = {"cpu": 2**26, "cuda": 2**30}  # bytes that are copied: larger than any cache
SECONDS = 0.15  # spent per figure


def measure_device(name: str) -> Device:
    """The device "cpu", "cuda", "cuda:1" of this machine; "here" is its GPU if it has one, else its CPU.

    Raises ConfigError when there is no such device.
    """
    device = resolve_device(None if name == "here" else name)
    if device.type not in SIDES:
        raise ConfigError(f"ceilings can be measured on cpu and cuda, not on {device.type}")
    with torch.inference_mode():
        rates = {precision: matrix_rate(device, dtype) for precision, dtype in DTYPES.items()}
        bandwidth = copy_rate(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        source = f"{processor()}, {threads} thread{'s' * (threads > 1)}"
        return Device("cpu", "cpu", system_memory(), rates, bandwidth, LAUNCH, f"measured on this {source}")
    found = torch.cuda.get_device_properties(device)
    return Device(found.name, "gpu", found.total_memory, rates, bandwidth, LAUNCH, f"measured on this {found.name}")


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product."""
    side = SIDES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2.0 * side**3 / fastest(partial(torch.mm, a, b), device)


def copy_rate(device: torch.device) -> float:
    """Bytes per second of a copy, read and written."""
    size = BUFFERS[device.type]
    source = torch.zeros(size // 4, device=device)
    return 2.0 * size / fastest(partial(torch.empty_like(source).copy_, source), device)


def fastest(call: Callable[[], object], device: torch.device, seconds: float = SECONDS) -> float:
    """Seconds of the fastest of the calls that fit into `seconds`, after one that warms up."""

    def timed() -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    end = time.perf_counter() + timed() + seconds
    taken = [timed()]
    while time.perf_counter() < end:
        taken.append(timed())
    return min(taken)


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def system_memory() -> float:
    """Bytes of the machine's memory; 0 where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return 0.0
