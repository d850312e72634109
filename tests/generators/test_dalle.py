"""DALL-E's one stream: its loss, texts that it writes, padding of its own at each position."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.generators import CLASSES, noise, randomise_zeros, texts
from helpers.models import IMAGE

from artok.conditioning import control, labels
from artok.config import validate
from artok.errors import ConfigError
from artok.generators import dalle, raster
from artok.layout import NO_LABEL, Condition, Text, TokenLayout, Tokens
from artok.sampling.settings import Sampling

LAYOUT = TokenLayout(((3, 4),), 4, 32, IMAGE)
TEXT_LABELS = (dalle.Config.tiny().conditioning[1], labels.Config())
ORDERS = [dalle.Config.tiny().conditioning, TEXT_LABELS, TEXT_LABELS[:1], (*TEXT_LABELS, control.Config.tiny())]


@pytest.fixture(params=ORDERS, ids=lambda entries: "-".join(entry.kind for entry in entries))
def model(request: pytest.FixtureRequest) -> dalle.Dalle:
    return build(conditioning=request.param)


def build(**changes: Any) -> dalle.Dalle:
    torch.manual_seed(0)
    built = dalle.Config.tiny().model_copy(update=changes).build(LAYOUT, CLASSES).eval()
    for weight in (built.head.weight, built.text_head.weight, built.start, built.encoder.embedding.weight):
        torch.nn.init.normal_(weight)  # so that all is heard
    return randomise_zeros(built)  # type: ignore[return-value]


def given(model: dalle.Dalle, text: Text | None) -> Condition:
    rows = 4
    told = torch.arange(rows) if "labels" in model.hears else None
    maps = torch.randn(rows, 1, *IMAGE[1:], generator=torch.Generator().manual_seed(0))
    return Condition(labels=told, text=text, control=maps if "control" in model.hears else None)


def image_tokens() -> Tokens:
    return Tokens(torch.randint(0, 32, (4, 12, 1), generator=torch.Generator().manual_seed(1)), LAYOUT)


def next_ids(model: dalle.Dalle, condition: Condition, known: int) -> torch.Tensor:
    """Log probabilities (B, V) of the text id that follows the first `known`, in a pass that knows no others."""
    cut = condition.dropped("text")
    if known:
        assert condition.text is not None
        cut = replace(condition, text=Text(condition.text.values, condition.text.mask & (torch.arange(6) < known)))
    states = model.states(torch.zeros(len(condition), 0, dtype=torch.int64), model.prefixed(cut))
    return model.text_logits(states[:, model.first - 1 + known]).log_softmax(-1)


@torch.no_grad()
def test_the_loss_is_an_eighth_text_and_seven_eighths_image(model: dalle.Dalle) -> None:
    """Texts count up to their end, the first padding; ids are predicted from those before them alone."""
    text, tokens = texts(4), image_tokens()
    condition = given(model, text)
    losses = model(tokens, condition, noise(4), None)
    nats = model.log_likelihood(tokens, condition, None)
    torch.testing.assert_close(losses["nll"], 7 / 8 * -nats.float().mean() / 12, rtol=1e-5, atol=0)
    wanted, ids = [], text.values * text.mask
    for row, length in enumerate((6, 3, 1, 4)):
        read = min(length + 1, 6)
        each = [next_ids(model, condition, place)[row, ids[row, place]] for place in range(read)]
        wanted.append(-torch.stack(each).mean())
    torch.testing.assert_close(losses["text_nll"], torch.stack(wanted).mean() / 8, rtol=1e-5, atol=0)
    other = build(conditioning=ORDERS[0], text_weight=0.5)
    torch.testing.assert_close(
        other(tokens, given(other, text), noise(4), None)["nll"] * 14 / 8,
        build(conditioning=ORDERS[0])(tokens, given(other, text), noise(4), None)["nll"],
    )


@torch.no_grad()
def test_a_hidden_text_is_not_learned(model: dalle.Dalle) -> None:
    """Else a tenth of the written texts would be empty, as guidance hides a tenth."""
    condition, tokens = given(model, texts(4)), image_tokens()
    whole = model(tokens, condition, noise(4), None)["text_nll"]
    hidden = torch.tensor([False, True, True, False])
    some = model(tokens, condition.dropped("text", hidden), noise(4), None)["text_nll"]
    kept = model(tokens[~hidden], condition[~hidden], noise(4)[~hidden], None)["text_nll"]
    torch.testing.assert_close(some, kept / 2)
    assert not torch.isclose(some, whole)
    assert model(tokens, condition.dropped("text"), noise(4), None)["text_nll"] == 0
    if len(condition.parts) > 1:
        assert model(tokens, replace(condition, text=None), noise(4), None)["text_nll"] == 0


@torch.no_grad()
def test_written_texts_are_the_likeliest_ids_of_passes_without_a_cache(model: dalle.Dalle) -> None:
    condition = given(model, texts(4)).dropped("text")
    greedy = model.complete(condition, Sampling(temperature=0.0), noise(4)).text
    assert greedy is not None and greedy.mask[:, 0].all()
    assert torch.equal(greedy.mask, greedy.values != 0)
    made = replace(condition, text=greedy)
    for row, length in enumerate(greedy.mask.sum(1).tolist()):
        assert greedy.mask[row, :length].all()
        for place in range(min(length + 1, 6)):
            logits = next_ids(model, made, place)[row]
            assert int(logits[place == 0 :].argmax()) + (place == 0) == int(greedy.values[row, place])


@torch.no_grad()
def test_no_text_is_written_empty() -> None:
    """Where all ids are as likely, the first of them is taken, which is the end but at the first place."""
    model = build(conditioning=TEXT_LABELS[:1])
    model.text_head.weight.zero_()
    written = model.complete(given(model, texts(4)).dropped("text"), Sampling(temperature=0.0), noise(4)).text
    assert written is not None
    assert written.values.tolist() == [[1, 0, 0, 0, 0, 0]] * 4 and written.mask.sum() == 4


@torch.no_grad()
def test_texts_are_drawn_from_the_model() -> None:
    """The share of each first id, of 20,000 rows, against its probability: five deviations are below .018."""
    model, count = build(conditioning=TEXT_LABELS[:1]), 20_000
    model.text_head.weight.mul_(0.3)
    nothing = Text(torch.zeros(count, 6, dtype=torch.int64), torch.zeros(count, 6, dtype=torch.bool))
    drawn = model.complete(Condition(text=nothing), Sampling(temperature=1.5), noise(count)).text
    assert drawn is not None
    cut = nothing[:1]
    states = model.states(torch.zeros(1, 0, dtype=torch.int64), model.prefixed(Condition(text=cut)))
    logits = model.text_logits(states[:, model.first - 1])[0] / 1.5
    logits[0] = -math.inf
    share = torch.bincount(drawn.values[:, 0], minlength=300) / count
    assert float((share - logits.softmax(-1)).abs().max()) < 5 * math.sqrt(0.25 / count)


@torch.no_grad()
def test_a_text_that_is_given_stays_and_rows_are_written_alone(model: dalle.Dalle) -> None:
    told, missing = texts(4), torch.tensor([True, False, True, False])
    condition = given(model, told).dropped("text", missing)
    done = model.complete(condition, Sampling(), noise(4)).text
    assert done is not None
    assert torch.equal(done.mask[~missing], told.mask[~missing])
    assert torch.equal(done.values[~missing], told.values[~missing])
    assert done.mask[missing].any(1).all()
    for row in range(4):
        rows = slice(row, row + 1)
        alone = model.complete(condition[rows], Sampling(), noise(4)[rows]).text
        assert alone is not None and torch.equal(alone.values[0], done.values[row])
    assert not torch.equal(model.complete(condition, Sampling(), noise(4, seed=1)).text.values, done.values)  # type: ignore[union-attr]


@torch.no_grad()
def test_each_position_without_a_word_has_a_padding_of_its_own(model: dalle.Dalle) -> None:
    text = texts(4)
    stream = model.prefixed(given(model, text))
    padding = model.conditioner["text"].null
    assert isinstance(padding, torch.Tensor) and len(padding.unique(dim=0)) == 6
    assert stream.mask is None and stream.sequence.shape[1] == model.prefix
    own = stream.sequence[:, model.first : model.first + 6]
    words = model.encoder(text)
    for row in range(4):
        for place in range(6):
            wanted = words[row, place] if text.mask[row, place] else padding[place]
            assert torch.equal(own[row, place], wanted)
    assert torch.equal(stream.sequence[:, 0], model.start.expand(4, -1))


@torch.no_grad()
def test_images_decode_with_the_cache_as_in_one_pass(model: dalle.Dalle) -> None:
    condition = given(model, texts(4))
    *_, made = model.steps(condition, Sampling(temperature=0), noise(4), None)
    logits = model.logits(made.values.flatten(1)[:, :-1], model.prefixed(condition))
    assert torch.equal(logits.argmax(-1), made.values.flatten(1))


def test_it_learns_to_write_the_captions_of_its_data() -> None:
    """Of two captions each is written in half of the rows, within four deviations of 400 rows, and no third."""
    model = build(conditioning=TEXT_LABELS[:1]).train()
    captions = ["a red circle", "a blue star at the top"]
    model.encoder.fit(captions)
    told = model.encoder.encode(captions)[torch.arange(16) % 2]
    tokens = Tokens(image_tokens().values[torch.arange(16) % 2], LAYOUT)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(120):
        optimizer.zero_grad()
        hidden = torch.arange(16) == step % 16  # guidance's share
        condition = Condition(text=told).dropped("text", hidden)
        torch.stack(list(model(tokens, condition, noise(16, step), None).values())).sum().backward()
        optimizer.step()
    nothing = model.eval().condition(texts=[""] * 400)
    with torch.no_grad():
        written = model.write(nothing, Sampling(), noise(400))
    counts = [written.count(caption) for caption in captions]
    assert sum(counts) > 0.97 * 400
    assert abs(counts[0] - counts[1]) < 8 * math.sqrt(0.25 * 400)


def test_other_families_write_nothing() -> None:
    model = raster.Config.tiny().build(LAYOUT, CLASSES)
    assert not model.writes_text
    with pytest.raises(ConfigError, match="Raster generates no text"):
        model.write(Condition(torch.full((1,), NO_LABEL)), Sampling(), noise(1))


@pytest.mark.parametrize(
    "conditioning",
    [
        [{"kind": "labels"}],
        [{"kind": "text", "encoder": {"kind": "learned", "depth": 1}}],
        [{"kind": "text", "encoder": {"kind": "t5", "features": 16}}],
    ],
)
def test_what_it_cannot_write_is_refused(conditioning: list[dict[str, Any]]) -> None:
    section = {"kind": "dalle", "depth": 1, "conditioning": conditioning}
    with pytest.raises(ConfigError, match=r"text too; list \{kind: text, encoder: \{kind: learned, depth: 0\}\}"):
        validate(dalle.Config, section, "test")
    assert validate(dalle.Config, {"kind": "dalle", "depth": 1}, "test").class_position == "origin"
