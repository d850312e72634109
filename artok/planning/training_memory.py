"""How much memory training takes on each of several devices, and whether it is there.

All in float32 but for the activations, whose precision is autocast's:

    DDP    weights + 2 AdamW moments + EMA + buckets of gradients + the most of (activations + gradients) at any time
    FSDP   (weights + gradients + 2 AdamW moments + EMA) / devices + 2 x (weights + gradients of the largest block)
           + activations

The buckets are DistributedDataParallel's, as large as the gradients; one device needs none. FSDP gathers one block
while it computes the one before. A frozen tokenizer lies whole on every device.
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
RESERVED = 0.92  # share of a device's memory that is left by the driver, its kernels and fragmentation


@dataclass(frozen=True)
class Need:
    """Bytes on one device. local: images in it at once."""

    devices: int
    way: str
    local: int
    bytes: float

    def fits(self, memory: float) -> bool:
        return self.bytes <= RESERVED * memory


def state_bytes(design: Design) -> float:
    """Of weights, AdamW's two moments and the average of the weights, where there is one; no gradients."""
    training = design.experiment.training
    copies = 3 + (training.ema is not None)
    buffers = size_in_bytes(design.trained) - NUMBER * parameters(design.trained)
    found = copies * NUMBER * parameters(design.trained, trained_only=True) + max(buffers, 0)
    if design.critic is not None:
        found += size_in_bytes(design.critic) + 2 * NUMBER * parameters(design.critic, trained_only=True)
    return float(found)


def frozen_bytes(design: Design) -> float:
    """Of the tokenizer under a generator."""
    return 0.0 if design.generator is None or design.tokenizer is None else float(size_in_bytes(design.tokenizer))


def largest_block(model: nn.Module) -> int:
    """Bytes of the largest unit that FSDP gathers: an element of a stack of blocks, or what is in none."""
    stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    blocks = [NUMBER * parameters(block) for stack in stacks for block in stack]
    inside = {id(weight) for stack in stacks for weight in stack.parameters()}
    rest = sum(NUMBER * weight.numel() for weight in model.parameters() if id(weight) not in inside)
    return max([rest, *blocks])


def training_bytes(design: Design, step: Step) -> float:
    """Of training on one device: the formula for DDP with one process."""
    parts = design.experiment.training.gradient_accumulation_steps
    working = step.peak if parts == 1 else step.activations + step.gradients
    return state_bytes(design) + frozen_bytes(design) + working


def need(design: Design, devices: int, way: str, step: Step, local: int) -> Need:
    """What each of `devices` takes for `local` images under "DDP" or "FSDP", of which `step` is the cost."""
    if way == "DDP":
        buckets = step.gradients if devices > 1 else 0
        return Need(devices, way, local, training_bytes(design, step) + buckets)
    sharded = (state_bytes(design) + step.gradients) / devices
    gathered = 2 * 2 * largest_block(design.trained)
    return Need(devices, way, local, sharded + gathered + frozen_bytes(design) + step.activations)


def needs(design: Design, counts: tuple[int, ...], chip: Chip, dtype: torch.dtype) -> list[Need]:
    """For each number of devices that the batch can be shared out to, under DDP and, on several, FSDP."""
    training, found = design.experiment.training, list[Need]()
    for devices in counts:
        local, left = divmod(training.global_batch, devices * training.gradient_accumulation_steps)
        if left or not local:
            continue
        step = training_step(design, local, chip, dtype)
        ways = ("DDP",) if devices == 1 else ("DDP", "FSDP")
        found += [need(design, devices, way, step, local) for way in ways]
    return found
