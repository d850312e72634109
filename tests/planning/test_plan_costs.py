"""What `artok plan` counts on the meta device is what the real modules do: parameters, FLOPs, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import IMAGE, TOKENIZERS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from artok.config import load, validate
from artok.generators.base import Generator
from artok.layout import Condition, TokenLayout, Tokens
from artok.losses.base import Loss, Setting
from artok.metrics import cost
from artok.metrics.extractors import classifier
from artok.noise import Noise
from artok.planning import meta_model as design
from artok.planning import training_cost as training
from artok.planning import training_memory as memory
from artok.planning.sampling_cost import sample
from artok.planning.training_cost import parameters, training_flops
from artok.saved import check_layout
from artok.tokenizers.base import Tokenizer
from artok.training.ema import Ema
from artok.training.experiment import Experiment
from artok.training.optimizers import make_optimizer
from artok.training.progress import Progress
from artok.training.run import build_task, make_accelerator

GENERATORS = ("raster", "var", "mar", "mar-causal", "maskgit", "dit", "dit-codes", "unet-pixels")
TOKENIZER_CONFIGS = ("vq", "msvq", "kl")
BATCH = 8


def real(name: str) -> tuple[Experiment, Tokenizer, Generator | None]:
    """A shipped digits experiment with real weights."""
    experiment = load(Experiment, f"digits/{name}")
    tokenizer = design.tokenizer_section(experiment).build(experiment.image)
    if experiment.generator is None:
        return experiment, tokenizer, None
    check_layout(experiment.generator, tokenizer.layout)
    tokenizer.eval().requires_grad_(False)
    return experiment, tokenizer, experiment.generator.build(tokenizer.layout, 10)


def random_tokens(layout: TokenLayout, batch: int) -> Tokens:
    shape = (batch, *layout.value_shape())
    values = torch.randint(layout.vocab, shape) if layout.vocab else torch.randn(shape)
    return Tokens(values, layout)


def real_losses(experiment: Experiment, tokenizer: Tokenizer, generator: Generator | None, batch: int) -> Tensor:
    if generator is not None:
        condition = Condition(torch.zeros(batch, dtype=torch.int64))
        losses = generator(random_tokens(tokenizer.layout, batch), condition, Noise(0, torch.arange(batch)), tokenizer)
        return reduce(torch.add, losses.values())
    images = torch.rand(batch, *experiment.image) * 2 - 1
    result = tokenizer(images)
    losses = dict(result.losses)
    for config in experiment.losses:
        comparison = config.build(Setting(experiment.image, torch.device("cpu"), None))
        assert isinstance(comparison, Loss)
        losses |= comparison(result.images, images)
    return reduce(torch.add, losses.values())


def smaller(experiment: Experiment, batch: int) -> Experiment:
    return experiment.model_copy(update={"training": experiment.training.model_copy(update={"global_batch": batch})})


@pytest.mark.parametrize("name", [*TOKENIZER_CONFIGS, *GENERATORS])
def test_parameters_and_training_flops_are_those_of_the_real_modules(name: str) -> None:
    experiment, tokenizer, generator = real(name)
    model: nn.Module = generator or tokenizer
    batch = 256 if name in ("mar", "maskgit") else BATCH  # these draw how many tokens they train on
    assert parameters(experiment) == cost.parameters(model)
    measured = cost.flops(lambda: real_losses(experiment, tokenizer, generator, batch).backward()) / batch
    assert training_flops(smaller(experiment, batch)) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("name", ["gan", "gan-wgan-gp", "vqgan"])
def test_a_critics_turns_are_counted_as_training_takes_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the task itself, whose players take turns as in the training loop."""
    experiment = smaller(load(Experiment, f"digits/{name}"), BATCH)
    if name == "vqgan":  # what a classifier costs does not depend on what it has learned
        monkeypatch.setattr(classifier, "SEEN_AT_LEAST", 256)
        monkeypatch.setattr(classifier, "EPOCHS", 1)
    accelerator = make_accelerator(experiment, tmp_path, torch.device("cpu"))
    task = build_task(experiment, tmp_path, accelerator, Progress("test", quiet=True))
    seen = experiment.training.images - BATCH
    turns = experiment.generator.critic.n_critic if experiment.generator else 1  # type: ignore[attr-defined]
    batch = next(task.batches(0, 0, 1))

    def turn(player: str) -> None:
        for name, module in task.players.items():
            for weight in module.parameters():
                weight.requires_grad_(name == player)
        losses = task.losses(task.players, player, batch, seen).losses
        torch.stack(list(losses.values())).sum().backward()

    counted = []
    for player in ("model", "critic"):
        with Counting() as counter:
            turn(player)
        counted.append(counter.flops)
    assert training_flops(experiment) == pytest.approx((counted[0] / turns + counted[1]) / BATCH, rel=0.01)


