"""Recorded tensors of tokenizers: VQGAN's, LlamaGen's, VAR's, and KL autoencoders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from artok.layout import Tokens
from artok.nn.resize import shrink
from artok.quantizers.gaussian import divergence
from artok.tokenizers.conv import ConvTokenizer
from helpers.parity.fixtures import Fixture, imported_tokenizer


def vq(fixture: Fixture) -> dict[str, Tensor]:
    """taming_vqgan and llamagen_vq."""
    _, built = imported_tokenizer(fixture)
    assert isinstance(built, ConvTokenizer)
    io, grid = fixture.io, built.layout.grid
    latents = built.latents(io["image"])
    tokens = built.encode(io["image"])
    given = Tokens(io["code_in"].flatten(1)[..., None], built.layout)
    return {
        "encoder_out": built.encoder(io["image"]),
        "prequant": latents,
        "indices": tokens.values[..., 0].unflatten(1, grid),
        "quant": built.quantizer(latents).vectors,
        "recon": built.decode(tokens),
        "code_in_quant": built.embed(given),
        "code_in_image": built.decode(given),
    }


def imported_var_vqvae(fixture: Fixture) -> tuple[Path, ConvTokenizer]:
    run, built = imported_tokenizer(fixture, f"tokenizer.quantizer.scales={fixture.made['v_patch_nums']}")
    assert isinstance(built, ConvTokenizer)
    return run, built


def var_vqvae(fixture: Fixture) -> dict[str, Tensor]:
    _, built = imported_var_vqvae(fixture)
    io, parts = fixture.io, list(built.layout.scales())
    tokens = built.encode(io["image"])
    given = Tokens(io["code_in"][..., None], built.layout)
    partly = [tokens.first_scales(scale) for scale in range(1, len(parts) + 1)]
    found = {
        "f": built.latents(io["image"]),
        "f_hat_scales": torch.stack(built.prefixes(tokens)),
        "recon_scales": torch.stack([built.decode(part) for part in partly]).clamp(-1, 1),
        "recon": built.decode(tokens).clamp(-1, 1),
        "var_input": transformer_input(built, tokens),
        "code_in_image": built.decode(given).clamp(-1, 1),
        "code_in_var_input": transformer_input(built, given),
        "fhat_in_image": built.decode_latents(io["fhat_in"]).clamp(-1, 1),
    }
    return found | {f"idx_{scale}": tokens.values[:, part, 0] for scale, part in enumerate(parts)}


def transformer_input(built: ConvTokenizer, tokens: Tokens) -> Tensor:
    prefixes, grids = built.prefixes(tokens)[:-1], built.layout.grids[1:]
    return torch.cat([shrink(p, grid).flatten(2).transpose(1, 2) for p, grid in zip(prefixes, grids, strict=True)], 1)


def posterior(built: ConvTokenizer, image: Tensor) -> dict[str, Tensor]:
    moments = built.latents(image)
    mean, log_variance = moments.chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)  # the published bounds
    return {
        "encoder_out": built.encoder(image),
        "moments": moments,
        "mean": mean,
        "logvar": log_variance,
        "std": (0.5 * log_variance).exp(),
        "kl": divergence(mean, log_variance),
        "recon_mode": built.decode(built.encode(image)),
    }


def mar_kl(fixture: Fixture) -> dict[str, Tensor]:
    scale = fixture.about["latent_scale"]
    _, built = imported_tokenizer(fixture, scale=scale)
    assert isinstance(built, ConvTokenizer)
    found = posterior(built, fixture.io["image"])
    scaled = found["mean"].flatten(2).transpose(1, 2) * scale
    torch.testing.assert_close(built.encode(fixture.io["image"]).values, scaled, rtol=1e-5, atol=1e-5)
    return found | {"decoded": built.decode_latents(fixture.io["z"])}


def sd_vae_kl(fixture: Fixture) -> dict[str, Tensor]:
    groups = f"tokenizer.groups={fixture.made.get('norm_num_groups', 32)}"
    _, built = imported_tokenizer(fixture, groups, scale=fixture.about["latent_scale"])
    assert isinstance(built, ConvTokenizer)
    given = Tokens(fixture.io["latent"].flatten(2).transpose(1, 2), built.layout)
    return posterior(built, fixture.io["image"]) | {"decoded": built.decode(given)}
