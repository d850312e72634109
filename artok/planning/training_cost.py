"""What a training step costs: the forward and backward pass of an experiment's model on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from artok.adversarial.critic import Critic
from artok.errors import ConfigError
from artok.generators.base import AdversarialGenerator
from artok.layout import Condition, TokenLayout, Tokens
from artok.losses.base import AdversarialLoss, BatchContext, Loss
from artok.metrics import cost
from artok.nn.gradient_checkpointing import set_gradient_checkpointing
from artok.noise import Noise
from artok.planning.autocast_on_meta import Chip, Emulation
from artok.planning.meta_model import Design, build
from artok.planning.op_trace import Costs, Trace
from artok.quantizers.base import Quantizer
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
    batch = experiment.training.global_batch // experiment.training.gradient_accumulation_steps
    return training_step(build(experiment, classes), batch, chip).costs.flops / batch


@dataclass(frozen=True)
class Step:
    """costs: of the forward and the backward pass.

    Bytes, none with the weights: saved: what lives between the two passes. activations: the most at any time without
    the gradients. gradients: of all weights. peak: the most of both at any time; gradients come as activations go.
    """

    costs: Costs
    saved: int
    activations: int
    gradients: int
    peak: int


def training_step(design: Design, batch: int, chip: Chip = "cpu", dtype: torch.dtype = torch.float32) -> Step:
    """One process's step on `batch` images, of a critic too where there is one. dtype: of matrix products, as under
    autocast."""
    for part in design.trained.train().modules():
        if isinstance(part, Quantizer):
            part.eval()  # what keeps a codebook alive depends on its numbers; it multiplies no matrices
    if design.experiment.training.gradient_checkpointing and not set_gradient_checkpointing(design.trained, True):
        raise ConfigError("training.gradient_checkpointing is on, but nothing in this model offers it; switch it off")
    losses = generator_losses if design.generator else tokenizer_losses
    critic = design.critic
    with frozen(critic or nn.Module()):
        step = turn(design.trained, lambda: losses(design, batch), chip, dtype)
    if critic is None:
        return step
    every = critic.config.penalty_every
    with frozen(design.trained):
        other = turn(critic, lambda: critic_losses(design, critic, batch, due=True), chip, dtype)
        costs = other.costs
        if every > 1:
            plain = turn(critic, lambda: critic_losses(design, critic, batch, due=False), chip, dtype)
            costs = costs.share(1 / every) + plain.costs.share(1 - 1 / every)
    return Step(
        step.costs.share(1 / critic.config.n_critic) + costs,
        max(step.saved, other.saved),
        max(step.activations, other.activations),
        max(step.gradients, other.gradients),
        max(step.peak, other.peak),
    )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Without gradients for a player whose turn it is not."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


def turn(model: nn.Module, losses: Callable[[], dict[str, Tensor]], chip: Chip, dtype: torch.dtype) -> Step:
    """One player's forward and backward pass."""
    model.zero_grad(set_to_none=True)

    def accumulated(weight: Tensor) -> None:
        assert weight.grad is not None
        trace.set_aside(weight.grad)

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    hooks = [weight.register_post_accumulate_grad_hook(accumulated) for weight in trained]
    with Trace() as trace, Emulation(chip, dtype) as emulation:  # in the backward pass too, which may recompute
        total = reduce(torch.add, losses().values())
        emulation.end_forward()
        saved = trace.live
        backward(total)
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)
    return Step(trace.take(), saved, trace.peak, trace.aside, trace.peak_with_aside)


def backward(loss: Tensor) -> None:
    """`loss.backward()` without leaving the modes around it, which checkpointed blocks need when they run again:
    torch's own entry points are overridable functions, and a mode is suspended while it handles one."""
    ones, engine = torch.ones_like(loss), torch.autograd.Variable._execution_engine
    engine.run_backward((loss,), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def generator_losses(design: Design, batch: int) -> dict[str, Tensor]:
    """As `GeneratorTask.losses` computes them."""
    assert design.generator is not None
    tokens = blank_tokens(design.layout, batch)
    if design.experiment.tokens.online and design.tokenizer is not None:
        with torch.no_grad():
            tokens = design.tokenizer.encode(torch.empty(batch, *design.layout.image, device=META))
    random = noise(batch)
    drop = random.uniform() < design.experiment.generator.class_dropout  # type: ignore[union-attr]
    condition = Condition(torch.empty(batch, dtype=torch.int64, device=META)).dropped("labels", drop)
    return dict(design.generator(tokens, condition, random, design.tokenizer))


def tokenizer_losses(design: Design, batch: int) -> dict[str, Tensor]:
    """As `TokenizerTask.losses` computes them."""
    assert design.tokenizer is not None
    images = torch.empty(batch, *design.layout.image, device=META)
    result = design.tokenizer(images)
    losses, compared = dict(result.losses), dict[str, Tensor]()
    for comparison in design.comparisons:
        if isinstance(comparison, Loss):
            compared |= comparison(result.images.float(), images)
    others = reduce(torch.add, compared.values())
    for comparison in design.comparisons:
        if isinstance(comparison, AdversarialLoss):
            seen, last_layer = design.experiment.training.images, design.tokenizer.last_layer()
            context = BatchContext(seen, noise(batch), others, last_layer)
            losses |= comparison(result.images.float(), images, context)[0]
    return losses | compared


def critic_losses(design: Design, critic: Critic, batch: int, due: bool) -> dict[str, Tensor]:
    """As the critic's turn in either task computes them, on images that are made already or made by the generator.

    due: in a step that takes the penalties, where these are lazy.
    """
    labels = None
    real = fake = torch.empty(batch, *design.layout.image, device=META)
    if isinstance(design.generator, AdversarialGenerator):
        labels = torch.empty(batch, dtype=torch.int64, device=META)
        with torch.no_grad():
            fake = design.generator.made(Condition(labels), noise(batch))
        real = design.generator.pictures(blank_tokens(design.layout, batch))
    verdict = critic(real, fake, labels, noise(batch), 0 if due else 1, 0.0)
    return dict(verdict.losses)


def noise(batch: int) -> Noise:
    return Noise(0, torch.empty(batch, dtype=torch.int64, device=META))


def blank_tokens(layout: TokenLayout, batch: int) -> Tokens:
    dtype = torch.int64 if layout.discrete else torch.float32
    return Tokens(torch.empty(batch, *layout.value_shape(), dtype=dtype, device=META), layout)
