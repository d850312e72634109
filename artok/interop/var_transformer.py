"""VAR's transformers (Tian et al. 2024): `var_d{16,20,24,30}.pth`, and `var_d36.pth` with shared modulation. They are
bare state dicts; training files hold them under `trainer.var_wo_ddp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from artok.errors import CheckpointError
from artok.generators.var import Var
from artok.interop.families import Description, Family, Hints, Source, count, rename, rename_layer, shape_of

BLOCK = "blocks.{i}.attn.mat_qkv.weight"
SHARED = "shared_ada_lin.1.weight"
GATES = {16: 1e-3, 20: 1e-3, 24: 1e-4, 30: 1e-5, 36: 5e-6}  # initial, as published
PUBLISHED = {"cfg_scale": 2.5, "cfg_schedule": "linear", "top_k": 900, "top_p": 0.96}  # guidance is 1 + theirs


class VarTransformer(Family):
    name = "var_transformer"
    role = "generator"
    source = "https://github.com/FoundationVision/VAR (Tian et al. 2024, arXiv 2404.02905)"
    licence = "MIT"
    ignored: ClassVar = {
        "lvl_1L": "the scale of each token, which is computed",
        "attn_bias_for_masking": "the attention mask, which is computed",
        "blocks.*.attn.zero_k_bias": "zeros",
    }

    def recognises(self, tensors: Mapping[str, Tensor]) -> bool:
        return "pos_1LC" in tensors and BLOCK.format(i=0) in tensors

    def describe(self, tensors: Mapping[str, Tensor], hints: Hints) -> Description:
        classes, width = shape_of(tensors, "class_emb.weight", 2)
        depth = count(tensors, BLOCK)
        heads = shape_of(tensors, "blocks.0.attn.scale_mul_1H11", 4)[1]
        length, scales = shape_of(tensors, "pos_1LC", 3)[1], shape_of(tensors, "lvl_embed.weight", 2)[0]
        if hints.layout is not None and (hints.layout.length, len(hints.layout.grids)) != (length, scales):
            raise CheckpointError(
                f"the model has {length} positions in {scales} scales, and the tokenizer gives {hints.layout}"
            )
        section: dict[str, Any] = {"kind": "var", "depth": depth, "shared_adaln": SHARED in tensors}
        if (heads, width) != (depth, 64 * depth):
            section |= {"heads": heads, "width": width}
        expansion = shape_of(tensors, "blocks.0.ffn.fc1.weight", 2)[0] / width
        section |= {"mlp_ratio": expansion, "gate_init": GATES.get(depth, 1e-3)}
        return Description(section, f"VAR-d{depth}", classes=classes - 1, sampling=PUBLISHED)

    def sources(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Source]:
        assert isinstance(module, Var)
        sources = {
            "conditioner.labels.embedding.weight": rename("class_emb.weight"),
            "start": rename("pos_start"),
            "position": rename("pos_1LC"),
            "level": rename("lvl_embed.weight"),
            **rename_layer("word", "word_embed"),
            **rename_layer("head_modulation", "head_nm.ada_lin.1"),
            **rename_layer("head", "head"),
        }
        if module.shared_modulation is not None:
            sources |= rename_layer("shared_modulation.linear", "shared_ada_lin.1")
        for index in range(len(module.blocks)):
            own = f"blocks.{index}"
            sources |= {
                f"{own}.attention.qkv.weight": rename(f"{own}.attn.mat_qkv.weight"),
                f"{own}.attention.q_bias": rename(f"{own}.attn.q_bias"),
                f"{own}.attention.v_bias": rename(f"{own}.attn.v_bias"),
                f"{own}.attention.log_temperature": rename(f"{own}.attn.scale_mul_1H11"),
                **rename_layer(f"{own}.attention.out", f"{own}.attn.proj"),
                **rename_layer(f"{own}.expand", f"{own}.ffn.fc1"),
                **rename_layer(f"{own}.contract", f"{own}.ffn.fc2"),
            }
            if module.shared_modulation is None:
                sources |= rename_layer(f"{own}.modulation.linear", f"{own}.ada_lin.1")
            else:
                sources[f"{own}.modulation.offset"] = rename(f"{own}.ada_gss")
        return sources

    def check(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        biased = [key for key, tensor in tensors.items() if key.endswith(".attn.zero_k_bias") and tensor.any()]
        if biased:
            raise CheckpointError(f"{biased[0]} is not zero; artok's attention keys have no bias")


FAMILY = VarTransformer()
