"""What quantizers save and collect, what their configs leave out, and whose their random draws are."""

from __future__ import annotations

import pytest
import torch
from helpers.quantizers import CONFIGS, built, latents

from artok.config import find
from artok.noise import Noise
from artok.quantizers import gaussian, gumbel, multiscale
from artok.quantizers.base import QuantizerConfig

TABLE = {
    "codebook_size": 256,
    "code_dim": 8,
    "update": "ema",
    "decay": 0.9,
    "commitment_weight": 0.25,
    "kmeans_init": False,
    "kmeans_iters": 10,
    "dead_code_threshold": 0.05,
    "rotation_trick": False,
}
SCALES = {"scales": None, "phi": 4, "scale_dropout": 0.0, "standardise": False, "usage_balancing": 0.0}
DEFAULTS: dict[str, dict[str, object]] = {
    "vq": TABLE | {"commitment_weight": 1.0, "similarity": "cosine"},
    "residual": TABLE | {"codebook_size": 64, "num_quantizers": 3},
    "multiscale": TABLE | SCALES,
    "fsq": {"levels": [8, 6, 5]},
    "lfq": {
        "codebook_size": 256,
        "entropy_weight": 0.1,
        "diversity_gamma": 1.0,
        "temperature": 0.01,
        "commitment_weight": 0.25,
    },
    "simvq": {"codebook_size": 256, "code_dim": 8, "commitment_weight": 0.25, "rotation_trick": True},
    "gumbel": {"codebook_size": 256, "code_dim": 8, "temperature": 1.0, "kl_weight": 5e-4},
    "gaussian": {"latent_channels": 16, "kl_weight": 1e-6, "sample": True},
}


@pytest.mark.parametrize("kind", DEFAULTS)
def test_what_a_config_leaves_out_keeps_its_meaning(kind: str) -> None:
    config = find("quantizers", kind)()
    assert config.model_dump() == {"kind": kind} | DEFAULTS[kind]
    assert isinstance(config, QuantizerConfig) and config.build((4, 4)).grids[-1] == (4, 4)


BOOK = ("started", "counts", "sums", "table")
SAVED: dict[str, set[str]] = {
    "vq": {f"levels.0.{name}" for name in BOOK},
    "residual": {f"levels.{level}.{name}" for level in range(2) for name in BOOK},
    "multiscale balanced": {f"book.{name}" for name in BOOK}
    | {f"phi.{index}.convolution.{name}" for index in range(3) for name in ("weight", "bias")}
    | {"standardisation.mean", "standardisation.variance", "balancing.bias"},
    "fsq": set(),
    "lfq": set(),
    "simvq": {"frozen", "transform.weight"},
    "gumbel": {"scores.weight", "scores.bias", "table.weight"},
    "gaussian": set(),
}


@pytest.mark.parametrize("name", SAVED)
def test_saved_weights_hold_what_is_learned_and_nothing_of_a_step(name: str) -> None:
    assert built(CONFIGS[name]).state_dict().keys() == SAVED[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_step_collects_keeps_no_graph(name: str) -> None:
    quantizer = built(CONFIGS[name]).train()
    given = latents(quantizer).requires_grad_()
    quantizer.start(given, 0, 1)
    for _ in range(2):
        quantizer(given)
        assert not any(buffer.requires_grad for buffer in quantizer.buffers())
        quantizer.settle()
        assert not any(buffer.requires_grad for buffer in quantizer.buffers())
        assert all(parameter.is_leaf for parameter in quantizer.parameters())


RANDOM: dict[str, QuantizerConfig] = {
    "gaussian": gaussian.Config(latent_channels=4),
    "gumbel": gumbel.Config(codebook_size=16, code_dim=4),
    "scale dropout": multiscale.Config(codebook_size=16, code_dim=4, scale_dropout=0.5),
}


@pytest.mark.parametrize("name", RANDOM)
def test_draws_belong_to_images(name: str) -> None:
    """An image is quantized the same in any batch; without noise of its own, otherwise at each pass."""
    quantizer = built(RANDOM[name]).train()
    given, positions = latents(quantizer, 16), torch.arange(16)
    quantizer.noise = Noise(3, positions)
    whole = quantizer(given).vectors
    assert quantizer.noise is None
    for rows in (torch.arange(5), torch.tensor([15, 2, 9])):
        quantizer.noise = Noise(3, positions[rows])
        torch.testing.assert_close(quantizer(given[rows]).vectors, whole[rows], atol=1e-6, rtol=0)
    assert not torch.allclose(quantizer(given).vectors, quantizer(given).vectors)


def test_scale_dropout_of_all_images_leaves_out_the_last_scale_of_each() -> None:
    """The three shorter prefixes of four are alike likely: 1/3 of 600 images, within 5 deviations of 11.5."""
    quantizer = built(multiscale.Config(codebook_size=16, code_dim=4, scales=(1, 2, 3, 4), scale_dropout=1.0)).train()
    torch.nn.init.normal_(quantizer.book.table)
    given = latents(quantizer, 600)
    out = quantizer(given)
    errors = torch.stack([(out.vectors - each).flatten(1).norm(dim=1) for each in quantizer.prefixes(out.values)])
    shown = errors.argmin(0)
    assert errors.min(0).values.max() < 1e-4
    assert (
        (shown.bincount(minlength=4) - torch.tensor([200, 200, 200, 0])).abs() < torch.tensor([58, 58, 58, 1])
    ).all()
    quantizer.eval()
    torch.testing.assert_close(quantizer(given).vectors, quantizer.lookup(out.values), atol=1e-5, rtol=0)
