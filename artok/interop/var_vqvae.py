"""VAR's multi-scale tokenizer (Tian et al. 2024): `vae_ch160v4096z32.pth`, a bare state dict.

All scales share one codebook and a few convolutions phi. The file is for 256 and 512 px and does not hold their scales;
`--size 512` uses the published ones of that size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from artok.errors import CheckpointError
from artok.interop.conv_layout import KeyScheme, conv_sources, describe_conv
from artok.interop.families import (
    Description,
    Family,
    Hints,
    Source,
    codebook_sources,
    count,
    rename_layer,
    shape_of,
)
from artok.quantizers.multiscale import MultiScaleQuantizer, find_nearest_ticks
from artok.tokenizers.conv import ConvTokenizer

TABLE, HITS = "quantize.embedding.weight", "quantize.ema_vocab_hit_SV"
PHI = "quantize.quant_resi.qresi_ls.{i}"
VAR = KeyScheme(query=("qkv",))
SCALES = {256: [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], 512: [1, 2, 3, 4, 6, 9, 13, 18, 24, 32]}  # by the image's side


class VarVqvae(Family):
    name = "var_vqvae"
    role = "tokenizer"
    source = "https://github.com/FoundationVision/VAR (Tian et al. 2024, arXiv 2404.02905)"
    licence = "MIT"
    ignored: ClassVar = {HITS: "usage counted in training", PHI.format(i="*") + ".*": "convolutions that no scale uses"}

    def recognises(self, tensors: Mapping[str, Tensor]) -> bool:
        return "encoder.down.0.block.0.conv1.weight" in tensors and PHI.format(i=0) + ".weight" in tensors

    def describe(self, tensors: Mapping[str, Tensor], hints: Hints) -> Description:
        image = hints.image or 256
        section = describe_conv(tensors, VAR, image)
        codes, width = shape_of(tensors, TABLE, 2)
        published = SCALES.get(image) if section["downsample"] == 16 else None
        if published and HITS in tensors and len(tensors[HITS]) != len(published):
            published = None
        section["quantizer"] = {
            "kind": "multiscale",
            "codebook_size": codes,
            "code_dim": width,
            "scales": published,
            "phi": count(tensors, PHI + ".weight"),
            "update": "gradient",
            "dead_code_threshold": 0.0,
        }
        return Description(section, f"VAR tokenizer, {codes} codes of width {width}", image=image)

    def sources(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Source]:
        assert isinstance(module, ConvTokenizer) and isinstance(module.quantizer, MultiScaleQuantizer)
        codebook = codebook_sources("quantizer.book", TABLE, tensors[TABLE].shape[0])
        sources = conv_sources(module, VAR) | codebook
        for own, published in enumerate(_phi(module.quantizer.assignment, count(tensors, PHI + ".weight"))):
            sources |= rename_layer(f"quantizer.phi.{own}.convolution", PHI.format(i=published))
        return sources


def _phi(assignment: list[int], available: int) -> list[int]:
    """The published phi of each of artok's; artok leaves out those that no scale uses."""
    published = find_nearest_ticks(len(assignment), available)
    pairs = dict(zip(assignment, published, strict=True))
    if [pairs[own] for own in assignment] != published:
        raise CheckpointError(f"{len(assignment)} scales do not fit the model's {available} shared convolutions")
    return [pairs[own] for own in range(len(pairs))]


FAMILY = VarVqvae()
