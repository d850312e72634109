"""The raster transformer: cached decoding, causality, published sizes, several codes per position."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from artok.config import validate
from artok.errors import ConfigError
from artok.generators import raster
from artok.layout import Condition, Text, TokenLayout, Tokens
from artok.nn.attention import KVCache
from artok.noise import Noise
from artok.sampling.settings import Sampling

LAYOUT = TokenLayout(((3, 4),), 4, 32, (1, 12, 16))
RESIDUAL = TokenLayout(((3, 4),), 4, 32, (1, 12, 16), codes=2)
VIDEO = TokenLayout(((2, 2, 3),), 4, 32, (1, 3, 8, 12))
OPTIONS = [{}, {"qk_norm": True}, {"class_position": "origin"}, {"tied_head": True}]


def model(layout: TokenLayout, **options: object) -> raster.Raster:
    torch.manual_seed(0)
    section = {"kind": "raster", "depth": 2, "width": 24, "heads": 2, "multiple_of": 8} | options
    built = validate(raster.Config, section, "test").build(layout, 5).eval()
    torch.nn.init.normal_(built.head.weight, std=1.0)
    return built


def codes(layout: TokenLayout, count: int = 3) -> torch.Tensor:
    return torch.randint(0, 32, (count, layout.length * layout.codes), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layout", [LAYOUT, RESIDUAL, VIDEO])
@torch.no_grad()
def test_cached_decoding_equals_one_pass(layout: TokenLayout, options: dict) -> None:
    if options.get("tied_head") and layout.codes > 1:
        pytest.skip("refused")
    built = model(layout, **options)
    labels = torch.tensor([0, 3, 5])
    *_, made = built.steps(Condition(labels), Sampling(temperature=0), Noise(0, torch.arange(3)), None)
    logits = built.logits(made.values.flatten(1)[:, :-1], built.context(Condition(labels)))
    assert torch.equal(logits.argmax(-1), made.values.flatten(1))
    cached = []
    length = layout.length * layout.codes
    cache = KVCache.allocate(2, 3, 2, length, 12, torch.device("cpu"), torch.float32)
    flat = made.values.flatten(1)
    for step in range(length):
        latest = flat[:, step - 1 : step] if step else flat[:, :0]
        cached.append(built.logits(latest, built.context(Condition(labels)), start=step, cache=cache))
        cache.filled += 1
    torch.testing.assert_close(torch.cat(cached, 1), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [LAYOUT, RESIDUAL, VIDEO])
@torch.no_grad()
def test_rows_at_places_of_their_own_are_read_as_in_one_pass(layout: TokenLayout) -> None:
    """Wrong codes are read first, and taken back by reading from an earlier place."""
    built, read, length = model(layout), codes(layout), layout.length * layout.codes
    context = built.context(Condition(torch.tensor([0, 3, 5])))
    wanted = built.logits(read[:, :-1], context)
    cache = KVCache.allocate(2, 3, 2, length, 12, torch.device("cpu"), torch.float32)
    wrong = (read + 1) % 32
    built.logits(torch.cat([read[:, :1], wrong[:, 1:7]], 1), context, 0, cache)
    for start in (torch.tensor([2, 1, 2]), torch.tensor([5, 2, 4]), torch.tensor([6, 5, 7])):
        places = start[:, None] + torch.arange(3)
        made = built.logits(read.gather(1, places - 1), context, start, cache)
        torch.testing.assert_close(made, wanted.gather(1, places[..., None].expand(-1, -1, 32)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [LAYOUT, RESIDUAL, VIDEO])
@torch.no_grad()
def test_a_later_code_never_changes_an_earlier_prediction(layout: TokenLayout) -> None:
    built, labels, before = model(layout), torch.tensor([0, 1, 2]), codes(layout)
    logits = built.logits(before[:, :-1], built.context(Condition(labels)))
    for place in range(before.shape[1] - 1):
        after = before.clone()
        after[:, place] = (after[:, place] + 1) % 32
        changed = (built.logits(after[:, :-1], built.context(Condition(labels))) - logits).abs().amax((0, 2)) > 1e-6
        assert not changed[: place + 1].any()
        assert changed[place + 1 :].any()


@torch.no_grad()
def test_the_words_of_a_text_are_told_apart_unless_the_published_zeros_are_asked_for() -> None:
    """With zeros all words weigh alike: others of the same length and the same sum give the same codes."""
    encoder = {"kind": "learned", "vocab_size": 300, "length": 3, "depth": 1, "heads": 2}
    told = {"conditioning": [{"kind": "text", "encoder": encoder}], "depth": 1}
    given, apart = codes(LAYOUT)[:, :-1], dict[str, bool]()
    for position in ("default", "zero", "origin"):
        built = model(LAYOUT, **told, **({} if position == "default" else {"class_position": position}))
        for parameter in built.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        context = built.context(Condition(text=Text(torch.arange(9).view(3, 3), torch.ones(3, 3).bool())))
        middle, one, two = torch.linalg.qr(torch.randn(24, 3)).Q.T
        words = [torch.stack([middle + step, middle - step, middle]).expand(3, -1, -1) for step in (one, two)]
        logits, other = (built.logits(given, replace(context, sequence=each))[:, 1:] for each in words)
        apart[position] = not torch.allclose(logits, other, atol=1e-5)
    assert apart == {"default": True, "zero": False, "origin": True}
    assert not model(LAYOUT).rotary[:1].any()  # a class alone is at the published zeros


@torch.no_grad()
def test_guided_decoding_is_the_formula_on_both_halves() -> None:
    built, labels = model(LAYOUT), torch.tensor([0, 1])
    sampling = Sampling(temperature=0, cfg_scale=3.0)
    *_, made = built.steps(Condition(labels), sampling, Noise(0, torch.arange(2)), None)
    flat = made.values.flatten(1)
    conditional = built.logits(flat[:, :-1], built.context(Condition(labels)))
    unconditional = built.logits(flat[:, :-1], built.context(Condition(torch.full_like(labels, 5))))
    assert torch.equal((unconditional + 3 * (conditional - unconditional)).argmax(-1), flat)


@torch.no_grad()
def test_sampled_codes_follow_the_model() -> None:
    built = model(TokenLayout(((1, 1),), 4, 32, (1, 4, 4)))
    count = 20_000
    labels = torch.zeros(count, dtype=torch.int64)
    *_, made = built.steps(Condition(labels), Sampling(temperature=1.5), Noise(0, torch.arange(count)), None)
    share = torch.bincount(made.values.flatten(), minlength=32) / count
    wanted = (
        built.logits(torch.zeros(1, 0, dtype=torch.int64), built.context(Condition(labels[:1])))[0, 0] / 1.5
    ).softmax(-1)
    assert float((share - wanted).abs().max()) < 0.015


@torch.no_grad()
def test_the_likelihoods_of_all_images_sum_to_one() -> None:
    layout = TokenLayout(((1, 2),), 4, 32, (1, 4, 8))
    every = torch.cartesian_prod(torch.arange(32), torch.arange(32))[..., None]
    nats = model(layout).log_likelihood(Tokens(every, layout), Condition(torch.zeros(1024, dtype=torch.int64)), None)
    assert float(nats.exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("size", "millions"), [("B", 110.9), ("L", 342.9), ("XL", 774.7), ("XXL", 1411.0), ("3B", 3096.7)]
)
def test_published_sizes(size: str, millions: float) -> None:
    layout = TokenLayout(((16, 16),), 8, 16384, (3, 256, 256))
    with torch.device("meta"):
        built = raster.Config(size=size).build(layout, 1000)
    assert sum(parameter.numel() for parameter in built.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": None}, "size.*or depth"),
        ({"size": "B"}, "either size"),
        ({"heads": 5}, "multiple of twice the heads"),
        ({"size": "B", "depth": None}, "follow from size"),
    ],
)
def test_impossible_sizes_are_refused(options: dict, words: str) -> None:
    section = {"kind": "raster", "depth": 2, "width": 24, "heads": 2} | options
    with pytest.raises(ConfigError, match=words):
        validate(raster.Config, section, "test")
