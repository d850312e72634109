"""What every quantizer must keep to; a new kind is found by its file."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.quantizers import BALANCED, CONFIGS, KINDS, built, latents, same, snapshot, tiny, train
from torch import Tensor, distributed, multiprocessing

from artok.errors import LayoutError
from artok.quantizers import lfq, vq
from artok.quantizers.base import QuantizerConfig, to_sequence
from artok.quantizers.codebook import CodebookConfig
from artok.quantizers.gradients import rotation_trick

GRIDS = [(16,), (4, 4), (2, 3, 3)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_lookup_is_the_forward_output(kind: str, grid: tuple[int, ...]) -> None:
    quantizer = built(tiny(kind), grid)
    train(quantizer, 2)
    quantizer.eval()
    given = latents(quantizer)
    out = quantizer(given)
    positions = sum(math.prod(each) for each in quantizer.grids)
    assert quantizer.grids[-1] == grid
    assert out.vectors.shape == (len(given), quantizer.width, *grid)
    assert out.values.shape[:2] == (len(given), positions)
    if quantizer.vocab is None:
        assert out.values.shape[2] == quantizer.width and out.values.is_floating_point()
    else:
        assert out.values.shape[2] == quantizer.codes and out.values.dtype == torch.int64
        assert out.values.min() >= 0 and out.values.max() < quantizer.vocab
        assert torch.unique(out.values).numel() > 2
    torch.testing.assert_close(quantizer.lookup(out.values), out.vectors, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_lookup_is_the_forward_output_in_training_too(name: str) -> None:
    """By the table from before the step, which then moves it; a restart of dead codes would come before the search."""
    config = CONFIGS[name]
    still = {"dead_code_threshold": 0.0, "kmeans_init": False} if isinstance(config, CodebookConfig) else {}
    quantizer = built(config.model_copy(update=still))
    before = copy.deepcopy(quantizer)
    given = latents(quantizer)
    out = quantizer.train()(given)
    torch.testing.assert_close(before.lookup(out.values), out.vectors, atol=1e-5, rtol=0)


ROTATING: dict[str, QuantizerConfig] = {
    name: config.model_copy(update={"rotation_trick": True})
    for name, config in CONFIGS.items()
    if hasattr(config, "rotation_trick")
}


@pytest.mark.parametrize("name", ROTATING)
def test_the_rotation_trick_is_what_the_gradient_takes(name: str) -> None:
    quantizer = built(ROTATING[name]).eval()
    given = latents(quantizer).requires_grad_()
    out = quantizer(given)
    upstream = latents(quantizer, seed=7)
    (gradient,) = torch.autograd.grad(out.vectors, given, upstream)
    points = to_sequence(given)
    if getattr(quantizer, "cosine", False):
        points = F.normalize(points, dim=-1)
    turned = rotation_trick(points, to_sequence(out.vectors).detach())
    (expected,) = torch.autograd.grad(turned, given, to_sequence(upstream))
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_reach_the_encoder_and_the_losses_are_scalars(name: str) -> None:
    quantizer = built(CONFIGS[name]).train()
    given = latents(quantizer).requires_grad_()
    out = quantizer(given)
    out.vectors.square().sum().backward()
    assert given.grad is not None and given.grad.isfinite().all()
    assert (given.grad.flatten(1).abs().sum(1) > 0).all()
    for loss in out.losses.values():
        assert loss.ndim == 0 and loss.isfinite()
    for monitor in out.monitors.values():
        assert monitor.ndim == 0 and not monitor.requires_grad


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_under_autocast(name: str) -> None:
    quantizer = built(CONFIGS[name])
    train(quantizer, 2)
    quantizer.eval()
    half = latents(quantizer, 32).bfloat16()
    expected = quantizer(half.float())
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(half)
        vectors = quantizer.lookup(out.values)
    assert out.vectors.dtype == vectors.dtype == torch.float32
    assert torch.equal(out.values, expected.values)
    assert torch.equal(out.vectors, expected.vectors)


@pytest.mark.parametrize("name", CONFIGS)
def test_eval_changes_no_state(name: str) -> None:
    quantizer = built(CONFIGS[name]).eval()
    before = snapshot(quantizer)
    quantizer(latents(quantizer))
    assert same(before, quantizer.state_dict())
    train(quantizer, 2)
    quantizer.eval()
    before = snapshot(quantizer)
    first, second = quantizer(latents(quantizer)), quantizer(latents(quantizer))
    assert same(before, quantizer.state_dict())
    assert torch.equal(first.values, second.values)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_is_decided_by_the_seed(name: str) -> None:
    states = []
    for _ in range(2):
        quantizer = built(CONFIGS[name])
        torch.manual_seed(3)
        train(quantizer, 3)
        states.append(snapshot(quantizer))
    assert same(*states)


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_loaded_gives_the_same_bits_now_and_in_training(name: str) -> None:
    quantizer = built(CONFIGS[name])
    train(quantizer, 3)
    file = io.BytesIO()
    torch.save(quantizer.state_dict(), file)
    file.seek(0)
    loaded = built(CONFIGS[name], seed=9)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    given = latents(quantizer, seed=5)
    first, second = quantizer.eval()(given), loaded.eval()(given)
    assert torch.equal(first.values, second.values) and torch.equal(first.vectors, second.vectors)
    for each in (quantizer, loaded):  # a k-means start that ran again would show here
        torch.manual_seed(4)
        train(each, 2, seed=6)
    assert same(quantizer.state_dict(), loaded.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_monitors_and_table_of_codes(kind: str) -> None:
    quantizer = built(tiny(kind))
    out = quantizer(latents(quantizer))
    if quantizer.vocab is None:
        with pytest.raises(LayoutError):
            quantizer.codebook()
        return
    assert 0 < out.monitors["usage"] <= 1
    assert 1 <= out.monitors["perplexity"] <= quantizer.vocab * 1.0001
    if quantizer.codes > 1 or len(quantizer.grids) > 1:
        with pytest.raises(LayoutError):
            quantizer.codebook()
        return
    quantizer.eval()
    out = quantizer(latents(quantizer))
    table = quantizer.codebook()
    assert table.shape == (quantizer.vocab, quantizer.width)
    torch.testing.assert_close(table[out.values[..., 0]], to_sequence(out.vectors), atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------- two processes


def in_two_processes(work: Callable[[int], object], folder: Path) -> list[object]:
    """What `work(rank)` returns in each of two gloo processes on the CPU."""
    multiprocessing.spawn(_worker, (work, str(folder / "meeting"), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _worker(rank: int, work: Callable[[int], object], meeting: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.save(work(rank), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def _train_every_kind(rank: int) -> dict[str, dict[str, Tensor]]:
    """Different data and different random numbers on each process, as under DDP."""
    states = {}
    for name, config in CONFIGS.items():
        quantizer = built(config)
        torch.manual_seed(100 + rank)
        train(quantizer, 4, seed=10 + rank)
        states[name] = snapshot(quantizer)
    states["halves"] = _steps_on_halves(rank)
    states["entropy"] = {"gradient": _entropy_gradient(rank)}
    return states


PLAIN: list[CodebookConfig] = [
    vq.Config(codebook_size=16, code_dim=4, dead_code_threshold=0, similarity=similarity, update=update)
    for similarity in ("cosine", "euclidean")
    for update in ("ema", "gradient")
] + [BALANCED]


def _steps_on_halves(rank: int | None) -> dict[str, Tensor]:
    """Two training steps of the plain codebooks on one half of the batch, or on all of it when rank is None."""
    state = {}
    for index, config in enumerate(PLAIN):
        quantizer = built(config).train()
        optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.5) if config.update == "gradient" else None
        for step in range(2):
            batch = latents(quantizer, 16, seed=step)
            out = quantizer(batch if rank is None else batch[8 * rank : 8 * rank + 8])
            if optimizer:
                optimizer.zero_grad()
                out.losses["codebook"].backward()
                for parameter in quantizer.parameters():
                    if rank is not None:
                        distributed.all_reduce(parameter.grad)
                        parameter.grad /= 2
                optimizer.step()
        state |= {f"{index}.{name}": tensor for name, tensor in snapshot(quantizer).items()}
    return state


def _entropy_gradient(rank: int | None) -> Tensor:
    """The gradient of LFQ's losses to a scale on the latents, averaged over processes as DDP would."""
    quantizer = lfq.Config(codebook_size=16, temperature=1.0).build((4, 4)).train()
    scale = torch.ones((), requires_grad=True)
    batch = latents(quantizer, 16)
    out = quantizer(scale * (batch if rank is None else batch[8 * rank : 8 * rank + 8]))
    (gradient,) = torch.autograd.grad(torch.stack(list(out.losses.values())).sum(), scale)
    if rank is not None:
        distributed.all_reduce(gradient)
        gradient /= 2
    return gradient


@pytest.mark.slow
def test_two_processes_keep_one_codebook_and_equal_one(tmp_path: Path) -> None:
    first, second = in_two_processes(_train_every_kind, tmp_path)
    assert isinstance(first, dict) and isinstance(second, dict)
    for name in CONFIGS:
        assert same(first[name], second[name]), name
    whole = _steps_on_halves(None)
    for name, table in whole.items():
        torch.testing.assert_close(first["halves"][name], table, atol=1e-5, rtol=0)
    torch.testing.assert_close(first["entropy"]["gradient"], _entropy_gradient(None), atol=1e-5, rtol=1e-4)
