"""Exports artok's KL autoencoder and DiT to `diffusers`: AutoencoderKL, DiTTransformer2DModel, or both with a scheduler
as a folder for DiTPipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from artok.errors import ArtokError, ConfigError
from artok.files import new_folder
from artok.generators.diffusion import LatentDiffusion
from artok.generators.networks.dit import Config as DitConfig
from artok.generators.networks.dit import DiffusionTransformer
from artok.interop.conv_layout import conv_sources
from artok.interop.dit_diffusers import EMBEDDED, EMBEDDINGS, dit_sources
from artok.interop.families import to_published
from artok.interop.sd_vae_kl import NEW
from artok.quantizers.gaussian import GaussianBottleneck
from artok.saved import find_saved, load_generator, load_tokenizer, read_saved, write_json
from artok.tokenizers.base import Tokenizer
from artok.tokenizers.conv import Config as ConvConfig
from artok.tokenizers.conv import ConvTokenizer

INDEX = "model_index.json"
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}


def to_diffusers(run: str | Path, out: Path, say: Callable[[str], None] = lambda _: None) -> list[Path]:
    """Write a run's model, and a DiT's autoencoder with it, in the format of `diffusers`. Returns the written paths.

    A tokenizer's run gives an AutoencoderKL in `out`. A DiT's run gives `out/transformer`, and, if its autoencoder and
    noise schedule have a counterpart, also `vae`, `scheduler` and the index of a DiTPipeline. That pipeline uses the
    class 1000 as "no label", so guidance works for 1000 classes only. say: called with what is left out.
    ConfigError: diffusers has no such model; the message gives the reason.
    """
    folder = find_saved(run)
    saved = read_saved(folder)
    own, settings = load_tokenizer(folder)
    with new_folder(out, INDEX) as aside:
        if saved.generator is None:
            autoencoder(own, settings.tokenizer).save_pretrained(aside)
            return [out]
        generator, _ = load_generator(folder, own.layout)
        transformer(generator).save_pretrained(aside / "transformer")
        assert isinstance(generator, LatentDiffusion)
        try:
            model, steps = autoencoder(own, settings.tokenizer), scheduler(generator)
        except ConfigError as error:
            say(f"the transformer alone: {error}")
            return [out / "transformer"]
        model.save_pretrained(aside / "vae")
        steps.save_pretrained(aside / "scheduler")
        write_json(aside / INDEX, index(saved.facts.classes))
        return [out / name for name in ("transformer", "vae", "scheduler", INDEX)]


def _library() -> Any:
    try:
        import diffusers
    except ImportError:
        raise ArtokError("exporting to diffusers needs it installed: pip install diffusers") from None
    return diffusers


# ---------------------------------------------------------------------------------------------- autoencoder


def autoencoder(tokenizer: Tokenizer, config: object) -> Any:
    """An AutoencoderKL with the same latents; `scaling_factor` scales them to tokens.

    Statistics per channel, which one factor cannot express, are folded into the convolutions around the latent, and
    the factor is 1.
    """
    if not isinstance(tokenizer, ConvTokenizer) or not isinstance(config, ConvConfig):
        raise ConfigError("diffusers has a counterpart only for convolutional tokenizers (kind conv)")
    shape = vae_config(tokenizer, config)
    state = dict(tokenizer.state_dict())
    deviations = tokenizer.latent_deviation.unique()
    if len(deviations) == 1 and not tokenizer.latent_mean.any():
        shape["scaling_factor"] = float(1 / deviations.double())
    else:
        shape["scaling_factor"] = 1.0
        state |= fold_statistics(state, tokenizer.latent_mean, tokenizer.latent_deviation)
    model = _library().AutoencoderKL(**shape)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(to_published(state, conv_sources(tokenizer, NEW), shapes))
    return model.eval()


def vae_config(tokenizer: ConvTokenizer, config: ConvConfig) -> dict[str, Any]:
    """The arguments of AutoencoderKL. ConfigError: it cannot express the tokenizer's config."""
    widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
    groups = {gcd(width, config.groups) for width in widths}
    image = tokenizer.layout.image
    sides = [image[1] >> level for level in range(len(widths))]

    def attends(where: object) -> list[bool]:
        wanted = (sides[-1],) if where == "coarsest" else tuple(where)  # type: ignore[arg-type]
        return [side in wanted for side in sides]

    encoder = attends(config.attention_resolutions)
    decoder = encoder if config.decoder_attention_resolutions is None else attends(config.decoder_attention_resolutions)
    obstacles = {
        "a quantizer other than gaussian": not isinstance(tokenizer.quantizer, GaussianBottleneck),
        "a decoder with other widths": config.decoder_channel_multipliers not in (None, config.channel_multipliers),
        "another number of decoder blocks": config.decoder_num_res_blocks not in (None, config.num_res_blocks + 1),
        "quantizer_kernel 3": config.quantizer_kernel != 1,
        "a latent width other than the quantizer's": config.z_channels != tokenizer.layout.width,
        "a stem other than the first level's width": (config.stem or config.base_channels) != widths[0],
        f"groups {config.groups}, which differ among the widths {widths}": len(groups) > 1,
        "images that are not square": image[1] != image[2],
    }
    found = [what for what, here in obstacles.items() if here]
    if found:
        raise ConfigError(f"diffusers' AutoencoderKL does not support {'; '.join(found)}")
    return {
        "in_channels": image[0],
        "out_channels": image[0],
        "down_block_types": ["AttnDownEncoderBlock2D" if here else "DownEncoderBlock2D" for here in encoder],
        "up_block_types": ["AttnUpDecoderBlock2D" if here else "UpDecoderBlock2D" for here in reversed(decoder)],
        "block_out_channels": widths,
        "layers_per_block": config.num_res_blocks,
        "latent_channels": tokenizer.layout.width,
        "norm_num_groups": groups.pop(),
        "sample_size": image[1],
        "mid_block_add_attention": config.middle_attention,
    }


