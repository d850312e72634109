"""KL autoencoders in the layout of `diffusers` AutoencoderKL: `sd-vae-ft-mse`, `sd-vae-ft-ema` (used by DiT).

The middle attention has two naming schemes: `query, key, value, proj_attn` in files before 2023, and
`to_q, to_k, to_v, to_out.0` since then. Its linear layers are 1x1 convolutions in artok.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from artok.interop.conv_layout import KeyScheme, conv_sources, describe_conv
from artok.interop.families import Description, Family, Hints, Source, shape_of
from artok.interop.mar_kl import STABLE_DIFFUSION_SCALE
from artok.tokenizers.conv import ConvTokenizer

ATTENTION = "mid_block.attentions.0"


def make_scheme(query: tuple[str, str, str], out: str) -> KeyScheme:
    return KeyScheme(
        down="down_blocks.{i}",
        up="up_blocks.{i}",
        finest_first=False,
        block="resnets.{j}",
        attention="attentions.{j}",
        downsample="downsamplers.0.conv",
        upsample="upsamplers.0.conv",
        middle=("mid_block.resnets.0", ATTENTION, "mid_block.resnets.1"),
        skip="conv_shortcut",
        norm="group_norm",
        query=query,
        out=out,
        norm_out="conv_norm_out",
    )


OLD = make_scheme(("query", "key", "value"), "proj_attn")
NEW = make_scheme(("to_q", "to_k", "to_v"), "to_out.0")


def find_scheme(tensors: Mapping[str, Tensor]) -> KeyScheme:
    return OLD if f"encoder.{ATTENTION}.query.weight" in tensors else NEW


class SdVaeKl(Family):
    name = "sd_vae_kl"
    role = "tokenizer"
    source = "https://huggingface.co/stabilityai/sd-vae-ft-mse (Rombach et al. 2022, arXiv 2112.10752)"
    licence = "MIT"
    ignored: ClassVar[Mapping[str, str]] = {}

    def recognises(self, tensors: Mapping[str, Tensor]) -> bool:
        return "encoder.down_blocks.0.resnets.0.conv1.weight" in tensors and "quant_conv.weight" in tensors

    def describe(self, tensors: Mapping[str, Tensor], hints: Hints) -> Description:
        image = hints.image or 256
        section = describe_conv(tensors, find_scheme(tensors), image)
        width = shape_of(tensors, "post_quant_conv.weight", 4)[1]
        section["quantizer"] = {"kind": "gaussian", "latent_channels": width}
        words = f"KL autoencoder f{section['downsample']}, {width} channels"
        return Description(section, words, image=image, scale=STABLE_DIFFUSION_SCALE)

    def sources(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Source]:
        assert isinstance(module, ConvTokenizer)
        return conv_sources(module, find_scheme(tensors))


FAMILY = SdVaeKl()
