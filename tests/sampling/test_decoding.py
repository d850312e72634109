"""Decoding of codes: drafts change the number of passes and nothing else."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.generators import TEXTS, randomise_zeros
from torch import Tensor

from artok.conditioning import control, labels
from artok.config import validate
from artok.errors import ConfigError
from artok.generators import raster
from artok.layout import Condition, TokenLayout, Tokens
from artok.noise import Noise
from artok.sampling.decoding import jacobi, sequential
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
    assert len(list(sequential(Told(24), None))) == 24


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


def test_drafts_without_a_decoding_that_drafts_are_refused() -> None:
    with pytest.raises(ConfigError, match="draft_length"):
        model().check(Sampling(draft_length=4))
    model().check(Sampling(draft_length=4, decoding="jacobi"))


def test_two_near_distributions_give_the_same_code_as_often_as_promised() -> None:
    """At a total variation T under shared noise: (1 - T) / (1 + T) at least (Daliri et al. 2024, theorem 3)."""
    from artok.sampling.logits import draw_gumbel

    count = 20_000
    first = torch.randn(16, generator=torch.Generator().manual_seed(0))
    second = first + 0.5 * torch.randn(16, generator=torch.Generator().manual_seed(1))
    gumbel = Noise(0, torch.arange(count)).gumbel(torch.zeros(count, 1, dtype=torch.int64), 16)[:, 0]
    one, two = (draw_gumbel(each.expand(count, -1), gumbel, 1.0, None, None) for each in (first, second))
    variation = float((first.softmax(0) - second.softmax(0)).abs().sum() / 2)
    least = (1 - variation) / (1 + variation)
    assert float((one == two).float().mean()) > least - 4 * math.sqrt(least * (1 - least) / count)
