"""Counts the cost of a training step: forward and backward pass on the meta device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from artok.adversarial.critic import Opponent
from artok.distillation.base import AdversarialMethod
from artok.errors import ConfigError
from artok.generators.base import AdversarialGenerator
from artok.layout import TokenLayout, Tokens
from artok.losses.base import AdversarialLoss, BatchContext, Comparisons
from artok.metrics import cost
from artok.nn.gradient_checkpointing import set_gradient_checkpointing
from artok.noise import Noise
from artok.planning.autocast_on_meta import AutocastOnMeta, Chip
from artok.planning.meta_model import Design, build
from artok.planning.op_trace import OpCounts, Trace
from artok.quantizers.base import Quantizer
from artok.training.experiment import Experiment

META = torch.device("meta")
NOTHING = OpCounts(Counter())

Losses = Callable[
    [Trace], tuple[dict[str, Tensor], OpCounts]
]  # losses, and the part of a frozen tokenizer in their cost


def parameters(experiment: Experiment, classes: int | None = None) -> int:
    """The exact number of trained parameters. classes: number of labels, by default of the data."""
    return cost.parameters(build(experiment, classes).trained, trained_only=True)


def training_flops(experiment: Experiment, classes: int | None = None, chip: Chip = "cpu") -> float:
    """FLOPs of training per image: forward and backward pass, a multiply-add counted as two.

    With `tokens.online` they include the frozen tokenizer's encoding; cached tokens cost nothing here, and neither do
    samples of a teacher that are made before training. Other passes of a teacher are included. For models that
    draw how many tokens they train on (MAR, MaskGIT) it is the mean. The optimizer is left out. classes: number of
    labels, by default of the data. chip: a GPU's fused attention recomputes the scores in the backward pass, which
    counts.
    """
    batch = experiment.training.global_batch // experiment.training.gradient_accumulation_steps
    return training_step(build(experiment, classes), batch, chip).costs.flops / batch


@dataclass(frozen=True)
class Step:
    """costs: of the forward and the backward pass. encoding: the part of the frozen tokenizer.

    In bytes, without the weights: saved: kept between the two passes. activations: the most at any time, without
    gradients. gradients: of all weights. peak: the most of both at any time.
    """

    costs: OpCounts
    encoding: OpCounts
    saved: int
    activations: int
    gradients: int
    peak: int


def training_step(design: Design, batch: int, chip: Chip = "cpu", dtype: torch.dtype = torch.float32) -> Step:
    """The cost of one process's step on `batch` images, with the critic's if there is one.

    dtype: of matrix products, as under autocast. Raises ConfigError when a model cannot checkpoint its activations.
    """
    for part in design.trained.train().modules():
        if isinstance(part, Quantizer):
            part.eval()  # dead-code restarts depend on values; they multiply no matrices
    if design.experiment.training.gradient_checkpointing and not set_gradient_checkpointing(design.trained, True):
        raise ConfigError("training.gradient_checkpointing is on, but no part of this model supports it; switch it off")
    losses = generator_losses if design.generator else tokenizer_losses
    critic = design.critic
    with freeze(critic or nn.Module()):
        step = count_turn(design.trained, lambda trace: losses(design, batch, trace), chip, dtype)
    if critic is None:
        return step
    every = critic.penalty_every
    with freeze(design.trained):
        other = count_turn(critic, lambda _: critic_losses(design, critic, batch, due=True), chip, dtype)
        costs = other.costs
        if every > 1:
            plain = count_turn(critic, lambda _: critic_losses(design, critic, batch, due=False), chip, dtype)
            costs = costs.share(1 / every) + plain.costs.share(1 - 1 / every)
    return Step(
        step.costs.share(1 / critic.n_critic) + costs,
        step.encoding,
        max(step.saved, other.saved),
        max(step.activations, other.activations),
        max(step.gradients, other.gradients),
        max(step.peak, other.peak),
    )


@contextmanager
def freeze(model: nn.Module) -> Iterator[None]:
    """Inside, the model's weights take no gradients: it is another player's turn."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


