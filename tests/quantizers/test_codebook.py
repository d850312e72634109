"""Learned codebooks: running means, k-means, the restart of dead codes, losses and gradient estimators."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.quantizers import LEARNED, built, latents, same, snapshot, train
from vector_quantize_pytorch import VectorQuantize

from artok.quantizers import residual, vq
from artok.quantizers.base import to_grid, to_sequence
from artok.quantizers.codebook import Codebook, CodebookQuantizer, find_nearest
from artok.quantizers.gradients import rotation_trick, straight_through
from artok.quantizers.usage import count_codes
from artok.saved import fingerprint, write_weights
from artok.weights import read_weights

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


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_restarted_code_is_a_latent_of_the_step_and_counts_as_an_even_use(update: str) -> None:
    section = {"codebook_size": 16, "code_dim": 4, "similarity": "euclidean", "update": update}
    quantizer = built(vq.Config.model_validate(section | {"dead_code_threshold": 0.05})).train()
    quantizer(latents(quantizer, seed=2))  # a step before, of which nothing is left
    quantizer.settle()
    book, given = quantizer.levels[0], latents(quantizer)
    with torch.no_grad():
        book.table[:, 3:5] += 100  # where no latent is
        book.counts[:, 3:5] = 0.0
    rest = float(book.counts.sum())
    kept = book.table.detach().clone()
    quantizer(given)
    assert torch.equal(book.table, kept)  # a pass changes nothing
    (replaced,) = quantizer.settle()
    assert replaced.table is book.table and replaced.rows.nonzero()[:, 0].tolist() == [3, 4]
    points = to_sequence(given).flatten(0, 1)
    for code in (3, 4):
        assert (points == book.table[0, code]).all(1).any()
        torch.testing.assert_close(book.sums[0, code], book.table[0, code] * book.counts[0, code])
    even = (0.9 * rest + 0.1 * len(points)) / 16
    torch.testing.assert_close(book.counts[0, 3:5], torch.tensor([even, even]))
    if update == "gradient":
        assert torch.equal(book.table[0, 5:], kept[0, 5:])


def test_a_restarted_code_has_time_to_be_chosen() -> None:
    """log(.05) / log(.9) is 28.4 steps. With a quarter of a token per code and step it is 8 choices, 32 steps."""
    for tokens, grace in ((128, 28), (4, 32)):
        book = codebook(codebook_size=16, dead_code_threshold=0.05)
        book.counts.fill_(tokens / 16)
        use, points = torch.full((16,), tokens / 15), torch.randn(16, 4)
        use[7] = 0
        waited = 0
        while not book.restart_dead_codes(points, torch.ones(16, dtype=torch.bool)).any():
            book.update(use, torch.zeros(16, 4))
            waited += 1
        assert waited in (grace, grace + 1)


def test_no_restart_when_switched_off() -> None:
    quantizer = built(
        vq.Config(codebook_size=64, code_dim=4, similarity="euclidean", update="gradient", dead_code_threshold=0)
    ).train()
    before = snapshot(quantizer)
    quantizer(latents(quantizer))
    assert quantizer.settle() == []
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
        points = to_sequence(given).flatten(0, 1)
        if kmeans and step == 0:
            ours.levels[0].start_from_kmeans(F.normalize(points, dim=-1) if ours.cosine else points, step, 1)
        out = ours(given)
        ours.settle()
        torch.manual_seed(step)
        expected, indices, _ = theirs.train()(to_sequence(given))
        assert torch.equal(out.values[..., 0], indices)
        torch.testing.assert_close(to_sequence(out.vectors), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.codebook(), theirs.codebook, atol=1e-5, rtol=0)


def test_kmeans_starts_from_the_latents_it_is_given() -> None:
    quantizer = built(
        vq.Config(codebook_size=4, code_dim=2, similarity="euclidean", kmeans_init=True, dead_code_threshold=0)
    )
    assert quantizer.first_images == 2  # 8 latents per code
    centres = torch.tensor([[5.0, 5.0], [5.0, -5.0], [-5.0, 5.0], [-5.0, -5.0]])
    given = to_grid(centres.repeat(16, 4, 1) + 0.01 * torch.randn(16, 16, 2), (4, 4))
    losses = []
    for seed in range(5):  # k-means itself may meet in a bad start; the best of a few does not
        start = copy.deepcopy(quantizer).train()
        assert start(given).vectors.abs().max() < 3
        (replaced,) = start.start(given, seed, 2)
        assert replaced.rows.all() and not start.start(given, seed + 1, 2)  # once
        assert start.levels[0].counts.sum() == 128  # of 256 latents in two steps
        losses.append(F.mse_loss(start(given).vectors, given))
    assert min(losses) < 0.001
    assert not built(quantizer.config.model_copy(update={"kmeans_init": False})).start(given, 0, 2)


def test_kmeans_of_as_many_latents_as_codes_takes_each() -> None:
    book, points = codebook(codebook_size=16, kmeans_init=True), torch.randn(16, 4)
    book.start_from_kmeans(points, 0, 1)
    assert torch.cdist(points, book.vectors()).argmin(1).unique().numel() == 16


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


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_commitment_is_of_the_sum_after_each_level(update: str) -> None:
    """beta sum_k |z - sum of the codes up to k|^2 (Lee 2022, equation 7), with its gradient to the latents."""
    section = {"codebook_size": 16, "code_dim": 4, "num_quantizers": 3, "update": update, "commitment_weight": 0.3}
    quantizer = built(residual.Config.model_validate(section)).train()
    given = latents(quantizer).requires_grad_()
    out = quantizer(given)
    parts = [to_grid(F.embedding(out.values[..., k], table), (4, 4)) for k, table in enumerate(quantizer.tables())]
    wanted = 0.3 * sum(F.mse_loss(given, sum(parts[: k + 1]).detach()) for k in range(3))
    torch.testing.assert_close(out.losses["commitment"], wanted)
    (gradient,) = torch.autograd.grad(out.losses["commitment"], given)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, given)[0])


def test_nearest_is_brute_force() -> None:
    torch.manual_seed(0)
    for codes in (40, 2**16):  # the second takes several blocks
        points, table = torch.randn(70, 5), torch.randn(codes, 5)
        assert torch.equal(find_nearest(points, table), torch.cdist(points.double(), table.double()).argmin(1))


def test_a_table_may_be_larger_than_a_block() -> None:
    table = torch.zeros(2**22 + 1, 1)
    table[-2] = 3.0
    assert find_nearest(torch.tensor([[2.0], [1.0]]), table).tolist() == [2**22 - 1, 0]


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_codes_on_a_line(update: str) -> None:
    section = {"codebook_size": 16, "code_dim": 1, "similarity": "euclidean", "update": update}
    quantizer = built(vq.Config.model_validate(section)).train()
    given = latents(quantizer)
    nearest = (to_sequence(given) - quantizer.codebook()[:, 0]).abs().argmin(-1)
    assert torch.equal(quantizer(given).values[..., 0], nearest)


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


@pytest.mark.parametrize("estimator", [straight_through, rotation_trick])
def test_estimators_pass_no_gradient_to_the_codes(estimator: Callable[..., torch.Tensor]) -> None:
    points, codes = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    gradients = torch.autograd.grad(estimator(points, codes).sum(), (points, codes), allow_unused=True)
    assert gradients[0] is not None and gradients[1] is None


def test_a_latent_of_no_length_counts_as_one_of_a_millionth() -> None:
    """Without a direction e^ the rotation is a reflection at the code's axis, times |q| / 1e-6."""
    points = torch.zeros(1, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(rotation_trick(points, torch.tensor([[3.0, 0.0]])), points, torch.ones(1, 2))
    torch.testing.assert_close(gradient, torch.tensor([[-3e6, 3e6]]))


# ---------------------------------------------------------------------------------------- fewer points, long idleness


def codebook(**options: object) -> Codebook:
    torch.manual_seed(0)
    section = {"codebook_size": 64, "code_dim": 4, "dead_code_threshold": 0.5} | options
    cosine = section.pop("cosine", False)
    return Codebook(vq.Config.model_validate(section), cosine=bool(cosine))


def test_a_restart_replaces_no_more_codes_than_there_are_points_and_says_which() -> None:
    book = codebook()
    book.counts[:, 20:] = torch.linspace(0, 0.01, 44)
    before, points, real = book.vectors().clone(), torch.randn(64, 4), torch.arange(64) < 10
    replaced = book.restart_dead_codes(points, real)
    assert replaced.nonzero()[:, 0].tolist() == list(range(20, 30))  # the least used first
    assert torch.equal((book.vectors() != before).any(1), replaced)
    torch.testing.assert_close(
        book.vectors()[replaced], F.normalize(points[:10], dim=-1) if book.cosine else points[:10]
    )
    assert not codebook().restart_dead_codes(points, real).any()  # all counts start at 1


def test_a_table_larger_than_a_step_is_not_replaced_step_by_step() -> None:
    """Half a token per code and step: a code that an even use has not yet chosen 8 times is no dead one.

    exp(-8) of the codes of an even use wait that long, .03%. Points of this mixture leave some codes a fifth of that
    use; .5% of the table a step is a bound on both. An absolute count of 1 replaced 50%.
    """
    size, per_step = 256, 128
    centres = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
    quantizer = built(vq.Config(codebook_size=size, code_dim=4, similarity="euclidean")).train()
    replaced = list[int]()
    for step in range(150):
        rng = torch.Generator().manual_seed(step)
        points = centres[torch.randint(size, (per_step,), generator=rng)] + 0.1 * torch.randn(
            per_step, 4, generator=rng
        )
        quantizer(to_grid(points.view(8, 16, 4), (4, 4)))
        (each,) = quantizer.settle()
        replaced.append(int(each.rows.sum()))
    assert sum(replaced) > 20  # from a random start
    assert sum(replaced[100:]) < 0.005 * size * 50
    points = centres + 0.1 * torch.randn(20, size, 4)
    assert quantizer.levels[0](points)[0].unique().numel() > 0.95 * size


@pytest.mark.parametrize("cosine", [False, True])
def test_a_code_that_nothing_chooses_stays_where_it_was(cosine: bool) -> None:
    book = codebook(cosine=cosine, dead_code_threshold=0.0)
    before, near = book.vectors().clone(), F.normalize(torch.ones(1, 4), dim=-1)
    values = find_nearest(near, before)
    for _ in range(1500):  # long enough for a running sum to underflow
        book.collect(near, values)
        book.update(count_codes(values[None, :, None], 64)[0], book.take())
    idle = torch.arange(64) != values
    # smoothing takes 1% off a mean where it is last taken
    torch.testing.assert_close(book.vectors()[idle], before[idle], rtol=0.0, atol=1e-5 if cosine else 0.011)
    if cosine:
        torch.testing.assert_close(book.vectors().norm(dim=1), torch.ones(64))


# ------------------------------------------------------------------------------------------ names of earlier versions

EARLIER = {
    "table": "state.embed",
    "sums": "state.embed_avg",
    "counts": "state.cluster_size",
    "started": "state.initted",
}


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_weights_and_fingerprints_of_earlier_versions_hold(update: str, tmp_path: Path) -> None:
    config = vq.Config.model_validate({"codebook_size": 16, "code_dim": 4, "update": update})
    quantizer = built(config)
    train(quantizer, 3)
    earlier = {}
    for name, tensor in quantizer.state_dict().items():
        place, _, leaf = name.rpartition(".")
        earlier[f"{place}.{EARLIER[leaf]}"] = tensor.clone()
    write_weights(earlier, tmp_path / "model.safetensors")
    from_state, from_file = built(config, seed=9), built(config, seed=9)
    from_state.load_state_dict(earlier)
    read_weights(from_file, tmp_path / "model.safetensors")
    assert same(from_state.state_dict(), quantizer.state_dict())
    assert same(from_file.state_dict(), quantizer.state_dict())
    digest = hashlib.blake2b(digest_size=8)  # as it was before the names changed
    for name, tensor in sorted(earlier.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    assert fingerprint(quantizer) == digest.hexdigest()
