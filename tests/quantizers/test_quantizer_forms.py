"""Arithmetic of the quantizers against numbers worked out by hand: statistics of steps, k-means, losses, draws."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.quantizers import built, latents

from artok.noise import Noise
from artok.quantizers import gaussian, gumbel, lfq, multiscale, residual, simvq, usage, vq
from artok.quantizers.balance import Standardisation, UsageBalancing
from artok.quantizers.base import to_sequence
from artok.quantizers.candidates import Candidates
from artok.quantizers.codebook import Codebook, CodebookConfig, CodebookQuantizer, find_nearest
from artok.quantizers.multiscale import Phi, assign_convolutions
from artok.quantizers.usage import Usage, count_codes, perplexity

# ------------------------------------------------------------------------------------------------- the table


def book(cosine: bool = False, **options: object) -> Codebook:
    torch.manual_seed(0)
    section = {"codebook_size": 4, "code_dim": 2, "similarity": "cosine" if cosine else "euclidean"} | options
    return Codebook(vq.Config.model_validate(section), cosine=cosine)


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("rounds", [1, 3])
@torch.no_grad()
def test_kmeans_is_rounds_of_means_of_the_nearest(update: str, cosine: bool, rounds: int) -> None:
    """From points drawn without replacement. On the sphere means are put back on it, if codes follow means."""
    quantizer = book(cosine, update=update, kmeans_iters=rounds, kmeans_init=True, codebook_size=5)
    points = torch.randn(40, 2)
    points = F.normalize(points, dim=-1) if cosine else points
    means = points[torch.randperm(40, generator=torch.Generator().manual_seed(7))[:5]]
    for _ in range(rounds):
        nearest = torch.cdist(points.double(), means.double()).argmin(1)
        means = torch.stack([points[nearest == code].mean(0) for code in range(5)])
        means = F.normalize(means, dim=-1) if cosine and update == "ema" else means
    assert not quantizer.started
    quantizer.start_from_kmeans(points, 7, steps=2.0)
    assert quantizer.started
    # smoothing changes a mean by 1e-5 of it
    torch.testing.assert_close(quantizer.table.detach()[0], means, atol=1e-4, rtol=1e-4)
    uses = torch.bincount(nearest, minlength=5) / 2
    torch.testing.assert_close(quantizer.counts[0], uses)
    torch.testing.assert_close(quantizer.sums[0], means * uses[:, None], atol=1e-5, rtol=1e-5)


def test_kmeans_of_fewer_points_than_codes_leaves_no_code_elsewhere() -> None:
    quantizer = book(codebook_size=12, kmeans_init=True)
    points = torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0]])
    quantizer.start_from_kmeans(points, 0, steps=1.0)
    assert torch.cdist(quantizer.vectors(), points).min(1).values.max() < 1e-3
    assert quantizer.counts.sum() == 3


def test_the_next_level_starts_from_what_the_first_leaves() -> None:
    quantizer = built(residual.Config(codebook_size=8, code_dim=2, num_quantizers=2, kmeans_init=True)).train()
    assert quantizer.first_images == math.ceil(8 * 8 / 16)
    points = latents(quantizer, 8)
    first, second = quantizer.start(points, 3, 1)
    assert first.table is quantizer.levels[0].table and second.table is quantizer.levels[1].table
    flat = to_sequence(points).flatten(0, 1)
    left = flat - quantizer.levels[0].vectors()[torch.cdist(flat, quantizer.levels[0].vectors()).argmin(1)]
    right = quantizer.levels[1].vectors()
    assert right.norm(dim=1).max() < left.norm(dim=1).max()
    chosen = torch.cdist(left, right).argmin(1)
    torch.testing.assert_close(
        quantizer.levels[1].counts[0], torch.bincount(chosen, minlength=8).float(), atol=8, rtol=0
    )


@pytest.mark.parametrize("cosine", [False, True])
def test_a_table_follows_the_running_means(cosine: bool) -> None:
    """N <- .8 N + .2 n, m <- .8 m + .2 sum, e = m / N (van den Oord 2017, appendix A.1); on the sphere m / |m|."""
    each = book(cosine, decay=0.8)
    before = each.table[0].clone()
    counts, sums = torch.tensor([4.0, 0.0, 1.0, 2.0]), torch.tensor([[8.0, 4.0], [0.0, 0.0], [1.0, 5.0], [-2.0, 6.0]])
    each.update(counts, sums)
    running, total = 0.8 + 0.2 * counts, 0.8 * before + 0.2 * sums
    torch.testing.assert_close(each.counts[0], running)
    torch.testing.assert_close(each.sums[0], total)
    wanted = F.normalize(total, dim=-1) if cosine else total / running[:, None]
    torch.testing.assert_close(each.table[0], wanted, atol=1e-5, rtol=1e-4)


def test_smoothing_of_counts_keeps_their_sum() -> None:
    """(N + 1e-5) / (n + V 1e-5) n (Razavi 2019, section 2.1): a count of .01 becomes .010009... of a sum of 3.01."""
    each = book(codebook_size=3)
    counts = torch.tensor([[1.0, 2.0, 0.01]])
    each.counts.copy_(counts)
    each.sums.fill_(1.0)
    each._move_to_means()
    smoothed = (counts[0].double() + 1e-5) / (3.01 + 3e-5) * 3.01
    torch.testing.assert_close(each.table[0, :, 0].double(), 1 / smoothed, atol=0, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "dead", "most"),
    [
        (vq.Config(codebook_size=1100, code_dim=2), 1090, 1024),
        (multiscale.Config(codebook_size=1100, code_dim=2, scales=(4,)), 1090, 1024),
        (multiscale.Config(codebook_size=17, code_dim=2), 16, 16),  # of three scales, which give 6 points each
    ],
)
def test_a_step_replaces_dead_codes_up_to_1024(config: CodebookConfig, dead: int, most: int) -> None:
    quantizer = built(config).train()
    (each,) = quantizer.books() if isinstance(quantizer, CodebookQuantizer) else [quantizer.book]
    quantizer(latents(quantizer, 128))
    quantizer.usage.counts.zero_()  # as if nothing had been chosen
    each.counts.fill_(100.0)
    each.counts[:, :dead] = 0.0
    (replaced,) = quantizer.settle()
    assert int(replaced.rows.sum()) == most and not replaced.rows[dead:].any()


@pytest.mark.parametrize("cosine", [False, True])
def test_a_new_code_is_its_point_and_has_the_count_and_sum_of_an_even_use(cosine: bool) -> None:
    each = book(cosine, dead_code_threshold=0.5)
    each.counts.copy_(torch.tensor([[20.0, 0.0, 60.0, 1.0]]))  # 20.25 is even; with 8 / 20.25 steps .5 is the share
    kept = each.table.clone()
    points = torch.tensor([[3.0, 4.0], [0.0, 2.0], [5.0, 5.0]])
    replaced = each.restart_dead_codes(points, torch.tensor([True, True, True]))
    assert replaced.tolist() == [False, True, False, True]
    wanted = F.normalize(points[:2], dim=-1) if cosine else points[:2]
    assert torch.equal(each.table[0, [1, 3]], wanted) and torch.equal(each.table[0, [0, 2]], kept[0, [0, 2]])
    assert each.counts.tolist() == [[20.0, 20.25, 60.0, 20.25]]
    torch.testing.assert_close(each.sums[0, [1, 3]], 20.25 * wanted)
    torch.testing.assert_close(each.sums[0, [0, 2]], kept[0, [0, 2]])


def test_a_bias_comes_off_the_squared_distance() -> None:
    torch.manual_seed(0)
    points, table, bias = torch.randn(50, 3), torch.randn(20, 3), torch.rand(20)
    squared = torch.cdist(points.double(), table.double()).square() - bias.double()
    assert torch.equal(find_nearest(points, table, bias), squared.argmin(1))
    assert not torch.equal(find_nearest(points, table, bias), find_nearest(points, table))


def test_an_exported_search_is_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    points, table, bias = torch.randn(50, 3), torch.randn(20, 3), torch.rand(20)
    wanted = find_nearest(points, table, bias)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert torch.equal(find_nearest(points, table, bias), wanted)


def test_a_sample_of_a_step_is_its_points_of_the_smallest_keys() -> None:
    candidates, noise = Candidates(2, 5, 3), Noise(1, torch.arange(4))
    points = torch.randn(4, 2, 3)
    keys = Noise(1, torch.arange(4)).integers(2**62, 2).flatten()
    for part in (slice(0, 3), slice(3, 4)):
        candidates.collect(1, points[part], noise[part])
    for again in (True, False):  # the second time it is empty
        taken, real = candidates.take()
        assert real.tolist() == [[False] * 5, [again] * 5]
        if again:
            assert torch.equal(taken[1], points.flatten(0, 1)[keys.argsort()[:5]])
    candidates.collect(0, points[:1], Noise(2, torch.arange(1)))
    taken, real = candidates.take()
    assert real.tolist() == [[True, True, False, False, False], [False] * 5]
    assert {tuple(row) for row in taken[0, :2].tolist()} == {tuple(row) for row in points[0].tolist()}


# ------------------------------------------------------------------------------------------------- scales


def test_standardisation_by_hand() -> None:
    """Two steps of decay .5; the deviation of a channel is at least 1e-4, so one that never changes stays finite."""
    kept = Standardisation(2, 2, 0.5)
    assert not kept.mean.any() and torch.equal(kept.variance, torch.ones(2, 2))
    kept.collect(1, torch.tensor([[1.0, 10.0], [3.0, 10.0]]))
    kept.collect(0, torch.zeros(1, 2))
    kept.collect(1, torch.tensor([[5.0, 10.0]]))
    kept.update(kept.take())
    torch.testing.assert_close(kept.mean, torch.tensor([[0.0, 0.0], [1.5, 5.0]]))  # of 3 and 10
    # the squares about 1.5 and 5 are .25, 2.25, 12.25 and 25
    torch.testing.assert_close(kept.variance, torch.tensor([[0.5, 0.5], [0.5 + 0.5 * 14.75 / 3, 0.5 + 0.5 * 25]]))
    assert not kept.moments.any()
    looked_up = kept.standardise(1, torch.tensor([[2.5, 5.0]]))
    torch.testing.assert_close(looked_up, torch.tensor([[1 / math.sqrt(0.5 + 7.375 / 3), 0.0]]))
    kept.variance.zero_()
    looked_up = kept.standardise(1, torch.tensor([[1.5, 5.001]]))
    torch.testing.assert_close(looked_up, torch.tensor([[0.0, 10.0]]), atol=0.01, rtol=0)
    torch.testing.assert_close(kept.restore(1, looked_up), torch.tensor([[1.5, 5.001]]))


def test_rounding_makes_no_negative_variance() -> None:
    kept = Standardisation(1, 64, 0.5)
    kept.variance.zero_()
    for _ in range(40):
        kept.collect(0, torch.linspace(1000, 1001, 64).expand(3, 64))
        kept.update(kept.take())
        assert kept.variance.min() >= 0


def test_usage_balancing_by_hand() -> None:
    """Half of an even use of 4, 2 and 60 choices; what exceeds it counts up to 8 + 8 times the floor."""
    balancing = UsageBalancing(3, 4, floor=0.05)
    assert not balancing.bias.any()
    balancing.bias += 20.0
    counts = torch.tensor([[4.0, 0.0, 0.0, 0.0], [0.0, 8.0, 0.0, 0.0], [0.0, 0.0, 400.0, 0.0]])
    balancing.update(counts)
    least = torch.tensor([0.05, 0.1, 5.0])
    wanted = 20 + 0.1 * least[:, None].repeat(1, 4)
    wanted[0, 0] = 20 - 0.1 * 3.95
    wanted[1, 1] = 20 - 0.1 * 7.9
    wanted[2, 2] = 20 - 0.1 * 48  # and not 395
    torch.testing.assert_close(balancing.bias, wanted)
    balancing.bias.zero_()
    balancing.update(counts)
    assert balancing.bias.min() == 0  # a code in use anyway has none
    torch.testing.assert_close(balancing.bias[:, 3], 0.1 * least)
    balancing.reset(torch.tensor([False, False, False, True]))
    assert not balancing.bias[:, 3].any() and balancing.bias[0, 1] > 0


def test_a_step_moves_the_bias_of_each_scale_by_its_own_choices() -> None:
    quantizer = built(multiscale.Config(codebook_size=16, code_dim=4, standardise=True, usage_balancing=0.5)).train()
    values = quantizer(latents(quantizer)).values[..., 0]
    quantizer.settle()
    counts = torch.stack([part.flatten().bincount(minlength=16) for part in values.split([1, 4, 16], dim=1)])
    wanted = 0.1 * (0.5 * torch.tensor([[8.0], [32.0], [128.0]]) / 16 - counts)
    torch.testing.assert_close(quantizer.balancing.bias, wanted.clamp(min=0))


@pytest.mark.parametrize(
    ("scales", "count", "shares"),
    [(12, 3, [4, 4, 4]), (20, 3, [7, 6, 7]), (20, 5, [4] * 5), (20, 4, [5] * 4), (9, 8, None), (2, 9, [1, 1])],
)
def test_scales_share_convolutions_by_the_nearest_tick(scales: int, count: int, shares: list[int] | None) -> None:
    """Ticks are (i + 1/2) / count, but for four of them, which begin at 1/12."""
    assignment = assign_convolutions(scales, count)
    if shares is not None:
        assert [assignment.count(index) for index in range(len(shares))] == shares
    else:
        ticks = [(index + 0.5) / count for index in range(count)]
        places = [scale / (scales - 1) for scale in range(scales)]
        nearest = [min(range(count), key=lambda index: abs(ticks[index] - place)) for place in places]
        assert assignment == [sorted(set(nearest)).index(index) for index in nearest]


def test_phi_is_half_of_the_convolution() -> None:
    phi = Phi(3, 2)
    given = torch.randn(2, 3, 5, 5)
    assert phi.convolution.weight.shape == (3, 3, 3, 3)
    torch.testing.assert_close(phi(given), (given + phi.convolution(given)) / 2)


# ------------------------------------------------------------------------------------------------- usage


def test_the_window_of_usage_by_hand() -> None:
    """Four codes: 32 choices fill the window. A step of 8 is a quarter of it, one of 64 all of it."""
    seen = Usage([(1,)], 1, 4)
    seen.collect(torch.tensor([0, 0, 0, 0, 0, 0, 1, 1]).view(8, 1, 1))
    assert seen.settle().tolist() == [[[6.0, 2.0, 0.0, 0.0]]]
    torch.testing.assert_close(seen.frequencies[0, 0], torch.tensor([6 / 8, 2 / 8, 0, 0]) / 4)
    torch.testing.assert_close(seen.least[0, 0], torch.tensor([0.3 / 32]))
    seen.collect(torch.full((64, 1, 1), 3))
    seen.settle()
    assert seen.frequencies.tolist() == [[[0.0, 0.0, 0.0, 1.0]]]
    torch.testing.assert_close(seen.least[0, 0], torch.tensor([0.3 / 64]))
    assert not seen.settle().any()  # a step without codes changes nothing
    assert seen.frequencies.tolist() == [[[0.0, 0.0, 0.0, 1.0]]]
    seen.collect(torch.zeros(1, 1, 1, dtype=torch.int64))
    seen.settle()
    torch.testing.assert_close(seen.frequencies[0, 0], torch.tensor([1.0, 0.0, 0.0, 31.0]) / 32)
    assert seen.monitors().keys() == {"usage", "perplexity"}  # none of a scale, where there is one


def test_the_window_moves_by_the_choices_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four processes that show the same codes have the window of one that shows all of them."""
    values = torch.randint(16, (2, 4, 2), generator=torch.Generator().manual_seed(0))
    one, of_four = Usage([(4,)], 2, 16), Usage([(4,)], 2, 16)
    one.collect(values.repeat(4, 1, 1))
    one.settle()
    monkeypatch.setattr(usage, "count_processes", lambda: 4)
    monkeypatch.setattr(usage, "sum_over_processes", lambda tensor: tensor.mul_(4))
    of_four.collect(values)
    of_four.settle()
    torch.testing.assert_close(of_four.frequencies, one.frequencies)
    torch.testing.assert_close(of_four.least, one.least)
    wanted = {name: float(value) for name, value in one.monitors().items()}
    assert {name: float(value) for name, value in of_four.monitors().items()} == pytest.approx(wanted)


