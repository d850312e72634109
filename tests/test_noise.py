"""Random numbers: right in distribution, and a function of (seed, sample, draw) alone."""

import pytest
import torch
from scipy import stats

from artok.noise import Noise, fold

ROWS = torch.arange(400)


def test_the_numbers_have_their_distributions() -> None:
    noise = Noise(1, ROWS)
    assert stats.kstest(noise.uniform(500).flatten(), "uniform").pvalue > 1e-3
    assert stats.kstest(noise.normal(501).flatten(), "norm").pvalue > 1e-3
    counts = torch.bincount(noise.integers(7, 500).flatten(), minlength=7)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_samples_draws_and_seeds_are_independent() -> None:
    first, other = Noise(1, ROWS), Noise(2, ROWS)
    a, b, c = first.uniform(200), first.uniform(200), other.uniform(200)
    for x, y in ((a, b), (a, c), (a[:-1], a[1:]), (a[:, 1:], a[:, :-1])):
        assert abs(float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])) < 0.02


def test_no_two_streams_share_a_number() -> None:
    """Seeds of all uses, samples, draws and places: 64-bit numbers, so chance repeats none of 192,000."""
    uses = [0, 1, -1, *(fold(use, 0) for use in ("training", "critic", "adversary", "quantizer")), fold("validation")]
    drawn = [noise.integers(2**62, 12) for noise in (Noise(seed, ROWS[:100]) for seed in uses) for _ in range(20)]
    numbers = torch.stack(drawn).flatten()
    assert len(numbers.unique()) == len(numbers) == 192_000


def test_a_sample_has_the_same_numbers_in_any_batch() -> None:
    whole = Noise(3, ROWS)
    part = Noise(3, ROWS[50:60])
    for draw in (lambda noise: noise.uniform(4, 5), lambda noise: noise.normal(7), lambda noise: noise.permutation(9)):
        assert torch.equal(draw(whole)[50:60], draw(part))
    assert torch.equal(whole[50:60].uniform(3), part.uniform(3))


def test_gumbel_noise_is_a_function_of_its_place() -> None:
    noise, places = Noise(5, ROWS), torch.arange(300).expand(len(ROWS), -1)
    every = noise.gumbel(places, 4)
    assert stats.kstest(every.flatten(), "gumbel_r").pvalue > 1e-3
    noise.uniform(3)  # takes no part in it
    assert torch.equal(noise.gumbel(places[:, 40:43], 4), every[:, 40:43])
    assert torch.equal(noise[7:9].gumbel(places[7:9].flip(1), 4), every[7:9].flip(1))
    for x, y in ((every[:, 1:], every[:, :-1]), (every[1:], every[:-1]), (every[..., 1:], every[..., :-1])):
        assert abs(float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])) < 0.02
    flat = torch.cat([every.flatten(), noise.uniform(1200).flatten()])
    assert len(flat.unique()) > 0.8 * len(flat)


def test_a_permutation_holds_every_place_once_and_all_orders_occur() -> None:
    orders = Noise(0, torch.arange(6000)).permutation(3)
    assert torch.equal(orders.sort(1).values, torch.arange(3).expand(6000, 3))
    _, counts = orders.unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_draws_made_together_are_those_made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for numbers in (0, 100, 10_000):  # one, a few and all draws at once
        monkeypatch.setattr("artok.noise.AT_ONCE", numbers)
        one, together = Noise(5, ROWS[:7]), Noise(5, ROWS[:7])
        several = together.normals(6, 3, 3)
        for _ in range(8):  # also more than were expected
            assert torch.equal(next(several), one.normal(3, 3))
        assert torch.equal(together.uniform(2), one.uniform(2))  # what was not taken is not drawn


def test_the_numbers_never_change_between_versions() -> None:
    assert fold("a", 1) == 6920629095001669593
    torch.testing.assert_close(
        Noise(7, torch.tensor([11])).uniform(3), torch.tensor([[0.6067, 0.0578, 0.1978]]), atol=1e-4, rtol=0
    )


def test_fold_tells_its_parts_apart() -> None:
    assert len({fold("a", 1), fold("a", 2), fold("b", 1), fold("a1"), fold(1)}) == 5


@pytest.mark.parametrize("seed", [0, 2**40, -3])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert 0 <= float(Noise(seed, torch.arange(1)).uniform(1)) < 1
