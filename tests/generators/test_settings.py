"""Settings reach what they are for: each of these tests fails when its setting is ignored."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.generators import CLASSES, condition, noise, randomise_zeros
from helpers.models import IMAGE
from torch import Tensor, nn

from artok.data.tokens import TokenBatch
from artok.generators import diffusion, maskgit
from artok.layout import NO_LABEL, Condition, TokenLayout, Tokens, last
from artok.noise import Noise
from artok.sampling.diffusion import Diffusion, DiffusionConfig
from artok.sampling.settings import Sampling
from artok.training.tasks import GeneratorTask

LATENTS = TokenLayout(((4, 4),), 4, None, IMAGE)
CODES = TokenLayout(((4, 4),), 4, 16, IMAGE)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_training_hides_labels_as_often_as_class_dropout_says(share: float) -> None:
    task = object.__new__(GeneratorTask)
    task.device, task.class_dropout = torch.device("cpu"), share
    task.experiment, task.tokenizer = SimpleNamespace(seed=0), None  # type: ignore[assignment]
    task.generator = masked_codes()
    seen: list[Condition] = []

    class Model(nn.Module):
        def forward(self, tokens: Tokens, given: Condition, *_: Any) -> dict[str, Tensor]:
            seen.append(given)
            return {}

    count = 4000
    batch = TokenBatch(Tokens(torch.zeros(count, 16, 4), LATENTS), torch.arange(count) % CLASSES, torch.arange(count))
    task.losses({"model": Model()}, "model", batch, 0)
    hidden = seen[0].labels == NO_LABEL
    assert float(hidden.float().mean()) == pytest.approx(share, abs=4 * math.sqrt(0.25 / count))
    assert torch.equal(seen[0].labels[~hidden], batch.labels[~hidden])


# ------------------------------------------------------------------------------------------------- MaskGIT


def masked_codes() -> maskgit.MaskedCodes:
    torch.manual_seed(0)
    model = maskgit.Config.tiny().build(CODES, CLASSES).eval()
    randomise_zeros(model)
    return model


def test_the_noise_on_the_confidence_falls_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    honest, temperatures = maskgit.confidence, list[float]()

    def watched(logits: Tensor, drawn: Tensor, random: Noise, temperature: float) -> Tensor:
        temperatures.append(temperature)
        return honest(logits, drawn, random, temperature)

    monkeypatch.setattr(maskgit, "confidence", watched)
    with torch.no_grad():
        last(masked_codes().steps(condition(2), Sampling(steps=4, choice_temperature=6.0), noise(2), None))
    assert temperatures == [4.5, 3.0, 1.5, 0.0]


def test_the_share_of_masked_codes_is_the_cosine_of_a_uniform_number() -> None:
    model = maskgit.Config.tiny().build(TokenLayout(((32, 32),), 4, 16, IMAGE), CLASSES)
    uniform = torch.linspace(0, 1, 101)
    wanted = (torch.cos(math.pi / 2 * uniform) * 1024).ceil().clamp(1, 1024)
    assert model.masked_counts(uniform).tolist() == wanted.tolist()
    assert model.expected == pytest.approx(2 / math.pi, abs=1e-3)


# ------------------------------------------------------------------------------------------------- diffusion


def sample(sampling: Sampling, **settings: Any) -> Tensor:
    torch.manual_seed(0)
    section = DiffusionConfig(timesteps=50, steps=10, **settings)
    model = diffusion.Config.tiny().model_copy(update={"diffusion": section}).build(LATENTS, CLASSES).eval()
    randomise_zeros(model)
    with torch.no_grad():
        return last(model.steps(condition(3), sampling, noise(3), None)).values


def test_the_variance_of_ddpm_and_the_eta_of_ddim_are_used() -> None:
    posterior = sample(Sampling(solver="ddpm"), variance="posterior")
    assert not torch.allclose(sample(Sampling(solver="ddpm"), variance="beta"), posterior, rtol=0.01)
    assert not torch.allclose(sample(Sampling(solver="ddim", eta=0.0)), posterior, rtol=0.01)
    whole = sample(Sampling(solver="ddim", eta=1.0))  # DDPM with the posterior's variance (Song et al. 2021, section 4)
    torch.testing.assert_close(whole, posterior, rtol=1e-3, atol=1e-3 * float(posterior.abs().max()))


def test_min_snr_gamma_weighs_the_loss_by_noise_level() -> None:
    times = torch.tensor([5, 300, 900])
    clean, added = torch.randn(3, 16, 4), torch.randn(3, 16, 4)
    losses = []
    for gamma in (None, 5.0):
        model = Diffusion(DiffusionConfig(min_snr_gamma=gamma))
        at = model.at(times)
        losses.append(model.losses(lambda x, time: 0 * x, clean, added, at)["mse"])
    snr = (at.signal / at.sigma).square()
    torch.testing.assert_close(losses[1] / losses[0], snr.clamp(max=5.0) / snr)
