"""Text as a condition: its encoders, its null, and how parts are dropped apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from artok.conditioning import control, labels, text
from artok.conditioning.base import Conditioners, ContextShape
from artok.conditioning.encoders import learned
from artok.errors import ConfigError, LayoutError
from artok.layout import Condition, Text
from artok.noise import Noise
from artok.saved import whole_state, write_weights
from artok.weights import read_weights

SHAPE = ContextShape(8, (4, 4), (3, 16, 16))
CAPTIONS = ["a red circle", "a blue square at the top left", "a green star", "a red square"]


def fitted(width: int = 8, **settings: int) -> learned.LearnedEncoder:
    torch.manual_seed(0)
    encoder = learned.Config(vocab_size=320, heads=2, **{"length": 12, "depth": 1, **settings}).build(width)
    encoder.fit(CAPTIONS)
    encoder.initialise(lambda weight: torch.nn.init.normal_(weight))
    return encoder


def test_captions_are_encoded_and_decoded_again() -> None:
    encoder = fitted()
    encoded = encoder.encode([*CAPTIONS, ""])
    assert encoded.values.shape == (5, 12)
    assert encoder.decode(encoded) == [*CAPTIONS, ""]
    assert not encoded.mask[-1].any()
    assert encoder.count(CAPTIONS) == encoded.mask[:4].sum(1).tolist()
    assert encoder.decode(encoder.encode(["A  RED circle €"])) == ["a  red circle €"]  # bytes stand for the unseen


def test_a_long_text_is_cut() -> None:
    encoder = fitted(length=2)
    assert encoder.encode(CAPTIONS).mask.all()
    assert min(encoder.count(CAPTIONS)) > 2


def test_a_vocabulary_of_the_same_captions_is_the_same() -> None:
    first, second = fitted(), fitted()
    assert torch.equal(first.get_extra_state(), second.get_extra_state())


def test_the_vocabulary_is_saved_with_the_weights(tmp_path: Path) -> None:
    encoder = fitted()
    write_weights(whole_state(encoder), tmp_path / "model.safetensors")
    other = learned.Config(vocab_size=320, heads=2, length=12, depth=1).build(8)
    with pytest.raises(ConfigError, match="no vocabulary"):
        other.encode(CAPTIONS)
    read_weights(other, tmp_path / "model.safetensors")
    assert torch.equal(other.encode(CAPTIONS).values, encoder.encode(CAPTIONS).values)
    assert torch.equal(other(other.encode(CAPTIONS)), encoder(encoder.encode(CAPTIONS)))


def test_padding_changes_nothing() -> None:
    encoder = fitted()
    encoded = encoder.encode(CAPTIONS)
    changed = Text(torch.where(encoded.mask, encoded.values, 7), encoded.mask)
    torch.testing.assert_close(encoder(changed)[encoded.mask], encoder(encoded)[encoded.mask])


def test_an_empty_text_reads_the_null() -> None:
    config = text.Config(encoder=learned.Config(vocab_size=320, heads=2, length=12, depth=1))
    conditioner = config.build(SHAPE, 4, null=True)
    conditioner.initialise(lambda weight: torch.nn.init.normal_(weight))
    conditioner.encoder.fit(CAPTIONS)
    encoded = conditioner.encoder.encode([*CAPTIONS, ""])
    context = conditioner(Condition(text=encoded))
    assert torch.equal(context.sequence[-1], conditioner.null)
    assert context.mask is not None and context.mask[-1].all()
    missing = conditioner(Condition(labels=torch.tensor([1])))
    torch.testing.assert_close(missing.pooled, context.pooled[-1:])
    context.pooled.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in conditioner.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("null_length", ["all", "text"])
def test_a_dropped_text_reads_the_last_entries_of_the_null(null_length: str) -> None:
    section = {"kind": "text", "encoder": {"kind": "learned", "vocab_size": 300, "heads": 2, "length": 3, "depth": 1}}
    conditioner = text.Config.model_validate(section | {"null_length": null_length}).build(SHAPE, 4, null=True)
    assert conditioner.null is not None
    told = Text(torch.ones(3, 3).long(), torch.arange(3) < torch.tensor([2, 3, 0])[:, None])
    condition = Condition(text=told).dropped("text", torch.tensor([True, False, False]))
    context = conditioner(condition.dropped("text", torch.tensor([True, False, True]))[torch.tensor([0, 1, 2])])
    assert context.mask is not None
    if null_length == "all":
        assert context.mask.all()
        assert torch.equal(context.sequence[0], conditioner.null)
    else:
        assert context.mask.tolist() == [[True, True, False], [True] * 3, [True] * 3]
        assert torch.equal(context.sequence[0, :2], conditioner.null[1:])
    assert torch.equal(context.sequence[2], conditioner.null)  # an empty text has the whole null
    plain = conditioner(Condition(text=told))
    assert torch.equal(context.sequence[1], plain.sequence[1])


@pytest.mark.parametrize("null", [True, False])
@torch.no_grad()
def test_the_pooled_text_is_the_mean_of_its_entries_and_of_an_empty_one_that_of_the_null(null: bool) -> None:
    config = text.Config(encoder=learned.Config(vocab_size=320, heads=2, length=12, depth=1))
    conditioner = config.build(SHAPE, 4, null=null)
    conditioner.initialise(lambda weight: torch.nn.init.normal_(weight))
    conditioner.encoder.fit(CAPTIONS)
    encoded = conditioner.encoder.encode(["", *CAPTIONS])
    context, vectors = conditioner(Condition(text=encoded)), conditioner.encoder(encoded)
    empty = torch.zeros(8) if conditioner.null is None else conditioner.null.mean(0)
    torch.testing.assert_close(context.pooled[0], empty)
    for row in range(1, 5):
        torch.testing.assert_close(context.pooled[row], vectors[row, encoded.mask[row]].mean(0))
    hidden = conditioner(Condition(text=encoded).dropped("text"))
    torch.testing.assert_close(hidden.pooled, empty.expand(5, -1))


def test_without_a_null_a_condition_must_have_a_text() -> None:
    conditioner = text.Config.tiny().build(SHAPE, 4, null=False)
    with pytest.raises(LayoutError, match="nothing without a text"):
        conditioner(Condition(labels=torch.tensor([1])))


def test_parts_are_dropped_together_and_apart() -> None:
    rows, tiny = 20_000, text.Config.tiny()
    configs = (labels.Config(dropout=0.2), tiny.model_copy(update={"dropout": 0.5}), control.Config(dropout=0.3))
    parts = Conditioners(configs, SHAPE, 4)
    condition = Condition(
        torch.zeros(rows, dtype=torch.int64),
        Text(torch.ones(rows, 6).long(), torch.ones(rows, 6) > 0),
        control=torch.ones(rows, 1, 2, 2),
    )
    kept = parts.drop(condition, 0.1, Noise(0, torch.arange(rows)))
    assert kept.labels is not None and kept.text is not None
    no_label, no_text = kept.labels < 0, ~kept.text.mask.any(1)
    # standard deviations of shares of 20,000 rows are below .0036
    assert float(no_label.float().mean()) == pytest.approx(1 - 0.9 * 0.8, abs=0.018)
    assert float(no_text.float().mean()) == pytest.approx(1 - 0.9 * 0.5, abs=0.018)
    assert float((no_label & no_text).float().mean()) == pytest.approx(0.1 + 0.9 * 0.2 * 0.5, abs=0.018)
    assert kept.control is not None
    no_control = ~kept.control.flatten(1).any(1)  # guidance keeps it, so labels and text are hidden without it
    assert float(no_control.float().mean()) == pytest.approx(0.3, abs=0.018)
    assert float((no_control & no_text).float().mean()) == pytest.approx(0.3 * (1 - 0.9 * 0.5), abs=0.018)
