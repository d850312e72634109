"""The Gaussian bottleneck, the statistics of latents, and pixels as tokens."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers.models import tokenizer_experiment
from torch.distributions import Normal, kl_divergence

from artok.errors import ConfigError
from artok.layout import Tokens
from artok.nn.patches import divides, merge_patches, patch_grid, split_patches
from artok.quantizers import gaussian
from artok.quantizers.gaussian import divergence
from artok.saved import fingerprint, load_tokenizer
from artok.tokenizers import conv, pixels
from artok.training.run import train

IMAGE = (3, 16, 16)


def images(count: int) -> torch.Tensor:
    return torch.rand(count, *IMAGE, generator=torch.Generator().manual_seed(count)) * 2 - 1


def autoencoder(**changes: object) -> conv.ConvTokenizer:
    torch.manual_seed(0)
    quantizer = gaussian.Config.tiny().model_copy(update=changes)
    return conv.Config.tiny().model_copy(update={"quantizer": quantizer}).build(IMAGE)


def test_the_divergence_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(2, 5, 4, 3, 3, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(divergence(mean, log_variance), expected, rtol=1e-12, atol=1e-12)


def test_the_weight_is_that_of_sums_over_an_image() -> None:
    """One more number an image in the reconstruction error must weigh as much as one more nat of divergence."""
    tokenizer = autoencoder(kl_weight=0.5).train()
    result = tokenizer(images(4))
    expected = 0.5 * result.monitors["kl_nats"] / math.prod(IMAGE)
    torch.testing.assert_close(result.losses["kl"].detach(), expected)


def test_the_posterior_is_sampled_in_training_only_and_with_its_own_deviation() -> None:
    bottleneck = gaussian.Config(latent_channels=2).build((4, 4)).train()
    latents = torch.zeros(4_000, 4, 4, 4)
    latents[:, :2], latents[:, 2:] = 3.0, 2 * math.log(0.5)
    drawn = bottleneck(latents)
    assert float(drawn.vectors.mean()) == pytest.approx(3.0, abs=0.01)
    assert float(drawn.vectors.std()) == pytest.approx(0.5, abs=0.01)
    assert float(drawn.monitors["posterior_deviation"]) == pytest.approx(0.5)
    assert torch.equal(bottleneck.eval()(latents).vectors, latents[:, :2])
    plain = gaussian.Config(latent_channels=2, sample=False).build((4, 4)).train()
    assert torch.equal(plain(latents).vectors, latents[:, :2])


@torch.no_grad()
def test_measured_latents_have_mean_0_and_deviation_1_and_decode_as_before() -> None:
    tokenizer = autoencoder().eval()
    before = tokenizer.decode(tokenizer.encode(images(6)))
    parts = [images(40), images(41)]
    logged = tokenizer.measure(parts)
    assert set(logged) == {"latent_mean", "latent_deviation"}
    values = tokenizer.encode(torch.cat(parts)).values.flatten(0, 1)
    torch.testing.assert_close(values.mean(0), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(values.std(0, unbiased=False), torch.ones(4), rtol=1e-4, atol=0)
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(images(6))), before, rtol=1e-3, atol=1e-4)


def test_codes_have_no_statistics() -> None:
    tokenizer = conv.Config.tiny().build(IMAGE).eval()
    assert tokenizer.measure([images(2)]) == {}
    assert not any("latent" in name for name in tokenizer.state_dict())


@pytest.mark.slow
def test_training_measures_the_latents_of_the_weights_it_writes(tmp_path: Path) -> None:
    section = {"quantizer": {"kind": "gaussian", "latent_channels": 4}}
    experiment = tokenizer_experiment(tokenizer=section, training={"ema": 0.9})
    assert train(experiment, tmp_path / "run")
    tokenizer, _ = load_tokenizer(tmp_path / "run")
    assert isinstance(tokenizer, conv.ConvTokenizer)
    split = experiment.data.open("train")
    examples = split.read(list(range(len(split)))).images.float() / 127.5 - 1
    with torch.no_grad():
        values = tokenizer.encode(examples).values.flatten(0, 1)
    torch.testing.assert_close(values.mean(0), torch.zeros(4), rtol=0, atol=0.02)
    torch.testing.assert_close(values.std(0), torch.ones(4), rtol=0.02, atol=0)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "posterior_deviation" in log and "latent_deviation" in log


# ------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_pixels_are_their_own_tokens(patch: int) -> None:
    tokenizer = pixels.Config(patch_size=patch).build(IMAGE)
    given = images(3)
    tokens = tokenizer.encode(given)
    assert tokens.values.shape == (3, (16 // patch) ** 2, 3 * patch**2)
    assert torch.equal(tokenizer.decode(tokens), given)
    corner = given[:, :, :patch, :patch].flatten(1)
    assert torch.equal(tokens.values[:, 0], corner)
    none = Tokens(tokens.values, tokens.layout, torch.zeros(3, tokens.layout.length, dtype=torch.bool))
    assert not tokenizer.decode(none).any()


def test_pixel_tokenizers_of_two_patches_are_told_apart() -> None:
    assert len({fingerprint(pixels.Config(patch_size=patch).build(IMAGE)) for patch in (1, 2, 4)}) == 3
    with pytest.raises(ConfigError, match=r"multiple of tokenizer\.patch_size 3"):
        pixels.Config(patch_size=3).build(IMAGE)


@pytest.mark.parametrize("grid", [(4, 6), (3, 4, 6)])
def test_patches_and_back(grid: tuple[int, ...]) -> None:
    vectors = torch.randn(2, math.prod(grid), 5)
    patches = split_patches(vectors, grid, 2)
    assert patches.shape == (2, math.prod(patch_grid(grid, 2)), 20)
    assert torch.equal(merge_patches(patches, grid, 2), vectors)
    whole = vectors.transpose(1, 2).unflatten(2, grid)
    first = whole[:, :, 0, :2, :2] if len(grid) == 3 else whole[:, :, :2, :2]
    assert torch.equal(patches[:, 0], first.flatten(1))
    assert not divides((16,), 2)
    assert divides((16,), 1)
