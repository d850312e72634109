"""Resolves and checks the device that a command runs on."""

from __future__ import annotations

import os

import torch

from artok.errors import ConfigError

VARIABLE = "ARTOK_DEVICE"  # environment variable: the default device


def resolve_device(name: str | torch.device | None = None) -> torch.device:
    """The device of a name: cpu, cuda, cuda:1 or mps. Without a name: a GPU if there is one, else the CPU.

    ConfigError: the name is not a device, or this machine does not have it.
    """
    given = str(name or os.environ.get(VARIABLE) or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = torch.device(given)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"there is no device {given!r}; give cpu, cuda, cuda:1 or mps")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if not count:
        raise ConfigError(f"device {given} is not on this machine, or this build of torch cannot use it; use cpu")
    if (device.index or 0) >= count:
        raise ConfigError(f"device {given} is not on this machine: {device.type} devices are numbered 0 to {count - 1}")
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU or CPU multiplies bfloat16 natively; where torch emulates it, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def study_device(name: str | None) -> str:
    """The device of a study and its jobs. ConfigError: the name is one GPU of several."""
    device = resolve_device(name)
    if device.index is not None:
        raise ConfigError(f"a study uses all GPUs that it sees; name them in CUDA_VISIBLE_DEVICES, not by {device}")
    if name is not None:
        os.environ[VARIABLE] = name
    return str(device)
