"""What every generator kind can do beyond training and sampling: one test a capability, one case a kind."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers.generators import (
    CLASSES,
    ONE_EACH,
    build,
    condition,
    config_of,
    generate,
    real_tokens,
    tokenizer,
    total_loss,
)

from artok.generators.base import AdversarialGenerator, Generator
from artok.layout import Condition
from artok.nn.gradient_checkpointing import set_gradient_checkpointing
from artok.noise import Noise
from artok.sampling.settings import Sampling
from artok.saved import whole_state, write_weights
from artok.tokenizers.base import Tokenizer
from artok.weights import empty_parameters, read_weights

Case = tuple[str, Generator, Tokenizer]


@pytest.fixture(params=ONE_EACH, ids="-on-".join)
def case(request: pytest.FixtureRequest) -> Case:
    kind, name = request.param
    codec = tokenizer(name)
    return kind, build(kind, codec), codec


def gradients(generator: Generator, codec: Tokenizer) -> dict[str, torch.Tensor | None]:
    total_loss(generator.train(), codec, real_tokens(codec, 4)).backward()
    return {name: parameter.grad for name, parameter in generator.named_parameters()}


def test_every_parameter_has_a_gradient(case: Case) -> None:
    """DistributedDataParallel refuses a step that leaves some out."""
    _, generator, codec = case
    assert [name for name, gradient in gradients(generator, codec).items() if gradient is None] == []


def test_gradient_checkpointing_changes_no_gradient(case: Case) -> None:
    kind, generator, codec = case
    again = build(kind, codec)
    if set_gradient_checkpointing(again, True) == 0:
        pytest.skip("has no blocks to recompute")
    plain, recomputed = gradients(generator, codec), gradients(again, codec)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_saved_and_loaded_it_samples_the_same(case: Case, tmp_path: Path) -> None:
    kind, generator, codec = case
    write_weights(whole_state(generator), tmp_path / "weights.safetensors")
    with empty_parameters():
        loaded = config_of(kind).build(codec.layout, CLASSES).eval()
    read_weights(loaded, tmp_path / "weights.safetensors")
    same = generate(loaded, codec, condition(3)).values
    assert torch.equal(same, generate(generator, codec, condition(3)).values)


def test_it_trains_and_samples_without_memory_on_the_meta_device(case: Case) -> None:
    _, generator, codec = case
    empty, lent = deepcopy(generator).to("meta"), deepcopy(codec).to("meta")
    tokens = real_tokens(codec, 2).to("meta")
    rows = torch.empty(2, dtype=torch.int64, device="meta")
    assert next(empty.steps(Condition(rows), Sampling(), Noise(0, rows), lent)).values.is_meta
    if not isinstance(empty, AdversarialGenerator):
        losses = empty(tokens, Condition(rows), Noise(0, rows), lent)
        assert all(loss.shape == () for loss in losses.values())


def test_compiled_it_has_the_same_loss(case: Case) -> None:
    _, generator, codec = case
    tokens = real_tokens(codec, 2)
    plain = total_loss(generator, codec, tokens)
    compiled = torch.compile(generator, backend="eager", dynamic=False)
    torch._dynamo.reset()
    losses = compiled(tokens, condition(2), Noise(0, torch.arange(2)), codec)
    torch.testing.assert_close(torch.stack(list(losses.values())).sum(), plain)


def test_guidance_of_one_runs_no_unconditional_half(case: Case) -> None:
    _, generator, codec = case
    rows: list[int] = []
    generator.conditioner.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    generate(generator, codec, condition(3), Sampling(cfg_scale=1.0))
    assert set(rows) == {3}


def test_samples_in_bfloat16_are_near_those_in_float32(case: Case) -> None:
    """bfloat16 rounds to 2^-9: vectors differ by a few times that, and fewer codes change than under another seed."""
    _, generator, codec = case
    greedy = codec.layout.discrete and "temperature" in generator.reads
    sampling = Sampling(temperature=0.0, choice_temperature=0.0) if greedy else Sampling()
    plain = generate(generator, codec, condition(8), sampling).values
    with torch.autocast("cpu", torch.bfloat16):
        half = generate(generator, codec, condition(8), sampling.model_copy(update={"dtype": "bfloat16"})).values
    if plain.is_floating_point():
        assert float((half - plain).norm() / plain.norm()) < 16 * 2.0**-9
        return
    other = generate(generator, codec, condition(8), seed=1).values
    assert float((half != plain).float().mean()) < 0.5 * float((other != plain).float().mean())
