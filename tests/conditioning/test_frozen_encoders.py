"""Frozen text encoders: T5, CLIP and any other of the transformers library, from local folders."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers.text_models import FEATURES, minilm, tiny_clip, tiny_t5

from artok.conditioning import text
from artok.conditioning.base import ContextShape
from artok.conditioning.encoders import auto, clip, t5
from artok.conditioning.encoders.frozen import FrozenConfig, FrozenEncoder
from artok.config import validate
from artok.errors import ConfigError
from artok.layout import Condition
from artok.saved import whole_state, write_weights
from artok.weights import read_weights

TEXTS = ["a red circle", "a blue square at the top left", "", "a green star"]
MADE = {"t5": tiny_t5, "clip": tiny_clip, "auto": tiny_t5, "auto of a clip": tiny_clip}
KINDS: dict[str, type[FrozenConfig]] = {"t5": t5.Config, "clip": clip.Config, "auto": auto.Config}


@pytest.fixture(params=MADE)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> FrozenConfig:
    kind = request.param.split()[0]
    section = {"kind": kind, "name": str(MADE[request.param](tmp_path / "model")), "length": 10}
    return validate(KINDS[kind], section, "test")


def build(config: FrozenConfig, width: int = 12) -> FrozenEncoder:
    torch.manual_seed(0)
    encoder = config.build(width)
    assert isinstance(encoder, FrozenEncoder)
    return encoder


def hidden_states(config: FrozenConfig, line: str) -> torch.Tensor:
    """The features (n, E) of one text by the library alone."""
    import transformers

    kind = {"t5": transformers.T5EncoderModel, "clip": transformers.CLIPTextModel}.get(config.kind)
    if kind is None:
        is_t5 = "T5EncoderModel" in (Path(config.name) / "config.json").read_text()
        kind = transformers.T5EncoderModel if is_t5 else transformers.CLIPTextModel
    inputs = transformers.AutoTokenizer.from_pretrained(config.name)(line, return_tensors="pt")
    with torch.no_grad():
        return kind.from_pretrained(config.name).eval()(input_ids=inputs.input_ids).last_hidden_state[0]


def test_features_are_the_models_own(config: FrozenConfig) -> None:
    encoder = build(config)
    encoded = encoder.encode(TEXTS)
    assert encoded.values.shape == (4, 10, FEATURES) and encoded.values.dtype == torch.float16
    assert encoded.mask.sum(1).tolist() == [4, 8, 0, 4]  # words and </s>
    assert encoder.count(["a red circle"]) == [4]
    for row in (0, 1, 3):
        expected = hidden_states(config, TEXTS[row])
        # float16 has 11 bits, so 2^-11 of the largest value; padding adds rounding of float32
        torch.testing.assert_close(encoded.values[row, : len(expected)].float(), expected, rtol=5e-4, atol=2e-3)
    cut = build(config.model_copy(update={"length": 3})).encode(TEXTS)
    assert cut.mask.sum(1).tolist() == [3, 3, 0, 3]


def test_only_the_projection_is_a_weight(config: FrozenConfig, tmp_path: Path) -> None:
    encoder = build(config)
    encoder.fit(TEXTS)
    encoder(encoder.encode(TEXTS)).sum().backward()
    assert {name for name, _ in encoder.named_parameters()} == {"project.0.weight", "project.2.weight"}
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert set(encoder.state_dict()) == {"project.0.weight", "project.2.weight", "_extra_state"}
    write_weights(whole_state(encoder), tmp_path / "model.safetensors")
    other = config.build(12)
    read_weights(other, tmp_path / "model.safetensors")
    assert torch.equal(other(other.encode(TEXTS)), encoder(encoder.encode(TEXTS)))


def test_a_checkpoint_is_built_without_its_encoder(config: FrozenConfig, tmp_path: Path) -> None:
    encoder = build(config)
    assert config.features == FEATURES  # so a run's config.yaml has it
    encoder.fit(TEXTS)
    write_weights(whole_state(encoder), tmp_path / "model.safetensors")
    elsewhere = config.model_copy(update={"name": str(tmp_path / "nowhere")}).build(12)
    read_weights(elsewhere, tmp_path / "model.safetensors")
    assert elsewhere(encoder.encode(TEXTS)).shape == (4, 10, 12)
    with pytest.raises(ConfigError, match="there is no text encoder in"):
        elsewhere.encode(TEXTS)


def test_another_model_in_the_place_is_refused(tmp_path: Path) -> None:
    config = validate(t5.Config, {"name": str(tiny_t5(tmp_path / "model")), "length": 10}, "test")
    encoder = config.build(12)
    encoder.fit(TEXTS)
    before = encoder.mark
    write_weights(whole_state(encoder), tmp_path / "model.safetensors")
    from transformers import T5EncoderModel

    model = T5EncoderModel.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "model")
    other = config.build(12)
    assert other.mark != before
    read_weights(other, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="not the one that the generator was trained with"):
        other.encode(TEXTS)


def test_the_mark_follows_what_changes_features(config: FrozenConfig) -> None:
    changes = ({}, {"length": 9}, {"dtype": "bfloat16"}, {"lowercase": True}, {"name": f"{config.name}/"})
    marks = [build(config.model_copy(update=change)).mark for change in changes]
    assert len(set(marks)) == 4 and marks[0] == marks[-1]


def test_lowercase_and_precision(config: FrozenConfig) -> None:
    lower = build(config.model_copy(update={"lowercase": True}))
    assert torch.equal(lower.encode(["A Red circle"]).values, lower.encode(["a red circle"]).values)
    plain = build(config)
    assert not torch.equal(plain.encode(["A Red circle"]).values, plain.encode(["a red circle"]).values)
    short = build(config.model_copy(update={"dtype": "bfloat16"})).encode(TEXTS)
    exact = plain.encode(TEXTS)
    assert not torch.equal(short.values, exact.values)
    # bfloat16 has 8 bits; two layers of some roundings each
    torch.testing.assert_close(short.values, exact.values, rtol=0.1, atol=0.1)


def test_each_text_is_encoded_once(config: FrozenConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build(config)
    first = encoder.encode(TEXTS)
    monkeypatch.setattr(encoder, "_encode", None)
    again = encoder.encode([TEXTS[3], TEXTS[0], TEXTS[0]])
    assert torch.equal(again.values, first.values[[3, 0, 0]]) and torch.equal(again.mask, first.mask[[3, 0, 0]])


def test_the_empty_text_is_the_learned_null(config: FrozenConfig) -> None:
    conditioner = text.Config(encoder=config).build(ContextShape(12, (4, 4), (3, 16, 16)), 4, null=True)
    conditioner.initialise(lambda weight: torch.nn.init.normal_(weight))
    context = conditioner(Condition(text=conditioner.encoder.encode(TEXTS)))
    assert torch.equal(context.sequence[2], conditioner.null)
    missing = conditioner(Condition(labels=torch.tensor([1])))
    torch.testing.assert_close(missing.pooled, context.pooled[2:3])


def test_the_features_of_minilm_tell_meanings_apart() -> None:
    config = validate(auto.Config, {"kind": "auto", "name": str(minilm()), "length": 16}, "test")
    assert config.features == 384
    encoded = config.build(12).encode(["a cat sleeps", "a kitten is asleep", "the stock market fell"])
    weights = encoded.mask[..., None].float()
    pooled = (encoded.values.float() * weights).sum(1) / weights.sum(1)  # as sentence-transformers pools
    cat, kitten, market = torch.nn.functional.normalize(pooled, dim=1)
    assert float(cat @ kitten) > 0.6 > 0.2 > float(cat @ market)


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("name", ["", "./nowhere", "nowhere"])
def test_an_encoder_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no text encoder in"):
        t5.Config(name=name).build(12)


def test_an_encoder_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*args: object, **options: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ConfigError, match=r"some/model is neither a folder here nor a model on the hub \(no route\)"):
        auto.Config(name="some/model").build(12)
    assert auto.Config(name="some/model", features=8).build(12).features == 8


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        auto.Config(name=str(tmp_path)).build(12)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="set the text encoder's 'features'"):
        auto.Config(name=str(tmp_path)).build(12)
    encoder = auto.Config(name=str(tmp_path), features=8).build(12)
    with pytest.raises(ConfigError, match="no weights"):
        encoder.encode(TEXTS)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="no text encoder that transformers loads"):
        encoder.encode(TEXTS)


def test_without_transformers(config: FrozenConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build(config)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'artok\[text\]'"):
        encoder.encode(TEXTS)


def test_a_length_that_the_model_cannot_read(tmp_path: Path) -> None:
    config = validate(clip.Config, {"name": str(tiny_clip(tmp_path)), "length": 13}, "test")
    with pytest.raises(ConfigError, match="at most 12 tokens"):
        config.build(12).encode(TEXTS)


def test_features_of_another_width(config: FrozenConfig) -> None:
    with pytest.raises(ConfigError, match=rf"width {FEATURES}, and its section says 5"):
        build(config.model_copy(update={"features": 5})).encode(TEXTS)


def test_features_that_overflow(tmp_path: Path) -> None:
    config = validate(t5.Config, {"name": str(tiny_t5(tmp_path)), "length": 10}, "test")
    from transformers import T5EncoderModel

    model = T5EncoderModel.from_pretrained(tmp_path)
    with torch.no_grad():
        model.encoder.final_layer_norm.weight.fill_(1e30)
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="set its dtype to bfloat16"):
        config.build(12).encode(TEXTS)
