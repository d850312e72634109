"""DiT (Peebles and Xie 2023): `DiT-XL-2-256x256.pt` and `DiT-XL-2-512x512.pt`, bare state dicts of EMA weights.
Training files hold the EMA weights under `ema`.

Published sampling applies guidance to the first three of four channels only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from artok.errors import CheckpointError
from artok.generators.diffusion import LatentDiffusion
from artok.generators.networks.dit import SIZES, DiffusionTransformer
from artok.interop.families import Description, Family, Hints, Source, count, rename_all, shape_of

BLOCK = "blocks.{i}.attn.qkv.weight"
GUIDED = 3
NAMES = [  # artok's to published names
    (r"^network\.input\.", "x_embedder.proj."),
    (r"^network\.time\.layers\.", "t_embedder.mlp."),
    (r"^network\.conditioner\.labels\.embedding\.", "y_embedder.embedding_table."),
    (r"\.attention\.out\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.feed_forward\.0\.", ".mlp.fc1."),
    (r"\.feed_forward\.2\.", ".mlp.fc2."),
    (r"\.modulation\.", ".adaLN_modulation."),
    (r"^network\.output\.out\.", "final_layer.linear."),
    (r"^network\.output\.", "final_layer."),
    (r"^network\.", ""),
]


class DitFamily(Family):
    name = "dit"
    role = "generator"
    source = "https://github.com/facebookresearch/DiT (Peebles and Xie 2023, arXiv 2212.09748)"
    licence = "CC-BY-NC-4.0"
    ignored: ClassVar = {"pos_embed": "the table of positions, which is computed and was compared"}

    def recognises(self, tensors: Mapping[str, Tensor]) -> bool:
        return "x_embedder.proj.weight" in tensors and "y_embedder.embedding_table.weight" in tensors

    def describe(self, tensors: Mapping[str, Tensor], hints: Hints) -> Description:
        return describe_sizes(
            patches=shape_of(tensors, "x_embedder.proj.weight", 4),
            classes=shape_of(tensors, "y_embedder.embedding_table.weight", 2)[0] - 1,
            depth=count(tensors, BLOCK),
            hidden=shape_of(tensors, "blocks.0.mlp.fc1.weight", 2)[0],
            outputs=shape_of(tensors, "final_layer.linear.weight", 2)[0],
        )

    def sources(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Source]:
        assert isinstance(module, LatentDiffusion) and isinstance(module.network, DiffusionTransformer)
        return rename_all(module, NAMES) | patch_sources(module.network, "x_embedder.proj", "final_layer.linear")

    def check(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        assert isinstance(module, LatentDiffusion) and isinstance(module.network, DiffusionTransformer)
        own, table = module.network.positions, tensors.get("pos_embed")
        if table is None:
            return
        assert own is not None  # its config is `describe`d here, with fixed positions
        if table[0].shape != own.shape:
            raise CheckpointError(
                f"the model has {table.shape[1]} positions, and the tokenizer gives {len(own)}; "
                "give the side of the model's images with --size"
            )
        if not torch.allclose(table[0].float(), own, atol=1e-2 if table.element_size() < 4 else 1e-5):
            raise CheckpointError("pos_embed is not the fixed table of sines and cosines, and artok has no other")


def describe_sizes(patches: Sequence[int], classes: int, depth: int, hidden: int, outputs: int) -> Description:
    """A DiT's size. patches: shape of the patch embedding's weight. hidden: width inside the feed-forward layers.
    outputs: numbers per patch."""
    width, channels, patch, _ = patches
    size = next((name for name, (d, w, _) in SIZES.items() if (d, w) == (depth, width)), None)
    network: dict[str, Any] = {"kind": "dit", "patch_size": patch, "mlp_ratio": hidden / width}
    network |= {"size": size} if size else {"depth": depth, "width": width, "heads": None}
    variance = "learned" if outputs == 2 * channels * patch**2 else "beta"
    section: dict[str, Any] = {"kind": "diffusion", "network": network}
    if channels > GUIDED:
        section["guided_channels"] = GUIDED
    section["diffusion"] = {"schedule": "linear", "variance": variance, "steps": 250}
    words = f"DiT-{size}/{patch}" if size else f"DiT of {depth} layers, width {width}, patch {patch}"
    return Description(section, words, classes=classes, sampling={"cfg_scale": 1.5 if size else 1.0})


def patch_sources(network: DiffusionTransformer, embedding: str, output: str) -> dict[str, Source]:
    """Sources of the patch embedding (a convolution) and the output layer.

    The published output is ordered row, column, channel; artok's is channel, row, column.
    """
    side = network.patch

    def by_channel(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (side, side, -1)).movedim(2, 0).flatten(0, 2)

    def by_place(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, side, side)).movedim(0, 2).flatten(0, 2)

    sources = {"network.input.weight": Source((f"{embedding}.weight",), change=lambda weight: weight.flatten(1))}
    for leaf in ("weight", "bias"):
        sources[f"network.output.out.{leaf}"] = Source((f"{output}.{leaf}",), change=by_channel, undo=by_place)
    return sources


FAMILY = DitFamily()
