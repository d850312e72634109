"""Diffusion over the tokens of a video: sparse attention, positions, and noise levels of the frames' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.generators import CLASSES, assert_same, condition, noise, randomise_zeros
from torch import Tensor

from artok.config import kinds, validate
from artok.errors import ConfigError
from artok.generators import diffusion
from artok.generators.diffusion import Guided, LatentDiffusion
from artok.layout import Condition, TokenLayout, Tokens, last
from artok.sampling.frames import FrameOrder, frame_levels, key_frames
from artok.sampling.settings import Sampling

LAYOUT = TokenLayout(((5, 4, 4),), 4, None, (3, 17, 32, 32))
ATTENTION = {
    "full": {},
    "factorised": {},
    "local": {"window": 2},
    "tiles": {"tile": [1, 2, 2], "window": [3, 1, 2]},
}
ORDERS: tuple[FrameOrder, ...] = ("together", "in_order", "pyramid", "key_frames")
STRAIGHT = {"schedule": "straight", "prediction_type": "velocity", "solver": "euler", "steps": 4}
CHAIN = {"timesteps": 20, "variance": "learned", "solver": "ddim", "steps": 4}


def build(forcing: str = "none", chain: bool = False, **network: Any) -> LatentDiffusion:
    section = {
        "network": {"kind": "dit", "depth": 2, "width": 24, "heads": 2, "patch_size": 1, **network},
        "diffusion": CHAIN if chain else STRAIGHT,
        "forcing": forcing,
    }
    config = validate(diffusion.Config, section, "test")
    assert config.refuse(LAYOUT) is None
    torch.manual_seed(0)
    model = config.build(LAYOUT, CLASSES).eval()
    randomise_zeros(model)
    return model


def video(count: int = 2) -> Tensor:
    return torch.randn(count, *LAYOUT.value_shape(), generator=torch.Generator().manual_seed(3))


def known(frames: list[list[int]]) -> Tokens:
    """Tokens whose listed frames are known, a list for each row."""
    flags = torch.zeros(len(frames), 5, 16, dtype=torch.bool)
    for row, given in enumerate(frames):
        flags[row, given] = True
    return Tokens(video(len(frames)), LAYOUT, flags.flatten(1))


def test_every_pattern_is_tried() -> None:
    assert set(ATTENTION) == set(kinds("nn.patterns"))


@pytest.mark.parametrize("positions", ["sincos", "rotary", "learned"])
@pytest.mark.parametrize("feed_forward", ["linear", "conv"])
@pytest.mark.parametrize("kind", ATTENTION)
def test_every_kind_of_block_trains_and_samples(kind: str, feed_forward: str, positions: str) -> None:
    attention = {"kind": kind, **ATTENTION[kind]}
    model = build(attention=attention, feed_forward=feed_forward, positions=positions)
    losses = model(Tokens(video(), LAYOUT), condition(2), noise(2), None)
    sum(losses.values()).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())
    whole = last(model.steps(condition(2), Sampling(), noise(2), None))
    alone = last(model.steps(condition(2)[1:], Sampling(), noise(2)[1:], None))
    assert_same(alone.values[0], whole.values[1])


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in ATTENTION if kind != "full"])
def test_sparse_attention_is_full_attention_under_its_mask(kind: str) -> None:
    model = build(attention={"kind": kind, **ATTENTION[kind]})
    x, times, context = video(), torch.tensor([300.0, 700.0]), model.context(condition(2))
    sparse = model.network(x, times, context)
    for block in model.network.blocks:
        pattern = block.attention.pattern
        mask = pattern.mask()

        def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor = mask) -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)

        block.attention.pattern = masked
    torch.testing.assert_close(model.network(x, times, context), sparse, rtol=0, atol=2e-5)
    for block in model.network.blocks:
        block.attention.pattern = None
    assert (model.network(x, times, context) - sparse).abs().max() > 1e-3


@torch.no_grad()
def test_rotary_positions_tell_frames_rows_and_columns_apart() -> None:
    model = build(positions="rotary")
    x, times, context = video(1), torch.tensor([500.0]), model.context(condition(1))
    out = model.network(x, times, context)
    for axis in (1, 2, 3):
        order = torch.arange(80).view(1, 5, 4, 4).flip(axis).flatten()
        assert (model.network(x[:, order], times, context)[:, order.argsort()] - out).abs().max() > 1e-3


# --------------------------------------------------------------------------------------------- noise levels of frames


@torch.no_grad()
def test_frames_at_one_time_are_a_video_at_that_time() -> None:
    model = build("diffusion")
    x, context = video(), model.context(condition(2))
    times = torch.tensor([300.0, 700.0])
    by_frame = model.network(x, times[:, None].expand(2, 5), context)
    torch.testing.assert_close(by_frame, model.network(x, times, context), rtol=0, atol=1e-5)
    moved = times[:, None].repeat(1, 5)
    moved[:, 2] = 10.0
    assert not torch.allclose(model.network(x, moved, context), by_frame)


@torch.no_grad()
@pytest.mark.parametrize("chain", [False, True])
def test_diffusion_forcing_noises_each_frame_by_itself(chain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = build("diffusion", chain), []
    network = model.network.forward

    def record(x: Tensor, times: Tensor, *rest: Any) -> Tensor:
        seen.append((x, times))
        return network(x, times, *rest)

    monkeypatch.setattr(model.network, "forward", record)
    clean = torch.zeros(2, *LAYOUT.value_shape())
    losses = model(Tokens(clean, LAYOUT), condition(2), noise(2), None)
    (x, times) = seen[0]
    assert times.shape == (2, 5)
    assert all(len(set(row.tolist())) > 2 for row in times)
    deviation = x.view(2, 5, -1).std(-1)  # of 64 numbers
    order = times.flatten().argsort()
    assert deviation.flatten()[order][-1] > deviation.flatten()[order][0]
    if not chain:
        torch.testing.assert_close(deviation, times / 1000, rtol=0.4, atol=0.0)
    assert all(value.isfinite() for value in losses.values())


@torch.no_grad()
def test_teacher_forcing_gives_the_first_frames_clean_and_does_not_learn_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = build("teacher"), []
    clean, count = video(40), 40

    def network(x: Tensor, times: Tensor, *rest: Any) -> Tensor:
        seen.append((x, times))
        return torch.where((times == 0).repeat_interleave(16, 1)[..., None], 1e6, torch.zeros_like(x))

    monkeypatch.setattr(model.network, "forward", network)
    loss = model(Tokens(clean, LAYOUT), condition(count), noise(count), None)["mse"]
    (x, times) = seen[0]
    given = times == 0
    assert {int(row.sum()) for row in given} == {0, 1, 2, 3, 4}
    assert all(row.tolist() == sorted(row.tolist(), reverse=True) for row in given)  # the first ones
    places = given.repeat_interleave(16, 1)
    assert torch.equal(x[places], clean[places])
    assert all(len(set(row[~own].tolist())) == 1 for row, own in zip(times, given, strict=True))
    # the target of the others is noise - clean, of variance 2, and a given frame's output has no part in the loss
    assert 1.6 < float(loss) < 2.4


@torch.no_grad()
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("chain", [False, True])
def test_known_frames_come_back_in_every_order(order: FrameOrder, chain: bool) -> None:
    model = build("diffusion", chain)
    sampling = Sampling(frame_order=order, key_frame_stride=2, cfg_scale=2.0)
    given = Condition(torch.tensor([0, 1, 2]), known=known([[0, 1], [], [0, 1, 2, 3, 4]]))
    states = list(model.steps(given, sampling, noise(3), None))
    assert len(states) <= model.passes(sampling)
    assert states[-1].known is None
    assert given.known is not None
    assert torch.equal(states[-1].values[given.known.flags], given.known.values[given.known.flags])
    assert states[-1].values.isfinite().all()
    for row in range(3):
        rows = slice(row, row + 1)
        alone = last(model.steps(given[rows], sampling, noise(3)[rows], None))
        assert_same(alone.values[0], states[-1].values[row])
    free = last(model.steps(replace_known(given), sampling, noise(3), None))
    assert_same(free.values[1], states[-1].values[1])
    assert not torch.allclose(free.values[0, 40:], states[-1].values[0, 40:])  # the later frames follow the known ones


def replace_known(given: Condition) -> Condition:
    return Condition(given.labels)


@torch.no_grad()
def test_history_is_read_at_its_noise_level(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = build("teacher"), []
    network = model.network.forward

    def record(x: Tensor, times: Tensor, *rest: Any) -> Tensor:
        seen.append((x.clone(), times))
        return network(x, times, *rest)

    monkeypatch.setattr(model.network, "forward", record)
    given = Condition(torch.tensor([0]), known=known([[0, 1]]))
    for share in (0.0, 0.3):
        seen.clear()
        last(model.steps(given, Sampling(history_noise=share), noise(1), None))
        for x, times in seen:
            assert torch.equal(times[:, :2], torch.full((1, 2), 1000 * share))
            assert (times[:, 2:] > 0).all()
            assert given.known is not None
            gap = x[:, :32] - (1 - share) * given.known.values[:, :32]
            assert float(gap.std()) == pytest.approx(share, rel=0.4)


@torch.no_grad()
def test_partly_known_frames_are_kept_as_masks_are() -> None:
    model = build("diffusion")
    flags = torch.zeros(1, 80, dtype=torch.bool)
    flags[:, ::2] = True
    given = Condition(torch.tensor([0]), known=Tokens(video(1), LAYOUT, flags))
    made = last(model.steps(given, Sampling(jump_length=2, jump_n_sample=2), noise(1), None))
    assert torch.equal(made.values[flags], video(1)[flags])
    with pytest.raises(ConfigError, match="whole frames are known or none"):
        last(model.steps(given, Sampling(frame_order="pyramid"), noise(1), None))


def test_the_levels_of_each_order() -> None:
    assert frame_levels("together", [1, 2], 3, 2, 2).tolist() == [[0, 2, 2], [0, 1, 1], [0, 0, 0]]
    assert frame_levels("in_order", [1, 2], 3, 2, 2).tolist() == [[0, 2, 2], [0, 1, 2], [0, 0, 2], [0, 0, 1], [0, 0, 0]]
    assert frame_levels("pyramid", [1, 2], 3, 2, 2).tolist() == [[0, 2, 2], [0, 1, 2], [0, 0, 1], [0, 0, 0]]
    keyed = frame_levels("key_frames", [1, 2, 3], 4, 2, 2)
    assert keyed.tolist() == [[0, 2, 2, 2], [0, 2, 1, 1], [0, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert key_frames([2, 3, 4, 5, 6], 2) == [3, 5, 6]
    assert frame_levels("pyramid", [], 3, 2, 2).tolist() == [[0, 0, 0], [0, 0, 0]]


@torch.no_grad()
def test_in_order_a_frame_does_not_read_what_is_decided_later() -> None:
    """The last frame's noise changes nothing before it is decided, since all networks read it at the highest level."""
    model = build("diffusion")
    sampling = Sampling(frame_order="in_order")
    states = list(model.steps(condition(1), sampling, noise(1), None))
    first = states[3]
    assert first.known is not None
    assert first.known.view(5, 16).all(1).tolist() == [True, False, False, False, False]
    assert torch.equal(first.values[:, :16], states[-1].values[:, :16])


