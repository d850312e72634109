"""The contract of every tokenizer kind, and of the convolutional one around every quantizer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers.models import EVERY_TOKENIZER, IMAGE

from artok.config import validate
from artok.errors import CheckpointError, ConfigError
from artok.layout import Tokens
from artok.nn.gradient_checkpointing import set_gradient_checkpointing
from artok.saved import fingerprint, read_weights, whole_state, write_weights
from artok.tokenizers import conv
from artok.tokenizers.base import Tokenizer, TokenizerConfig
from artok.tokenizers.diffusion_decoder import DiffusionDecoderConfig


def denoising() -> TokenizerConfig:
    section = DiffusionDecoderConfig(depth=1, width=16, heads=2)
    return conv.Config.tiny().model_copy(update={"diffusion_decoder": section})


CASES = EVERY_TOKENIZER | {"conv-denoising": denoising}


@pytest.fixture(params=CASES)
def config(request: pytest.FixtureRequest) -> TokenizerConfig:
    return CASES[request.param]()


@pytest.fixture
def tokenizer(config: TokenizerConfig) -> Tokenizer:
    torch.manual_seed(0)
    built = config.build(config.tiny_image)
    built(images(8, config))  # a training pass, so that codebooks are started
    return built.eval()


def images(count: int, config: TokenizerConfig | None = None) -> torch.Tensor:
    size = IMAGE if config is None else config.tiny_image
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(count)) * 2 - 1


@torch.no_grad()
def test_decoding_what_was_encoded_gives_images(config: TokenizerConfig, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(images(5, config))
    decoded = tokenizer.decode(tokens)
    assert decoded.shape == (5, *config.tiny_image)
    assert decoded.isfinite().all()


@torch.no_grad()
def test_the_declared_layout_is_the_real_one(config: TokenizerConfig, tokenizer: Tokenizer) -> None:
    layout, tokens = tokenizer.layout, tokenizer.encode(images(3, config))
    assert layout.image == config.tiny_image
    assert tokens.layout == layout
    assert tuple(tokens.values.shape[1:]) == layout.value_shape()
    assert tokenizer.embed(tokens).shape == (3, layout.width, *layout.grid)
    if layout.vocab is not None:
        assert tokens.values.dtype == torch.int64
        assert 0 <= int(tokens.values.min()) <= int(tokens.values.max()) < layout.vocab


@torch.no_grad()
def test_encoding_is_deterministic_and_by_image(config: TokenizerConfig, tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode(images(6, config)).values
    assert torch.equal(whole, tokenizer.encode(images(6, config)).values)
    torch.testing.assert_close(tokenizer.encode(images(6, config)[2:4]).values, whole[2:4], rtol=1e-4, atol=1e-4)


def test_the_training_pass_reaches_every_weight(config: TokenizerConfig) -> None:
    torch.manual_seed(0)
    tokenizer = config.build(config.tiny_image).train()
    result = tokenizer(images(4, config))
    assert result.images.shape == (4, *config.tiny_image)
    loss = result.images.square().mean() + sum(result.losses.values(), torch.zeros(()))
    if not any(True for _ in tokenizer.parameters()):
        return
    loss.backward()
    idle = [name for name, p in tokenizer.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


@torch.no_grad()
def test_saved_and_loaded_it_gives_the_same_bits(config: TokenizerConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_weights(whole_state(tokenizer), tmp_path / "model.safetensors")
    torch.manual_seed(1)
    other = config.build(config.tiny_image).eval()
    read_weights(other, tmp_path / "model.safetensors")
    assert torch.equal(other.encode(images(4, config)).values, tokenizer.encode(images(4, config)).values)
    tokens = tokenizer.encode(images(4, config))
    assert torch.equal(other.decode(tokens), tokenizer.decode(tokens))
    assert fingerprint(other) == fingerprint(tokenizer)


@torch.no_grad()
def test_undecided_tokens_are_zero_vectors(config: TokenizerConfig, tokenizer: Tokenizer) -> None:
    layout, tokens = tokenizer.layout, tokenizer.encode(images(2, config))
    none = torch.zeros(2, layout.length, dtype=torch.bool)
    assert not tokenizer.embed(Tokens(tokens.values, layout, none)).any()
    every = Tokens(tokens.values, layout, ~none)
    torch.testing.assert_close(tokenizer.embed(every), tokenizer.embed(tokens))
    assert not tokenizer.prefix(tokens, 0).any()
    torch.testing.assert_close(tokenizer.prefix(tokens, len(layout.grids)), tokenizer.embed(tokens))


def test_gradient_checkpointing_changes_no_gradient(config: TokenizerConfig) -> None:
    if set_gradient_checkpointing(config.build(config.tiny_image), True) == 0:
        pytest.skip("has no blocks whose activations could be computed twice")

    def gradients(on: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        tokenizer = config.build(config.tiny_image).train()
        set_gradient_checkpointing(tokenizer, on)
        result = tokenizer(images(4, config))
        (result.images.square().mean() + sum(result.losses.values(), torch.zeros(()))).backward()
        return [p.grad for p in tokenizer.parameters() if p.grad is not None]

    for plain, again in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize(("downsample", "patch"), [(2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (2, 2), (4, 4), (16, 4)])
def test_the_latent_grid_is_the_image_over_the_downsampling(downsample: int, patch: int) -> None:
    levels = int(math.log2(downsample // patch)) + 1
    changes = {"downsample": downsample, "patch_size": patch, "channel_multipliers": (1,) * levels}
    tokenizer = conv.Config.tiny().model_copy(update=changes).build((3, 64, 32))
    assert tokenizer.layout.grid == (64 // downsample, 32 // downsample)
    assert tokenizer(torch.zeros(2, 3, 64, 32)).images.shape == (2, 3, 64, 32)


def test_attention_stands_where_it_was_asked_for() -> None:
    def attentions(where: tuple[int, ...] | str, middle: bool) -> int:
        section = {
            "attention_resolutions": where,
            "middle_attention": middle,
            "quantizer": {"kind": "vq", "codebook_size": 8},
        }
        section |= {
            "kind": "conv",
            "downsample": 4,
            "channel_multipliers": [1, 1, 1],
            "base_channels": 8,
            "num_res_blocks": 2,
        }
        built = validate(conv.Config, section, "test").build((3, 16, 16))
        return sum(type(module).__name__ == "PixelAttention" for module in built.modules())

    assert attentions((), middle=False) == 0
    assert attentions((), middle=True) == 2
    assert attentions("coarsest", middle=False) == attentions((4,), middle=False) == 2 + 3
    assert attentions((8, 4), middle=False) == 2 * (2 + 3)


@pytest.mark.parametrize(
    ("image", "words"), [((3, 2, 2), "smaller than the downsampling"), ((3, 18, 16), "multiple of the downsampling")]
)
def test_images_that_do_not_fit_are_refused(image: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        conv.Config.tiny().build(image)


def test_patches_take_the_place_of_the_finest_levels() -> None:
    section = conv.Config.tiny().model_dump() | {"downsample": 4, "patch_size": 2}
    with pytest.raises(ConfigError, match="downsample 4 after patches of 2 needs 2 multipliers, got 3"):
        validate(conv.Config, section, "test")
    with pytest.raises(ConfigError, match="patch_size 4 is more than downsample 2"):
        validate(conv.Config, section | {"downsample": 2, "patch_size": 4}, "test")
    section |= {"channel_multipliers": (1, 2), "attention_resolutions": (8,), "middle_attention": False}
    tokenizer = validate(conv.Config, section, "test").build((3, 16, 16))
    seen: list[tuple[int, ...]] = []
    tokenizer.encoder.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    tokenizer.encode(images(2))
    assert seen == [(2, 3 * 4, 8, 8)]
    assert sum(type(module).__name__ == "PixelAttention" for module in tokenizer.encoder.modules()) == 1


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    write_weights(whole_state(conv.Config.tiny().build(IMAGE)), tmp_path / "model.safetensors")
    wider = conv.Config.tiny().model_copy(update={"base_channels": 16}).build(IMAGE)
    with pytest.raises(CheckpointError, match=r"another architecture.*of another shape"):
        read_weights(wider, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        read_weights(wider, tmp_path / "model.safetensors")
