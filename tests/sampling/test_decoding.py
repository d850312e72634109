"""Decoding of codes: drafts change the number of passes and nothing else."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.generators import TEXTS, randomise_zeros
from scipy import stats
from torch import Tensor

from artok.conditioning import control, labels
from artok.config import validate
from artok.errors import ConfigError
from artok.generators import raster
from artok.layout import Condition, TokenLayout, Tokens
from artok.noise import Noise
from artok.sampling.decoding import jacobi, sequential
from artok.sampling.guidance import Guidance
from artok.sampling.logits import draw_gumbel, probabilities
from artok.sampling.settings import Sampling

LAYOUT = TokenLayout(((3, 4),), 4, 32, (1, 12, 16))
RESIDUAL = TokenLayout(((3, 4),), 4, 32, (1, 12, 16), codes=2)
VIDEO = TokenLayout(((2, 2, 3),), 4, 32, (1, 3, 8, 12))
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.4},
    {"temperature": 0},
    {"top_k": 5, "top_p": 0.8, "temperature": 1.2},
    {"cfg_scale": 2.5, "cfg_schedule": "cosine", "cfg_interval": (0.2, 0.9)},
    {"cfg_scale": 3.0, "cfg_interval": (0.0, 0.5)},
]
BATCH = 6


def model(layout: TokenLayout = LAYOUT, **options: object) -> raster.Raster:
    torch.manual_seed(0)
    section = {"kind": "raster", "depth": 2, "width": 24, "heads": 2, "multiple_of": 8} | options
    built = validate(raster.Config, section, "test").build(layout, 5).eval()
    torch.nn.init.normal_(built.head.weight, std=1.0)
    return built


@torch.no_grad()
def sample(
    built: raster.Raster, sampling: Sampling, condition: Condition | None = None, rows: slice = slice(BATCH)
) -> tuple[Tensor, list[Tensor]]:
    """The codes, and which were known after each pass."""
    given = (condition or Condition(torch.arange(BATCH) % 5))[rows]
    noise = Noise(3, torch.arange(BATCH)[rows])
    steps = list(built.steps(given, sampling, noise, None))
    return steps[-1].values, [step.flags.sum(1) for step in steps]


def drafted(sampling: dict[str, Any], length: int | None = None) -> Sampling:
    return Sampling(**sampling, decoding="jacobi", draft_length=length)


@pytest.mark.parametrize("length", [None, 1, 3, 100])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("layout", [LAYOUT, RESIDUAL, VIDEO], ids=["codes", "residual", "video"])
def test_jacobi_gives_the_sample_of_token_by_token(layout: TokenLayout, settings: dict, length: int | None) -> None:
    built = model(layout)
    wanted, passes = sample(built, Sampling(**settings))
    made, done = sample(built, drafted(settings, length))
    assert torch.equal(made, wanted)
    assert len(passes) == layout.length * layout.codes
    assert len(done) <= len(passes) if length != 1 else len(done) == len(passes)
    assert all((after >= before).all() for before, after in pairwise(done))


@pytest.mark.parametrize("order", ["raster", "known_first"])
@pytest.mark.parametrize("layout", [LAYOUT, RESIDUAL], ids=["codes", "residual"])
def test_known_codes_are_kept_and_the_others_are_those_of_token_by_token(layout: TokenLayout, order: str) -> None:
    built = model(layout, order=order, target_init=1.0)
    chance = torch.Generator().manual_seed(0)
    flags = torch.rand(BATCH, 12, generator=chance) < torch.linspace(0.1, 0.9, BATCH)[:, None]
    flags[:, :2] = True
    values = torch.randint(0, 32, (BATCH, *layout.value_shape()), generator=chance)
    condition = Condition(torch.arange(BATCH) % 5, known=Tokens(values, layout, known=flags))
    for settings in SETTINGS:
        wanted, _ = sample(built, Sampling(**settings), condition)
        made, done = sample(built, drafted(settings, 5), condition)
        assert torch.equal(made, wanted)
        assert torch.equal(made[flags], values[flags])
        assert (done[0] >= flags.sum(1)).all()


def test_texts_of_several_lengths_and_maps_are_read_alike() -> None:
    for name, case in TEXTS.items():
        if name.startswith("raster"):
            built, condition = case.build(), case.condition(BATCH)
            assert isinstance(built, raster.Raster)
            for settings in ({}, {"cfg_scale": 2.0}):
                wanted, _ = sample(built, Sampling(**settings), condition)
                assert torch.equal(sample(built, drafted(settings, 5), condition)[0], wanted)
    parts = (labels.Config(), control.Config.tiny())
    mapped = randomise_zeros(model(conditioning=[part.model_dump() for part in parts]))
    assert isinstance(mapped, raster.Raster)
    maps = torch.rand(BATCH, *mapped.conditioner["control"].map, generator=torch.Generator().manual_seed(0)) * 2 - 1
    condition = Condition(torch.arange(BATCH) % 5, control=maps)
    wanted, _ = sample(mapped, Sampling(), condition)
    assert torch.equal(sample(mapped, drafted({}, 5), condition)[0], wanted)


def test_rows_that_accept_more_or_fewer_codes_do_not_disturb_one_another() -> None:
    built, settings = model(), {"temperature": 3.0}
    whole, done = sample(built, drafted(settings, 4))
    assert any(len(set(now.tolist())) > 2 for now in done)
    for row in range(BATCH):
        alone, own = sample(built, drafted(settings, 4), rows=slice(row, row + 1))
        assert torch.equal(alone[0], whole[row])
        shared = [int(now[row]) for now in done]
        assert [int(now) for now in own][:3] == shared[:3]  # later the windows at the end of the image differ


def test_drafts_save_passes_where_codes_are_easily_foreseen() -> None:
    built = model()
    _, done = sample(built, drafted({"temperature": 10.0}), rows=slice(1))
    assert len(done) < 7  # of 12


class Told:
    """A decoder whose codes are all right whatever was drafted. seen: the first place and the length of each pass."""

    def __init__(self, length: int) -> None:
        self.codes, self.first, self.seen = torch.zeros(1, length, dtype=torch.int64), 0, list[tuple[int, int]]()

    def logits(self, start: int | Tensor, count: int) -> Tensor:
        self.seen.append((int(start), count))
        return torch.zeros(1, count, 8)

    def pick(self, logits: Tensor, places: Tensor) -> Tensor:
        return 1 + places % 7


def test_a_window_that_was_drafted_right_is_taken_whole_and_no_further() -> None:
    told = Told(24)
    assert [int(done) for done in jacobi(told, 6)] == [1, 7, 13, 19, 24]
    assert told.seen == [(0, 6), (1, 6), (7, 6), (13, 6), (19, 5)]
    assert torch.equal(told.codes[0], 1 + torch.arange(24) % 7)
    growing = Told(200)
    assert len(list(jacobi(growing, None))) < 7  # the window follows what it gets
    assert len(list(sequential(Told(24)))) == 24


@torch.no_grad()
def test_in_bfloat16_only_codes_within_rounding_of_one_another_are_exchanged() -> None:
    """A pass over several places may round otherwise than one over one. The first code that differs is as good as tied:
    its sum of logit and noise is within roundings of the best one's."""
    built, count = model(), 64
    condition, noise = Condition(torch.arange(count) % 5), Noise(3, torch.arange(count))

    def make(decoding: str) -> Tensor:
        sampling = Sampling(decoding=decoding, dtype="bfloat16")
        with torch.autocast("cpu", torch.bfloat16):
            return [*built.steps(condition, sampling, noise, None)][-1].values.flatten(1)

    plain, made = make("sequential"), make("jacobi")
    differs = (plain != made).long()
    assert float(differs.any(1).float().mean()) < 0.5
    logits = built.logits(plain[:, :-1], built.context(condition))
    sums = logits + noise.gumbel(torch.arange(12).expand(count, -1), 32)
    for row in differs.any(1).nonzero()[:, 0].tolist():
        place = int(differs[row].argmax())
        gap = float(sums[row, place, plain[row, place]] - sums[row, place, made[row, place]])
        assert abs(gap) < 16 * 2.0**-9 * float(logits[row, place].abs().max())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"draft_length": 4}, "draft_length is of decoding jacobi"),
        ({"steps": 4}, "has no choice of steps, which is of parallel"),
        ({"steps": 4, "decoding": "jacobi"}, "has no choice of steps, which is of parallel"),
        ({"steps": 4, "decoding": "row_parallel"}, "has no choice of steps, which is of parallel"),
        ({"decoding": "next_neighbour"}, "decoding next_neighbour needs .* order raster"),
        ({"decoding": "speculative"}, "draft_model go together"),
        ({"draft_model": "runs/small", "decoding": "jacobi"}, "draft_model go together"),
        ({"decoding": "parallel"}, "order raster; decoding jacobi is for all"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        model().check(Sampling(**settings))
    model().check(Sampling(draft_length=4, decoding="jacobi"))
    with pytest.raises(ConfigError, match="13 steps are more than the 12 codes"):
        model(order="random").check(Sampling(decoding="parallel", steps=13))


# ------------------------------------------------------------------------------------------------- speculative

TINY = TokenLayout(((1, 3),), 4, 4, (1, 4, 12))
SPECULATIVE = Sampling(decoding="speculative", draft_model="named", draft_length=2)


def with_draft(layout: TokenLayout, std: float = 1.0, **options: object) -> raster.Raster:
    built = model(layout, **options)
    torch.manual_seed(1)
    small = validate(raster.Config, {"kind": "raster", "depth": 1, "width": 8, "heads": 1} | options, "test")
    draft = small.build(layout, 5).eval()
    torch.nn.init.normal_(draft.head.weight, std=std)
    built.attach_draft(draft)
    return built


@pytest.mark.parametrize("settings", [{}, {"top_k": 3, "temperature": 1.5, "cfg_scale": 1.5}], ids=str)
@pytest.mark.parametrize("length", [1, 2, 3])
@torch.no_grad()
def test_speculative_samples_follow_the_large_model(length: int, settings: dict) -> None:
    """All 64 samples of three codes by their counts. Without acceptance, or with the draft model's own codes kept, the
    p-value is 0."""
    built, count = with_draft(TINY), 20_000
    condition, noise = Condition(torch.ones(count, dtype=torch.int64)), Noise(0, torch.arange(count))
    sampling = SPECULATIVE.model_copy(update={"draft_length": length, **settings})
    *_, made = built.steps(condition, sampling, noise, None)
    counts = torch.bincount((made.values[..., 0] * torch.tensor([16, 4, 1])).sum(1), minlength=64)
    plain = Sampling(**settings)
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    expected = torch.ones(64, dtype=torch.float64)

    guidance = Guidance(Condition(torch.ones(64, dtype=torch.int64)), plain, 3)
    logits = guidance(built.logits(guidance.repeat(every, 0)[:, :-1], built.context(guidance.condition)), 0)
    found = probabilities(logits, plain.temperature, plain.top_k, plain.top_p).double()
    expected = found.gather(2, every[..., None])[..., 0].prod(1)
    possible = expected > 0
    assert int(counts[~possible].sum()) == 0
    assert stats.chisquare(counts[possible], expected[possible] / expected.sum() * count).pvalue > 1e-3


def test_speculative_samples_depend_neither_on_the_batch_nor_on_the_number_of_drafts() -> None:
    built = with_draft(LAYOUT)
    whole, done = sample(built, SPECULATIVE)
    assert any(len(set(now.tolist())) > 1 for now in done)
    for length in (1, 5, 100):
        assert torch.equal(sample(built, SPECULATIVE.model_copy(update={"draft_length": length}))[0], whole)
    for row in range(BATCH):
        assert torch.equal(sample(built, SPECULATIVE, rows=slice(row, row + 1))[0][0], whole[row])


def test_a_draft_model_equal_to_the_large_one_is_always_right() -> None:
    built = model()
    built.attach_draft(model())
    made, done = sample(built, SPECULATIVE.model_copy(update={"draft_length": 4}))
    assert len(done) == 3
    assert torch.equal(made, sample(built, Sampling())[0])
    greedy = SPECULATIVE.model_copy(update={"temperature": 0.0})
    assert torch.equal(sample(with_draft(LAYOUT), greedy)[0], sample(model(), Sampling(temperature=0))[0])


def test_speculative_keeps_known_codes() -> None:
    for order in ("raster", "known_first"):
        built = with_draft(LAYOUT, order=order)
        flags = torch.rand(BATCH, 12, generator=torch.Generator().manual_seed(0)) < 0.5
        values = torch.randint(0, 32, (BATCH, 12, 1), generator=torch.Generator().manual_seed(1))
        condition = Condition(torch.arange(BATCH) % 5, known=Tokens(values, LAYOUT, known=flags))
        made, _ = sample(built, SPECULATIVE, condition)
        assert torch.equal(made[flags], values[flags])


def test_a_draft_model_of_other_codes_or_order_is_refused() -> None:
    for other in (model(RESIDUAL), model(order="random")):
        with pytest.raises(ConfigError, match="draws the same codes in the same order"):
            model().attach_draft(other)
    with pytest.raises(ConfigError, match="name a small run"):
        sample(model(), SPECULATIVE)


# ------------------------------------------------------------------------------------------------- parallel


def test_one_code_a_pass_in_parallel_is_token_by_token_in_that_order() -> None:
    built, noise = model(order="random", target_init=1.0), Noise(3, torch.arange(BATCH))
    labels = Condition(torch.arange(BATCH) % 5)
    made, done = sample(built, Sampling(decoding="parallel", steps=12, temperature=0))
    assert [int(now[0]) for now in done] == list(range(1, 13))
    order = noise.branch("order").permutation(12)
    codes = made.gather(1, order[..., None])[..., 0]
    with torch.no_grad():
        logits = built.logits(codes[:, :-1], built.context(labels), order=order)
    assert torch.equal(logits.argmax(-1), codes)
    assert len({tuple(row) for row in order.tolist()}) == BATCH


WAVES = {
    "parallel": [0, 1, 4, 8, 12],  # MaskGIT's cosine
    "row_parallel": [0, 4, 8, 12],
    "next_neighbour": [0, 1, 3, 6, 9, 11, 12],  # the diagonals of 3x4
}


@pytest.mark.parametrize("decoding", WAVES)
@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
@torch.no_grad()
def test_codes_of_a_pass_are_drawn_without_one_another(cfg_scale: float, decoding: str) -> None:
    """Each is the most likely at its position after the codes of the passes before, read alone and without a cache."""

    built, noise = model(order="random", target_init=1.0), Noise(3, torch.arange(BATCH))
    given: dict[str, Any] = {"decoding": decoding, "steps": 4 if decoding == "parallel" else None}
    settings = Sampling(**given, temperature=0, cfg_scale=cfg_scale)
    made, done = sample(built, settings)
    counts = [0, *(int(now[0]) for now in done)]
    assert counts == WAVES[decoding] and built.passes(settings) == len(done)
    guidance = Guidance(Condition(torch.arange(BATCH) % 5), settings, 12)
    order = noise.branch("order").permutation(12)
    if decoding == "row_parallel":
        order = torch.arange(12).expand(BATCH, -1)
    elif decoding == "next_neighbour":
        order = torch.tensor([0, 1, 4, 2, 5, 8, 3, 6, 9, 7, 10, 11]).expand(BATCH, -1)
    codes, context = made.gather(1, order[..., None])[..., 0], built.context(guidance.condition)
    for start, end in pairwise(counts):
        for place in range(start, end):
            moved = order.clone()
            moved[:, start], moved[:, place] = order[:, place], order[:, start]
            read = guidance.repeat(codes[:, :start], 0)
            logits = guidance(built.logits(read, context, order=guidance.repeat(moved, 0))[:, -1], 0)
            assert torch.equal(logits.argmax(-1), codes[:, place])


@pytest.mark.parametrize("start", [0, 1, 5])
@torch.no_grad()
def test_several_logits_after_one_code_are_those_of_each_alone(start: int) -> None:
    built, context_of = model(order="random", target_init=1.0), Condition(torch.arange(BATCH) % 5)
    chance = torch.Generator().manual_seed(0)
    codes, context = torch.randint(0, 32, (BATCH, start), generator=chance), built.context(context_of)
    order = Noise(0, torch.arange(BATCH)).permutation(12)
    made = built.logits(codes, context, order=order, ahead=4)[:, -4:]
    for place in range(4):
        moved = order.clone()
        moved[:, start], moved[:, start + place] = order[:, start + place], order[:, start]
        alone = built.logits(codes, context, order=moved)[:, -1]
        torch.testing.assert_close(made[:, place], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"decoding": each} for each in ("next_neighbour", "row_parallel")] + [
    {"decoding": "parallel", "steps": 5}], ids=str)  # fmt: skip
