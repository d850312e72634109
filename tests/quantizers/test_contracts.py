"""What every quantizer must keep to; a new kind is found by its file."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.quantizers import CONFIGS, KINDS, built, latents, same, snapshot, tiny, train, train_split
from torch import Tensor, distributed, multiprocessing

from artok.errors import LayoutError
from artok.noise import Noise
from artok.quantizers import lfq
from artok.quantizers.base import QuantizerConfig, Replacement, to_sequence
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
    """And a pass alone changes nothing that is saved."""
    quantizer = built(CONFIGS[name]).train()
    before = snapshot(quantizer)
    out = quantizer(latents(quantizer))
    torch.testing.assert_close(quantizer.lookup(out.values), out.vectors, atol=1e-5, rtol=0)
    assert same(before, quantizer.state_dict())


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
    out = quantizer.eval()(latents(quantizer))
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


# ------------------------------------------------------------------------------------------------- parts and processes

# A table of which codes die and start anew within the steps, at every kind that has one.
DYING: dict[str, QuantizerConfig] = {
    name: config.model_copy(update={"dead_code_threshold": 0.5, "codebook_size": 64, "decay": 0.5})
    for name, config in CONFIGS.items()
    if isinstance(config, CodebookConfig)
}
SPLIT = CONFIGS | {f"{name}, dying": config for name, config in DYING.items()}


def split(name: str, parts: int = 1, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """All that a quantizer holds after some steps, and what it would log."""
    quantizer = built(SPLIT[name])
    train_split(quantizer, parts, rank, world)
    logged = quantizer.usage.monitors() if quantizer.usage is not None else {}
    return snapshot(quantizer) | {f"log.{name}": value for name, value in logged.items()}


def assert_alike(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """To the rounding of sums of 256 vectors of size up to 20 in another order, over 8 steps."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            found[name], tensor, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("parts", [4, 16])
@pytest.mark.parametrize("name", SPLIT)
def test_a_step_in_parts_is_a_step(name: str, parts: int) -> None:
    assert_alike(split(name, parts), split(name))


@pytest.mark.parametrize("name", DYING)
def test_codes_do_start_anew_in_these_steps(name: str) -> None:
    quantizer, restarted = built(DYING[name]), 0
    settle = quantizer.settle

    def watched() -> list[Replacement]:
        nonlocal restarted
        replaced = settle()
        restarted += sum(int(each.rows.sum()) for each in replaced)
        return replaced

    quantizer.settle = watched  # type: ignore[method-assign]
    train_split(quantizer)
    assert restarted >= 4


@pytest.mark.parametrize("name", SPLIT)
def test_a_step_waits_for_no_value(name: str) -> None:
    """Reading a value makes the host wait for a GPU, and fails on the meta device, which has none."""
    if SPLIT[name].kind == "fsq":
        pytest.skip("the library's FSQ does not compute on the meta device")
    quantizer = built(SPLIT[name]).to("meta").train()
    quantizer.noise = Noise(3, torch.arange(8, device="meta"))
    quantizer(latents(quantizer).to("meta"))
    quantizer.settle()


def in_processes(work: Callable[[int, int], object], count: int, folder: Path) -> list[object]:
    """What `work(rank, count)` returns in each of several gloo processes on the CPU."""
    multiprocessing.spawn(_worker, (count, work, str(folder / "meeting"), str(folder)), nprocs=count)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _worker(rank: int, count: int, work: Callable[[int, int], object], meeting: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    torch.save(work(rank, count), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def _every_kind(rank: int, world: int) -> dict[str, dict[str, Tensor]]:
    states = {name: split(name, 4 // world, rank, world) for name in SPLIT}
    states["entropy"] = {"gradient": _entropy_gradient(rank, world)}
    return states


def _entropy_gradient(rank: int, world: int) -> Tensor:
    """The gradient of LFQ's losses to a scale on the latents, averaged over processes as DDP would."""
    quantizer = lfq.Config(codebook_size=16, temperature=1.0).build((4, 4)).train()
    scale = torch.ones((), requires_grad=True)
    out = quantizer(scale * latents(quantizer, 16).chunk(world)[rank])
    (gradient,) = torch.autograd.grad(torch.stack(list(out.losses.values())).sum(), scale)
    if world > 1:
        distributed.all_reduce(gradient)
    return gradient / world


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_keep_one_codebook_and_equal_one(tmp_path: Path, count: int) -> None:
    first, *others = in_processes(_every_kind, count, tmp_path)
    assert isinstance(first, dict)
    for name in SPLIT:
        for other in others:
            assert isinstance(other, dict)
            assert same(first[name], other[name]), name
        assert_alike(first[name], split(name))
    torch.testing.assert_close(first["entropy"]["gradient"], _entropy_gradient(0, 1), atol=1e-5, rtol=1e-4)
