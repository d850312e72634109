"""What every generator kind can do beyond training and sampling: one test a capability, one case a kind."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers.generators import (
    CASES,
    CLASSES,
    Case,
    generate,
    real_tokens,
    total_loss,
)

from artok.generators.base import AdversarialGenerator, Generator
from artok.nn.gradient_checkpointing import set_gradient_checkpointing
from artok.noise import Noise
from artok.sampling.settings import Sampling
from artok.saved import whole_state, write_weights
from artok.weights import empty_parameters, read_weights


@pytest.fixture(params=[name for name, case in CASES.items() if case.hears != "labels+text"])
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def gradients(case: Case, generator: Generator) -> dict[str, torch.Tensor | None]:
    total_loss(generator.train(), case.codec, real_tokens(case.codec, 4), given=case.condition(4)).backward()
    return {name: parameter.grad for name, parameter in generator.named_parameters()}


def test_every_parameter_has_a_gradient(case: Case) -> None:
    """DistributedDataParallel refuses a step that leaves some out."""
    assert [name for name, gradient in gradients(case, case.build()).items() if gradient is None] == []


def test_gradient_checkpointing_changes_no_gradient(case: Case) -> None:
    again = case.build()
    if set_gradient_checkpointing(again, True) == 0:
        pytest.skip("has no blocks to recompute")
    plain, recomputed = gradients(case, case.build()), gradients(case, again)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_saved_and_loaded_it_samples_the_same(case: Case, tmp_path: Path) -> None:
    generator, codec, given = case.build(), case.codec, case.condition(3)
    write_weights(whole_state(generator), tmp_path / "weights.safetensors")
    with empty_parameters():
        loaded = case.config.build(codec.layout, CLASSES).eval()
    read_weights(loaded, tmp_path / "weights.safetensors")
    assert torch.equal(generate(loaded, codec, given).values, generate(generator, codec, given).values)


def test_it_trains_and_samples_without_memory_on_the_meta_device(case: Case) -> None:
    empty, lent = case.build().to("meta"), deepcopy(case.codec).to("meta")
    tokens = real_tokens(case.codec, 2).to("meta")
    rows, given = torch.empty(2, dtype=torch.int64, device="meta"), empty.conditioner.example(2, torch.device("meta"))
    assert next(empty.steps(given, Sampling(cfg_scale=2.0), Noise(0, rows), lent)).values.is_meta
    if not isinstance(empty, AdversarialGenerator):
        losses = empty(tokens, given, Noise(0, rows), lent)
        assert all(loss.shape == () for loss in losses.values())


def test_compiled_it_has_the_same_loss(case: Case) -> None:
    generator, codec, given = case.build(), case.codec, case.condition(2)
    tokens = real_tokens(codec, 2)
    plain = total_loss(generator, codec, tokens, given=given)
    compiled = torch.compile(generator, backend="eager", dynamic=False)
    torch._dynamo.reset()
    losses = compiled(tokens, given, Noise(0, torch.arange(2)), codec)
    torch.testing.assert_close(torch.stack(list(losses.values())).sum(), plain)


def test_guidance_of_one_runs_no_unconditional_half(case: Case) -> None:
    generator, rows = case.build(), list[int]()
    generator.conditioner.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    generate(generator, case.codec, case.condition(3), Sampling(cfg_scale=1.0))
    assert set(rows) == {3}


def test_samples_in_bfloat16_are_near_those_in_float32(case: Case) -> None:
    """bfloat16 rounds to 2^-9: vectors differ by a few times that, and fewer codes change than under another seed."""
    generator, codec, given = case.build(), case.codec, case.condition(8)
    greedy = codec.layout.discrete and "temperature" in generator.reads
    sampling = Sampling(temperature=0.0, choice_temperature=0.0) if greedy else Sampling()
    plain = generate(generator, codec, given, sampling).values
    with torch.autocast("cpu", torch.bfloat16):
        half = generate(generator, codec, given, sampling.model_copy(update={"dtype": "bfloat16"})).values
    if plain.is_floating_point():
        assert float((half - plain).norm() / plain.norm()) < 16 * 2.0**-9
        return
    other = generate(generator, codec, given, seed=1).values
    assert float((half != plain).float().mean()) < 0.5 * float((other != plain).float().mean())
