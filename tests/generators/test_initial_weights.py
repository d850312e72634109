"""Models start as published: deviations of their first weights, and which of them start at zero."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from helpers.generators import CLASSES
from helpers.models import IMAGE
from torch import Tensor, nn

from artok.generators import causal_mar, diffusion, mar, maskgit, raster, var
from artok.generators.gan_networks import dcgan
from artok.generators.networks import dit, unet
from artok.layout import TokenLayout

CODES = TokenLayout(((8, 8),), 16, 64, IMAGE)
LATENTS = TokenLayout(((8, 8),), 16, None, IMAGE)
SCALES = TokenLayout(((1, 1), (4, 4), (8, 8)), 16, 64, IMAGE)


def built(config: Any, layout: TokenLayout) -> Any:
    torch.manual_seed(0)
    return config.build(layout, 10)


def assert_deviation(weight: Tensor, wanted: float) -> None:
    """Mean 0 and this deviation, to five standard errors of an estimate from so many numbers."""
    weight, count = weight.detach(), weight.numel()
    assert abs(float(weight.mean())) < 5 * wanted / math.sqrt(count) + 1e-12
    assert float(weight.square().mean().sqrt()) == pytest.approx(wanted, rel=5 / math.sqrt(2 * count))


def assert_xavier(layer: nn.Linear) -> None:
    bound = math.sqrt(6 / (layer.in_features + layer.out_features))
    assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound
    assert_deviation(layer.weight, bound / math.sqrt(3))
    assert not layer.bias.any()


def test_raster_starts_small_with_a_silent_head() -> None:
    model = built(raster.Config(depth=1, width=64, heads=2, multiple_of=8), CODES)
    block = model.blocks[0]
    inner = (block.attention.qkv, block.attention.out, block.feed_forward.gate_and_value, block.feed_forward.out)
    for layer in (model.token_embedding, model.conditioner["labels"].embedding, *inner):
        assert_deviation(layer.weight, 0.02)
    assert not model.head.weight.any()
    tied = built(raster.Config(depth=1, width=64, heads=2, tied_head=True), CODES)
    assert tied.head.weight is tied.token_embedding.weight
    assert_deviation(tied.head.weight, 0.02)


@pytest.mark.parametrize("shared", [False, True])
def test_var_starts_as_published(shared: bool) -> None:
    model = built(var.Config(depth=3, width=64, heads=2, gate_init=1e-2, shared_adaln=shared), SCALES)
    usual = (3 * 64) ** -0.5
    block = model.blocks[1]
    for weight in (model.start, model.position, model.level, model.conditioner["labels"].embedding.weight):
        assert_deviation(weight, usual)
    for layer, factor in (
        (model.word, 1.0),
        (model.head, 0.02),
        (model.head_modulation, 0.5),
        (block.attention.qkv, 1.0),
        (block.expand, 1.0),
        (block.attention.out, 1 / math.sqrt(6)),  # two branches in each of three blocks
        (block.contract, 1 / math.sqrt(6)),
    ):
        assert_deviation(layer.weight, factor * usual)
        assert layer.bias is None or not layer.bias.any()
    modulation = model.shared_modulation if shared else block.modulation
    assert_deviation(modulation.linear.weight[:128], 1e-2 * usual)
    assert_deviation(modulation.linear.weight[128:], 0.5 * usual)
    assert not modulation.linear.bias.any()
    if shared:
        offset = block.modulation.offset
        assert_deviation(offset[:2], 1e-2 / 8)
        assert_deviation(offset[2:], 0.5 / 8)
    torch.testing.assert_close(block.attention.log_temperature.detach().exp(), torch.full((2,), 4.0))
    assert not block.attention.q_bias.any() and not block.attention.v_bias.any()


@pytest.mark.parametrize("family", [mar, causal_mar, maskgit], ids=lambda family: family.__name__.rpartition(".")[2])
def test_the_masked_families_start_from_xavier_and_their_embeddings_from_a_setting(family: Any) -> None:
    config = family.Config.tiny().model_copy(update={"embedding_init": 0.3, "width": 64})
    model = built(config, CODES if family is maskgit else LATENTS)
    body = model if family is causal_mar else model.body
    blocks = body.blocks if family is causal_mar else [*body.encoder, *body.decoder]
    for block in blocks:
        for layer in (block.attention.qkv, block.attention.out, block.feed_forward[0], block.feed_forward[2]):
            assert_xavier(layer)
    assert_deviation(model.conditioner["labels"].embedding.weight, 0.3)
    assert_deviation(body.output_positions, 0.02)
    if family is causal_mar:
        assert_deviation(body.positions, 0.3)
    else:
        assert_xavier(body.between)
        for weight in (body.mask_token, body.encoder_positions, body.decoder_positions):
            assert_deviation(weight, 0.3)
    if family is maskgit:
        assert_deviation(model.embedding.weight, 0.3)
        assert_xavier(model.head[1])
    else:
        assert_xavier(model.input)
        given = config.model_copy(update={"token_init": 0.7})
        assert_deviation(built(given, LATENTS).input.weight, 0.7)


def network_of(config: Any) -> Any:
    torch.manual_seed(0)
    section = diffusion.Config(network=config)
    return config.build((8, 8), 16, 32, partial(section.conditioners, image=(3, 32, 32), classes=CLASSES))


def test_dit_starts_as_published() -> None:
    network = network_of(dit.Config(depth=1, width=64, heads=2, condition_init=0.1))
    block = network.blocks[0]
    for layer in (network.input, block.attention.qkv, block.attention.out, *block.feed_forward[::2]):
        assert_xavier(layer)
    for weight in (network.time.layers[0].weight, network.time.layers[2].weight):
        assert_deviation(weight, 0.1)
    assert_deviation(network.conditioner["labels"].embedding.weight, 0.1)
    assert not network.output.out.weight.any() and not block.modulation[1].weight.any()
    assert dit.Config(depth=1).condition_init == 0.02


def test_the_unet_and_its_residual_branches_start_at_zero() -> None:
    network = network_of(unet.Config(base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, groups=4))
    zeros = [network.output]
    for stage in [*network.down, *network.middle, *network.up]:
        if hasattr(stage, "block"):
            zeros += [stage.block.conv2, stage.block.modulation[1]]
    assert len(zeros) == 1 + 2 * 8
    assert not any(layer.weight.any() or layer.bias.any() for layer in zeros)


def test_dcgan_starts_as_published() -> None:
    config = dcgan.Config(channels=(32, 16), embedding_dim=8)
    section = diffusion.Config(network=dit.Config.tiny())
    torch.manual_seed(0)
    network = config.build(16, (8, 8), 3, partial(section.conditioners, image=(3, 8, 8), classes=CLASSES))
    for layer in (network.start, *network.convolutions):
        assert_deviation(layer.weight, 0.02)
