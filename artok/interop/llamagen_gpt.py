"""LlamaGen's transformers (Sun et al. 2024): `c2i_{B,L,XL,XXL,3B}_{256,384}.pt`, `t2i_XL_stage{1_256,2_512}.pt`.

B, L and XL are under `model`; XXL and 3B are bare state dicts. Those of texts (t2i) read 120 entries of flan-t5-xl,
padded on the left; the encoder is not in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from artok.errors import CheckpointError
from artok.generators.raster import SIZES, Raster
from artok.generators.raster import Config as RasterConfig
from artok.interop.families import Description, Family, Hints, Source, compute, count, rename, shape_of
from artok.interop.matching import check_finite

GUIDANCE = {"B": 2.0, "L": 2.0, "XL": 1.75, "XXL": 1.75, "3B": 1.65}  # of the published samples
LAYER = "layers.{i}.attention.wqkv.weight"
PROJECTION = ("cls_embedding.cap_proj.fc1.weight", "cls_embedding.cap_proj.fc2.weight")
NULL = "cls_embedding.uncond_embedding"


class LlamaGenGpt(Family):
    name = "llamagen_gpt"
    role = "generator"
    source = "https://github.com/FoundationVision/LlamaGen (Sun et al. 2024, arXiv 2406.06525)"
    licence = "MIT"
    ignored: ClassVar = {"freqs_cis": "the rotary table, which is computed", NULL: "kept as its projection"}

    def recognises(self, tensors: Mapping[str, Tensor]) -> bool:
        return LAYER.format(i=0) in tensors and any(key.startswith("cls_embedding.") for key in tensors)

    def describe(self, tensors: Mapping[str, Tensor], hints: Hints) -> Description:
        told = PROJECTION[0] in tensors
        if told:
            (width, features), (length, _) = shape_of(tensors, PROJECTION[0], 2), shape_of(tensors, NULL, 2)
            classes = 0
        else:
            entries, width = shape_of(tensors, "cls_embedding.embedding_table.weight", 2)
            classes = entries - 1
        layers, hidden = count(tensors, LAYER), shape_of(tensors, "layers.0.feed_forward.w1.weight", 2)[0]
        if shape_of(tensors, LAYER.format(i=0), 2)[0] != 3 * width:
            raise CheckpointError("this model has grouped-query attention, which artok does not support")
        size = next((name for name, (depth, _, wide) in SIZES.items() if (depth, wide) == (layers, width)), None)
        section: dict[str, Any] = {"kind": "raster", "size": size}
        if size is None:
            section = {"kind": "raster", "depth": layers, "width": width, "heads": _heads(tensors, width)}
        if size is None or RasterConfig(size=size).hidden_width() != hidden:
            section["hidden"] = hidden
        words = f"LlamaGen-{size}" if size else f"LlamaGen of {layers} layers, width {width}"
        if not told:
            return Description(section, words, classes=classes, sampling={"cfg_scale": GUIDANCE.get(size or "", 1.0)})
        encoder = {"kind": "t5", "length": length, "features": features, "dtype": "bfloat16", "lowercase": True}
        section |= {
            "conditioning": [{"kind": "text", "encoder": encoder, "null_length": "text"}],
            "class_position": "zero",
        }
        return Description(section, f"{words} (text to image)", classes=0, sampling={"cfg_scale": 7.5, "top_k": 1000})

    def sources(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Source]:
        assert isinstance(module, Raster)
        sources = {"conditioner.labels.embedding.weight": rename("cls_embedding.embedding_table.weight")}
        if PROJECTION[0] in tensors:
            sources = text_sources(tensors)
        sources |= {
            "token_embedding.weight": rename("tok_embeddings.weight"),
            "norm.weight": rename("norm.weight"),
            "head.weight": rename("output.weight"),
        }
        for index in range(len(module.blocks)):
            own, layer = f"blocks.{index}", f"layers.{index}"
            forward = f"{layer}.feed_forward"
            sources |= {
                f"{own}.attention_norm.weight": rename(f"{layer}.attention_norm.weight"),
                f"{own}.attention.qkv.weight": rename(f"{layer}.attention.wqkv.weight"),
                f"{own}.attention.out.weight": rename(f"{layer}.attention.wo.weight"),
                f"{own}.feed_forward_norm.weight": rename(f"{layer}.ffn_norm.weight"),
                f"{own}.feed_forward.gate_and_value.weight": rename(f"{forward}.w1.weight", f"{forward}.w3.weight"),
                f"{own}.feed_forward.out.weight": rename(f"{forward}.w2.weight"),
            }
        return sources

    def check(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        assert isinstance(module, Raster)
        table = tensors.get("freqs_cis")
        if table is not None and not (
            table.shape == module.rotary.shape and torch.allclose(table.float(), module.rotary, atol=1e-2)
        ):
            grid = "x".join(map(str, module.layout.grid))
            raise CheckpointError(
                f"the model's rotary table does not fit the tokenizer's {grid} tokens; give the side of its images "
                "(--size 384) or its heads (generator.heads=N)"
            )


def text_sources(tensors: Mapping[str, Tensor]) -> dict[str, Source]:
    """Sources of a text condition. Its null is what LlamaGen's projection makes of its null features."""

    def null() -> Tensor:
        features, *layers = (tensors[name].float() for name in (NULL, *PROJECTION))
        check_finite(features, NULL)
        return F.linear(F.gelu(F.linear(features, layers[0]), approximate="tanh"), layers[1])

    return {
        "conditioner.text.null": compute(null),
        "conditioner.text.encoder.project.0.weight": rename(PROJECTION[0]),
        "conditioner.text.encoder.project.2.weight": rename(PROJECTION[1]),
        "conditioner.text.encoder._extra_state": compute(lambda: torch.zeros(0, dtype=torch.uint8)),
    }


def _heads(tensors: Mapping[str, Tensor], width: int) -> int | None:
    """The number of heads from the rotary table, or None for files without one."""
    if "freqs_cis" not in tensors:
        return None
    return width // (2 * shape_of(tensors, "freqs_cis", 3)[1])


FAMILY = LlamaGenGpt()