def fold_statistics(state: Mapping[str, Tensor], mean: Tensor, deviation: Tensor) -> dict[str, Tensor]:
    """The convolutions around the latent for z' = (z - mean) / deviation instead of z.

    The posterior's mean is shifted and scaled; its log variance is reduced by 2 log deviation.
    """
    weight, bias = state["to_quantizer.weight"], state["to_quantizer.bias"]
    width = len(mean)
    after = state["from_quantizer.weight"]
    return {
        "to_quantizer.weight": torch.cat([weight[:width] / deviation[:, None, None, None], weight[width:]]),
        "to_quantizer.bias": torch.cat([(bias[:width] - mean) / deviation, bias[width:] - 2 * deviation.log()]),
        "from_quantizer.weight": after * deviation[:, None, None],
        "from_quantizer.bias": state["from_quantizer.bias"] + after[:, :, 0, 0] @ mean,
    }


# ---------------------------------------------------------------------------------------------- DiT


def transformer(generator: object) -> Any:
    """A DiTTransformer2DModel with the generator's weights.

    diffusers spaces the frequencies of the time embedding differently. Outputs agree exactly when each block's
    `norm1.emb.time_proj.downscale_freq_shift` is set to 0.
    """
    if not isinstance(generator, LatentDiffusion) or not isinstance(generator.network, DiffusionTransformer):
        raise ConfigError("diffusers has a counterpart only for the generator kind diffusion with network kind dit")
    network, layout = generator.network, generator.layout
    if generator.conditioner.parts != {"labels"} or generator.trains_known:
        also = sorted(generator.conditioner.parts - {"labels"} | ({"masks"} if generator.trains_known else set()))
        raise ConfigError(f"diffusers' DiTTransformer2DModel hears labels alone, and this model {', '.join(also)}")
    config = generator.config.network
    assert isinstance(config, DitConfig)
    if (config.attention.kind, config.positions, config.feed_forward) != ("full", "sincos", "linear"):
        raise ConfigError(
            "diffusers' DiTTransformer2DModel has full attention, positions sincos and a linear feed_forward only"
        )
    depth, width, heads = config.shape()
    hidden = network.blocks[0].feed_forward[0].out_features  # type: ignore[index, union-attr]
    if layout.grid[0] != layout.grid[-1] or len(layout.grid) != 2 or hidden != 4 * width:
        raise ConfigError("diffusers' DiTTransformer2DModel has square grids and mlp_ratio 4 only")
    model = _library().DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=layout.width,
        out_channels=generator.config.diffusion.channels(layout.width),
        num_layers=depth,
        sample_size=layout.grid[0],
        patch_size=network.patch,
        num_embeds_ada_norm=generator.classes,
    )
    own = model.state_dict()
    state = to_published(
        generator.state_dict(), dit_sources(network), {name: tuple(t.shape) for name, t in own.items()}
    )
    for index_ in range(1, depth):
        for name in EMBEDDINGS.values():
            state[f"{EMBEDDED.format(i=index_)}.{name}"] = state[f"{EMBEDDED.format(i=0)}.{name}"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"pos_embed.pos_embed"}
    return model.eval()


def scheduler(generator: LatentDiffusion) -> Any:
    """The DDIM scheduler of the generator's noise schedule. ConfigError: it has none, such as for flow matching."""
    diffusion = generator.config.diffusion
    if diffusion.schedule not in SCHEDULES or diffusion.prediction_type not in PREDICTIONS:
        raise ConfigError(
            f"diffusers' DDIM has no schedule {diffusion.schedule} with target {diffusion.prediction_type}"
        )
    return _library().DDIMScheduler(
        num_train_timesteps=diffusion.timesteps,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        beta_schedule=SCHEDULES[diffusion.schedule],
        prediction_type=PREDICTIONS[diffusion.prediction_type],
        clip_sample=diffusion.clip_sample is not None,
        clip_sample_range=diffusion.clip_sample or 1.0,
        rescale_betas_zero_snr=diffusion.zero_terminal_snr,
    )


def index(classes: tuple[str, ...]) -> dict[str, Any]:
    """The content of model_index.json, which names DiTPipeline's parts."""
    return {
        "_class_name": "DiTPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "id2label": {str(number): name for number, name in enumerate(classes)},
    }
