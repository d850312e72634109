"""VAR: one pass equals scale by scale, block causality, guidance, published sizes, refusals."""

from __future__ import annotations

import warnings
from functools import cache
from itertools import pairwise

import pytest
import torch
from helpers.models import IMAGE, conv_around

from artok.config import validate
from artok.errors import ConfigError, LayoutError
from artok.generators import raster, var
from artok.layout import Condition, Text, TokenLayout, Tokens
from artok.nn.attention import KVCache, attend
from artok.nn.block_causal import block_causal_mask, flex_block_causal
from artok.noise import Noise
from artok.sampling.settings import Sampling
from artok.saved import check_layout
from artok.tokenizers.base import Tokenizer

CLASSES = 5
OPTIONS = [{}, {"shared_adaln": True}]
TEXTS = {"kind": "text", "encoder": {"kind": "learned", "vocab_size": 300, "length": 4, "depth": 1, "heads": 2}}
LABELS_AND_TEXTS = {"conditioning": [{"kind": "labels"}, TEXTS]}
SCALES = TokenLayout(((1, 1), (2, 2), (4, 4)), 4, 16, IMAGE)


@cache
def codec() -> Tokenizer:
    torch.manual_seed(0)
    tokenizer = conv_around("multiscale").build(IMAGE)
    tokenizer(torch.rand(8, *IMAGE) * 2 - 1)
    return tokenizer.eval().requires_grad_(False)


def model(**options: object) -> var.Var:
    """A small model with generic weights, so that every part of it shows in the logits."""
    torch.manual_seed(0)
    section = {"kind": "var", "depth": 3, "width": 24, "heads": 2} | options
    built = validate(var.Config, section, "test").build(codec().layout, CLASSES).eval()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built


def tokens(count: int = 3) -> Tokens:
    values = torch.randint(0, 16, (count, codec().layout.length, 1), generator=torch.Generator().manual_seed(1))
    return Tokens(values, codec().layout)


def noise(count: int) -> Noise:
    return Noise(0, torch.arange(count))


def told(labels: list[int], options: dict) -> Condition:
    """Labels, and texts of 4, 2 and 0 entries where the options have them."""
    if "conditioning" not in options:
        return Condition(torch.tensor(labels))
    mask = torch.arange(4) < torch.tensor([4, 2, 0])[:, None]
    return Condition(torch.tensor(labels), Text(torch.arange(12).view(3, 4), mask))


@pytest.mark.parametrize("options", [*OPTIONS, LABELS_AND_TEXTS])
@torch.no_grad()
def test_one_pass_equals_scale_by_scale_with_a_cache(options: dict) -> None:
    built, given = model(**options), tokens()
    context = built.context(told([0, 3, 5], options))
    whole = built.logits(given, context, codec())
    store = KVCache.allocate(3, 3, 2, given.layout.length, 12, torch.device("cpu"), torch.float32)
    context = context.project(built)
    assert len(context.keys_values) == 3 * ("conditioning" in options)
    for scale, part in enumerate(built.parts):
        inputs = [built.words(scale, codec().prefix(given, scale))] if scale else []
        cached = built.run(inputs, context, first=scale, cache=store)
        store.filled = part.stop
        torch.testing.assert_close(cached, whole[:, part], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [*OPTIONS, LABELS_AND_TEXTS])
@torch.no_grad()
def test_a_code_changes_no_logits_up_to_its_scale(options: dict) -> None:
    built, before = model(**options), tokens()
    context = built.context(told([0, 1, 2], options))
    logits = built.logits(before, context, codec())
    for place in range(before.layout.length):
        values = before.values.clone()
        values[:, place] = (values[:, place] + 1) % 16
        after = built.logits(Tokens(values, before.layout), context, codec())
        changed = (after - logits).abs().amax((0, 2)) > 1e-6
        end = next(part.stop for part in built.parts if place < part.stop)
        assert not changed[:end].any()
        assert changed[end:].all()  # attention is whole within a scale, so it reaches every later place


@torch.no_grad()
def test_the_class_reaches_every_place() -> None:
    built, given = model(), tokens(1)
    logits = [built.logits(given, built.context(Condition(torch.tensor([label]))), codec()) for label in (0, 1)]
    assert ((logits[0] - logits[1]).abs().amax((0, 2)) > 1e-4).all()


@torch.no_grad()
def test_guidance_rises_with_the_scale_and_truncation_comes_after_it() -> None:
    built, labels = model(), torch.tensor([0, 1, 4])
    sampling = Sampling(temperature=0, cfg_scale=2.5, cfg_schedule="linear")
    *_, made = built.steps(Condition(labels), sampling, noise(3), codec())
    conditional = built.logits(made, built.context(Condition(labels)), codec())
    unconditional = built.logits(made, built.context(Condition(torch.full_like(labels, CLASSES))), codec())
    last = len(built.parts) - 1
    for scale, part in enumerate(built.parts):
        extra = 1.5 * scale / last  # VAR's own form: (1 + t) conditional - t unconditional
        logits = (1 + extra) * conditional[:, part] - extra * unconditional[:, part]
        assert torch.equal(logits.argmax(-1), made.values[:, part, 0])
    greedy = sampling.model_copy(update={"temperature": 1.0, "top_k": 1})
    *_, again = built.steps(Condition(labels), greedy, noise(3), codec())
    assert torch.equal(again.values, made.values)


