"""What single kinds promise beyond the contracts: FSQ, LFQ, SimVQ, refusals."""

from __future__ import annotations

import pytest
import torch
from helpers.quantizers import built, latents
from pydantic import ValidationError
from vector_quantize_pytorch import LFQ, SimVQ

from artok.noise import Noise
from artok.quantizers import fsq, gumbel, lfq, residual, simvq, vq
from artok.quantizers.base import QuantizerConfig, to_grid, to_sequence
from artok.quantizers.usage import Usage

# ------------------------------------------------------------------------------------------------- the other kinds


def test_lfq_is_the_librarys() -> None:
    torch.manual_seed(0)
    config = lfq.Config(
        codebook_size=64, entropy_weight=0.7, diversity_gamma=1.3, commitment_weight=0.2, temperature=0.5
    )
    ours = config.build((4, 4)).train()
    theirs = LFQ(
        dim=6, codebook_size=64, entropy_loss_weight=0.7, diversity_gamma=1.3, commitment_loss_weight=0.2
    ).train()
    given = (latents(ours) / 3).requires_grad_()
    out = ours(given)
    expected, indices, loss = theirs(to_sequence(given), inv_temperature=1 / 0.5)
    probe = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((to_sequence(out.vectors) * probe).sum() + sum(out.losses.values()), given)
    (wanted,) = torch.autograd.grad((expected * probe).sum() + loss, given)
    torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(out.values[..., 0], indices.long())
    torch.testing.assert_close(to_sequence(out.vectors), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(sum(out.losses.values()), loss, atol=1e-5, rtol=1e-4)


def test_lfq_of_many_bits_needs_little_memory_and_its_entropy_rewards_spread() -> None:
    quantizer = lfq.Config(codebook_size=2**18, temperature=1.0).build((4, 4)).train()
    spread = quantizer(3 * latents(quantizer, 64)).losses["entropy"]
    collapsed = quantizer(3 * latents(quantizer, 64).abs()).losses["entropy"]
    assert spread < collapsed


def test_simvq_is_the_librarys() -> None:
    ours = built(simvq.Config(codebook_size=16, code_dim=4)).train()
    theirs = SimVQ(4, 16, rotation_trick=True, input_to_quantize_commit_loss_weight=0.25)
    theirs.frozen_codebook.copy_(ours.frozen)
    theirs.code_transform.load_state_dict(ours.transform.state_dict())
    given = latents(ours).requires_grad_()
    out = ours(given)
    expected, indices, loss = theirs(to_sequence(given))
    assert torch.equal(out.values[..., 0], indices)
    torch.testing.assert_close(to_sequence(out.vectors), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(sum(out.losses.values()), loss)
    probe = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((to_sequence(out.vectors) * probe).sum() + sum(out.losses.values()), given)
    (wanted,) = torch.autograd.grad((expected * probe).sum() + loss, given)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


def test_a_new_table_of_simvq_has_vectors_of_length_1_on_average() -> None:
    """Their mean square is 1/4 at width 4, within 5 deviations of sqrt(2) / 4 / sqrt(8192)."""
    table = simvq.Config(codebook_size=2048, code_dim=4).build((4, 4)).frozen
    assert float(table.square().mean()) == pytest.approx(1 / 4, abs=0.02)


def test_gumbel_draws_codes_and_its_gradient_grows_with_a_low_temperature() -> None:
    slopes = []
    for temperature in (0.5, 5.0):
        quantizer = built(gumbel.Config(codebook_size=16, code_dim=4, temperature=temperature)).train()
        given = latents(quantizer).requires_grad_()
        torch.manual_seed(3)
        (gradient,) = torch.autograd.grad(quantizer(given).vectors.square().sum(), given)
        slopes.append(float(gradient.norm()))
    assert slopes[0] > 2 * slopes[1]


def test_gumbel_draws_by_the_scores() -> None:
    """The share of each code over n draws is its probability, within 5 deviations of sqrt(p (1 - p) / n)."""
    quantizer = built(gumbel.Config(codebook_size=8, code_dim=4, temperature=0.3)).train()
    given = torch.tensor([1.0, -2.0, 3.0, 0.5]).view(1, 4, 1, 1).expand(2000, 4, 4, 4)
    values = quantizer(given).values
    wanted = quantizer.scores(given[0, :, 0, 0]).softmax(-1).detach()
    shares = torch.bincount(values.flatten(), minlength=8) / values.numel()
    assert ((shares - wanted).abs() < 5 * (wanted * (1 - wanted) / values.numel()).sqrt()).all()


def test_gumbel_gradients_are_those_of_the_soft_draw() -> None:
    """Hard codes forward; backward the softmax of the noisy scores over the temperature (Jang 2017, section 2.2)."""
    quantizer = built(gumbel.Config(codebook_size=8, code_dim=4, temperature=0.7)).train()
    given, positions = latents(quantizer).requires_grad_(), torch.arange(8)
    quantizer.noise = Noise(5, positions)
    out = quantizer(given)
    uniform = Noise(5, positions).uniform(16, 8)
    noisy = quantizer.scores(to_sequence(given)) - (-uniform.log()).log()
    soft = to_grid((noisy / 0.7).softmax(-1) @ quantizer.table.weight, (4, 4))
    assert torch.equal(out.values[..., 0], noisy.argmax(-1))
    torch.testing.assert_close(out.vectors, quantizer.lookup(out.values), atol=1e-5, rtol=0)
    upstream = torch.randn_like(soft)
    (gradient,) = torch.autograd.grad(out.vectors, given, upstream)
    (wanted,) = torch.autograd.grad(soft, given, upstream)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("score", "drawn"), [(3.21, 1), (3.23, 0)])
def test_gumbel_takes_a_uniform_zero_for_half_a_step(score: float, drawn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """-log(-log(2^-25)) is -2.852 and -log(-log(.5)) is .367, so a score that is higher by 3.219 makes up for it."""
    quantizer = built(gumbel.Config(codebook_size=2, code_dim=4)).train()
    monkeypatch.setattr(Noise, "uniform", lambda self, *shape: torch.tensor([0.0, 0.5]).expand(len(self), *shape))
    with torch.no_grad():
        quantizer.scores.weight.zero_()
        quantizer.scores.bias.copy_(torch.tensor([score, 0.0]))
    out = quantizer(latents(quantizer))
    assert (out.values == drawn).all() and out.vectors.isfinite().all()


def test_fsq_numbers_every_code_once() -> None:
    quantizer = built(fsq.Config(levels=[8, 5, 3]))
    table = quantizer.codebook()
    assert table.unique(dim=0).shape == (120, 3)
    assert table.abs().max() <= 1
    out = quantizer.eval()(1.5 * latents(quantizer, 400))
    assert out.monitors["usage"] == 1


def test_an_ideal_table_that_is_larger_than_a_step_logs_all_of_its_codes() -> None:
    """A window shows each of 4,096 codes 8 times: exp(-8) are left out, and the entropy is 1/16 too small."""
    usage, rng = Usage([(16,)], 1, 4096), torch.Generator().manual_seed(0)
    for _ in range(100):
        for _ in range(2):
            usage.collect(torch.randint(4096, (32, 16, 1), generator=rng))
        usage.settle()
    monitors = usage.monitors()
    assert monitors["usage"] > 0.99
    assert 0.9 < monitors["perplexity"] / 4096 < 1
    assert usage.batch_monitors(torch.randint(4096, (64, 16, 1), generator=rng))["usage"] < 0.25


def test_usage_and_perplexity_are_means_over_the_levels() -> None:
    values = torch.tensor(
        [[[0, 1], [0, 2]], [[0, 3], [0, 0]]]
    )  # level 1 always code 0, level 2 each of four codes once
    monitors = Usage([(2,)], 2, 4).batch_monitors(values)
    assert monitors["usage"] == pytest.approx((1 / 4 + 1) / 2)
    assert monitors["perplexity"] == pytest.approx((1 + 4) / 2)


@pytest.mark.parametrize(
    ("config", "fields", "words"),
    [
        (vq.Config, {"codes": 1}, "greater than or equal to 2"),
        (vq.Config, {"decay": 1.0}, "less than 1"),
        (vq.Config, {"commitment_weight": -1}, "greater than or equal to 0"),
        (vq.Config, {"code_dim": 1}, "two directions"),
        (vq.Config, {"code_dim": 1, "similarity": "euclidean", "rotation_trick": True}, "rotation_trick"),
        (vq.Config, {"update": "sgd"}, "'ema' or 'gradient'"),
        (vq.Config, {"code": 5}, "Extra inputs"),
        (residual.Config, {"num_quantizers": 1}, "greater than or equal to 2"),
        (residual.Config, {"similarity": "cosine"}, "Extra inputs"),
        (fsq.Config, {"levels": [8, 2]}, "greater than or equal to 3"),
        (fsq.Config, {"levels": []}, "at least 1 item"),
        (fsq.Config, {"levels": [64] * 5}, "more than"),
        (lfq.Config, {"codes": 100}, "power of 2, such as 64 or 128"),
        (simvq.Config, {"code_dim": 0}, "greater than or equal to 2"),
    ],
)
def test_impossible_values_are_refused(config: type[QuantizerConfig], fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config.model_validate({"kind": config.tiny().kind, **fields})
