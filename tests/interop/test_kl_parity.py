"""The KL autoencoders behind MAR and DiT compute what the official code computes, on recorded tensors."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.official import Official, close, load, official, renamed
from torch import Tensor

from artok.config import validate
from artok.layout import Tokens
from artok.quantizers.gaussian import divergence
from artok.tokenizers import conv

COMMON = [
    (r"^quant_conv\.", "to_quantizer."),
    (r"^post_quant_conv\.", "from_quantizer."),
]
TAMING = [
    *COMMON,
    (r"\.mid\.block_1\.", ".middle.0."),
    (r"\.mid\.attn_1\.", ".middle.1."),
    (r"\.mid\.block_2\.", ".middle.2."),
    (r"\.nin_shortcut\.", ".skip."),
    (r"\.proj_out\.", ".out."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.downsamples.\1."),
    (r"^encoder\.down\.(\d+)\.", r"encoder.levels.\1."),
]
DIFFUSERS = [
    *COMMON,
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.group_norm\.", ".norm."),
    (r"\.query\.", ".q."),
    (r"\.key\.", ".k."),
    (r"\.value\.", ".v."),
    (r"\.proj_attn\.", ".out."),
    (r"\.conv_shortcut\.", ".skip."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.levels.\1."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.downsamples.\1."),
    (r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.levels.\1."),
    (r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.upsamples.\1."),
]


def fused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One convolution for queries, keys and values, and linear projections as convolutions."""
    result = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"(.*)\.q\.(weight|bias)", name):
            parts = torch.cat([state[f"{match[1]}.{part}.{match[2]}"] for part in "qkv"])
            result[f"{match[1]}.qkv.{match[2]}"] = parts if parts.ndim != 2 else parts[..., None, None]
        elif not re.search(r"\.[kv]\.(weight|bias)$", name):
            attention = name.endswith(".out.weight") and tensor.ndim == 2
            result[name] = tensor[..., None, None] if attention else tensor
    return result


def autoencoder(recorded: Official, **section: object) -> conv.ConvTokenizer:
    width = recorded.io["mean"].shape[1]
    given = {
        "kind": "conv",
        "downsample": 2,
        "z_channels": width,
        "quantizer": {"kind": "gaussian", "latent_channels": width},
    }
    image = tuple(recorded.io["image"].shape[1:])
    return validate(conv.Config, given | section, "test").build(image).eval()


@torch.no_grad()
def agrees(tokenizer: conv.ConvTokenizer, io: dict[str, Tensor], latent: Tensor, decoded: Tensor, scale: float) -> None:
    """scale: what the published training code multiplied latents by, kept here as their deviation."""
    tokenizer.latent_deviation.fill_(1 / scale)
    moments = tokenizer.latents(io["image"])
    close(moments, io["moments"])
    mean, log_variance = moments.chunk(2, 1)
    close(log_variance.clamp(-30, 20), io["logvar"])
    if "kl" in io:
        close(divergence(mean, log_variance), io["kl"])
    tokens = tokenizer.encode(io["image"])
    close(tokens.values, scale * io["mean"].flatten(2).transpose(1, 2))
    close(tokenizer.decode(tokens), io["recon_mode"])
    close(tokenizer.decode(Tokens(latent.flatten(2).transpose(1, 2), tokenizer.layout)), decoded)


def test_kl16_of_mar() -> None:
    recorded = official("mar_kl")
    sizes, multipliers = recorded.about["overrides"], recorded.about["constructor"]["ch_mult"]
    tokenizer = autoencoder(
        recorded,
        width=sizes["ch"],
        multipliers=multipliers,
        blocks=sizes["num_res_blocks"],
        attention=sizes["encoder_attn_resolutions"],
        decoder_attention=sizes["decoder_attn_resolutions"],
    )
    state, last = {}, len(multipliers) - 1
    sides = [sizes["resolution"] >> level for level in range(len(multipliers))]
    for name, tensor in renamed(recorded.weights, TAMING).items():
        if match := re.fullmatch(r"decoder\.up\.(\d+)\.(block|upsample)\.(.*)", name):
            level = last - int(match[1])
            name = f"decoder.{'levels' if match[2] == 'block' else 'upsamples'}.{level}.{match[3]}"
        elif match := re.fullmatch(r"encoder\.levels\.(\d+)\.(block|attn)\.(\d+)\.(.*)", name):
            attends = sides[int(match[1])] in sizes["encoder_attn_resolutions"]
            place = int(match[3]) * (2 if attends else 1) + (match[2] == "attn")
            name = f"encoder.levels.{match[1]}.{place}.{match[4]}"
        state[name] = tensor
    load(tokenizer, fused(state) | statistics(tokenizer))
    scale = recorded.about["latent_scale"]
    agrees(tokenizer, recorded.io, scale * recorded.io["z"], recorded.io["decoded"], scale)


def test_the_autoencoder_of_stable_diffusion() -> None:
    recorded = official("sd_vae_kl")
    widths = recorded.about["constructor"]["block_out_channels"]
    tokenizer = autoencoder(
        recorded,
        width=widths[0],
        multipliers=[width // widths[0] for width in widths],
        blocks=recorded.about["constructor"]["layers_per_block"],
        attention=[],
    )
    state = fused(renamed(recorded.weights, DIFFUSERS))
    load(tokenizer, state | statistics(tokenizer))
    scale = recorded.about["latent_scale"]
    agrees(tokenizer, recorded.io, recorded.io["latent"], recorded.io["decoded"], scale)


def statistics(tokenizer: conv.ConvTokenizer) -> dict[str, Tensor]:
    """Artok's own buffers, which published files do not have."""
    return {name: getattr(tokenizer, name) for name in ("latent_mean", "latent_deviation")}


def test_a_missing_folder_skips(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr("helpers.official.FOLDER", tmp_path)
    with pytest.raises(pytest.skip.Exception, match="ARTOK_FIXTURES"):
        official("mar")