def test_usage_of_scales_and_levels_by_hand() -> None:
    """Two scales of 1 and 3 positions, two levels, three codes. Together, positions count alike."""
    values = torch.tensor([[[0, 0], [0, 1], [1, 1], [1, 2]]])
    monitors = Usage([(1,), (3,)], 2, 3).batch_monitors(values)
    both = [perplexity(torch.tensor(each)) for each in ([0.5, 0.5, 0.0], [0.25, 0.5, 0.25])]
    fine = [perplexity(torch.tensor(each)) for each in ([1 / 3, 2 / 3, 0.0], [0.0, 2 / 3, 1 / 3])]
    wanted = {"usage": (2 / 3 + 1) / 2, "usage, 1": 1 / 3, "usage, 3": 2 / 3, "perplexity, 1": 1.0}
    wanted |= {"perplexity": float(sum(both)) / 2, "perplexity, 3": float(sum(fine)) / 2}
    assert {name: float(value) for name, value in monitors.items()} == pytest.approx(wanted)
    assert float(perplexity(torch.tensor([0.5, 0.25, 0.25]))) == pytest.approx(2**1.5)
    assert count_codes(values, 3).tolist() == [[2, 2, 0], [1, 2, 1]]


# ------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("rotation", [False, True])
def test_losses_of_simvq_by_hand(rotation: bool) -> None:
    """1 to the matrix of the codes, .3 to the encoder, each with its own gradient (Zhu 2024)."""
    quantizer = built(simvq.Config(codebook_size=16, code_dim=4, commitment_weight=0.3, rotation_trick=rotation))
    given = latents(quantizer).requires_grad_()
    out = quantizer(given)
    table = quantizer.frozen @ quantizer.transform.weight.T
    codes = table[torch.cdist(to_sequence(given), table.expand(8, -1, -1)).argmin(-1)]
    losses = {
        "codebook": F.mse_loss(codes, to_sequence(given).detach()),
        "commitment": 0.3 * F.mse_loss(to_sequence(given), codes.detach()),
    }
    assert out.losses.keys() == losses.keys()
    own = (given, quantizer.transform.weight)
    for name, loss in losses.items():
        torch.testing.assert_close(out.losses[name], loss)
        found = torch.autograd.grad(out.losses[name], own, retain_graph=True, allow_unused=True)
        for gradient, wanted in zip(found, torch.autograd.grad(loss, own, allow_unused=True), strict=True):
            torch.testing.assert_close(gradient, wanted)


