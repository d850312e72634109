"""The contract of every quantizer, found by its file, and what each kind promises beyond it."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, distributed, multiprocessing
from vector_quantize_pytorch import LFQ, SimVQ, VectorQuantize

from artok.config import find, kinds
from artok.errors import LayoutError
from artok.quantizers import fsq, lfq, multiscale, residual, simvq, vq
from artok.quantizers.base import Quantizer, QuantizerConfig, code_usage, to_grid, to_sequence
from artok.quantizers.codebook import CodebookConfig, CodebookQuantizer, find_nearest
from artok.quantizers.gradients import rotation_trick, straight_through

KINDS = kinds("quantizers")
GRIDS = [(16,), (4, 4), (2, 3, 3)]

LEARNED: dict[str, CodebookConfig] = {
    "ema cosine": vq.Config(codebook_size=16, code_dim=4, kmeans_init=True),
    "ema euclidean": vq.Config(
        codebook_size=16, code_dim=4, similarity="euclidean", kmeans_init=True, rotation_trick=True
    ),
    "gradient cosine": vq.Config(codebook_size=16, code_dim=4, update="gradient", kmeans_init=True),
    "gradient euclidean": vq.Config(codebook_size=16, code_dim=4, update="gradient", similarity="euclidean"),
    "residual ema": residual.Config(codebook_size=16, code_dim=4, kmeans_init=True),
    "residual gradient": residual.Config(codebook_size=16, code_dim=4, update="gradient", rotation_trick=True),
}


def tiny(kind: str) -> QuantizerConfig:
    part = find("quantizers", kind)
    assert issubclass(part, QuantizerConfig)
    return part.tiny()


BALANCED = multiscale.Config(codebook_size=16, code_dim=4, dead_code_threshold=0, standardise=True, usage_balancing=0.5)
CONFIGS = {**{kind: tiny(kind) for kind in KINDS}, **LEARNED, "multiscale balanced": BALANCED}


def built(config: QuantizerConfig, grid: tuple[int, ...] = (4, 4), seed: int = 0) -> Quantizer:
    torch.manual_seed(seed)
    return config.build(grid)


def latents(quantizer: Quantizer, batch: int = 8, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(batch, quantizer.input_channels, *quantizer.grids[-1], generator=rng)


def train(quantizer: Quantizer, steps: int, seed: int = 1, batch: int = 8) -> None:
    """A few steps on random latents, as a tokenizer would take them."""
    quantizer.train()
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.5) if parameters else None
    for step in range(steps):
        out = quantizer(latents(quantizer, batch, seed * 1000 + step))
        if optimizer:
            optimizer.zero_grad()
            torch.stack(list(out.losses.values())).sum().backward()
            if distributed.is_initialized():
                for parameter in parameters:
                    if parameter.grad is None:  # a table that only the decoder's error moves
                        continue
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= distributed.get_world_size()
            optimizer.step()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def snapshot(quantizer: Quantizer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


# ------------------------------------------------------------------------------------------- the contract, each kind


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


# ------------------------------------------------------------------------------------------------- learned codebooks


@pytest.mark.parametrize("name", LEARNED)
def test_a_collapsed_codebook_recovers(name: str) -> None:
    config = LEARNED[name].model_copy(update={"kmeans_init": False, "dead_code_threshold": 0.5})
    quantizer = built(config)
    assert isinstance(quantizer, CodebookQuantizer)
    for level in quantizer.levels:
        with torch.no_grad():
            level.table.copy_(torch.ones(4).expand_as(level.table))
            level.sums.copy_(level.table)
    assert quantizer.eval()(latents(quantizer, 64)).monitors["usage"] < 0.1
    train(quantizer, 30, batch=64)
    assert quantizer.eval()(latents(quantizer, 64)).monitors["usage"] > 0.9


def test_a_restarted_code_starts_as_one_latent_of_the_batch() -> None:
    quantizer = built(
        vq.Config(codebook_size=16, code_dim=4, similarity="euclidean", update="gradient", dead_code_threshold=0.5)
    )
    codebook = quantizer.levels[0]
    codebook.counts[:, 3:5] = 0.1
    kept = codebook.table.detach().clone()
    given = latents(quantizer.train())
    quantizer(given)
    points = to_sequence(given).flatten(0, 1)
    for code in range(16):
        embedded = codebook.table[0, code]
        if code in (3, 4):
            chosen = (points == embedded).all(1)
            assert chosen.any()
            # reset to the threshold times the latent and to the threshold, then one step of the running means
            assert codebook.counts[0, code] >= 0.5 * 0.9
            before = (codebook.sums[0, code] - 0.1 * points[_choices(quantizer, points) == code].sum(0)) / 0.9
            torch.testing.assert_close(before, 0.5 * embedded, atol=1e-5, rtol=1e-4)
        else:
            assert torch.equal(embedded, kept[0, code])


def _choices(quantizer: Quantizer, points: Tensor) -> Tensor:
    return find_nearest(points, quantizer.codebook())


def test_no_restart_when_switched_off() -> None:
    quantizer = built(
        vq.Config(codebook_size=64, code_dim=4, similarity="euclidean", update="gradient", dead_code_threshold=0)
    ).train()
    before = snapshot(quantizer)
    quantizer(latents(quantizer))
    assert same(before, quantizer.state_dict())


@pytest.mark.parametrize("kmeans", [False, True])
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_running_means_are_the_librarys(similarity: str, kmeans: bool) -> None:
    """From the same random start on, which is the library's too."""
    section = {"codebook_size": 16, "code_dim": 4, "similarity": similarity, "dead_code_threshold": 0}
    ours = built(vq.Config.model_validate(section | {"kmeans_init": kmeans}))
    torch.manual_seed(0)
    options = {"use_cosine_sim": similarity == "cosine", "rotation_trick": False, "kmeans_init": kmeans}
    theirs = VectorQuantize(4, 16, decay=0.9, **options)
    for step in range(5):
        given = latents(ours.train(), seed=step)
        torch.manual_seed(step)
        out = ours(given)
        torch.manual_seed(step)
        expected, indices, _ = theirs.train()(to_sequence(given))
        assert torch.equal(out.values[..., 0], indices)
        torch.testing.assert_close(to_sequence(out.vectors), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.codebook(), theirs.codebook, atol=1e-5, rtol=0)


