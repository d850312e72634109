"""The machine, its versions and its floors: the rates of matrix products and of memory, by precision."""

from __future__ import annotations

import datetime
import platform
from functools import partial
from pathlib import Path

import torch

import artok
from artok.device import has_bfloat16
from artok.planning.measure import copy_rate, fastest, matrix_rate, processor, system_memory

ISA = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16")  # flags that matter here
BUFFER = 2**28  # bytes that are read


def describe(threads: int) -> dict[str, object]:
    """What a reader needs to compare figures: no names of hosts and no paths."""
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "instructions": [flag for flag in ISA if flag in flags()],
        "memory_gb": round(system_memory() / 2**30),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "threads": threads,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "artok": artok.__version__,
    }


def flags() -> set[str]:
    """The processor's flags, where Linux tells them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    found = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return set(next(found, "").partition(":")[2].split())


def floors() -> dict[str, list[float]]:
    """By precision: FLOP/s of matrix products, bytes per second of memory, bytes of a number.

    auto: 16-bit numbers, multiplied in bfloat16 where the device does so natively.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.inference_mode():
        single = matrix_rate(device, torch.float32)
        native = has_bfloat16(device)
        half = matrix_rate(device, torch.bfloat16) if native else single
        source = torch.ones(BUFFER // 4, device=device)
        memory = max(copy_rate(device), BUFFER / fastest(partial(torch.sum, source), device))
    return {"float32": [single, memory, 4], "auto": [half, memory, 2], "bfloat16": [half, memory, 2]}
