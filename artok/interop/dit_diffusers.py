"""DiT in the layout of `diffusers` DiTTransformer2DModel: `facebook/DiT-XL-2-256`, and artok's exports.

The weights equal those of DiT's own files. Queries, keys and values are separate, and the embeddings of time and class
are repeated in every block. diffusers spaces the time frequencies by i / 127, the published DiT by i / 128; artok uses
the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from artok.errors import CheckpointError
from artok.generators.diffusion import LatentDiffusion
from artok.generators.networks.dit import DiffusionTransformer
from artok.interop.dit import describe_sizes, patch_sources
from artok.interop.families import Description, Family, Hints, Source, count, rename, rename_layer, shape_of

EMBEDDED = "transformer_blocks.{i}.norm1.emb"
EMBEDDINGS = {  # artok's to those in every block
    "network.time.layers.0.weight": "timestep_embedder.linear_1.weight",
    "network.time.layers.0.bias": "timestep_embedder.linear_1.bias",
    "network.time.layers.2.weight": "timestep_embedder.linear_2.weight",
    "network.time.layers.2.bias": "timestep_embedder.linear_2.bias",
    "network.conditioner.labels.embedding.weight": "class_embedder.embedding_table.weight",
}


class DitDiffusers(Family):
    name = "dit_diffusers"
    role = "generator"
    source = "https://huggingface.co/facebook/DiT-XL-2-256 (Peebles and Xie 2023, arXiv 2212.09748)"
    licence = "CC-BY-NC-4.0"
    ignored: ClassVar = {
        "transformer_blocks.*.norm1.emb.*": "the repeated embeddings, compared with those of the first block",
        "pos_embed.pos_embed": "the table of positions, which is computed",
    }

    def recognises(self, tensors: Mapping[str, Tensor]) -> bool:
        return (
            f"{EMBEDDED.format(i=0)}.class_embedder.embedding_table.weight" in tensors
            and "proj_out_2.weight" in tensors
        )

    def describe(self, tensors: Mapping[str, Tensor], hints: Hints) -> Description:
        table = f"{EMBEDDED.format(i=0)}.class_embedder.embedding_table.weight"
        return describe_sizes(
            patches=shape_of(tensors, "pos_embed.proj.weight", 4),
            classes=shape_of(tensors, table, 2)[0] - 1,
            depth=count(tensors, "transformer_blocks.{i}.attn1.to_q.weight"),
            hidden=shape_of(tensors, "transformer_blocks.0.ff.net.0.proj.weight", 2)[0],
            outputs=shape_of(tensors, "proj_out_2.weight", 2)[0],
        )

    def sources(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Source]:
        assert isinstance(module, LatentDiffusion) and isinstance(module.network, DiffusionTransformer)
        return dit_sources(module.network)

    def check(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        for key, tensor in copies(tensors).items():
            if not torch.equal(tensor, tensors[key]):
                raise CheckpointError(f"{key} differs from that of the first block; artok has one for all blocks")


def dit_sources(network: DiffusionTransformer) -> dict[str, Source]:
    """Sources of the network's tensors; the embeddings come from the first block."""
    sources = rename_layer("network.input", "pos_embed.proj") | {
        own: rename(f"{EMBEDDED.format(i=0)}.{published}") for own, published in EMBEDDINGS.items()
    }
    sources |= rename_layer("network.output.modulation.1", "proj_out_1")
    for index in range(len(network.blocks)):
        own, block = f"network.blocks.{index}", f"transformer_blocks.{index}"
        for leaf in ("weight", "bias"):
            parts = (f"{block}.attn1.to_{letter}.{leaf}" for letter in "qkv")
            sources[f"{own}.attention.qkv.{leaf}"] = rename(*parts)
        sources |= rename_layer(f"{own}.attention.out", f"{block}.attn1.to_out.0")
        sources |= rename_layer(f"{own}.feed_forward.0", f"{block}.ff.net.0.proj")
        sources |= rename_layer(f"{own}.feed_forward.2", f"{block}.ff.net.2")
        sources |= rename_layer(f"{own}.modulation.1", f"{block}.norm1.linear")
    return sources | patch_sources(network, "pos_embed.proj", "proj_out_2")


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first block's embeddings under the names of every other block."""
    found = {}
    for index in range(1, count(tensors, "transformer_blocks.{i}.attn1.to_q.weight")):
        for published in EMBEDDINGS.values():
            key = f"{EMBEDDED.format(i=index)}.{published}"
            if key in tensors:
                found[key] = tensors[f"{EMBEDDED.format(i=0)}.{published}"]
    return found


FAMILY = DitDiffusers()
