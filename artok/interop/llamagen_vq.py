"""LlamaGen's tokenizers (Sun et al. 2024): `vq_ds16_c2i.pt`, `vq_ds8_c2i.pt`, `vq_ds16_t2i.pt`, under `model`.

Latents and codes are l2-normalised before the search, and the decoder gets the normalised codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from artok.interop.conv_layout import KeyScheme, conv_sources, describe_conv
from artok.interop.families import Description, Family, Hints, Source, codebook_sources, shape_of
from artok.tokenizers.conv import ConvTokenizer

TABLE = "quantize.embedding.weight"
LLAMAGEN = KeyScheme(
    down="conv_blocks.{i}",
    up="conv_blocks.{i}",
    finest_first=False,
    block="res.{j}",
    middle=("mid.0", "mid.1", "mid.2"),
)


class LlamaGenVq(Family):
    name = "llamagen_vq"
    role = "tokenizer"
    source = "https://github.com/FoundationVision/LlamaGen (Sun et al. 2024, arXiv 2406.06525)"
    licence = "MIT"
    ignored: ClassVar = {"quantize.codebook_used": "usage counted in training", "loss.*": "training losses"}

    def recognises(self, tensors: Mapping[str, Tensor]) -> bool:
        return "encoder.conv_blocks.0.res.0.conv1.weight" in tensors and TABLE in tensors

    def describe(self, tensors: Mapping[str, Tensor], hints: Hints) -> Description:
        image = hints.image or 256
        section = describe_conv(tensors, LLAMAGEN, image)
        codes, width = shape_of(tensors, TABLE, 2)
        section["quantizer"] = {
            "kind": "vq",
            "codebook_size": codes,
            "code_dim": width,
            "similarity": "cosine",
            "update": "gradient",
            "commitment_weight": 0.25,
            "dead_code_threshold": 0.0,
        }
        size = f"LlamaGen tokenizer ds{section['downsample']}, {codes} codes of {width}"
        return Description(section, size, image=image)

    def sources(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Source]:
        assert isinstance(module, ConvTokenizer)
        codebook = codebook_sources("quantizer.levels.0", TABLE, tensors[TABLE].shape[0])
        return conv_sources(module, LLAMAGEN) | codebook


FAMILY = LlamaGenVq()