def count_turn(model: nn.Module, losses: Losses, chip: Chip, dtype: torch.dtype) -> Step:
    """The cost of one player's forward and backward pass."""
    model.zero_grad(set_to_none=True)

    def accumulated(weight: Tensor) -> None:
        assert weight.grad is not None
        trace.hold_gradient(weight.grad)

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    hooks = [weight.register_post_accumulate_grad_hook(accumulated) for weight in trained]
    with Trace() as trace, AutocastOnMeta(chip, dtype) as autocast:  # in the backward pass too, which may recompute
        named, encoding = losses(trace)
        total = reduce(torch.add, named.values())
        autocast.end_forward()
        saved = trace.live
        backward(total)
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)
    return Step(trace.take(), encoding, saved, trace.peak, trace.gradients, trace.peak_with_gradients)


def backward(loss: Tensor) -> None:
    """`loss.backward()` inside the modes around it, which checkpointed blocks need when they run again: a mode is
    suspended while it handles torch's own entry points, which are overridable functions."""
    ones, engine = torch.ones_like(loss), torch.autograd.Variable._execution_engine
    engine.run_backward((loss,), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def generator_losses(design: Design, batch: int, trace: Trace) -> tuple[dict[str, Tensor], OpCounts]:
    """As `GeneratorTask.losses` computes them; and the cost of encoding the images."""
    assert design.generator is not None
    tokens, encoding = blank_tokens(design.layout, batch), NOTHING
    if design.experiment.tokens.online and design.tokenizer is not None:
        with torch.no_grad(), trace.apart() as (ops, _):
            tokens = design.tokenizer.encode(torch.empty(batch, *design.layout.image, device=META))
        encoding = OpCounts(ops)
    random = noise(batch)
    conditioner = design.generator.conditioner
    share = design.experiment.generator.class_dropout  # type: ignore[union-attr]
    condition = conditioner.drop(conditioner.example(batch, META), share, random)
    return dict(design.generator(tokens, condition, random, design.tokenizer)), encoding


def tokenizer_losses(design: Design, batch: int, _: Trace) -> tuple[dict[str, Tensor], OpCounts]:
    """As `TokenizerTask.losses` computes them."""
    assert design.tokenizer is not None
    images = torch.empty(batch, *design.layout.image, device=META)
    result = design.tokenizer(images)
    seen, last_layer = design.experiment.training.images, design.tokenizer.last_layer()
    losses = dict(result.losses)
    compared = Comparisons(design.experiment.losses, design.comparisons)(result.images.float(), images, seen)
    others = reduce(torch.add, compared.values())
    for comparison in design.comparisons:
        if isinstance(comparison, AdversarialLoss):
            context = BatchContext(seen, noise(batch), others, last_layer)
            losses |= comparison(result.images.float(), images, context)[0]
    return losses | compared, NOTHING


def critic_losses(design: Design, critic: Opponent, batch: int, due: bool) -> tuple[dict[str, Tensor], OpCounts]:
    """As the critic's turn computes them in every task.

    due: whether it is a step with penalties, where these are lazy.
    """
    condition = None
    real = fake = torch.empty(batch, *design.layout.image, device=META)
    if isinstance(design.generator, AdversarialGenerator):
        condition = design.generator.conditioner.example(batch, META)
        with torch.no_grad():
            fake = design.generator.generate(condition, noise(batch))
        real = design.generator.to_grid(blank_tokens(design.layout, batch))
    elif isinstance(design.method, AdversarialMethod):
        condition = design.method.student.conditioner.example(batch, META)
        real = design.method.student.vectors(blank_tokens(design.layout, batch), design.tokenizer)
        with torch.no_grad():
            fake = design.method.generate(real, condition, noise(batch), design.tokenizer)
    verdict = critic(real, fake, condition, noise(batch), 0 if due else 1, 0.0)
    return dict(verdict.losses), NOTHING


def noise(batch: int) -> Noise:
    return Noise(0, torch.empty(batch, dtype=torch.int64, device=META))


def blank_tokens(layout: TokenLayout, batch: int) -> Tokens:
    dtype = torch.int64 if layout.discrete else torch.float32
    return Tokens(torch.empty(batch, *layout.value_shape(), dtype=dtype, device=META), layout)
