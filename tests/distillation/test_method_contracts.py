"""What every method of distillation keeps to, found by itself: exact gradients in parts and in two processes, state."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.generators import CLASSES, generate, networks, noise, real_tokens, tokenizer
from helpers.students import KINDS, method_of, student_of, taught
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from artok.distillation.base import AdversarialMethod
from artok.generators.diffusion import LatentDiffusion
from artok.generators.networks import unet
from artok.generators.networks.base import NetworkConfig
from artok.layout import Condition, Tokens
from artok.nn.gradient_checkpointing import set_gradient_checkpointing
from artok.noise import Noise
from artok.sampling.settings import Sampling

CODEC = "conv-gaussian"
ROWS = 8
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums over rows in another order


def condition(rows: int = ROWS) -> Condition:
    return Condition(torch.arange(rows) % CLASSES)


def gradients(kind: str, rank: int = 0, world: int = 1, parts: int = 1, network: NetworkConfig | None = None) -> Tensor:
    """The gradient of all weights over ROWS rows, also those of a critic, in parts and over processes."""
    codec = tokenizer(CODEC)
    student, method = taught(method_of(kind), codec, **({} if network is None else {"network": network}))
    wrapped = DistributedDataParallel(student) if world > 1 else student
    tokens = real_tokens(codec, ROWS)
    for part in torch.arange(ROWS).chunk(world)[rank].chunk(parts):
        losses = wrapped(tokens[part], condition()[part], Noise(0, part), codec)
        (torch.stack(list(losses.values())).sum() / parts).backward()
    players: list[nn.Module] = [student]
    if isinstance(method, AdversarialMethod):
        method.critic.zero_grad()
        opponent = DistributedDataParallel(method.critic) if world > 1 else method.critic
        for part in torch.arange(ROWS).chunk(world)[rank].chunk(parts):
            real = student.vectors(tokens[part], codec)
            fake = method.generate(real, condition()[part], Noise(1, part), codec).detach()
            losses = opponent(real, fake, condition()[part], Noise(2, part), 0, 0.0).losses
            (torch.stack(list(losses.values())).sum() / parts).backward()
        players.append(method.critic)
    named = [named for player in players for named in player.named_parameters()]
    missing = [name for name, weight in named if weight.grad is None]
    assert not missing, "DistributedDataParallel refuses a step that leaves some out"
    return torch.cat([weight.grad.flatten() for _, weight in named if weight.grad is not None])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_add_up_over_parts_of_a_batch(kind: str) -> None:
    whole = gradients(kind)
    assert whole.norm() > 1e-3
    torch.testing.assert_close(gradients(kind, parts=2), whole, **CLOSE)


def _every_kind(rank: int, world: int) -> dict[str, Tensor]:
    return {kind: gradients(kind, rank, world) for kind in KINDS}


def _worker(rank: int, count: int, work: Callable[[int, int], object], folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    torch.save(work(rank, count), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo meets in a file")
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(_worker, (2, _every_kind, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for kind in KINDS:
        for each in found:
            torch.testing.assert_close(each[kind], gradients(kind), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_unet_learns_too_and_so_does_a_transformer_with_a_text(kind: str) -> None:
    assert gradients(kind, network=unet.Config.tiny()).isfinite().all()
    for _, network in networks():
        assert gradients(kind, network=network).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, forward = gradients(kind), LatentDiffusion.forward

    def checkpointed(self: LatentDiffusion, *given: object) -> object:
        assert set_gradient_checkpointing(self, True)
        return forward(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(LatentDiffusion, "forward", checkpointed)
    torch.testing.assert_close(gradients(kind), plain, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_is_saved_without_its_teacher(kind: str) -> None:
    codec = tokenizer(CODEC)
    student, method = taught(method_of(kind), codec)
    alone = student.config.build(codec.layout, CLASSES)
    assert set(student.state_dict()) == set(alone.state_dict())
    assert not any(weight.requires_grad for weight in method.teacher.model.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_guidance_of_the_teacher_is_learned(kind: str) -> None:
    if method_of(kind).largest_scale is not None:
        pytest.skip("draws its own scales")
    codec, losses = tokenizer(CODEC), []
    for scale in (1.0, 3.0):
        student, method = taught(method_of(kind), codec, cfg_scale=scale)
        tokens = method.teach(condition(), noise(ROWS), codec) or real_tokens(codec, ROWS)
        losses.append(torch.stack(list(student(tokens, condition(), noise(ROWS), codec).values())).sum())
    assert abs(losses[0] - losses[1]) > 1e-3 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_samples_in_the_steps_that_it_is_made_for(kind: str) -> None:
    codec, method = tokenizer(CODEC), method_of(kind)
    student, _ = taught(method, codec)
    for steps in (1, 2, 4):
        if method.most_steps is None or steps <= method.most_steps:
            sampling = Sampling(steps=steps)
            assert student.passes(sampling) == steps
            made = generate(student.eval(), codec, condition(3), sampling)
            assert isinstance(made, Tokens) and made.values.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_beside_the_weights_is_kept(kind: str) -> None:
    """A checkpoint that brings `kept` back brings the method back."""
    codec = tokenizer(CODEC)
    student, method = taught(method_of(kind), codec)
    tokens = method.teach(condition(), noise(ROWS), codec) or real_tokens(codec, ROWS)

    def loss() -> Tensor:
        with torch.no_grad():
            return torch.stack(list(student(tokens, condition(), noise(ROWS), codec).values())).sum()

    before, kept = loss(), {name: tensor.clone() for name, tensor in method.kept().items()}
    weights = {name: weight.clone() for name, weight in student.state_dict().items()}
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.1 * torch.ones_like(weight))
    method.progress = 0.99
    changed = loss()
    method.settle()
    assert not kept or any(not torch.equal(tensor, kept[name]) for name, tensor in method.kept().items())
    student.load_state_dict(weights)
    method.progress = 0.0
    for name, tensor in method.kept().items():
        tensor.copy_(kept[name])
    assert torch.equal(loss(), before) and not torch.equal(changed, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_says_why_it_refuses_a_student(kind: str) -> None:
    method = method_of(kind)
    sections = [student_of(method).model_copy(update={"prediction_type": "x0"}), student_of(method)]
    assert [method.refuse(section) is None for section in sections][1]


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_it_has_the_same_loss(kind: str) -> None:
    codec = tokenizer(CODEC)
    student, _ = taught(method_of(kind), codec)
    torch._dynamo.reset()
    compiled = torch.compile(student, backend="eager", dynamic=False)
    losses = [each(real_tokens(codec, 4), condition(4), noise(4), codec) for each in (student, compiled)]
    torch.testing.assert_close(losses[1], losses[0])


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_the_vectors_of_codes(kind: str) -> None:
    codec = tokenizer("conv-vq")
    student, method = taught(method_of(kind), codec)
    tokens = method.teach(condition(), noise(ROWS), codec) or real_tokens(codec, ROWS)
    assert tokens.values.dtype == torch.int64
    total = torch.stack(list(student(tokens, condition(), noise(ROWS), codec).values())).sum()
    total.backward()
    assert total and generate(student.eval(), codec, condition(2)).values.dtype == torch.int64