def test_kmeans_starts_from_the_data_in_training_only() -> None:
    quantizer = built(
        vq.Config(codebook_size=4, code_dim=2, similarity="euclidean", kmeans_init=True, dead_code_threshold=0)
    )
    centres = torch.tensor([[5.0, 5.0], [5.0, -5.0], [-5.0, 5.0], [-5.0, -5.0]])
    given = to_grid(centres.repeat(16, 4, 1) + 0.01 * torch.randn(16, 16, 2), (4, 4))
    assert quantizer.eval()(given).vectors.abs().max() < 3
    losses = []
    for seed in range(5):  # k-means itself may meet in a bad start; the best of a few does not
        start = copy.deepcopy(quantizer)
        torch.manual_seed(seed)
        losses.append(F.mse_loss(start.train()(given).vectors, given))
    assert min(losses) < 0.001


def test_cosine_gives_the_decoder_unit_vectors() -> None:
    for update in ("ema", "gradient"):
        quantizer = built(vq.Config.model_validate({"codebook_size": 16, "code_dim": 4, "update": update}))
        train(quantizer, 3)
        norms = to_sequence(quantizer(10 * latents(quantizer)).vectors).norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones_like(norms))


def test_losses_of_vq_vae() -> None:
    """Equation 3 of van den Oord 2017: 1 to the codebook, beta to the encoder, each with its own gradient."""
    config = vq.Config(
        codebook_size=16,
        code_dim=4,
        similarity="euclidean",
        update="gradient",
        dead_code_threshold=0,
        commitment_weight=0.3,
    )
    quantizer = built(config).train()
    given = latents(quantizer).requires_grad_()
    out = quantizer(given)
    distance = F.mse_loss(out.vectors, given).item()
    assert out.losses["codebook"].item() == pytest.approx(distance)
    assert out.losses["commitment"].item() == pytest.approx(0.3 * distance)
    assert torch.autograd.grad(out.losses["codebook"], given, retain_graph=True, allow_unused=True) == (None,)
    table = next(quantizer.parameters())
    assert torch.autograd.grad(out.losses["commitment"], table, retain_graph=True, allow_unused=True) == (None,)
    (gradient,) = torch.autograd.grad(out.losses["codebook"], table)
    assert gradient.abs().sum() > 0


def test_each_residual_level_adds_detail_and_gradients_pass_once() -> None:
    quantizer = built(residual.Config(codebook_size=32, code_dim=4, num_quantizers=3))
    train(quantizer, 30)
    given = latents(quantizer).requires_grad_()
    out = quantizer(given)
    parts = [to_grid(F.embedding(out.values[..., k], table), (4, 4)) for k, table in enumerate(quantizer.tables())]
    errors = [F.mse_loss(sum(parts[: k + 1]), given).item() for k in range(3)]
    assert errors[0] > errors[1] > errors[2]
    (gradient,) = torch.autograd.grad(out.vectors.sum(), given)
    assert torch.equal(gradient, torch.ones_like(gradient))  # the library's own adds one for each level


def test_nearest_is_brute_force() -> None:
    torch.manual_seed(0)
    for codes in (40, 2**16):  # the second takes several blocks
        points, table = torch.randn(70, 5), torch.randn(codes, 5)
        assert torch.equal(find_nearest(points, table), torch.cdist(points.double(), table.double()).argmin(1))


# ------------------------------------------------------------------------------------------------- gradient estimators


def test_both_estimators_keep_the_value_to_the_bit() -> None:
    torch.manual_seed(0)
    points, codes = torch.randn(100, 6), torch.randn(100, 6)
    assert torch.equal(straight_through(points, codes), codes)
    assert torch.equal(rotation_trick(points, codes), codes)
    zero = torch.zeros(1, 6, requires_grad=True)
    rotation_trick(zero, codes[:1]).sum().backward()
    assert zero.grad is not None and zero.grad.isfinite().all()