def test_divergence_of_gumbel_is_from_an_even_use() -> None:
    quantizer = built(gumbel.Config(codebook_size=8, code_dim=4, kl_weight=0.2))
    given = latents(quantizer)
    probabilities = quantizer.scores(to_sequence(given)).softmax(-1)
    wanted = F.kl_div(torch.full((8,), 1 / 8).log().expand(8, 16, 8), probabilities, reduction="sum") / (8 * 16)
    torch.testing.assert_close(quantizer(given).losses["divergence"], 0.2 * wanted)
    torch.nn.init.zeros_(quantizer.scores.weight)
    torch.nn.init.zeros_(quantizer.scores.bias)
    assert quantizer(given).losses["divergence"].abs() < 1e-6


def test_a_new_table_of_gumbel_has_the_spread_that_its_width_asks_for() -> None:
    """Even in [-1/2, 1/2] at width 4: the mean square is 1/12, within 5 deviations of .0745 / sqrt(2048)."""
    table = built(gumbel.Config(codebook_size=512, code_dim=4)).table.weight
    assert 0.49 < table.max() <= 0.5 and -0.5 <= table.min() < -0.49
    assert float(table.detach().square().mean()) == pytest.approx(1 / 12, abs=0.0083)


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_entropy_of_lfq_is_that_of_all_codes(bits: int) -> None:
    """Over the full tokens x codes matrix of softmax(-|z - c|^2 / temperature) (Yu 2023, section 3.1)."""
    config = lfq.Config(
        codebook_size=2**bits, temperature=2.0, entropy_weight=0.3, diversity_gamma=1.7, commitment_weight=0.4
    )
    quantizer = built(config).train()
    given = latents(quantizer)
    points, out = to_sequence(given).flatten(0, 1), quantizer(given)
    table = quantizer.codebook()
    soft = (-torch.cdist(points, table).square() / 2).softmax(-1)
    each, mean = torch.special.entr(soft).sum(1).mean(), torch.special.entr(soft.mean(0)).sum()
    torch.testing.assert_close(out.losses["entropy"], 0.3 * (each - 1.7 * mean), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.losses["commitment"], 0.4 * (points - points.sign()).square().mean())
    numbers = (points > 0).long() @ 2 ** torch.arange(bits - 1, -1, -1)
    assert torch.equal(out.values.flatten(), numbers)
    assert quantizer.eval()(given).losses.keys() == {"commitment"}


