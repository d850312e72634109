"""The contract of every generator kind, on every layout that it accepts."""

from __future__ import annotations

import pytest
import torch
from helpers.generators import (
    CLASSES,
    PAIRS,
    assert_same,
    condition,
    config_of,
    generate,
    noise,
    real_tokens,
)
from helpers.models import IMAGE

from artok.config import kinds
from artok.errors import LayoutError
from artok.generators.base import AdversarialGenerator, Generator
from artok.layout import Condition, TokenLayout, Tokens, last
from artok.noise import Noise
from artok.sampling.settings import Sampling
from artok.saved import check_layout
from artok.tokenizers.base import Tokenizer

Pair = tuple[Generator, Tokenizer]


def test_every_kind_accepts_some_tokenizer() -> None:
    assert {kind for kind, _ in PAIRS} == set(kinds("generators"))


@torch.no_grad()
def test_steps_decide_more_and_more_until_all_is_decided(pair: Pair) -> None:
    generator, codec = pair
    sampling = Sampling()
    steps = list(generator.steps(condition(3), sampling, noise(3), codec))
    counts = [codec.layout.length if t.known is None else int(t.known[0].sum()) for t in steps]
    assert counts == sorted(counts)
    assert steps[-1].known is None
    assert all(step.layout == codec.layout for step in steps)
    assert steps[-1].values.isfinite().all()
    assert codec.decode(steps[-1]).shape == (3, *IMAGE)
    assert generator.passes(sampling) >= 1


def test_the_same_seed_gives_the_same_tokens_and_another_does_not(pair: Pair) -> None:
    generator, codec = pair
    first = generate(generator, codec, condition(4))
    again = generate(generator, codec, condition(4))
    other = generate(generator, codec, condition(4), seed=1)
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_batch_equals_its_images_made_one_by_one(pair: Pair, guidance: float) -> None:
    generator, codec = pair
    sampling = Sampling(cfg_scale=guidance)  # at temperature 1: at 0 rows could share one noise
    whole = generate(generator, codec, condition(4), sampling)
    with torch.no_grad():
        for row in range(4):
            rows = slice(row, row + 1)
            alone = last(generator.steps(condition(4)[rows], sampling, noise(4)[rows], codec))
            assert_same(alone.values[0], whole.values[row])


def test_guidance_one_is_no_guidance_and_two_is_some(pair: Pair) -> None:
    generator, codec = pair
    if isinstance(generator, AdversarialGenerator):
        pytest.skip("has no unconditional half, and its class_dropout is fixed at 0")
    plain = generate(generator, codec, condition(4), Sampling())
    barely = generate(generator, codec, condition(4), Sampling(cfg_scale=1 + 1e-9))
    assert_same(barely.values, plain.values)
    strong = generate(generator, codec, condition(4), Sampling(cfg_scale=30.0))
    assert not torch.equal(strong.values, plain.values)


@torch.no_grad()
def test_labels_change_the_loss_and_their_null_is_their_absence(pair: Pair) -> None:
    generator, codec = pair
    if isinstance(generator, AdversarialGenerator):  # has no null, and its loss is its critic's
        moved = generate(generator, codec, Condition((torch.arange(4) + 1) % CLASSES))
        assert not torch.equal(generate(generator, codec, condition(4)).values, moved.values)
        return
    tokens, labels = real_tokens(codec, 4), torch.arange(4)
    given = Condition(labels), Condition((labels + 1) % CLASSES), Condition(labels).dropped("labels")
    losses = [float(sum(generator(tokens, each, noise(4), codec).values())) for each in given]
    assert len(set(losses)) == 3
    null = generator.context(given[2])
    absent = generator.conditioner(Condition(control=torch.zeros(4, 1)))
    assert torch.equal(null.pooled, absent.pooled)
    assert torch.equal(null.sequence, absent.sequence)


def half_known(codec: Tokenizer, shares: torch.Tensor) -> Tokens:
    """Real tokens, of which about a share of each row is known."""
    tokens = real_tokens(codec, len(shares))
    known = torch.rand(len(shares), codec.layout.length, generator=torch.Generator().manual_seed(2)) < shares[:, None]
    return Tokens(tokens.values, codec.layout, known)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_known_tokens_come_back_as_given(pair: Pair, guidance: float) -> None:
    generator, codec = pair
    if not generator.keeps_known:
        pytest.skip("does not hear known tokens")
    sampling = Sampling(cfg_scale=guidance)
    labels = torch.arange(4) % CLASSES
    plain = generate(generator, codec, Condition(labels), sampling)
    none = half_known(codec, torch.zeros(4))
    assert torch.equal(generate(generator, codec, Condition(labels, known=none), sampling).values, plain.values)
    everything = half_known(codec, torch.full((4,), 2.0))
    done = generate(generator, codec, Condition(labels, known=everything), sampling)
    assert torch.equal(done.values, everything.values)
    some = half_known(codec, torch.tensor([0.2, 0.5, 0.9, 2.0]))
    given = Condition(labels, known=some)
    with torch.no_grad():
        states = list(generator.steps(given, sampling, noise(4), codec))
    for state in states[:-1]:
        decided = state.flags & some.flags
        assert torch.equal(state.values[decided], some.values[decided])
    assert torch.equal(states[-1].values[some.flags], some.values[some.flags])
    assert not torch.equal(states[-1].values, some.values)
    with torch.no_grad():
        for row in range(4):
            rows = slice(row, row + 1)
            alone = last(generator.steps(given[rows], sampling, noise(4)[rows], codec))
            assert_same(alone.values[0], states[-1].values[row])


