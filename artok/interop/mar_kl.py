"""KL autoencoders in the layout of latent diffusion (Rombach et al. 2022): MAR's `kl16.ckpt` under `model`, and Stable
Diffusion's originals under `state_dict`, alone or as `first_stage_model.*` of a whole model.

Generators get the latents times a published factor: .2325 for MAR, .18215 for Stable Diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from artok.interop.conv_layout import TAMING, conv_sources, describe_conv
from artok.interop.families import Description, Family, Hints, Source, shape_of
from artok.tokenizers.conv import ConvTokenizer

MAR_SCALE, STABLE_DIFFUSION_SCALE = 0.2325, 0.18215


class MarKl(Family):
    name = "mar_kl"
    role = "tokenizer"
    source = "https://github.com/LTH14/mar and https://github.com/CompVis/latent-diffusion (arXiv 2112.10752)"
    licence = "MIT"
    ignored: ClassVar = {"loss.*": "training losses", "model_ema.*": "a second copy, EMA weights"}

    def recognises(self, tensors: Mapping[str, Tensor]) -> bool:
        own = "encoder.down.0.block.0.conv1.weight" in tensors and "quant_conv.weight" in tensors
        return own and not any(key.startswith("quantize.") for key in tensors)

    def describe(self, tensors: Mapping[str, Tensor], hints: Hints) -> Description:
        image = hints.image or 256
        section = describe_conv(tensors, TAMING, image)
        width = shape_of(tensors, "post_quant_conv.weight", 4)[1]
        section["quantizer"] = {"kind": "gaussian", "latent_channels": width}
        stable = (section["downsample"], width) == (8, 4)
        size = f"KL autoencoder f{section['downsample']}, {width} channels"
        scale, licence = (STABLE_DIFFUSION_SCALE, "CreativeML-OpenRAIL-M") if stable else (MAR_SCALE, None)
        return Description(section, size, image=image, scale=scale, licence=licence)

    def sources(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Source]:
        assert isinstance(module, ConvTokenizer)
        return conv_sources(module, TAMING)


FAMILY = MarKl()
