"""VAR's tokenizer and transformer compute what the official code computed, on its own recorded tensors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.paths import FIXTURES
from safetensors.torch import load_file
from torch import Tensor

from artok.generators import var
from artok.generators.var import Var
from artok.layout import Condition, Tokens
from artok.nn.resize import shrink
from artok.noise import Noise
from artok.quantizers import multiscale
from artok.sampling.logits import probabilities
from artok.sampling.settings import Sampling
from artok.tokenizers import conv
from artok.tokenizers.conv import ConvTokenizer

TRANSFORMERS = ["var_transformer", "var_transformer_shared_aln"]

pytestmark = pytest.mark.skipif(
    not (FIXTURES / "var_vqvae.safetensors").exists(), reason=f"the official fixtures are not in {FIXTURES}"
)


@dataclass
class Recorded:
    """weights: the state dict under official keys. io: recorded tensors. about: sizes and settings."""

    weights: dict[str, Tensor]
    io: dict[str, Tensor]
    about: dict[str, Any]


def recorded(name: str) -> Recorded:
    tensors = load_file(FIXTURES / f"{name}.safetensors")

    def group(prefix: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(prefix): value.float() if value.is_floating_point() else value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }

    return Recorded(group("weights/"), group("io/"), json.loads((FIXTURES / f"{name}.json").read_text()))


def tokenizer_key(key: str, levels: int, blocks: int) -> str:
    """The name in `ConvTokenizer` of an official tokenizer weight."""
    key = re.sub(r"^quant_conv", "to_quantizer", key)
    key = re.sub(r"^post_quant_conv", "from_quantizer", key)
    key = re.sub(r"^quantize\.quant_resi\.qresi_ls\.(\d+)", r"quantizer.phi.\1.convolution", key)
    key = key.replace("nin_shortcut", "skip").replace("proj_out", "out").replace(".upsample.conv", ".upsample")
    key = re.sub(
        r"mid\.(block_1|attn_1|block_2)", lambda m: f"middle.{['block_1', 'attn_1', 'block_2'].index(m[1])}", key
    )

    def level(match: re.Match[str]) -> str:
        way, index, kind, place = match[1], int(match[2]), match[3], int(match[4])
        index = index if way == "down" else levels - 1 - index
        deepest = index == (levels - 1 if way == "down" else 0)
        return f"levels.{index}.{place * 2 + (kind == 'attn') if deepest else place}"

    key = re.sub(r"(down|up)\.(\d+)\.(block|attn)\.(\d+)", level, key)
    key = re.sub(r"down\.(\d+)\.downsample\.conv", r"downsamples.\1.conv", key)
    return re.sub(r"up\.(\d+)\.upsample", lambda m: f"upsamples.{levels - 1 - int(m[1])}.conv", key)


def tokenizer() -> tuple[ConvTokenizer, Recorded]:
    fixture = recorded("var_vqvae")
    made, over = fixture.about["constructor"], fixture.about["overrides"]
    levels, blocks = len(over["ch_mult"]), over["num_res_blocks"]
    config = conv.Config(
        downsample=2 ** (levels - 1),
        width=made["ch"],
        channel_multipliers=over["ch_mult"],
        num_res_blocks=blocks,
        latent=made["z_channels"],
        quantizer_kernel=made["quant_conv_ks"],
        quantizer=multiscale.Config(
            codebook_size=made["vocab_size"],
            width=made["z_channels"],
            scales=made["v_patch_nums"],
            update="gradient",
            dead_code_threshold=0,
            phi=made["share_quant_resi"],
        ),
    )
    built = config.build(tuple(fixture.io["image"].shape[1:])).eval()
    state = {
        tokenizer_key(key, levels, blocks): value
        for key, value in fixture.weights.items()
        if not key.startswith("quantize.e")
    }
    table = fixture.weights["quantize.embedding.weight"]
    state["quantizer.book.table"] = table[None]
    left = built.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert all(key.startswith("quantizer.book.") for key in left.missing_keys)
    return built, fixture


def transformer_state(fixture: Recorded) -> dict[str, Tensor]:
    """Official transformer weights under the names of `Var`."""
    names = {
        "class_emb.weight": "conditioner.labels.embedding.weight",
        "pos_start": "start",
        "pos_1LC": "position",
        "lvl_embed.weight": "level",
    }
    rules = [
        (r"^word_embed", "word"),
        (r"^head_nm\.ada_lin\.1", "head_modulation"),
        (r"^shared_ada_lin\.1", "shared_modulation.linear"),
        (r"\.ada_lin\.1", ".modulation.linear"),
        (r"\.ada_gss", ".modulation.offset"),
        (r"\.attn\.mat_qkv", ".attention.qkv"),
        (r"\.attn\.proj", ".attention.out"),
        (r"\.attn\.scale_mul_1H11", ".attention.log_temperature"),
        (r"\.attn\.", ".attention."),
        (r"\.ffn\.fc1", ".expand"),
        (r"\.ffn\.fc2", ".contract"),
    ]
    state = {}
    for key, value in fixture.weights.items():
        if key in ("lvl_1L", "attn_bias_for_masking") or key.endswith("zero_k_bias"):
            continue
        name = names.get(key, key)
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        flat = name in ("start", "position") or name.endswith("modulation.offset")
        state[name] = value.flatten(0, -3).squeeze(0) if flat else value
        if name.endswith("log_temperature"):
            state[name] = value.flatten()
    return state


def transformer(name: str) -> tuple[Var, ConvTokenizer, Recorded]:
    codec, _ = tokenizer()
    fixture = recorded(name)
    made = fixture.about["constructor"]
    config = var.Config(
        depth=made["depth"],
        width=made["embed_dim"],
        heads=made["num_heads"],
        mlp_ratio=made["mlp_ratio"],
        shared_adaln=made["shared_aln"],
    )
    built = config.build(codec.layout, made["num_classes"])
    assert isinstance(built, Var)
    built.load_state_dict(transformer_state(fixture))
    return built.eval(), codec, fixture


def close(ours: Tensor, official: Tensor, tolerance: float = 1e-5) -> None:
    allowed = tolerance * max(1.0, float(official.abs().max()))
    assert ours.shape == official.shape
    assert float((ours - official).abs().max()) <= allowed


# ------------------------------------------------------------------------------------------------- the tokenizer


@torch.no_grad()
def test_encoding_gives_the_official_codes_of_every_scale() -> None:
    built, fixture = tokenizer()
    close(built.latents(fixture.io["image"]), fixture.io["f"])
    official = [fixture.io[f"idx_{scale}"] for scale in range(len(built.layout.grids))]
    assert torch.equal(built.encode(fixture.io["image"]).values[..., 0], torch.cat(official, dim=1))


@torch.no_grad()
def test_every_prefix_is_the_official_running_sum_and_decodes_alike() -> None:
    built, fixture = tokenizer()
    tokens = built.encode(fixture.io["image"])
    prefixes = built.prefixes(tokens)
    for scale, (sums, images) in enumerate(zip(fixture.io["f_hat_scales"], fixture.io["recon_scales"], strict=True), 1):
        close(prefixes[scale - 1], sums)
        close(built.prefix(tokens, scale), sums)
        close(built.decode(tokens.first_scales(scale)).clamp(-1, 1), images)
    close(built.decode(tokens).clamp(-1, 1), fixture.io["recon"])
    close(built.decode_latents(fixture.io["fhat_in"]).clamp(-1, 1), fixture.io["fhat_in_image"])


def teacher_forcing_input(built: ConvTokenizer, tokens: Tokens) -> Tensor:
    prefixes = built.prefixes(tokens)[:-1]
    grids = built.layout.grids[1:]
    parts = [shrink(prefix, grid).flatten(2).transpose(1, 2) for prefix, grid in zip(prefixes, grids, strict=True)]
    return torch.cat(parts, dim=1)


@torch.no_grad()
def test_the_input_of_the_transformer_is_the_official_one() -> None:
    built, fixture = tokenizer()
    tokens = built.encode(fixture.io["image"])
    close(teacher_forcing_input(built, tokens), fixture.io["var_input"])
    given = Tokens(fixture.io["code_in"][..., None], built.layout)
    close(teacher_forcing_input(built, given), fixture.io["code_in_var_input"])
    close(built.decode(given).clamp(-1, 1), fixture.io["code_in_image"])


# ------------------------------------------------------------------------------------------------- the transformer


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_teacher_forced_logits_are_the_official_ones(name: str) -> None:
    built, codec, fixture = transformer(name)
    tokens = Tokens(fixture.io["targets"][..., None], codec.layout)
    labels = fixture.io["labels"]
    close(built.logits(tokens, built.context(Condition(labels)), codec), fixture.io["logits"])
    close(
        built.logits(tokens, built.context(Condition(torch.full_like(labels, built.classes))), codec),
        fixture.io["logits_null"],
    )


@pytest.mark.parametrize("run", ["gen", "gen_nocfg"])
@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_greedy_generation_is_the_official_one(name: str, run: str) -> None:
    built, codec, fixture = transformer(name)
    scale = fixture.about["generation"][run]["cfg"]
    sampling = Sampling(temperature=0, cfg_scale=1 + scale, cfg_schedule="linear")
    noise = Noise(0, torch.arange(len(fixture.io["labels"])))
    *_, tokens = built.steps(Condition(fixture.io["labels"]), sampling, noise, codec)
    assert torch.equal(tokens.values[..., 0], fixture.io[f"{run}_idx"])
    close(codec.embed(tokens), fixture.io[f"{run}_f_hat"])
    close(codec.decode(tokens).clamp(-1, 1) / 2 + 0.5, fixture.io[f"{run}_image"])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_truncation_is_the_official_one(name: str) -> None:
    """VAR drops, in ascending order, what a cumulative probability of 1 - p covers: our rule, from the other end."""
    io = recorded(name).io
    logits = io["filter_logits"]
    for key, official in io.items():
        found = re.fullmatch(r"filter_probs(?:_k(\d+))?(?:_p([\d.]+))?", key)
        if found:
            top_k, top_p = found[1] and int(found[1]), found[2] and float(found[2])
            close(probabilities(logits, 1.0, top_k or None, top_p or None), official, 1e-6)
    assert any(key.startswith("filter_probs") for key in io)