def test_a_part_that_is_not_heard_is_refused_by_name(pair: Pair) -> None:
    generator, codec = pair
    labels = torch.arange(2)
    unheard = {"control": torch.zeros(2, 1, *codec.layout.grid), "known": real_tokens(codec, 2)}
    for part in unheard.keys() - generator.hears:
        kind = type(generator).__module__.rpartition(".")[2]
        with pytest.raises(LayoutError, match=rf"{kind} hears .*labels.*, and the condition also has {part}"):
            generate(generator, codec, Condition(labels, **{part: unheard[part]}))
    if "known" in generator.hears:
        other = TokenLayout(((2,),), 3, None, IMAGE)
        wrong = Tokens(torch.zeros(2, 2, 3), other)
        with pytest.raises(LayoutError, match="the known tokens are 2 tokens"):
            generate(generator, codec, Condition(labels, known=wrong))


def test_one_batch_can_be_learned_by_heart(pair: Pair) -> None:
    generator, codec = pair
    generator.train()
    tokens = real_tokens(codec, 4)
    if isinstance(generator, AdversarialGenerator):
        learned_against_a_critic(generator, codec, tokens)
        return
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)

    def loss(step: int) -> torch.Tensor:
        losses = generator(tokens, condition(4), Noise(step, torch.arange(4)), codec)
        return torch.stack(list(losses.values())).sum()

    first = sum(float(loss(step).detach()) for step in range(8)) / 8
    for step in range(60):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    final = sum(float(loss(step).detach()) for step in range(8)) / 8
    assert final < 0.6 * first


def learned_against_a_critic(generator: AdversarialGenerator, codec: Tokenizer, tokens: Tokens) -> None:
    """Its loss says who is ahead, not how good it is: what must fall is the distance to the batch."""
    kind = type(generator).__module__.rpartition(".")[2]
    critic = config_of(kind).build_critic(codec.layout, CLASSES)
    assert critic is not None
    generator.attach_critic(critic)
    players = [
        (module, torch.optim.Adam(module.parameters(), lr=5e-3, betas=(0.0, 0.99))) for module in (generator, critic)
    ]

    def distance() -> float:
        with torch.no_grad():
            made = generator.generate(condition(4), noise(4, seed=100))
        return float((made - generator.to_grid(tokens)).square().mean())

    first = distance()
    for step in range(150):
        random = Noise(step, torch.arange(4))
        for module, optimizer in players:
            if module is generator:
                losses = generator(tokens, condition(4), random, codec)
            else:
                made = generator.generate(condition(4), random).detach()
                losses = critic(generator.to_grid(tokens), made, condition(4), random, step, 0.0).losses
            for player, _ in players:
                player.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
    assert distance() < 0.6 * first


@torch.no_grad()
def test_the_loss_of_a_batch_is_the_mean_of_its_images(pair: Pair) -> None:
    generator, codec = pair
    if isinstance(generator, AdversarialGenerator):
        pytest.skip("has its critic's loss")
    tokens, given, random = real_tokens(codec, 3), condition(3), noise(3)
    parts = [slice(0, 3), *(slice(row, row + 1) for row in range(3))]
    whole, *alone = (sum(generator(tokens[part], given[part], random[part], codec).values()) for part in parts)
    torch.testing.assert_close(whole, torch.stack(alone).mean(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_likelihood_is_that_of_the_loss(pair: Pair) -> None:
    generator, codec = pair
    tokens = real_tokens(codec, 5)
    nats = generator.log_likelihood(tokens, condition(5), codec)
    if nats is None:
        pytest.skip("has no likelihood")
    assert nats.shape == (5,)
    assert nats.dtype == torch.float64
    losses = generator(tokens, condition(5), noise(5), codec)
    count = codec.layout.length * codec.layout.codes / getattr(generator, "image_weight", 1)  # the rest is of the text
    assert -float(nats.mean()) / count == pytest.approx(float(torch.stack(list(losses.values())).sum()), rel=1e-4)
    for row in range(5):
        alone = generator(tokens[row : row + 1], condition(5)[row : row + 1], noise(1), codec)
        assert -float(nats[row]) / count == pytest.approx(float(sum(alone.values())), rel=1e-4)


@pytest.mark.parametrize("kind", kinds("generators"))
def test_a_layout_that_does_not_fit_is_refused_with_both_sides_named(kind: str) -> None:
    config = config_of(kind)
    layouts = [
        TokenLayout(((4, 4),), 4, 16, IMAGE),
        TokenLayout(((1, 1), (2, 2), (4, 4)), 4, 16, IMAGE),
        TokenLayout(((4, 4),), 4, None, IMAGE),
        TokenLayout(((2, 4, 4),), 4, 16, (3, 5, 16, 16)),
    ]
    refused = [layout for layout in layouts if config.refuse(layout)]
    assert len(refused) < len(layouts)
    for layout in refused:
        with pytest.raises(LayoutError) as error:
            check_layout(config, layout)
        assert kind in str(error.value)
        assert str(layout) in str(error.value)