def test_rotation_trick_is_a_scaled_rotation() -> None:
    """Fifty 2024: the gradient keeps its angle to the code, and its length times |q|/|e|."""
    torch.manual_seed(0)
    points, codes, upstream = torch.randn(50, 6, requires_grad=True), torch.randn(50, 6), torch.randn(50, 6)
    rotation_trick(points, codes).backward(upstream)
    gradient = points.grad
    assert gradient is not None
    scale = codes.norm(dim=1) / points.detach().norm(dim=1)
    torch.testing.assert_close(gradient.norm(dim=1), scale * upstream.norm(dim=1))
    torch.testing.assert_close(F.cosine_similarity(gradient, points.detach()), F.cosine_similarity(upstream, codes))


# ------------------------------------------------------------------------------------------------- the other kinds


def test_lfq_is_the_librarys() -> None:
    torch.manual_seed(0)
    config = lfq.Config(
        codebook_size=64, entropy_weight=0.7, diversity_gamma=1.3, commitment_weight=0.2, temperature=0.5
    )
    ours = config.build((4, 4)).train()
    theirs = LFQ(
        dim=6, codebook_size=64, entropy_loss_weight=0.7, diversity_gamma=1.3, commitment_loss_weight=0.2
    ).train()
    given = latents(ours) / 3
    out = ours(given)
    expected, indices, loss = theirs(to_sequence(given), inv_temperature=1 / 0.5)
    assert torch.equal(out.values[..., 0], indices.long())
    torch.testing.assert_close(to_sequence(out.vectors), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(sum(out.losses.values()), loss, atol=1e-5, rtol=1e-4)


def test_lfq_of_many_bits_needs_little_memory_and_its_entropy_rewards_spread() -> None:
    quantizer = lfq.Config(codebook_size=2**18, temperature=1.0).build((4, 4)).train()
    spread = quantizer(3 * latents(quantizer, 64)).losses["entropy"]
    collapsed = quantizer(3 * latents(quantizer, 64).abs()).losses["entropy"]
    assert spread < collapsed


def test_simvq_is_the_librarys() -> None:
    ours = built(simvq.Config(codebook_size=16, code_dim=4)).train()
    theirs = SimVQ(4, 16, rotation_trick=True, input_to_quantize_commit_loss_weight=0.25)
    theirs.frozen_codebook.copy_(ours.frozen)
    theirs.code_transform.load_state_dict(ours.transform.state_dict())
    given = latents(ours)
    out = ours(given)
    expected, indices, loss = theirs(to_sequence(given))
    assert torch.equal(out.values[..., 0], indices)
    torch.testing.assert_close(to_sequence(out.vectors), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(sum(out.losses.values()), loss)


def test_fsq_numbers_every_code_once() -> None:
    quantizer = built(fsq.Config(levels=[8, 5, 3]))
    table = quantizer.codebook()
    assert table.unique(dim=0).shape == (120, 3)
    assert table.abs().max() <= 1
    out = quantizer(1.5 * latents(quantizer, 400))
    assert out.monitors["usage"] == 1


def test_code_usage() -> None:
    values = torch.tensor(
        [[[0, 1], [0, 2]], [[0, 3], [0, 0]]]
    )  # level 1 always code 0, level 2 each of four codes once
    monitors = code_usage(values, 4)
    assert monitors["usage"] == pytest.approx((1 / 4 + 1) / 2)
    assert monitors["perplexity"] == pytest.approx((1 + 4) / 2)


@pytest.mark.parametrize(
    ("config", "fields", "words"),
    [
        (vq.Config, {"codes": 1}, "greater than or equal to 2"),
        (vq.Config, {"decay": 1.0}, "less than 1"),
        (vq.Config, {"commitment_weight": -1}, "greater than or equal to 0"),
        (vq.Config, {"code_dim": 1}, "two directions"),
        (vq.Config, {"code_dim": 1, "similarity": "euclidean", "rotation_trick": True}, "rotation_trick"),
        (vq.Config, {"update": "sgd"}, "'ema' or 'gradient'"),
        (vq.Config, {"code": 5}, "Extra inputs"),
        (residual.Config, {"num_quantizers": 1}, "greater than or equal to 2"),
        (residual.Config, {"similarity": "cosine"}, "Extra inputs"),
        (fsq.Config, {"levels": [8, 2]}, "greater than or equal to 3"),
        (fsq.Config, {"levels": []}, "at least 1 item"),
        (fsq.Config, {"levels": [64] * 5}, "more than"),
        (lfq.Config, {"codes": 100}, "power of 2, such as 64 or 128"),
        (simvq.Config, {"code_dim": 0}, "greater than or equal to 2"),
    ],
)
def test_impossible_values_are_refused(config: type[QuantizerConfig], fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config.model_validate({"kind": config.tiny().kind, **fields})
