"""The contract of every generator kind and network about texts: they are heard, in any length, and by guidance too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.generators import (
    CLASSES,
    TEXTS,
    Case,
    assert_same,
    generate,
    noise,
    real_tokens,
    texts,
    total_loss,
)
from torch import Tensor

from artok.conditioning.base import Context
from artok.errors import ConfigError
from artok.generators.base import AdversarialGenerator, Generator
from artok.layout import Condition, Text, Tokens, last
from artok.nn.vit import CrossAttention
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.settings import Sampling


@pytest.fixture(params=TEXTS)
def case(request: pytest.FixtureRequest) -> Case:
    return TEXTS[request.param]


def guided(generator: Generator) -> None:
    if isinstance(generator, AdversarialGenerator):
        pytest.skip("has no unconditional half")


def told(case: Case, text: Text) -> Condition:
    return replace(case.condition(len(text)), text=text)


@torch.no_grad()
def outcome(case: Case, generator: Generator, given: Condition) -> Tensor:
    """(B, ...): the training losses of each row, or the sample of a generator whose loss is its critic's."""
    if isinstance(generator, AdversarialGenerator):
        return generate(generator, case.codec, given).values
    tokens, random, rows = real_tokens(case.codec, len(given)), noise(len(given)), range(len(given))
    each = [generator(*(part[row : row + 1] for part in (tokens, given, random)), case.codec) for row in rows]
    return torch.stack([torch.stack(list(losses.values())).sum() for losses in each])


def test_another_text_is_heard_and_padding_is_not(case: Case) -> None:
    generator, text, other = case.build(), texts(4), texts(4, seed=1).values
    made = outcome(case, generator, told(case, text))
    padded = Text(torch.where(text.mask, text.values, other), text.mask)
    assert_same(outcome(case, generator, told(case, padded)), made)
    moved = outcome(case, generator, told(case, Text(other, text.mask)))
    assert (moved != made).flatten(1).any(1).all() if made.ndim > 1 else (moved != made).all()
    flipped = Text(text.values.flip(1), text.mask)
    assert (outcome(case, generator, told(case, flipped)) != made)[0].any()


