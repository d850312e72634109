"""Dropout that belongs to the images, and batch normalisation over processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.processes import in_processes
from torch import Tensor, distributed, nn

from artok.nn.batch_norm import BatchNorm2d
from artok.nn.dropout import Dropout, draw_dropout
from artok.nn.gradient_checkpointing import run
from artok.noise import Noise


def model(share: float = 0.25) -> nn.ModuleList:
    return nn.ModuleList([Dropout(share), Dropout(0.0), Dropout(share)])


def passed(parts: nn.ModuleList, rows: Tensor, place: int = 0) -> list[Tensor]:
    draw_dropout(parts, Noise(3, rows))
    return [part(torch.ones(len(rows), 50, 33), place) for part in parts]


def test_a_mask_belongs_to_its_image_layer_and_place() -> None:
    parts, rows = model().train(), torch.arange(40)
    whole = passed(parts, rows)
    for split in rows.split(10):
        for one, other in zip(passed(parts, split), whole, strict=True):
            assert torch.equal(one, other[split])
    assert torch.equal(whole[1], torch.ones_like(whole[1]))
    others = [whole[2], passed(parts, rows, 1)[0], whole[0].roll(1, 0)]
    for other in others:  # independent draws agree in .75^2 + .25^2 of the entries; 66,000 of them
        assert float((whole[0] == other).float().mean()) == pytest.approx(0.625, abs=0.01)


def test_it_keeps_the_mean_and_only_acts_in_training() -> None:
    kept = passed(model().train(), torch.arange(40))[0]
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float(kept.mean()) == pytest.approx(1, abs=5 * (0.25 / 0.75 / kept.numel()) ** 0.5)
    assert all(torch.equal(each, torch.ones_like(each)) for each in passed(model().eval(), torch.arange(4)))
    torch.manual_seed(0)
    alone = Dropout(0.5).train()(torch.ones(100, 100))  # no images are known: torch's generator draws
    assert float((alone > 0).float().mean()) == pytest.approx(0.5, abs=0.025)


def test_checkpointing_computes_the_same_mask_again() -> None:
    block = Dropout(0.5).train()
    draw_dropout(block, Noise(0, torch.arange(4)))
    x = torch.randn(4, 200, requires_grad=True)
    made = run(block, x, checkpoint=True)
    made.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, (made != 0) * 2.0)


def norm_steps(rank: int, count: int, folder: Path) -> dict[str, Tensor]:
    """Gradients and statistics of a step and of a gradient penalty, averaged as DistributedDataParallel does."""
    norm = BatchNorm2d(3).train()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
    if count > 1:
        distributed.init_process_group("gloo")
    random = torch.Generator().manual_seed(0)
    batch, wanted = torch.randn(2, 8, 3, 4, 4, generator=random) * 2 + 1
    own = batch.chunk(count)[rank].clone().requires_grad_()
    made = norm(own)
    (slope,) = torch.autograd.grad(made.sigmoid().square().sum(), own, create_graph=True)
    loss = (made - wanted.chunk(count)[rank]).square().mean() + slope.square().mean()
    loss.backward()
    gradients = [weight.grad for weight in norm.parameters() if weight.grad is not None]
    for gradient in gradients:
        if count > 1:
            distributed.all_reduce(gradient)
        gradient /= count
    assert own.grad is not None
    found = dict(zip(("weight", "bias"), gradients, strict=True)) | {"x": own.grad / count, "made": made.detach()}
    return found | {name: value.clone() for name, value in norm.named_buffers()}


def test_statistics_are_those_of_all_processes(tmp_path: Path) -> None:
    wanted, found = norm_steps(0, 1, tmp_path), in_processes(norm_steps, 2, tmp_path)
    for rank, each in enumerate(found):
        assert isinstance(each, dict)
        for name, tensor in wanted.items():
            expected = tensor.chunk(2)[rank] if name in ("x", "made") else tensor
            torch.testing.assert_close(each[name], expected, rtol=1e-4, atol=1e-5, msg=lambda text, at=name: at + text)