class Counting(TorchDispatchMode):
    """torch's own formulas, without the hooks on modules that FlopCounterMode has: R1 differentiates within a pass."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        self.flops += formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        return out


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_any_tokenizer_can_be_counted(kind: str) -> None:
    section = {"name": "x", "data": {"kind": "shapes", "size": IMAGE[1]}, "training": {"images": 8, "global_batch": 4}}
    config = TOKENIZERS[kind]()
    experiment = validate(Experiment, section | {"tokenizer": config.model_dump()}, "test")
    model = config.build(IMAGE)
    assert parameters(experiment) == cost.parameters(model)
    if cost.parameters(model):
        measured = cost.flops(lambda: real_losses(experiment, model, None, 4).backward()) / 4
        assert training_flops(experiment) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("name", GENERATORS)
def test_sampling_flops_are_those_of_the_real_steps(name: str) -> None:
    experiment, tokenizer, generator = real(name)
    assert generator is not None
    counted = sample(design.build(experiment), experiment.sampling, 2)
    assert counted.flops == pytest.approx(cost.flops(lambda: generate(experiment, tokenizer, generator, 2)), rel=0.01)


@torch.inference_mode()
def generate(experiment: Experiment, tokenizer: Tokenizer, generator: Generator, batch: int) -> Tensor:
    generator.eval()
    condition, noise = Condition(torch.zeros(batch, dtype=torch.int64)), Noise(0, torch.arange(batch))
    *_, tokens = generator.steps(condition, experiment.sampling, noise, tokenizer)
    return tokenizer.decode(tokens)


def test_a_long_sampling_is_counted_from_its_first_steps() -> None:
    experiment = load(Experiment, "digits/raster", ["data.size=64", "sampling.cfg_scale=1"])
    planned = design.build(experiment)
    counted = sample(planned, experiment.sampling, 1)
    assert counted.passes.count == 256 > len(counted.passes.steps)
    tokenizer = design.tokenizer_section(experiment).build(experiment.image).eval()
    assert experiment.generator is not None
    generator = experiment.generator.build(tokenizer.layout, 10)
    assert counted.flops == pytest.approx(cost.flops(lambda: generate(experiment, tokenizer, generator, 1)), rel=1e-6)


def test_guidance_over_a_part_of_the_steps_is_counted_in_full() -> None:
    changes = ["sampling.cfg_scale=2", "sampling.cfg_interval=[0.7,1.0]", "generator.diffusion.steps=20"]
    experiment = load(Experiment, "digits/dit", changes)
    _, tokenizer, generator = real("dit")
    assert experiment.generator is not None
    generator = experiment.generator.build(tokenizer.layout, 10)
    counted = sample(design.build(experiment), experiment.sampling, 1)
    assert counted.flops == pytest.approx(cost.flops(lambda: generate(experiment, tokenizer, generator, 1)), rel=0.01)


# ---------------------------------------------------------------------------------------------- memory


def saved_bytes(loss: Callable[[], Tensor], model: nn.Module) -> int:
    """What autograd keeps for the backward pass, weights and buffers left out."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = loss()
    assert held.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*TOKENIZER_CONFIGS, *GENERATORS])
def test_activations_are_what_autograd_keeps(name: str, dtype: torch.dtype) -> None:
    experiment, tokenizer, generator = real(name)
    model, batch = generator or tokenizer, 32

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return real_losses(experiment, tokenizer, generator, batch)

    step = training.training_step(design.build(experiment), batch, "cpu", dtype)
    assert step.saved == pytest.approx(saved_bytes(loss, model), rel=0.1)
    assert step.gradients == pytest.approx(4 * cost.parameters(model), rel=0.01)


