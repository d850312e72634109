"""A raster transformer on videos: the convolution over past frames, wrong codes in training, and streaming."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from helpers.generators import CLASSES, condition, noise
from torch import Tensor, nn

from artok.config import validate
from artok.errors import ConfigError
from artok.generators import raster
from artok.generators.raster import Raster
from artok.generators.raster_stream import RasterStream
from artok.layout import Condition, TokenLayout, Tokens, last
from artok.nn.attention import KVCache
from artok.sampling.settings import Sampling

LAYOUT = TokenLayout(((4, 2, 3),), 4, 16, (3, 13, 16, 24), codes=2)
PER_FRAME = 12


def build(**settings: Any) -> Raster:
    config = validate(raster.Config, {"depth": 2, "width": 24, "heads": 2, "multiple_of": 8, **settings}, "test")
    assert config.refuse(LAYOUT) is None
    torch.manual_seed(0)
    model = config.build(LAYOUT, CLASSES).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    return model


def codes(count: int = 2) -> Tensor:
    return torch.randint(0, 16, (count, *LAYOUT.value_shape()), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_past_frames_tell_of_earlier_frames_around_a_place_and_of_no_others() -> None:
    model, given = build(past_frames=2), codes(1)
    told = model.recall(model.prefixed(condition(1)), given.flatten(1)).places
    assert told is not None
    for place in range(LAYOUT.length):
        changed = given.clone()
        changed[:, place] = (changed[:, place] + 1) % 16
        again = model.recall(model.prefixed(condition(1)), changed.flatten(1)).places
        assert again is not None
        moved = (again - told).abs().sum(-1)[0] > 0
        frame, row, column = place // 6, place % 6 // 3, place % 3
        for other in range(LAYOUT.length):
            near = abs(other % 6 // 3 - row) <= 1 and abs(other % 3 - column) <= 1
            assert bool(moved[other]) == (0 < other // 6 - frame <= 2 and near)


@torch.no_grad()
@pytest.mark.parametrize("decoding", ["sequential", "jacobi"])
def test_sampling_recalls_what_training_did(decoding: str) -> None:
    """At temperature 0 each code is the most likely one under all before it, in a pass over the whole sample."""
    model = build(past_frames=2)
    made = last(model.steps(condition(2), Sampling(temperature=0.0, decoding=decoding), noise(2), None))
    flat = made.values.flatten(1)
    context = model.recall(model.prefixed(condition(2)), flat)
    assert torch.equal(model.logits(flat[:, :-1], context).argmax(-1), flat)


@torch.no_grad()
def test_a_later_code_changes_no_earlier_prediction() -> None:
    model, given = build(past_frames=1), codes().flatten(1)
    before = model.logits(given[:, :-1], model.recall(model.prefixed(condition(2)), given))
    changed = given.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 16
    after = model.logits(changed[:, :-1], model.recall(model.prefixed(condition(2)), changed))
    moved = (before != after).any(-1).any(0)
    assert not moved[:21].any()
    assert moved[21]


def test_wrong_codes_are_read_and_the_right_ones_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = build(history_noise=0.5), []
    states = model.states

    def record(read: Tensor, *rest: Any, **more: Any) -> Tensor:
        seen.append(read)
        return states(read, *rest, **more)

    monkeypatch.setattr(model, "states", record)
    given = codes(64)
    loss = model(Tokens(given, LAYOUT), condition(64), noise(64), None)["nll"]
    wrong = (seen[0] != given.flatten(1)[:, :-1]).double().mean(1)
    assert 0.15 < float(wrong.mean()) < 0.32  # half of .5 on average, and a random code is the right one in 1 of 16
    assert float(wrong.min()) < 0.1
    assert float(wrong.max()) > 0.35
    plain = build()(Tokens(given, LAYOUT), condition(64), noise(64), None)["nll"]
    assert not torch.equal(loss, plain)


@torch.no_grad()
def test_the_cache_of_a_stream_holds_the_keys_of_the_frames_that_stay_at_their_new_places() -> None:
    """Keys of the first layer know nothing but their own code and place, so a fresh pass over the window gives them."""
    model = build()
    given = codes().unflatten(1, (4, 6))[:, :2]
    stream = RasterStream(model, condition(2), Sampling(), noise(2), given, window=2, sinks=1)
    drawn = [frame.flatten(1) for frame in islice(stream, 4)]
    window = torch.cat([given.flatten(1)[:, :PER_FRAME], *drawn[-3:]], dim=1)  # a sink, two kept, the one just made
    assert torch.equal(stream.codes, window)
    fresh = KVCache.allocate(2, 2, 2, len(model.rotary) - 1, 12, torch.device("cpu"), torch.float32)
    model.logits(window[:, :-1], model.prefixed(condition(2)), cache=fresh)
    torch.testing.assert_close(stream.cache.keys[0], fresh.keys[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(stream.cache.values[0], fresh.values[0], rtol=0, atol=1e-5)
    assert not torch.allclose(stream.cache.keys[1], fresh.keys[1], atol=1e-3)  # which read the frames that left


@torch.no_grad()
def test_a_stream_of_one_layer_is_attention_over_sinks_and_window() -> None:
    """With one layer nothing remembers what left, so each frame is the sample of a model given the kept frames."""
    model = build(depth=1)
    given = codes().unflatten(1, (4, 6))[:, :3]
    sampling = Sampling(temperature=0.0, cfg_scale=1.5)
    stream = iter(RasterStream(model, condition(2), sampling, noise(2), given, window=2, sinks=1))
    frames = list(given.unbind(1))
    for _ in range(4):
        frames.append(next(stream))
        kept = torch.stack([frames[0], *frames[-3:-1]], dim=1).flatten(1, 2)
        known = torch.cat([kept, torch.zeros(2, 6, 2, dtype=torch.int64)], dim=1)
        flags = (torch.arange(24) < 18).expand(2, -1)
        labels = condition(2).labels
        assert labels is not None
        given_now = Condition(labels, known=Tokens(known, LAYOUT, flags))
        made = last(model.steps(given_now, sampling, noise(2), None))
        assert torch.equal(made.values[:, 18:], frames[-1])


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="order random has none"):
        build(past_frames=1, order="random")
    image = TokenLayout(((2, 3),), 4, 16, (3, 16, 24))
    refused = raster.Config(depth=1, width=24, heads=2, past_frames=1).refuse(image)
    assert refused is not None
    assert "tokens of a video" in refused
    with pytest.raises(ConfigError, match="trained in others"):
        build(order="random").stream(condition(1), Sampling(), noise(1), None, codes(1).unflatten(1, (4, 6))[:, :0])