def test_a_zero_is_the_bit_of_a_negative_number() -> None:
    out = built(lfq.Config(codebook_size=2)).eval()(torch.zeros(1, 1, 4, 4))
    assert not out.values.any() and (out.vectors == -1).all()


@pytest.mark.parametrize("sample", [True, False])
def test_the_gaussian_by_hand(sample: bool) -> None:
    quantizer = gaussian.Config(latent_channels=1, kl_weight=0.5, sample=sample).build((2,)).train()
    mean, log_variance = torch.tensor([[[1.0, 3.0]], [[-1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]], [[-50.0, 50.0]]])
    quantizer.noise = Noise(1, torch.arange(2))
    out = quantizer(torch.cat([mean, log_variance], dim=1))
    kept = log_variance.clamp(-30, 20)
    noise = Noise(1, torch.arange(2)).normal(1, 2)
    wanted = mean + sample * (kept / 2).exp() * noise
    torch.testing.assert_close(out.vectors, wanted)
    torch.testing.assert_close(out.values, wanted.transpose(1, 2))
    nats = 0.5 * (mean.square() + kept.exp() - 1 - kept).sum() / 2
    torch.testing.assert_close(out.sums["kl"], 0.5 * nats)
    torch.testing.assert_close(out.monitors["kl_nats"], nats)
    torch.testing.assert_close(out.monitors["posterior_deviation"], (kept / 2).exp().mean())
    torch.testing.assert_close(out.monitors["latent_deviation"], (5**0.5 + 0.5**0.5) / torch.tensor(2.0))
    assert out.losses == {}
    assert torch.equal(quantizer.eval()(torch.cat([mean, log_variance], dim=1)).vectors, mean)
