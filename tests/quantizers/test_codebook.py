"""Learned codebooks: running means, k-means, the restart of dead codes, losses and gradient estimators."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.quantizers import LEARNED, built, latents, same, snapshot, train
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from artok.quantizers import residual, vq
from artok.quantizers.base import Quantizer, to_grid, to_sequence
from artok.quantizers.codebook import Codebook, CodebookQuantizer, find_nearest
from artok.quantizers.gradients import rotation_trick, straight_through
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


# ---------------------------------------------------------------------------------------- fewer points, long idleness


def codebook(**options: object) -> Codebook:
    torch.manual_seed(0)
    section = {"codebook_size": 64, "code_dim": 4, "dead_code_threshold": 0.5} | options
    cosine = section.pop("cosine", False)
    return Codebook(vq.Config.model_validate(section), cosine=bool(cosine))


def test_a_restart_replaces_no_more_codes_than_there_are_points_and_says_which() -> None:
    book = codebook()
    book.counts.zero_()
    before, points = book.vectors().clone(), torch.randn(10, 4)
    spared = torch.arange(64) < 20
    replaced = book.restart_dead_codes(points, spared)
    assert int(replaced.sum()) == 10 and not replaced[:20].any()
    assert torch.equal((book.vectors() != before).any(1), replaced)
    assert torch.equal(book.counts[0] == 0.5, replaced)
    assert {tuple(row) for row in book.vectors()[replaced].tolist()} == {tuple(row) for row in points.tolist()}
    assert not codebook().restart_dead_codes(points).any()  # all counts start at 1


def test_a_code_that_nothing_chooses_stays_on_the_sphere() -> None:
    book = codebook(cosine=True, dead_code_threshold=0.0)
    before, near = book.vectors().clone(), F.normalize(torch.ones(1, 4), dim=-1)
    values = find_nearest(near, before)
    for _ in range(1500):  # long enough for a running sum to underflow
        book.update(book.collect(near, values))
    torch.testing.assert_close(book.vectors().norm(dim=1), torch.ones(64))
    idle = torch.arange(64) != values
    torch.testing.assert_close(book.vectors()[idle], before[idle])


def test_parts_of_a_step_collected_together_are_one_step() -> None:
    whole, parts = codebook(), codebook()
    points = torch.randn(100, 4)
    values = find_nearest(points, whole.vectors())
    whole.update(whole.collect(points, values))
    parts.update(parts.collect(points[:30], values[:30]) + parts.collect(points[30:], values[30:]))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor)


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
