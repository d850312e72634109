"""The `training:` section and its schedules. Time is counted in images seen."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator

from artok.config import FREE, Config
from artok.device import has_bfloat16
from artok.errors import ConfigError
from artok.metrics.features import ExtractorName

INTERVALS = ("log_every", "validate_every", "monitor_every", "preview_every", "checkpoint_every")

MOST_IMAGES = 10**12  # of a training; positions in the order of images are 64-bit numbers

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class Optimizer(Config):
    """AdamW (Loshchilov and Hutter 2019), for one player.

    warmup: images over which the learning rate rises from 0. hold: share of the images after that at the full rate.
    min_lr_ratio: the final rate of a cosine or linear schedule, as a share of `lr`.
    weight_decay: on matrices only; vectors (biases, gains) are never decayed. grad_clip: largest gradient norm.
    """

    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: int = Field(0, ge=0)
    hold: float = Field(0.0, ge=0, lt=1)
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    grad_clip: float | None = Field(1.0, gt=0)

    def rate_at(self, seen: int, total: int) -> float:
        """The learning rate after `seen` of `total` images, both counted from where its player joins."""
        warm = min(1.0, (seen + 1) / self.warmup) if seen < self.warmup else 1.0
        if self.schedule == "constant":
            return self.lr * warm
        share = (seen - self.warmup) / max(total - self.warmup, 1)
        share = min(max((share - self.hold) / (1 - self.hold), 0.0), 1.0)
        left = 1 - share if self.schedule == "linear" else (1 + math.cos(math.pi * share)) / 2
        return self.lr * warm * (self.min_lr_ratio + (1 - self.min_lr_ratio) * left)


class Training(Config):
    """The `training:` section.

    images: images seen in total. global_batch: images per optimizer step, over all processes and accumulated parts.
    ema: decay per step of the moving average of the weights, or null for none. Early in training the decay is
    limited to (1 + step) / (10 + step).
    Intervals (log, validate, preview, monitor, checkpoint, weights) are in images.
    """

    images: int = Field(gt=0, le=MOST_IMAGES)
    global_batch: int = Field(64, ge=1)
    gradient_accumulation_steps: Annotated[int, FREE] = Field(
        1, ge=1, description="parts of each process's share of a batch"
    )
    optimizer: Optimizer = Optimizer()
    critic: Optimizer = Field(
        Optimizer(),
        validate_default=True,
        description="the same for the discriminator of a GAN or of an adversarial loss; as `optimizer` where not given",
    )
    precision: Precision = "auto"
    on_spike: Literal["stop", "skip", "roll_back"] = Field(
        "stop",
        description="at a gradient norm that is not finite or a spike: stop; skip and count the step; or return to the "
        "last checkpoint and go on with other noise",
    )
    spike: float | None = Field(None, gt=1, description="a norm over so many times the median of 100 steps is a spike")
    deterministic: bool = Field(False, description="refuse operations whose bits differ between repetitions on a GPU")
    ema: float | None = Field(None, gt=0, lt=1)
    compile: Annotated[bool, FREE] = False
    gradient_checkpointing: Annotated[bool, FREE] = Field(False, description="less memory, more time")
    log_every: Annotated[int, FREE] = Field(1_000, ge=1)
    validate_every: Annotated[int, FREE] = Field(10_000, ge=1)
    validate_images: Annotated[int, FREE] = Field(1_000, ge=1, description="held-out images of a validation")
    preview_every: Annotated[int, FREE] = Field(20_000, ge=1)
    monitor_images: Annotated[int, FREE] = Field(
        200, ge=0, description="samples that monitor a generator's diversity; 0 for none"
    )
    monitor_every: Annotated[int | None, FREE] = Field(None, ge=1, description="validate_every unless given")
    monitor_extractor: Annotated[ExtractorName, FREE] = Field(
        "pixels", description="feature extractor of the comparison, such as classifier"
    )
    checkpoint_every: Annotated[int, FREE] = Field(20_000, ge=1)
    keep_last: Annotated[int, FREE] = Field(2, ge=1, description="checkpoints kept")
    keep_best: Annotated[str | None, FREE] = Field(
        None,
        pattern=r"^(max|min) \w+$",
        description="metric of validation or the monitor whose best weights are kept in best/, such as max psnr",
    )
    snapshot_every: Annotated[int | None, FREE] = Field(
        None, ge=1, description="keep weights in snapshots/, to be measured later"
    )
    trackers: Annotated[tuple[str, ...], FREE] = Field(
        (), description="tensorboard, wandb, ...: any tracker of accelerate"
    )

    @field_validator("critic")
    @classmethod
    def _complete_critic(cls, critic: Optimizer, info: ValidationInfo) -> Optimizer:
        given = {name: getattr(critic, name) for name in critic.model_fields_set}
        optimizer: Optimizer = info.data.get("optimizer", critic)
        return optimizer.model_copy(update=given)

    @model_validator(mode="after")
    def _check_parts(self) -> Training:
        if self.global_batch % self.gradient_accumulation_steps:
            raise ValueError(
                f"global_batch {self.global_batch} must be a multiple of "
                f"gradient_accumulation_steps {self.gradient_accumulation_steps}"
            )
        return self

    def steps(self) -> int:
        return math.ceil(self.images / self.global_batch)

    def check_processes(self, processes: int) -> None:
        """Raise a ConfigError where a batch cannot be shared out to them."""
        if self.global_batch % (processes * self.gradient_accumulation_steps):
            raise ConfigError(
                f"training.global_batch {self.global_batch} must be a multiple of {processes} processes times "
                f"gradient_accumulation_steps {self.gradient_accumulation_steps}"
            )

    def lasting(self, images: int) -> Training:
        """The training scaled to another number of images, with warm-ups and intervals in proportion.

        ConfigError: too many images.
        """
        if images > MOST_IMAGES:
            raise ConfigError(f"{images:,.3g} images are more than the {MOST_IMAGES:,} that a training may take")
        share = images / self.images
        intervals = {name: getattr(self, name) for name in INTERVALS}
        changes: dict[str, object] = {
            name: max(self.global_batch, round(every * share)) for name, every in intervals.items() if every is not None
        }
        for player in ("optimizer", "critic"):
            optimizer: Optimizer = getattr(self, player)
            changes[player] = optimizer.model_copy(update={"warmup": round(optimizer.warmup * share)})
        return self.model_copy(update={"images": images, **changes})


def crosses(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return after // every > before // every


def settle_precision(precision: Precision, device: torch.device) -> Literal["no", "bf16", "fp16"]:
    """accelerate's name of a precision; "auto" is bfloat16 if the device supports it natively."""
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("training.precision fp16 needs a GPU; use bf16, fp32 or auto on a CPU")
    if precision != "auto":
        return "no" if precision == "fp32" else precision
    if has_bfloat16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "no"
