"""MAR's transformers (Li et al. 2024): `checkpoint-last.pth` of base, large and huge, under `model_ema`. Samples of the
weights without EMA are useless. Patches of 1x1 and 2x2 latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from artok.errors import CheckpointError
from artok.generators.mar import Mar
from artok.generators.patched import SIZES
from artok.interop.families import Description, Family, Hints, Source, count, rename, rename_all, shape_of

BLOCK = "{half}_blocks.{{i}}.attn.qkv.weight"
RESIDUAL = "diffloss.net.res_blocks.{i}.mlp.0.weight"
GUIDANCE = {"base": 2.9, "large": 3.0, "huge": 3.2}  # of the published samples
NAMES = [  # artok's to published names
    (r"^input\.", "z_proj."),
    (r"^body\.input_norm\.", "z_proj_ln."),
    (r"^body\.(en|de)coder_positions$", r"\1coder_pos_embed_learned"),
    (r"^body\.output_positions$", "diffusion_pos_embed_learned"),
    (r"^body\.(en|de)coder\.", r"\1coder_blocks."),
    (r"^body\.(en|de)coder_norm\.", r"\1coder_norm."),
    (r"^body\.between\.", "decoder_embed."),
    (r"^body\.mask_token$", "mask_token"),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.feed_forward_norm\.", ".norm2."),
    (r"\.attention\.out\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.feed_forward\.0\.", ".mlp.fc1."),
    (r"\.feed_forward\.2\.", ".mlp.fc2."),
    (r"^head\.net\.time\.layers\.", "diffloss.net.time_embed.mlp."),
    (r"^head\.net\.condition\.", "diffloss.net.cond_embed."),
    (r"^head\.net\.input\.", "diffloss.net.input_proj."),
    (r"^head\.net\.blocks\.(\d+)\.norm\.", r"diffloss.net.res_blocks.\1.in_ln."),
    (r"^head\.net\.blocks\.", "diffloss.net.res_blocks."),
    (r"^head\.net\.output\.out\.", "diffloss.net.final_layer.linear."),
    (r"^head\.net\.output\.", "diffloss.net.final_layer."),
    (r"\.modulation\.", ".adaLN_modulation."),
]


class MarFamily(Family):
    name = "mar"
    role = "generator"
    source = "https://github.com/LTH14/mar (Li et al. 2024, arXiv 2406.11838)"
    licence = "MIT"
    ignored: ClassVar[Mapping[str, str]] = {}

    def recognises(self, tensors: Mapping[str, Tensor]) -> bool:
        return "fake_latent" in tensors and "diffloss.net.input_proj.weight" in tensors

    def describe(self, tensors: Mapping[str, Tensor], hints: Hints) -> Description:
        classes, width = shape_of(tensors, "class_emb.weight", 2)
        depth, decoder_depth = (count(tensors, BLOCK.format(half=half)) for half in ("encoder", "decoder"))
        decoder_width = shape_of(tensors, "mask_token", 3)[2]
        head_width, dimension = shape_of(tensors, "diffloss.net.input_proj.weight", 2)
        head_depth = count(tensors, RESIDUAL)
        length = shape_of(tensors, "diffusion_pos_embed_learned", 3)[1]
        section: dict[str, Any] = {
            "kind": "mar",
            "buffer_size": shape_of(tensors, "encoder_pos_embed_learned", 3)[1] - length,
        }
        measures = (width, depth, head_depth, head_width)
        plain = (decoder_width, decoder_depth) == (width, depth)
        size = next((name for name, (w, d, _, *head) in SIZES.items() if plain and (w, d, *head) == measures), None)
        if size:
            section["size"] = size
        else:
            section |= {"depth": depth, "width": width, "heads": None}
            section |= {"head_depth": head_depth, "head_width": head_width}
        if not plain:
            section |= {"decoder_depth": decoder_depth, "decoder_width": decoder_width}
        section["mlp_ratio"] = shape_of(tensors, "encoder_blocks.0.mlp.fc1.weight", 2)[0] / width
        section["patch_size"] = patch = _patch(dimension, hints)
        if hints.layout is not None and hints.layout.length != length * patch**2:
            raise CheckpointError(
                f"the model has {length} positions of {patch}x{patch} tokens, and the tokenizer gives {hints.layout}; "
                "give the side of the model's images with --size"
            )
        section["diffusion"] = {"schedule": "cosine", "variance": "learned", "steps": 100}
        words = f"MAR-{size}" if size else f"MAR of {depth}+{decoder_depth} layers, width {width}"
        sampling = {"cfg_scale": GUIDANCE.get(size or "", 1.0), "cfg_schedule": "linear"}
        return Description(section, words, classes=classes, sampling=sampling)

    def sources(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Source]:
        assert isinstance(module, Mar)
        sources = rename_all(module, NAMES)
        sources["body.conditioner.labels.embedding.weight"] = rename("class_emb.weight", "fake_latent")
        return sources


def _patch(dimension: int, hints: Hints) -> int:
    """The patch size, in tokens."""
    width = hints.layout.width if hints.layout else 16
    side = math.isqrt(dimension // width)
    if side**2 * width != dimension:
        raise CheckpointError(f"the model's patches of {dimension} numbers are no squares of tokens of width {width}")
    return side


FAMILY = MarFamily()