@torch.no_grad()
def test_the_sliding_window_makes_one_frame_at_a_time() -> None:
    model = build("diffusion")
    passes: list[Tensor] = []
    predict = Guided.__call__

    def count(self: Guided, x: Tensor, time: Tensor) -> Tensor:
        passes.append(time)
        return predict(self, x, time)

    given = Condition(torch.tensor([0, 1]))
    advance = model.slide(given, Sampling(steps=6), noise(2), None, 2)
    window = known([[0, 1], [0, 1]])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Guided, "__call__", count)
        made, counts = [], []
        for _ in range(4):
            before = len(passes)
            done = advance(window)
            counts.append(len(passes) - before)
            assert done.known is not None
            assert done.known[0].view(5, 16).all(1).tolist() == [True, True, True, False, False]
            assert torch.equal(done.values[:, :32], window.values[:, :32])
            made.append(done.values[:, 32:48])
            window = Tokens(torch.cat([window.values[:, 16:], window.values[:, :16]], 1), LAYOUT, window.known)
    assert counts == [6, 2, 2, 2]  # 6 levels over 3 frames: 2 passes a frame, after all went down together
    assert [time[0].tolist() for time in passes[6:8]] == [
        pytest.approx([1000 * level / 6 for level in levels]) for levels in ([0, 0, 2, 4, 6], [0, 0, 1, 3, 5])
    ]
    assert all(frame.isfinite().all() for frame in made)
    again = model.slide(given[1:], Sampling(steps=6), noise(2)[1:], None, 2)
    assert_same(again(known([[0, 1], [0, 1]])[1:]).values[0, 32:48], made[0][1])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"forcing": "diffusion", "inpaint": True}, "leave inpaint out"),
        ({"history_noise": 0.1}, "belongs to forcing teacher"),
        ({"forcing": "teacher", "network": {"kind": "unet"}}, "needs network kind dit"),
        ({"forcing": "teacher", "network": {"kind": "dit", "depth": 1, "text_attention": "joint"}}, "cross or none"),
        ({"network": {"kind": "dit", "depth": 1, "text_attention": "joint", "positions": "rotary"}}, "choose cross"),
        ({"network": {"kind": "dit", "depth": 1, "attention": {"kind": "tiles", "tile": [1]}}}, "each axis"),
    ],
)
def test_impossible_settings_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(diffusion.Config, {"network": {"kind": "dit", "depth": 1}, "diffusion": STRAIGHT, **section}, "test")


def test_frame_settings_need_a_model_that_was_trained_for_them() -> None:
    for forcing, name in (("none", "history_noise"), ("none", "frame_order"), ("teacher", "frame_order")):
        sampling = Sampling(frame_order="pyramid") if name == "frame_order" else Sampling(history_noise=0.1)
        with pytest.raises(ConfigError, match=rf"{name} needs a model of videos .*this one has forcing {forcing}"):
            build(forcing).check(sampling)
    build("diffusion").check(Sampling(frame_order="pyramid", history_noise=0.1))
    build("teacher").check(Sampling(history_noise=0.1))
    with pytest.raises(ConfigError, match="forcing diffusion"):
        build("teacher").slide(condition(1), Sampling(), noise(1), None, 1)
    image = TokenLayout(((4, 4),), 4, None, (3, 16, 16))
    refused = build("teacher").config.refuse(image)
    assert refused is not None
    assert "tokens of a video" in refused
