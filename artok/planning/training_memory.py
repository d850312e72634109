"""Estimates the memory that training takes per device, and whether it fits.

Everything is float32 except activations, which have autocast's precision:

    DDP    weights + 2 AdamW moments + EMA + gradient buckets + the most of (activations + gradients) at any time
    FSDP   (weights + gradients + 2 AdamW moments + EMA) / devices + 2 x (weights + gradients of the largest block)
           + activations

DistributedDataParallel's buckets are as large as the gradients; one device needs none. FSDP gathers one block while it
computes the one before. A frozen tokenizer is whole on every device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from artok.metrics.cost import parameters
from artok.planning.autocast_on_meta import Chip
from artok.planning.meta_model import Design
from artok.planning.training_cost import Step, training_step
from artok.weights import size_in_bytes

NUMBER = 4  # bytes of a float32
USABLE = 0.92  # share of a device's memory that the driver, its kernels and fragmentation leave


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per device. way: "DDP" or "FSDP". local: images per device and step."""

    devices: int
    way: str
    local: int
    bytes: float

    def fits(self, memory: float) -> bool:
        return self.bytes <= USABLE * memory


def state_bytes(design: Design) -> float:
    """Bytes of weights, and AdamW's two moments and the EMA, if there is one, of the trained ones; no gradients."""
    copies = 2 + (design.experiment.training.ema is not None)
    found = size_in_bytes(design.trained) + copies * NUMBER * parameters(design.trained, trained_only=True)
    if design.critic is not None:
        found += size_in_bytes(design.critic) + 2 * NUMBER * parameters(design.critic, trained_only=True)
    return float(found)


def frozen_bytes(design: Design) -> float:
    """Bytes of the tokenizer under a generator."""
    return 0.0 if design.generator is None or design.tokenizer is None else float(size_in_bytes(design.tokenizer))


def largest_block(model: nn.Module) -> int:
    """Bytes of the largest unit that FSDP gathers: one block of a stack, or everything outside of stacks."""
    stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    blocks = [NUMBER * parameters(block) for stack in stacks for block in stack]
    inside = {id(weight) for stack in stacks for weight in stack.parameters()}
    rest = sum(NUMBER * weight.numel() for weight in model.parameters() if id(weight) not in inside)
    return max([rest, *blocks])


def training_bytes(design: Design, step: Step) -> float:
    """Bytes of training on one device: the formula for DDP with one process."""
    parts = design.experiment.training.gradient_accumulation_steps
    working = step.peak if parts == 1 else step.activations + step.gradients
    return state_bytes(design) + frozen_bytes(design) + working


def estimate(design: Design, devices: int, way: str, step: Step, local: int) -> MemoryEstimate:
    """The memory of each of `devices` for `local` images per step, whose cost is `step`. way: "DDP" or "FSDP"."""
    if way == "DDP":
        buckets = step.gradients if devices > 1 else 0
        return MemoryEstimate(devices, way, local, training_bytes(design, step) + buckets)
    sharded = (state_bytes(design) + step.gradients) / devices
    gathered = 2 * 2 * largest_block(design.trained)
    return MemoryEstimate(devices, way, local, sharded + gathered + frozen_bytes(design) + step.activations)


def estimate_memory(design: Design, counts: tuple[int, ...], chip: Chip, dtype: torch.dtype) -> list[MemoryEstimate]:
    """For each number of devices that divides the batch: DDP and, on several devices, FSDP."""
    training, found = design.experiment.training, list[MemoryEstimate]()
    for devices in counts:
        local, left = divmod(training.global_batch, devices * training.gradient_accumulation_steps)
        if left or not local:
            continue
        step = training_step(design, local, chip, dtype)
        ways = ("DDP",) if devices == 1 else ("DDP", "FSDP")
        found += [estimate(design, devices, way, step, local) for way in ways]
    return found
