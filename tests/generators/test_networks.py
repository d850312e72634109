"""Each family's network written out once more, plainly: no cache, no masks where a loop will do, every part generic."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from helpers.generators import CLASSES, noise
from helpers.models import IMAGE, conv_around
from torch import Tensor, nn

from artok.conditioning.base import Context
from artok.generators import causal_mar, diffusion, mar, maskgit, raster, var
from artok.generators.gan_networks import dcgan, residual
from artok.generators.networks import dit, unet
from artok.layout import Condition, TokenLayout, Tokens
from artok.nn.rotary import rotary_table

CODES = TokenLayout(((4, 4),), 4, 16, IMAGE)
LATENTS = TokenLayout(((4, 4),), 4, None, IMAGE)
LABELS = torch.tensor([0, 2, 3])
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # float32, a few hundred roundings of numbers near 1


def generic(model: Any) -> Any:
    """Every parameter, biases and gains too, gets a value that shows."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def codes(layout: TokenLayout = CODES) -> Tensor:
    return torch.randint(0, 16, (3, *layout.value_shape()), generator=torch.Generator().manual_seed(1))


def context_of(model: Any) -> Context:
    context: Context = model.context(Condition(LABELS))
    return context


# ------------------------------------------------------------------------------------------------- raster


@torch.no_grad()
@pytest.mark.parametrize("position", ["zero", "origin", None])
def test_raster_is_llama_over_class_and_codes(position: str | None) -> None:
    layout = TokenLayout(((2, 3),), 4, 16, IMAGE, codes=2)
    config = raster.Config(depth=2, width=24, heads=2, multiple_of=8, class_position=position)  # type: ignore[arg-type]
    model, given = generic(config.build(layout, CLASSES)), codes(layout)
    levels = model.token_embedding.weight.unflatten(0, (2, 16))  # a vocabulary of its own for each level
    embedded = torch.stack([levels[level][given[:, :, level]] for level in range(2)], dim=2).flatten(1, 2)
    x = torch.cat([context_of(model).sequence, embedded[:, :-1]], dim=1)
    table = rotary_table((2, 3), 12, 10000.0).repeat_interleave(2, 0)  # the codes of a position share its place
    first = table[:1] if position == "origin" else torch.zeros_like(table[:1])
    rotary = torch.cat([first, table])[:12]
    mask = torch.ones(12, 12).tril().bool()
    for block in model.blocks:
        x = block(x, rotary, mask, None, 0)
    wanted = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * model.norm.weight @ model.head.weight.T
    torch.testing.assert_close(model.logits(given.flatten(1)[:, :-1], context_of(model)), wanted, **CLOSE)


# ------------------------------------------------------------------------------------------------- VAR


def layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def var_block(block: Any, x: Tensor, changes: Tensor, mask: Tensor, heads: int) -> Tensor:
    gate1, gate2, scale1, scale2, shift1, shift2 = (changes[:, None, index] for index in range(6))
    attention = block.attention
    weights = attention.qkv.weight.chunk(3)
    h = layer_norm(x) * (1 + scale1) + shift1
    q, k, v = (
        rearrange(h @ weight.T + bias, "b n (h d) -> b h n d", h=heads)
        for weight, bias in zip(weights, (attention.q_bias, 0.0, attention.v_bias), strict=True)
    )
    temperature = attention.log_temperature.exp().clamp(max=100)[:, None, None]
    scores = temperature * F.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1)
    mixed = scores.masked_fill(~mask, -math.inf).softmax(-1) @ v
    x = x + gate1 * attention.out(rearrange(mixed, "b h n d -> b n (h d)"))
    h = F.gelu(block.expand(layer_norm(x) * (1 + scale2) + shift2), approximate="tanh")
    return x + gate2 * block.contract(h)


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
def test_var_is_a_modulated_transformer_over_scales(shared: bool) -> None:
    torch.manual_seed(0)
    codec = conv_around("multiscale").build(IMAGE)
    codec(torch.rand(8, *IMAGE) * 2 - 1)
    codec.eval()
    model = generic(var.Config(depth=2, width=24, heads=2, shared_adaln=shared).build(codec.layout, CLASSES))
    model.blocks[0].attention.log_temperature[1] = math.log(100) + 1  # above its bound
    grids, width = codec.layout.grids, codec.layout.width
    tokens, pooled = Tokens(codes(codec.layout), codec.layout), context_of(model).pooled
    parts = [pooled[:, None] + model.start]
    for scale in range(1, len(grids)):
        coarse = F.adaptive_avg_pool2d(codec.prefix(tokens, scale), grids[scale])
        parts.append(model.word(coarse.permute(0, 2, 3, 1).reshape(3, -1, width)))
    level = torch.cat([torch.full((math.prod(grid),), scale) for scale, grid in enumerate(grids)])
    x = torch.cat(parts, dim=1) + model.position + model.level[level]
    for block in model.blocks:
        linear = model.shared_modulation.linear if shared else block.modulation.linear
        changes = linear(F.silu(pooled)).unflatten(1, (6, 24)) + (block.modulation.offset if shared else 0)
        x = var_block(block, x, changes, level[:, None] >= level, 2)
    scale, shift = model.head_modulation(F.silu(pooled))[:, None].chunk(2, dim=-1)
    wanted = model.head(layer_norm(x) * (1 + scale) + shift)
    torch.testing.assert_close(model.logits(tokens, context_of(model), codec), wanted, rtol=1e-3, atol=1e-3)
    changes = model.modulations(context_of(model))
    again = model.logits(tokens, context_of(model), codec)
    assert len(changes) == 2
    prefixes = codec.prefixes(tokens)[:-1]
    words = [model.words(scale, prefix) for scale, prefix in enumerate(prefixes, 1)]
    torch.testing.assert_close(model.run(words, context_of(model), changes=changes), again)
    nats = F.cross_entropy(wanted.transpose(1, 2), tokens.values[..., 0], reduction="none").sum(1)
    likelihood = model.log_likelihood(tokens, Condition(LABELS), codec)
    torch.testing.assert_close(likelihood, -nats.double(), rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------- masked and causal


@torch.no_grad()
def test_the_masked_transformer_encodes_what_is_known_and_decodes_all() -> None:
    config = mar.Config(depth=1, width=32, heads=2, decoder_width=24, decoder_heads=3, buffer_size=2, dropout=0.0)
    body = generic(config.build(LATENTS, CLASSES)).body
    torch.manual_seed(1)
    embedded, sequence, order = torch.randn(4, 16, 32), torch.randn(4, 1, 32), noise(4).permutation(16)
    context = Context(sequence[:, 0], sequence)
    counts = (5, 16, 12, 0)
    for row, count in enumerate(counts):
        known = order[row, count:]
        first = context.sequence[row].repeat(2, 1) + body.encoder_positions[0, :2]
        tokens = embedded[row, known] + body.encoder_positions[0, 2 + known]
        x = body.input_norm(torch.cat([first, tokens]))[None]
        for block in body.encoder:
            x = block(x)
        x = body.between(body.encoder_norm(x))[0]
        whole = body.mask_token[0].repeat(18, 1)
        whole[:2], whole[2 + known] = x[:2], x[2:]
        x = (whole + body.decoder_positions[0])[None]
        for block in body.decoder:
            x = block(x)
        wanted = body.decoder_norm(x)[:, 2:] + body.output_positions
        alone = body(embedded[row : row + 1], context[row : row + 1], order[row : row + 1], count)
        torch.testing.assert_close(alone, wanted, **CLOSE)
        torch.testing.assert_close(body(embedded, context, order, counts)[row : row + 1], wanted, **CLOSE)
        torch.testing.assert_close(body(embedded, context, order, torch.tensor(counts))[row : row + 1], wanted, **CLOSE)


@torch.no_grad()
def test_causal_mar_reads_the_tokens_before() -> None:
    config = causal_mar.Config(depth=1, width=32, heads=2, buffer_size=3, dropout=0.0)
    model = generic(config.build(LATENTS, CLASSES))
    torch.manual_seed(1)
    tokens, context = torch.randn(3, 16, 4), context_of(model)
    assert len(model.blocks) == 2
    whole = model.conditions(tokens[:, :-1], context)
    for place in (0, 1, 9, 15):
        x = torch.cat([context.sequence.repeat(1, 3, 1), model.input(tokens[:, :place])], dim=1)
        x = model.input_norm(x + model.positions[:, : 3 + place])
        mask = torch.ones(3 + place, 3 + place).tril().bool()
        for block in model.blocks:
            x = block(x, mask)
        wanted = model.norm(x[:, -1]) + model.output_positions[:, place]
        torch.testing.assert_close(whole[:, place], wanted, **CLOSE)


@torch.no_grad()
def test_the_loss_of_maskgit_is_over_masked_codes_with_smoothed_targets() -> None:
    config = maskgit.Config.tiny().model_copy(update={"label_smoothing": 0.2})
    model, given = generic(config.build(CODES, CLASSES)), codes()
    loss = model(Tokens(given, CODES), Condition(LABELS), noise(3), None)["masked_nll"]
    random, nats = noise(3), []
    order, counts = random.permutation(16), model.masked_counts(random.uniform())
    for row, count in enumerate(counts.tolist()):
        part, masked = slice(row, row + 1), order[row, :count]
        z = model.body(model.embedding(given[part, :, 0]), context_of(model)[part], order[part], count)
        logs = model.head(z)[0, masked].log_softmax(-1)
        likely = logs.gather(1, given[row, masked])
        nats.append(-(0.8 * likely[:, 0] + 0.2 * logs.mean(1)).mean())
    torch.testing.assert_close(loss, torch.stack(nats).mean(), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("family", [mar, causal_mar], ids=["mar", "causal_mar"])
def test_the_loss_of_mar_is_the_heads_on_the_tokens_to_predict(family: Any) -> None:
    model = generic(family.Config.tiny().build(LATENTS, CLASSES))
    tokens = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(1))
    losses = model(Tokens(tokens, LATENTS), Condition(LABELS), noise(3), None)
    random, terms = noise(3), []
    if family is mar:
        order, counts = random.permutation(16), model.masked_counts(random.uniform()).tolist()
        z = model.body(model.input(tokens), context_of(model), order, tuple(counts))
    else:
        order, counts = torch.arange(16).expand(3, -1), [16] * 3
        z = model.conditions(tokens[:, :-1], context_of(model))
    uniform, normal = random.uniform(16, 4), random.normal(16, 4, 4)
    for row, count in enumerate(counts):
        for place in order[row, :count].tolist():
            repeated = model.head.net.condition(z[row, place]).repeat(4, 1)
            found = model.head.diffusion.losses(
                lambda x, time, given=repeated: model.head.net(x, time, given),
                tokens[row, place].repeat(4, 1),
                normal[row, place],
                model.head.diffusion.times(uniform[row, place]),
            )
            terms.append({name: term.mean() / count / 3 for name, term in found.items()})
    for name, loss in losses.items():
        torch.testing.assert_close(loss, torch.stack([term[name] for term in terms]).sum(), **CLOSE)


# ------------------------------------------------------------------------------------------------- diffusion networks


def network_of(config: Any, grid: tuple[int, ...], width: int, out: int) -> Any:
    section = diffusion.Config(network=config)
    return config.build(grid, width, out, partial(section.conditioners, image=(3, 32, 32), classes=CLASSES))


def conditioners(width: int, grid: tuple[int, ...]) -> Any:
    return diffusion.Config(network=dit.Config.tiny()).conditioners(width, grid, image=(3, 32, 32), classes=CLASSES)


@torch.no_grad()
def test_dit_is_a_transformer_over_patches_in_their_places() -> None:
    network = generic(network_of(dit.Config(depth=2, width=32, heads=2, mlp_ratio=2.0), (4, 6), 3, 6))
    torch.manual_seed(1)
    x, times, context = torch.randn(3, 24, 3), torch.tensor([0.0, 5.0, 700.0]), network.conditioner(Condition(LABELS))
    patches = rearrange(x, "b (h p w q) d -> b (h w) (d p q)", h=2, p=2, w=3, q=2)
    h = network.input(patches) + network.positions
    given = network.time(times) + context.pooled
    for block in network.blocks:
        h = block(h, given)
    h = network.output(h, given[:, None])
    wanted = rearrange(h, "b (h w) (d p q) -> b (h p w q) d", h=2, w=3, d=6, p=2, q=2)
    torch.testing.assert_close(network(x, times, context), wanted, **CLOSE)
    assert network.blocks[0].feed_forward[0].out_features == 64


def unet_plainly(network: unet.UNet, x: Tensor, given: Tensor) -> Tensor:
    """Two levels with a residual block each: three states on the way down before the middle, taken back in reverse."""

    def block(stage: Any, x: Tensor) -> Tensor:
        inner = stage.block
        h = inner.norm2(inner.conv1(F.silu(inner.norm1(x))))
        scale, shift = inner.modulation(given)[..., None, None].chunk(2, dim=1)
        x = inner.skip(x) + inner.conv2(F.silu(h * (1 + scale) + shift))
        return stage.attention(x)

    first, smaller, second = network.down
    top, top_again, larger, bottom, bottom_again = (network.up[index] for index in (3, 4, 2, 0, 1))
    a = network.input(x)
    b = block(first, a)
    c = smaller(b)
    d = block(second, c)
    h = d
    for stage in network.middle:
        h = block(stage, h)
    h = block(bottom, torch.cat([h, d], dim=1))
    h = larger(block(bottom_again, torch.cat([h, c], dim=1)))
    h = block(top, torch.cat([h, b], dim=1))
    h = block(top_again, torch.cat([h, a], dim=1))
    return network.output(F.silu(network.norm_out(h)))


@torch.no_grad()
def test_the_unet_takes_its_states_back_in_reverse() -> None:
    config = unet.Config(
        base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, groups=4, attention_resolutions=(1,)
    )
    network = generic(network_of(config, (4, 6), 3, 5))
    attends = [
        type(stage.attention).__name__
        for stage in [*network.down, *network.middle, *network.up]
        if hasattr(stage, "attention")
    ]
    assert attends == ["Identity", *["PixelAttention"] * 2, "Identity", *["PixelAttention"] * 2, *["Identity"] * 2]
    torch.manual_seed(1)
    x, times, context = torch.randn(3, 24, 3), torch.tensor([0.0, 5.0, 700.0]), network.conditioner(Condition(LABELS))
    grid = rearrange(x, "b (h w) d -> b d h w", h=4)
    wanted = rearrange(unet_plainly(network, grid, network.time(times) + context.pooled), "b d h w -> b (h w) d")
    torch.testing.assert_close(network(x, times, context), wanted, rtol=1e-3, atol=1e-3)
    assert network.time.layers[2].out_features == 32  # four times the channels
    assert network.down[2].block.modulation[1].out_features == 2 * 16  # a scale and a shift for each channel
    deep = unet.Config(base_channels=8, channel_multipliers=(1, 2, 2), groups=4)
    assert "multiples of 4" in str(deep.refuse((6, 8)))
    assert deep.refuse((4, 8)) is None and "two axes" in str(deep.refuse((4, 4, 4)))


# ------------------------------------------------------------------------------------------------- GAN networks


@torch.no_grad()
def test_dcgan_doubles_a_small_map_up_to_the_grid() -> None:
    config = dcgan.Config(channels=(12, 8), embedding_dim=5)
    network = generic(config.build(6, (8, 12), 3, conditioners))
    torch.manual_seed(1)
    latents, context = torch.randn(3, 6), network.conditioner(Condition(LABELS))
    x = network.start(torch.cat([latents, context.pooled], dim=1)).reshape(3, 12, 2, 3)
    x = network.convolutions[0](F.relu(network.norms[0](x)))
    x = network.convolutions[1](F.relu(network.norms[1](x)))
    torch.testing.assert_close(network(latents, context), torch.tanh(x), **CLOSE)
    assert x.shape == (3, 3, 8, 12)
    assert [layer.bias is not None for layer in network.convolutions] == [False, True]
    assert config.refuse((8, 12)) is None and "multiples of 4" in str(config.refuse((6, 8)))


@torch.no_grad()
def test_the_residual_generator_scales_its_basis_by_the_latent() -> None:
    config = residual.Config(channels=(8, 8, 4), blocks=2, groups=2, embedding_dim=5)
    network = generic(config.build(6, (8, 12), 3, conditioners))
    torch.manual_seed(1)
    latents, context = torch.randn(3, 6), network.conditioner(Condition(LABELS))
    from artok.nn.blur2d import double

    x = network.basis * (torch.cat([latents, context.pooled], dim=1) @ network.scale.weight.T)[:, :, None, None]
    assert x.shape == (3, 8, 2, 3)
    x = network.stages[0](x)
    x = network.stages[1](double(network.transitions[0](x)))
    x = network.stages[2](double(network.transitions[1](x)))
    torch.testing.assert_close(network(latents, context), F.conv2d(x, network.end.weight), **CLOSE)
    assert [len(stage) for stage in network.stages] == [2, 2, 2]
    assert config.refuse((8, 12)) is None and "multiples of 4" in str(config.refuse((6, 8)))