@torch.no_grad()
def test_a_pass_and_a_picture_for_each_scale() -> None:
    built = model()
    passes = []
    built.head.register_forward_hook(lambda *_: passes.append(1))
    steps = list(built.steps(Condition(torch.tensor([0, 1])), Sampling(cfg_scale=2.0), noise(2), codec()))
    assert len(passes) == len(steps) == len(built.parts) == built.passes(Sampling())
    ends = [part.stop for part in built.parts]
    assert [int(step.known[0].sum()) for step in steps[:-1]] == ends[:-1]
    for before, after in pairwise(steps):
        assert torch.equal(before.values[before.known], after.values[before.known])
    images = [codec().decode(step) for step in steps]
    assert all(not torch.equal(one, two) for one, two in pairwise(images))


@torch.no_grad()
def test_sampled_codes_follow_the_model() -> None:
    built, count = model(), 2000
    labels = torch.full((count,), 2)
    *_, made = built.steps(Condition(labels), Sampling(), noise(count), codec())
    share = torch.bincount(made.values[:, 0, 0], minlength=16) / count
    wanted = built.run(
        [], built.context(Condition(labels[:1])), cache=KVCache.allocate(3, 1, 2, 1, 12, labels.device, torch.float32)
    )
    assert float((share - wanted[0, 0].softmax(-1)).abs().max()) < 0.04


def test_stochastic_depth_is_decided_by_the_sample_and_off_in_use() -> None:
    built, given, labels = model(drop_path=0.9), tokens(4), torch.tensor([0, 1, 2, 3])

    def loss(rows: slice) -> torch.Tensor:
        return built(given[rows], Condition(labels[rows]), noise(4)[rows], codec())["nll"]

    plain = loss(slice(0, 4))
    built.train()
    dropped = loss(slice(0, 4))
    assert not torch.equal(dropped, plain)
    halves = (loss(slice(0, 2)) + loss(slice(2, 4))) / 2
    torch.testing.assert_close(halves, dropped)
    kept = built._drop_factors(Noise(1, torch.arange(2000)))
    assert kept is not None
    torch.testing.assert_close(kept.mean((0, 2)), torch.ones(3), atol=0.2, rtol=0)
    torch.testing.assert_close((kept == 0).float().mean((0, 2)), torch.tensor([0.0, 0.45, 0.9]), atol=0.03, rtol=0)
    assert model(drop_path=0.0).train()._drop_factors(noise(2)) is None


@torch.no_grad()
def test_flex_attention_is_the_masked_one() -> None:
    sizes = (1, 4, 9, 16)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, sum(sizes), 16).unbind()
    levels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    masked = attend(q, k, v, block_causal_mask(levels), scale=1.0)
    with warnings.catch_warnings():  # uncompiled, it says that it is slow
        warnings.simplefilter("ignore")
        flex = flex_block_causal(q, k, v, sizes, scale=1.0)
    torch.testing.assert_close(flex, masked, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("depth", "millions"), [(16, 310.3), (20, 600.0), (24, 1033.0), (30, 2010.0)])
def test_published_sizes(depth: int, millions: float) -> None:
    """The paper's 310M, 600M, 1.0B and 2.0B, on the 680 tokens of 256 px."""
    scales = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    layout = TokenLayout(tuple((side, side) for side in scales), 32, 4096, (3, 256, 256))
    with torch.device("meta"):
        built = var.Config(depth=depth).build(layout, 1000)
    assert sum(parameter.numel() for parameter in built.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@torch.no_grad()
def test_a_text_joins_by_cross_attention_that_starts_silent() -> None:
    section = {"kind": "var", "depth": 3, "width": 24, "heads": 2} | LABELS_AND_TEXTS
    built, pooled = (
        validate(var.Config, section | {"text_attention": way}, "test").build(codec().layout, CLASSES).eval()
        for way in ("cross", "none")
    )
    assert all(block.cross is None for block in pooled.blocks)
    missing, unknown = pooled.load_state_dict(built.state_dict(), strict=False)
    assert not missing and len(unknown) == 3 * 6 and all(".cross." in name for name in unknown)
    for block in built.blocks:  # as the other layers of a block start (to five standard errors)
        weight, wanted = block.cross.key_value.weight, (3 * 24) ** -0.5
        assert float(weight.std()) == pytest.approx(wanted, rel=5 / (2 * weight.numel()) ** 0.5)
        assert not block.cross.query.bias.any()
    given, condition = tokens(), told([0, 1, 2], LABELS_AND_TEXTS)
    first, second = (each.logits(given, each.context(condition), codec()) for each in (built, pooled))
    assert torch.equal(first, second)


def test_shared_modulation_is_one_for_all_blocks() -> None:
    own, shared = (sum(p.numel() for p in model(shared_adaln=on).parameters()) for on in (False, True))
    modulation = 6 * 24 * 24 + 6 * 24
    assert own - shared == 2 * modulation - 3 * 6 * 24


def test_tokens_of_other_kinds_are_refused_with_both_sides_named() -> None:
    for layout, words in [
        (TokenLayout(((4, 4),), 4, 16, IMAGE), "several scales"),
        (TokenLayout(((1, 1), (4, 4)), 4, None, IMAGE), "needs codes"),
        (TokenLayout(((1, 1), (4, 4)), 4, 16, IMAGE, codes=2), "one code per position"),
    ]:
        with pytest.raises(LayoutError, match=words) as error:
            check_layout(var.Config.tiny(), layout)
        assert "var" in str(error.value)
        assert str(layout) in str(error.value)
    with pytest.raises(LayoutError, match="single grid"):
        check_layout(raster.Config.tiny(), SCALES)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of the heads"):
        validate(var.Config, {"kind": "var", "depth": 2, "width": 32, "heads": 3}, "test")
