"""What a training step costs: the forward and backward pass of an experiment's model on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from artok.errors import ConfigError
from artok.layout import Condition, TokenLayout, Tokens
from artok.losses.base import Loss, Setting
from artok.metrics import cost
from artok.metrics.features import TrainingImages
from artok.nn.recompute import set_recompute
from artok.noise import Noise
from artok.quantizers.base import Quantizer
from artok.studies.costs.design import Design, build
from artok.studies.costs.emulation import Chip, Emulation
from artok.studies.costs.trace import Costs, Trace
from artok.training.experiment import Experiment

META = torch.device("meta")


def parameters(experiment: Experiment, classes: int | None = None) -> int:
    """Trained parameters, exactly, with no weights made. classes: of the data unless given."""
    return cost.parameters(build(experiment, classes).trained, trained_only=True)


def training_flops(experiment: Experiment, classes: int | None = None, chip: Chip = "cpu") -> float:
    """FLOPs of training on one image: forward and backward, a multiply-add counted as two.

    With `tokens.online` the frozen tokenizer's encoding is among them; cached tokens cost nothing here. Where a model
    draws how many tokens it trains on (MAR, MaskGIT), it is the mean. The optimizer's few operations a weight are left
    out, as everywhere in this field. classes: of the data unless given. chip: fused attention kernels of a GPU
    recompute the scores in the backward pass, which counts.
    """
    batch = experiment.training.batch // experiment.training.accumulate
    return training_step(build(experiment, classes), batch, chip).costs.flops / batch


@dataclass(frozen=True)
class Step:
    """costs: of the forward and the backward pass. saved: bytes that live between them, which are the activations.
    peak: the most bytes at any time, gradients included and weights not."""

    costs: Costs
    saved: int
    peak: int


def training_step(design: Design, batch: int, chip: Chip = "cpu", dtype: torch.dtype = torch.float32) -> Step:
    """One process's step on `batch` images. dtype: of matrix products, as under autocast."""
    model = design.trained.train()
    for part in model.modules():
        if isinstance(part, Quantizer):
            part.eval()  # what keeps a codebook alive depends on its numbers; it multiplies no matrices
    if design.experiment.training.recompute and not set_recompute(model, True):
        raise ConfigError("training.recompute is on, but nothing in this model offers it; switch it off")
    model.zero_grad(set_to_none=True)
    with Trace() as trace, Emulation(chip, dtype) as emulation:  # in the backward pass too, which may recompute
        losses = generator_losses(design, batch) if design.generator else tokenizer_losses(design, batch)
        emulation.end_forward()
        total = reduce(torch.add, losses.values())
        saved = trace.live
        backward(total)
    model.zero_grad(set_to_none=True)
    return Step(trace.take(), saved, trace.peak)


def backward(loss: Tensor) -> None:
    """`loss.backward()` without leaving the modes around it, which checkpointed blocks need when they run again:
    torch's own entry points are overridable functions, and a mode is suspended while it handles one."""
    ones, engine = torch.ones_like(loss), torch.autograd.Variable._execution_engine
    engine.run_backward((loss,), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def generator_losses(design: Design, batch: int) -> dict[str, Tensor]:
    """As `GeneratorTask.losses` computes them."""
    assert design.generator is not None
    tokens = blank_tokens(design.layout, batch)
    if design.experiment.tokens.online:
        with torch.no_grad():
            tokens = design.tokenizer.encode(torch.empty(batch, *design.layout.image, device=META))
    noise = Noise(0, torch.empty(batch, dtype=torch.int64, device=META))
    drop = noise.uniform() < design.experiment.generator.label_dropout  # type: ignore[union-attr]
    condition = Condition(torch.empty(batch, dtype=torch.int64, device=META)).dropped(drop, design.classes)
    return dict(design.generator(tokens, condition, noise, design.tokenizer))


def tokenizer_losses(design: Design, batch: int) -> dict[str, Tensor]:
    """As `TokenizerTask.losses` computes them."""
    images = torch.empty(batch, *design.layout.image, device=META)
    result = design.tokenizer(images)
    losses = dict(result.losses)
    for config in design.experiment.losses:
        with META:
            comparison = config.build(Setting(design.layout.image, META, _no_images))
        if not isinstance(comparison, Loss):
            raise ConfigError(f"what the loss {config.kind} costs is not counted, since its critic trains beside it")
        losses |= comparison(result.images.float(), images)
    return losses


def _no_images() -> TrainingImages:
    raise ConfigError("what a loss costs that learns from the training images first is not counted")


def blank_tokens(layout: TokenLayout, batch: int) -> Tokens:
    dtype = torch.int64 if layout.discrete else torch.float32
    return Tokens(torch.empty(batch, *layout.value_shape(), dtype=dtype, device=META), layout)