def test_each_entry_of_a_text_is_heard_besides_its_pooled_vector(case: Case) -> None:
    generator, text = case.build(), texts(4)
    attention = getattr(case.config, "network", case.config)
    if isinstance(generator, AdversarialGenerator) or getattr(attention, "text_attention", "") == "none":
        pytest.skip("hears the pooled vector alone")
    for layer in generator.modules():  # whose weights start small
        if isinstance(layer, CrossAttention):
            torch.nn.init.normal_(layer.key_value.weight, std=0.3)
    made = outcome(case, generator, told(case, text))
    place = generator.conditioner.length - 6 + 2  # the third entry, which the third text does not have
    heard: list[Tensor] = []

    def move(_: object, __: object, context: Context) -> Context:
        sequence = context.sequence.clone()
        sequence[:, place] += torch.randn(sequence.shape[2], generator=torch.Generator().manual_seed(1))
        heard.append(sequence)
        return replace(context, sequence=sequence)

    generator.conditioner.register_forward_hook(move)
    moved = outcome(case, generator, told(case, text))
    assert heard
    assert ((moved != made) == torch.tensor([True, True, False, True])).all()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_keys_and_values_of_a_text_are_computed_once_in_sampling(
    case: Case, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, rows = case.build(), list[int]()
    layers = [layer for layer in generator.modules() if isinstance(layer, CrossAttention)]
    if not layers:
        pytest.skip("has no cross-attention")
    hooks = [layer.key_value.register_forward_hook(lambda _, x, __: rows.append(len(x[0]))) for layer in layers]
    sampling = Sampling(cfg_scale=guidance, cfg_interval=(0.0, 0.6))  # also steps of the conditional half alone
    made = generate(generator, case.codec, case.condition(4), sampling).values
    assert rows == [8 if guidance > 1 else 4] * len(layers)
    for hook in hooks:
        hook.remove()
    monkeypatch.setattr(Context, "project", lambda context, _: context)
    assert_same(generate(generator, case.codec, case.condition(4), sampling).values, made)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@torch.no_grad()
def test_texts_of_several_lengths_in_a_batch_sample_as_alone(case: Case, guidance: float) -> None:
    generator, given = case.build(), case.condition(4)
    if guidance > 1:
        guided(generator)
    sampling = Sampling(cfg_scale=guidance)
    whole = generate(generator, case.codec, given, sampling).values
    for row in range(4):
        rows = slice(row, row + 1)
        alone = last(generator.steps(given[rows], sampling, noise(4)[rows], case.codec))
        assert_same(alone.values[0], whole[row])


@torch.no_grad()
def test_an_empty_text_is_a_missing_one(case: Case) -> None:
    generator = case.build()
    guided(generator)
    given = case.condition(4)
    empty = given.dropped("text")
    absent = generator.conditioner(replace(given, text=None, control=torch.zeros(4, 1)))
    context = generator.context(empty)
    assert torch.equal(context.sequence, absent.sequence)
    assert torch.equal(context.pooled, absent.pooled)
    other = Text(texts(4, seed=1).values, torch.zeros(4, 6, dtype=torch.bool))
    made = outcome(case, generator, empty)
    assert_same(outcome(case, generator, told(case, other)), made)
    assert (outcome(case, generator, given) != made).all()


def test_guidance_of_one_is_none_and_of_zero_the_unconditional_sample(case: Case) -> None:
    generator, given = case.build(), case.condition(4)
    guided(generator)
    made = generate(generator, case.codec, given, Sampling(cfg_scale=3.0, cfg_interval=(0.0, 0.0))).values
    assert_same(made, generate(generator, case.codec, given).values)
    solver = "ddim" if "solver" in generator.reads else None  # a learned variance would stay the conditional one
    made = generate(generator, case.codec, given, Sampling(cfg_scale=0.0, solver=solver)).values
    null = given.dropped("labels").dropped("text")
    assert_same(made, generate(generator, case.codec, null, Sampling(solver=solver)).values)


def test_guidance_of_zero_hears_a_negative_text_alone(case: Case) -> None:
    generator, text = case.build(), texts(4, seed=1)
    guided(generator)
    rows = torch.tensor([True, True, True, False])  # the last has no negative text, so it hears the empty one
    negative = Text(text.values, text.mask & rows[:, None])
    given = replace(case.condition(4), negative=negative)
    solver = "ddim" if "solver" in generator.reads else None
    made = generate(generator, case.codec, given, Sampling(cfg_scale=0.0, solver=solver)).values
    alone = told(case, negative).dropped("labels")
    assert_same(made, generate(generator, case.codec, alone, Sampling(solver=solver)).values)
    unguided = generate(generator, case.codec, given).values
    assert_same(unguided, generate(generator, case.codec, case.condition(4)).values)
    with pytest.raises(ConfigError, match="cfg_parts"):
        generate(generator, case.codec, given, Sampling(cfg_scale=2.0, cfg_parts=("labels",)))


def test_guidance_over_one_part_keeps_the_other(case: Case) -> None:
    generator, given = case.build(), case.condition(4)
    guided(generator)
    if given.labels is None:
        pytest.skip("hears text alone")
    solver = "ddim" if "solver" in generator.reads else None
    for part in ("labels", "text"):
        sampling = Sampling(cfg_scale=0.0, cfg_parts=(part,), solver=solver)
        wanted = generate(generator, case.codec, given.dropped(part), Sampling(solver=solver)).values
        assert_same(generate(generator, case.codec, given, sampling).values, wanted)


@torch.no_grad()
def test_the_likelihood_of_a_batch_is_that_of_its_rows(case: Case) -> None:
    generator, given, tokens = case.build(), case.condition(4), real_tokens(case.codec, 4)
    nats = generator.log_likelihood(tokens, given, case.codec)
    if nats is None:
        pytest.skip("has no likelihood")
    for row in range(4):
        rows = slice(row, row + 1)
        alone = generator.log_likelihood(tokens[rows], given[rows], case.codec)
        torch.testing.assert_close(alone, nats[rows], rtol=1e-5, atol=0)
    other = generator.log_likelihood(tokens, told(case, texts(4, seed=1)), case.codec)
    assert (other != nats).all()


@torch.no_grad()
def test_no_other_last_code_is_likelier_than_the_one_decoded_with_the_cache(case: Case) -> None:
    """At temperature 0 the last step takes the most likely code; the likelihood is of a pass without a cache."""
    generator, given, layout = case.build(), case.condition(4), case.codec.layout
    made = generate(generator, case.codec, given, Sampling(temperature=0.0))
    best = generator.log_likelihood(made, given, case.codec)
    if best is None:
        pytest.skip("has no likelihood")
    assert layout.vocab is not None
    for code in range(layout.vocab):
        values = made.values.clone()
        values[:, -1] = code
        nats = generator.log_likelihood(replace(made, values=values), given, case.codec)
        assert ((nats < best) | (values == made.values).flatten(1).all(1)).all()


def test_a_critic_learns_which_image_a_caption_belongs_to(case: Case) -> None:
    """Of two real images it scores each higher under its own caption, once it was trained on the pairs."""
    generator = case.build()
    if not isinstance(generator, AdversarialGenerator):
        pytest.skip("has no critic")
    torch.manual_seed(0)
    critic = case.config.build_critic(case.codec.layout, CLASSES)
    assert critic is not None
    generator.attach_critic(critic)
    rows = torch.arange(16) % 2
    tokens, given = real_tokens(case.codec, 2)[rows], told(case, texts(2))[rows]
    if given.labels is not None:
        given = replace(given, labels=torch.zeros(16, dtype=torch.int64))
    real = generator.to_grid(tokens)
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3)
    for step in range(60):  # against images of the other caption, as a generator that does not hear it makes them
        optimizer.zero_grad()
        losses = critic(real, real.flip(0), given, noise(16, step), step, 0.0).losses
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        right, wrong = (critic.scores(real[:2], critic.told(each), noise(2)) for each in (given[:2], given[[1, 0]]))
    assert (right > wrong + 0.5).all()
    plain = type(case.config).tiny().build_critic(case.codec.layout, CLASSES)
    assert plain is not None and not any("text" in name for name in plain.state_dict())


