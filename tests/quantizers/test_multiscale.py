"""The multi-scale quantizer: the published arithmetic, partial decoding, live codes at every scale, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.models import IMAGE, conv_around

from artok.config import validate
from artok.errors import ConfigError, LayoutError
from artok.layout import TokenLayout, Tokens
from artok.nn.resize import enlarge, shrink
from artok.noise import Noise
from artok.quantizers import multiscale
from artok.quantizers.balance import UsageBalancing
from artok.quantizers.codebook import find_nearest
from artok.quantizers.multiscale import MultiScaleQuantizer, assign_convolutions
from artok.quantizers.usage import count_codes

SCALES = (1, 2, 3, 4)


def built(grid: tuple[int, ...] = (4, 4), **options: object) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    section = {"kind": "multiscale", "codebook_size": 16, "code_dim": 4, "scales": SCALES} | options
    quantizer = validate(multiscale.Config, section, "test").build(grid)
    torch.nn.init.normal_(quantizer.book.table, std=0.5)
    return quantizer


def latents(batch: int = 8, grid: tuple[int, ...] = (4, 4), seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, *grid, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- scales and phi


def test_phi_are_shared_out_as_in_the_released_models() -> None:
    assert assign_convolutions(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert assign_convolutions(4, 4) == [0, 1, 2, 3]
    assert assign_convolutions(10, 1) == [0] * 10


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("scales", range(1, 13))
def test_no_phi_is_idle(scales: int, count: int) -> None:
    assignment = assign_convolutions(scales, count)
    assert assignment == sorted(assignment)
    assert set(assignment) == set(range(max(assignment) + 1))
    assert len(set(assignment)) <= count


@pytest.mark.parametrize(
    ("grid", "scales", "grids"),
    [
        ((4, 4), SCALES, ((1, 1), (2, 2), (3, 3), (4, 4))),
        ((4, 8), (1, (2, 4), (4, 8)), ((1, 1), (2, 4), (4, 8))),
        ((16,), None, ((1,), (2,), (4,), (8,), (16,))),
        ((2, 6, 6), None, ((1, 1, 1), (2, 2, 2), (2, 4, 4), (2, 6, 6))),
        ((1, 1), None, ((1, 1),)),
    ],
)
def test_scales_become_grids(
    grid: tuple[int, ...], scales: tuple[int, ...] | None, grids: tuple[tuple[int, ...], ...]
) -> None:
    assert multiscale.Config(scales=scales).grids(grid) == grids


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ((1, 2, 3), "end at 3x3, but the latent grid is 4x4"),
        ((1, 2, 2, 4), "must grow, but 2x2 is followed by 2x2"),
        ((1, 3, 2, 4), "must grow, but 3x3 is followed by 2x2"),
        (((1, 3), (2, 2), 4), "must grow, but 1x3 is followed by 2x2"),
        ((1, 2, 5), "the scale 5x5 is larger than the latent grid 4x4"),
        ((1, (2, 2, 2), 4), "2x2x2 cannot be a grid of the latent grid 4x4"),
        ((0, 4), "0x0 cannot be"),
    ],
)
def test_impossible_scales_are_refused_with_both_sides_named(scales: tuple[int, ...], words: str) -> None:
    tokenizer = conv_around("multiscale")
    section = tokenizer.model_dump() | {
        "quantizer": {"kind": "multiscale", "codebook_size": 16, "code_dim": 4, "scales": scales}
    }
    with pytest.raises(ConfigError, match=words):
        validate(type(tokenizer), section, "test").build(IMAGE)


def test_there_is_no_kmeans_start() -> None:
    with pytest.raises(ConfigError, match="kmeans_init"):
        validate(multiscale.Config, {"kind": "multiscale", "kmeans_init": True}, "test")


def test_usage_balancing_without_standardised_residuals_is_refused() -> None:
    with pytest.raises(ConfigError, match="usage_balancing needs standardise: true"):
        validate(multiscale.Config, {"kind": "multiscale", "usage_balancing": 0.5}, "test")


# ------------------------------------------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_the_loss_is_the_published_one(update: str) -> None:
    """Per scale beta mse(f^, f) to the encoder and mse(f^, f) to codes and phi, averaged over the scales."""
    quantizer = built(update=update, commitment_weight=0.3).eval()
    given = latents().requires_grad_()
    out = quantizer(given)
    with torch.no_grad():
        errors = torch.stack([F.mse_loss(prefix, given) for prefix in quantizer.prefixes(out.values)])
    assert out.losses["codebook"].item() == pytest.approx(float(errors.mean()), rel=1e-5)
    assert out.losses["commitment"].item() == pytest.approx(0.3 * float(errors.mean()), rel=1e-5)
    assert torch.autograd.grad(out.losses["codebook"], given, retain_graph=True, allow_unused=True) == (None,)
    own = list(quantizer.parameters())
    for parameter, gradient in zip(own, torch.autograd.grad(out.losses["codebook"], own), strict=True):
        assert gradient.abs().sum() > 0, parameter.shape
    (straight,) = torch.autograd.grad(out.vectors.sum(), given)
    assert torch.equal(straight, torch.ones_like(straight))  # one straight-through, not one a scale


def test_each_scale_codes_what_is_left_over() -> None:
    quantizer = built(codebook_size=64).eval()
    given = latents(2)
    out = quantizer(given)
    prefixes = [torch.zeros_like(given), *quantizer.prefixes(out.values)]
    for scale, part in enumerate(TokenLayout(quantizer.grids, 4, 64, IMAGE).scales()):
        wanted = F.adaptive_avg_pool2d(given - prefixes[scale], quantizer.grids[scale]).flatten(2).transpose(1, 2)
        distances = torch.cdist(wanted, quantizer.book.vectors().expand(2, -1, -1))
        assert torch.equal(distances.argmin(-1), out.values[:, part, 0])


def test_grids_shrink_by_area_and_grow_by_bicubic_interpolation() -> None:
    """Places of 3 cover 4/3 of 4, and whole pixels of it are averaged. Cubic convolution with a = -.75 (Keys 1981)
    gives .2265625 a quarter of the way from 0 to 1, where linear interpolation gives .25."""
    columns = torch.tensor([0.0, 1.0, 4.0, 9.0]).expand(1, 1, 4, 4)
    torch.testing.assert_close(shrink(columns, (1, 3))[0, 0, 0], torch.tensor([0.5, 2.5, 6.5]))
    torch.testing.assert_close(shrink(columns.mT, (2, 1))[0, 0, :, 0], torch.tensor([0.5, 6.5]))
    step = enlarge(torch.tensor([0.0, 1.0]).expand(1, 1, 2, 2), (4, 4))[0, 0]
    torch.testing.assert_close(step, torch.tensor([-0.10546875, 0.2265625, 0.7734375, 1.10546875]).expand(4, 4))


def test_of_equally_near_codes_the_first_is_taken() -> None:
    table = torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert find_nearest(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), table).tolist() == [1, 1]


@pytest.mark.parametrize("grid", [(7,), (4, 6), (2, 3, 4)])
def test_grids_of_any_number_of_axes(grid: tuple[int, ...]) -> None:
    quantizer = built(grid, scales=None).eval()
    out = quantizer(latents(3, grid))
    assert quantizer.grids[-1] == grid
    torch.testing.assert_close(quantizer.lookup(out.values), out.vectors, atol=1e-5, rtol=0)
    assert len(quantizer.prefixes(out.values)) == len(quantizer.grids)


# ------------------------------------------------------------------------------------------------- partial decoding


@torch.no_grad()
def test_prefixes_see_only_their_own_scales() -> None:
    tokenizer = conv_around("multiscale").build(IMAGE)
    tokenizer(torch.rand(8, *IMAGE) * 2 - 1)
    tokenizer.eval()
    tokens = tokenizer.encode(torch.rand(2, *IMAGE) * 2 - 1)
    parts, made = list(tokens.layout.scales()), list[object]()
    prefixes = tokenizer.prefixes(tokens)
    for phi in tokenizer.quantizer.phi:
        phi.register_forward_hook(lambda *args: made.append(args))
    torch.testing.assert_close(prefixes[-1], tokenizer.embed(tokens))
    for count, part in enumerate(parts[1:], 1):
        made.clear()
        assert torch.equal(tokenizer.prefix(tokens, count), prefixes[count - 1])
        assert len(made) == count  # the finer scales are not computed
        values = tokens.values.clone()
        values[:, part] = (values[:, part] + 1) % 16
        changed = Tokens(values, tokens.layout)
        assert torch.equal(tokenizer.prefix(changed, count), tokenizer.prefix(tokens, count))
        assert not torch.equal(tokenizer.prefix(changed, count + 1), tokenizer.prefix(tokens, count + 1))
        first = tokens.first_scales(count)
        assert int(first.known[0].sum()) == part.start
        images = tokenizer.decode(first)
        assert torch.equal(images, tokenizer.decode(changed.first_scales(count)))
        assert not torch.equal(images, tokenizer.decode(tokens))
    assert tokens.first_scales(len(parts)) is tokens


@torch.no_grad()
def test_an_undecided_place_adds_nothing_where_it_lies() -> None:
    quantizer = built().eval()
    values = torch.randint(16, (1, 30, 1))
    known = torch.ones(1, 30, dtype=torch.bool)
    known[0, 1] = False  # the top left of the 2x2 grid
    without = quantizer.lookup(values, known)
    values[0, 1] = (values[0, 1] + 1) % 16
    assert torch.equal(quantizer.lookup(values, known), without)  # its code means nothing
    left = sum(part for scale, part in enumerate(quantizer.dequantize_scales(values)) if scale != 1)
    torch.testing.assert_close(without[..., :2, :2], left[..., :2, :2])
    assert not torch.isclose(without[..., 2:, 2:], left[..., 2:, 2:]).any()


def test_tokens_that_are_partly_known_stay_so() -> None:
    layout = TokenLayout(((1, 1), (2, 2)), 4, 16, IMAGE)
    known = torch.tensor([[False, True, True, False, True]])
    tokens = Tokens(torch.zeros(1, 5, 1, dtype=torch.int64), layout, known)
    assert tokens.first_scales(1).known.tolist() == [[False] * 5]
    assert tokens.first_scales(2).known is known
    with pytest.raises(LayoutError):
        built().codebook()


def test_scale_dropout_shows_the_decoder_the_first_scales_of_some_images() -> None:
    given = latents(64)
    out = built(scale_dropout=0.5, dead_code_threshold=0).train()(given)
    full = built(dead_code_threshold=0).train()(given)
    assert out.losses == full.losses
    assert torch.equal(out.values, full.values)
    prefixes = built().prefixes(out.values)
    shown = [sum(torch.allclose(row, prefix[i], atol=1e-5) for i, row in enumerate(out.vectors)) for prefix in prefixes]
    assert sum(shown) == 64, shown
    assert 20 < shown[-1] < 44
    assert min(shown[:-1]) > 3


# ------------------------------------------------------------------------------------------------- live codes


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_collapsed_table_comes_alive_at_every_scale(update: str) -> None:
    quantizer = built(update=update, codebook_size=32, dead_code_threshold=0.5).train()
    with torch.no_grad():
        quantizer.book.table.copy_(torch.ones(4).expand_as(quantizer.book.table))
        quantizer.book.sums.copy_(quantizer.book.table)
    colours = torch.randn(16, 4, 1, 1)  # sixteen kinds of images, which the 1x1 scale could tell apart
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.01)
    for step in range(60):
        given = 3 * colours[torch.randint(16, (64,))] + 0.5 * latents(64, seed=step)
        optimizer.zero_grad()
        torch.stack(list(quantizer(given).losses.values())).sum().backward()
        optimizer.step()
        quantizer.settle()
    monitors = quantizer.eval()(3 * colours.repeat(8, 1, 1, 1) + 0.5 * latents(128)).monitors
    assert monitors["usage"] > 0.8
    assert monitors["usage, 1x1"] * 32 >= 8
    assert set(monitors) >= {f"{name}, {size}x{size}" for name in ("usage", "perplexity") for size in SCALES}


def test_restarts_draw_evenly_from_the_scales() -> None:
    """512 of 960 residuals are of the finest of four scales, and it gives a quarter of the new codes."""
    quantizer = built(update="gradient", codebook_size=64, dead_code_threshold=0.05).train()
    quantizer.book.counts[:, 8:] = 0
    residuals = dict[tuple[float, ...], int]()
    collect = quantizer.candidates.collect

    def watched(scale: int, points: torch.Tensor, noise: Noise) -> None:
        residuals.update({tuple(row): scale for row in points.flatten(0, 1).tolist()})
        collect(scale, points, noise)

    quantizer.candidates.collect = watched
    quantizer(latents(32))
    quantizer.usage.counts.zero_()  # as if nothing had been chosen
    (replaced,) = quantizer.settle()
    assert replaced.rows.nonzero()[:, 0].tolist() == list(range(8, 64))
    from_scale = [residuals[tuple(row)] for row in quantizer.book.vectors()[8:].tolist()]
    assert [from_scale.count(scale) for scale in range(4)] == [14] * 4


# ------------------------------------------------------------------------------------------------- balanced scales


def coarse_and_fine(batch: int, seed: int) -> torch.Tensor:
    """Latents whose means lie far from 0 on a line, with small details: large and simple at 1x1, small at 4x4."""
    rng = torch.Generator().manual_seed(seed)
    along = torch.tensor([2.0, 1.0, -1.0, 3.0]) * torch.randn(batch, 1, generator=rng)
    means = torch.tensor([20.0, -5.0, 0.0, 3.0]) + along
    return means[:, :, None, None] + 0.3 * torch.randn(batch, 4, 4, 4, generator=rng)


def followed(steps: int = 200, **options: object) -> MultiScaleQuantizer:
    quantizer = built(codebook_size=64, **options).train()
    with torch.no_grad():
        for phi in quantizer.phi:  # so that the parts are the codes themselves
            torch.nn.init.dirac_(phi.convolution.weight)
            phi.convolution.bias.zero_()
        for step in range(steps):
            quantizer(coarse_and_fine(32, step))
            quantizer.settle()
    return quantizer.eval()


def used(quantizer: MultiScaleQuantizer, images: int = 4000) -> dict[str, float]:
    monitors = quantizer(coarse_and_fine(images, 10_000)).monitors
    return {name: float(value) for name, value in monitors.items() if name.startswith("usage")}


def test_standardised_residuals_have_one_size_at_every_scale() -> None:
    quantizer = followed(standardise=True)
    assert quantizer.standardisation is not None
    given = coarse_and_fine(1000, 10_000)
    prefixes = [torch.zeros_like(given), *quantizer.prefixes(quantizer(given).values)]
    for scale, grid in enumerate(quantizer.grids):
        left = F.adaptive_avg_pool2d(given - prefixes[scale], grid).flatten(2).transpose(1, 2).flatten(0, 1)
        looked_up = quantizer.standardisation.standardise(scale, left)
        torch.testing.assert_close(looked_up.mean(0), torch.zeros(4), atol=0.35, rtol=0)
        torch.testing.assert_close(looked_up.std(0), torch.ones(4), atol=0.35, rtol=0)
        torch.testing.assert_close(quantizer.standardisation.restore(scale, looked_up), left)
    assert left.std() < 0.3  # and yet they were small


def test_standardisation_follows_with_its_decay() -> None:
    """mean <- .7 mean + .3 mean of the step, and the same of the squares about the new mean, whatever the parts."""
    quantizer = built(standardise=True, decay=0.7, dead_code_threshold=0).train()
    assert quantizer.standardisation is not None
    given = latents() + 2
    for part in given.split(2):
        quantizer(part)
    assert not quantizer.standardisation.mean.any()  # not before the step's end
    quantizer.settle()
    coarse = given.mean((2, 3))
    mean = 0.3 * coarse.mean(0)
    variance = 0.7 + 0.3 * (coarse - mean).square().mean(0)
    torch.testing.assert_close(quantizer.standardisation.mean[0], mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(quantizer.standardisation.variance[0], variance, atol=1e-6, rtol=1e-5)


def test_an_undecided_place_adds_nothing_though_a_scale_has_a_mean() -> None:
    quantizer = followed(50, standardise=True)
    values = quantizer(coarse_and_fine(1, 0)).values
    none = torch.zeros(1, 30, dtype=torch.bool)
    assert torch.equal(quantizer.lookup(values, none), torch.zeros(1, 4, 4, 4))
    assert quantizer.lookup(values).abs().mean() > 3


@pytest.mark.slow
def test_usage_balancing_keeps_every_code_in_use_at_the_coarsest_scale() -> None:
    """Means on a line leave most of 64 codes idle at 1x1, which lie about it, unless the idle ones are favoured."""
    plain, fair = followed(1000, standardise=True), followed(1000, standardise=True, usage_balancing=0.5)
    assert used(fair)["usage, 1x1"] > 2 * used(plain)["usage, 1x1"]
    assert not plain.state_dict().keys() & {"balancing.bias"}


def test_the_bias_reaches_the_floor_of_use_that_was_asked_for() -> None:
    rng = torch.Generator().manual_seed(0)
    table = torch.randn(64, 4, generator=rng)
    line = torch.randn(20_000, 1, generator=rng) * torch.tensor([0.5, 0.3, -0.3, 1.0])
    points = line + 0.1 * torch.randn(20_000, 4, generator=rng)
    balancing = UsageBalancing(1, 64, floor=0.5)
    for step in range(2000):
        batch = points[32 * step % 20_000 :][:32]
        balancing.update(count_codes(find_nearest(batch, table, balancing.bias[0])[None, :, None], 64))
    shares = {}
    for name, bias in {"plain": torch.zeros(64), "fair": balancing.bias[0]}.items():
        values = find_nearest(points, table, bias)
        shares[name] = count_codes(values[None, :, None], 64)[0] * 64 / len(points)
    assert (shares["plain"] == 0).float().mean() > 0.5
    assert (shares["fair"] == 0).float().mean() < 0.05
    assert shares["fair"].quantile(0.5) == pytest.approx(0.5, abs=0.1)
    assert float(balancing.bias.min()) == 0  # those in use anyway have none


def test_a_restarted_code_has_no_bias_from_where_it_stood() -> None:
    quantizer = built(codebook_size=64, update="gradient", standardise=True, usage_balancing=0.5).train()
    assert quantizer.balancing is not None
    quantizer.book.counts[:, ::2] = 0.0
    quantizer.balancing.bias.fill_(5.0)
    before = quantizer.book.vectors().clone()
    quantizer(latents(2))
    (replaced,) = quantizer.settle()
    assert torch.equal((quantizer.book.vectors() != before).any(1), replaced.rows)
    assert 0 < int(replaced.rows.sum()) < 64
    assert float(quantizer.balancing.bias[:, replaced.rows].max()) == 0
    assert float(quantizer.balancing.bias[:, ~replaced.rows].min()) > 3


def test_usage_is_logged_over_more_images_than_a_batch() -> None:
    quantizer = built(codebook_size=64, dead_code_threshold=0).train()
    seen = set[int]()
    for step in range(64):  # 512 images, as many as show each code of an even use 8 times at 1x1
        out = quantizer(latents(8, seed=step))
        quantizer.settle()
        seen |= set(out.values[:, 0, 0].tolist())
    assert len(seen) > 16  # more than a batch could show
    assert float(quantizer.usage.monitors()["usage, 1x1"]) * 64 == pytest.approx(len(seen), abs=4)
    for _ in range(300):
        quantizer(latents(1).expand(8, -1, -1, -1))
        quantizer.settle()
    monitors = quantizer.usage.monitors()
    assert float(monitors["usage, 1x1"]) <= 2 / 64  # and what is used no longer falls out
    assert float(monitors["perplexity, 1x1"]) < 1.5