def train_twice(experiment: Experiment, device: str) -> None:
    """Two steps as the training loop takes them: weights, AdamW, averaged weights, gradients, activations."""
    _, tokenizer, _ = real(experiment.name.removeprefix("digits-"))
    assert experiment.generator is not None
    generator = experiment.generator.build(tokenizer.layout, 10).to(device)
    tokenizer.to(device)
    optimizer, average = make_optimizer(generator, experiment.training.optimizer), Ema(generator, 0.99)
    batch = experiment.training.global_batch
    for step in range(2):
        tokens = random_tokens(tokenizer.layout, batch).to(device)
        condition = Condition(torch.zeros(batch, dtype=torch.int64, device=device))
        losses = generator(tokens, condition, Noise(0, torch.arange(batch, device=device)), tokenizer)
        reduce(torch.add, losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(step)


WIDE = {
    "raster": ["generator.width=320", "generator.heads=10", "generator.depth=4"],
    "dit": ["generator.network.width=256", "generator.network.heads=8"],
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not tell the peak")
@pytest.mark.parametrize("name", WIDE)
def test_predicted_memory_is_what_the_process_takes(name: str) -> None:
    script = (
        "import sys; from test_plan_costs import measured_peak; print(measured_peak(sys.argv[1]))"  # a fresh process
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", script, name], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    experiment = smaller(load(Experiment, f"digits/{name}", WIDE[name]), 384)
    planned = design.build(experiment)
    step = training.training_step(planned, 384)
    assert memory.training_bytes(planned, step) == pytest.approx(int(done.stdout), rel=0.1)


def measured_peak(name: str) -> int:
    """Bytes that two training steps add to a process that has trained another model already, on one thread."""
    torch.set_num_threads(1)
    train_twice(smaller(load(Experiment, "digits/raster"), 2), "cpu")
    experiment = smaller(load(Experiment, f"digits/{name}", WIDE[name]), 384)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return cost.peak_memory(lambda: train_twice(experiment, "cpu")) - pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", WIDE)
def test_predicted_memory_is_what_a_gpu_allocates(name: str) -> None:
    experiment = smaller(load(Experiment, f"digits/{name}", WIDE[name]), 384)
    train_twice(smaller(experiment, 2), "cuda")  # what the libraries keep
    before = torch.cuda.memory_allocated()
    measured = cost.peak_memory(lambda: train_twice(experiment, "cuda"), "cuda") - before
    planned = design.build(experiment)
    step = training.training_step(planned, 384, "gpu")
    assert memory.training_bytes(planned, step) == pytest.approx(measured, rel=0.1)


def test_checkpointing_saves_memory_and_takes_operations() -> None:
    plain = load(Experiment, "digits/var", ["generator.depth=8"])
    recomputed = load(Experiment, "digits/var", ["generator.depth=8", "training.gradient_checkpointing=true"])
    steps = [training.training_step(design.build(experiment), 32) for experiment in (plain, recomputed)]
    assert steps[1].saved < steps[0].saved / 3
    assert 1.2 < steps[1].costs.flops / steps[0].costs.flops < 1.4


def test_more_devices_need_less_memory_each() -> None:
    planned = design.build(load(Experiment, "imagenet/raster-b"))
    found = {
        (need.devices, need.way): need for need in memory.estimate_memory(planned, (1, 8, 3), "gpu", torch.bfloat16)
    }
    assert set(found) == {(1, "DDP"), (8, "DDP"), (8, "FSDP")}  # 256 images are not shared out to three
    assert found[8, "FSDP"].bytes < found[8, "DDP"].bytes < found[1, "DDP"].bytes
    assert found[8, "DDP"].local == 32
    # 16 bytes a weight and average, 4 for the buckets, and no less than the gradients
    assert found[8, "DDP"].bytes > (16 + 4 + 4) * 110_888_448


def test_weights_that_are_not_trained_take_no_moments_and_no_average() -> None:
    planned = design.build(load(Experiment, "shapes/dit-controlnet"))
    tensors = [*planned.trained.parameters(), *planned.trained.buffers()]
    trained = sum(4 * weight.numel() for weight in planned.trained.parameters() if weight.requires_grad)
    assert 0 < trained < sum(4 * weight.numel() for weight in planned.trained.parameters()) / 2
    assert memory.state_bytes(planned) == sum(tensor.nbytes for tensor in tensors) + 3 * trained