def test_parallel_keeps_known_codes_in_at_most_as_many_passes(settings: dict[str, Any]) -> None:
    built = model(order="random")
    flags = torch.rand(BATCH, 12, generator=torch.Generator().manual_seed(0)) < torch.linspace(0.3, 1, BATCH)[:, None]
    values = torch.randint(0, 32, (BATCH, 12, 1), generator=torch.Generator().manual_seed(1))
    condition = Condition(torch.arange(BATCH) % 5, known=Tokens(values, LAYOUT, known=flags))
    made, done = sample(built, Sampling(**settings), condition)
    assert torch.equal(made[flags], values[flags])
    assert len(done) <= built.passes(Sampling(**settings))
    assert (done[0] >= flags.sum(1)).all()


def test_two_near_distributions_give_the_same_code_as_often_as_promised() -> None:
    """At a total variation T under shared noise: (1 - T) / (1 + T) at least (Daliri et al. 2024, theorem 3)."""
    count = 20_000
    first = torch.randn(16, generator=torch.Generator().manual_seed(0))
    second = first + 0.5 * torch.randn(16, generator=torch.Generator().manual_seed(1))
    gumbel = Noise(0, torch.arange(count)).gumbel(torch.zeros(count, 1, dtype=torch.int64), 16)[:, 0]
    one, two = (draw_gumbel(each.expand(count, -1), gumbel, 1.0, None, None) for each in (first, second))
    variation = float((first.softmax(0) - second.softmax(0)).abs().sum() / 2)
    least = (1 - variation) / (1 + variation)
    assert float((one == two).float().mean()) > least - 4 * math.sqrt(least * (1 - least) / count)
