"""taming-transformers' VQGAN and Gumbel VQGAN (Esser et al. 2021), and the vector-quantized autoencoders of latent
diffusion (Rombach et al. 2022), which have the same layout.

`last.ckpt`: the state dict is under `state_dict` and includes training losses (`loss.*`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from artok.interop.conv_layout import TAMING, conv_sources, describe_conv
from artok.interop.families import Description, Family, Hints, Source, codebook_sources, rename_layer, shape_of
from artok.tokenizers.conv import ConvTokenizer

TABLE, GUMBEL = "quantize.embedding.weight", "quantize.embed.weight"


class TamingVqgan(Family):
    name = "taming_vqgan"
    role = "tokenizer"
    source = "https://github.com/CompVis/taming-transformers (Esser et al. 2021, arXiv 2012.09841)"
    licence = "MIT"
    ignored: ClassVar = {
        "loss.*": "training losses",
        "model_ema.*": "a second copy, EMA weights under other names",
        "colorize": "a colour map for segmentations",
    }

    def recognises(self, tensors: Mapping[str, Tensor]) -> bool:
        own = "encoder.down.0.block.0.conv1.weight" in tensors and "encoder.mid.block_1.conv1.weight" in tensors
        return own and (GUMBEL in tensors or (TABLE in tensors and not _of_var(tensors)))

    def describe(self, tensors: Mapping[str, Tensor], hints: Hints) -> Description:
        image = hints.image or 256
        section = describe_conv(tensors, TAMING, image)
        section["quantizer"] = quantizer = _quantizer(tensors)
        words = f"VQGAN f{section['downsample']}, {quantizer['codebook_size']} codes of width {quantizer['code_dim']}"
        return Description(section, words + (", Gumbel" if quantizer["kind"] == "gumbel" else ""), image=image)

    def sources(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Source]:
        assert isinstance(module, ConvTokenizer)
        sources = conv_sources(module, TAMING)
        if GUMBEL in tensors:
            return (
                sources
                | rename_layer("quantizer.scores", "quantize.proj")
                | {"quantizer.table.weight": Source((GUMBEL,))}
            )
        return sources | codebook_sources("quantizer.levels.0", TABLE, tensors[TABLE].shape[0])


def _of_var(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("quantize.quant_resi.") for key in tensors)


def _quantizer(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    codes, width = shape_of(tensors, GUMBEL if GUMBEL in tensors else TABLE, 2)
    if GUMBEL in tensors:
        return {"kind": "gumbel", "codebook_size": codes, "code_dim": width}
    published = {
        "similarity": "euclidean",
        "update": "gradient",
        "commitment_weight": 1.0,  # its beta of .25 is on the codebook's loss, a factor that Adam takes out again
        "dead_code_threshold": 0.0,
    }
    return {"kind": "vq", "codebook_size": codes, "code_dim": width, **published}


FAMILY = TamingVqgan()
