"""MAR frame by frame: what a frame is given, in training and in sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.generators import CLASSES, assert_same, condition, noise, randomise_zeros
from torch import Tensor

from artok.generators import mar
from artok.generators.mar import Mar
from artok.layout import Condition, TokenLayout, Tokens, last
from artok.sampling.settings import Sampling

LAYOUT = TokenLayout(((4, 2, 3),), 4, None, (3, 13, 16, 24))


def build() -> Mar:
    config = mar.Config.tiny().model_copy(update={"order": "frames", "steps": 8, "mask_ratio_min": 0.3})
    assert config.refuse(LAYOUT) is None
    torch.manual_seed(0)
    model = config.build(LAYOUT, CLASSES).eval()
    randomise_zeros(model)
    return model


def video(count: int) -> Tensor:
    return torch.randn(count, *LAYOUT.value_shape(), generator=torch.Generator().manual_seed(1))


def test_a_frame_is_learned_in_part_given_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen, learned = build(), [], []
    body, losses = model.body.forward, model.head.losses

    def record(x: Tensor, context: Any, order: Tensor, counts: Tensor, room: int) -> Tensor:
        seen.append(order.argsort(1) < counts[:, None])
        return body(x, context, order, counts, room)

    def note(clean: Tensor, *rest: Tensor) -> dict[str, Tensor]:
        learned.append(clean)
        return losses(clean, *rest)

    monkeypatch.setattr(model.body, "forward", record)
    monkeypatch.setattr(model.head, "losses", note)
    values = video(40)
    total = model(Tokens(values, LAYOUT), condition(40), noise(40), None)
    assert all(loss.isfinite() for loss in total.values())
    rows = {tuple(value.tolist()): (row, place) for row in range(40) for place, value in enumerate(values[row])}
    learned_at = [rows[tuple(value.tolist())] for value in learned[0]]
    found = set()
    for row in range(40):
        masked = seen[0][row].view(4, 6)
        current = int(masked.any(1).nonzero()[0])
        found.add(current)
        assert masked[current + 1 :].all()  # later frames are hidden whole
        assert int(masked[current].sum()) >= 2
        places = sorted(place for own, place in learned_at if own == row)
        assert places == (masked[current].nonzero()[:, 0] + 6 * current).tolist()
    assert found == {0, 1, 2, 3}
    assert len(learned[0]) == pytest.approx(model.expected * 24 * 40, rel=0.15)


@torch.no_grad()
def test_frames_are_finished_in_order_and_known_ones_take_no_step() -> None:
    model = build()
    states = list(model.steps(condition(2), Sampling(), noise(2), None))
    assert len(states) == model.passes(Sampling()) == 8
    for step, state in enumerate(states[:-1], 1):
        by_frame = state.flags[0].view(4, 6)
        assert by_frame[: step // 2].all()
        assert not by_frame[step // 2 + 1 :].any()
    flags = torch.zeros(2, 24, dtype=torch.bool)
    flags[0, :12], flags[1, :6] = True, True
    given = Condition(torch.tensor([0, 1]), known=Tokens(video(2), LAYOUT, flags))
    made = list(model.steps(given, Sampling(), noise(2), None))
    assert len(made) == 6
    assert torch.equal(made[-1].values[flags], video(2)[flags])
    alone = list(model.steps(given[:1], Sampling(), noise(2)[:1], None))
    assert len(alone) == 4
    assert_same(alone[-1].values[0], made[-1].values[0])
    everything = Condition(torch.tensor([0]), known=Tokens(video(1), LAYOUT))
    assert torch.equal(last(model.steps(everything, Sampling(), noise(1), None)).values, video(1))


def test_images_have_no_frames() -> None:
    refused = build().config.refuse(TokenLayout(((4, 4),), 4, None, (3, 16, 16)))
    assert refused is not None
    assert "tokens of a video" in refused