STRAIGHT = DiffusionConfig(schedule="straight", prediction_type="velocity", solver="euler", steps=10)


def test_two_captions_are_learned_apart(case: Case) -> None:
    """After training on two pairs, each caption is a better condition for its own image than for the other's."""
    config, layout = case.config, case.codec.layout
    if "diffusion" in type(config).model_fields:  # which learns in few steps
        config = config.model_copy(update={"diffusion": STRAIGHT})
    torch.manual_seed(0)
    generator = config.build(layout, CLASSES).train()
    if isinstance(generator, AdversarialGenerator):
        pytest.skip("learns against a critic")
    rows = torch.arange(16) % 2
    values = real_tokens(case.codec, 2).values if layout.discrete else torch.randn(2, *layout.value_shape())
    tokens, given = Tokens(values, layout)[rows], told(case, texts(2))[rows]
    if given.labels is not None:
        given = replace(given, labels=torch.zeros(16, dtype=torch.int64))  # the text alone tells them apart
    optimizer = torch.optim.Adam(generator.parameters(), lr=5e-3)
    for step in range(80):
        optimizer.zero_grad()
        total_loss(generator, case.codec, tokens, step, given).backward()
        optimizer.step()
    with torch.no_grad():
        right, wrong = (
            float(sum(total_loss(generator, case.codec, tokens, 1000 + step, each) for step in range(4)))
            for each in (given, given[1 - rows])
        )
    assert right < 0.85 * wrong  # later tokens of causal families tell the image too
