"""The key names of published convolutional autoencoders: one architecture with four naming schemes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from torch import Tensor, nn

from artok.errors import CheckpointError, ConfigError
from artok.interop.families import Source, count, rename, rename_layer, shape_of
from artok.nn.conv2d import Decoder, Encoder, PixelAttention
from artok.tokenizers.conv import ConvTokenizer
from artok.tokenizers.diffusion_decoder import DiffusionDecoder


@dataclass(frozen=True)
class KeyScheme:
    """Names below `encoder.` and `decoder.`. {i}: a level, {j}: a block of it.

    finest_first: the decoder's levels are numbered from the finest, as in taming, not in the order of computation.
    query: the attention's projections, as one layer or three.
    """

    down: str = "down.{i}"
    up: str = "up.{i}"
    finest_first: bool = True
    block: str = "block.{j}"
    attention: str = "attn.{j}"
    downsample: str = "downsample.conv"
    upsample: str = "upsample.conv"
    middle: tuple[str, str, str] = ("mid.block_1", "mid.attn_1", "mid.block_2")
    skip: str = "nin_shortcut"
    norm: str = "norm"
    query: tuple[str, ...] = ("q", "k", "v")
    out: str = "proj_out"
    norm_out: str = "norm_out"


TAMING = KeyScheme()


# ---------------------------------------------------------------------------------------------- sizes


def describe_half(tensors: Mapping[str, Tensor], half: str, scheme: KeyScheme) -> dict[str, Any]:
    """Widths, blocks and attention of each level of the encoder or decoder, finest first, and middle_attention."""
    level = f"{half}.{scheme.down if half == 'encoder' else scheme.up}"
    first = f"{level}.{scheme.block.format(j=0)}.conv1.weight"
    levels = count(tensors, first)
    if levels == 0:
        raise CheckpointError(f"the key {first.format(i=0)} is missing")
    block = f"{level}.{scheme.block}.conv1.weight"
    attention = f"{level}.{scheme.attention}.{scheme.norm}.weight"
    widths = [shape_of(tensors, first.format(i=i), 4)[0] for i in range(levels)]
    blocks = {count(tensors, block.replace("{i}", str(i)).replace("{j}", "{i}")) for i in range(levels)}
    attends = [attention.format(i=i, j=0) in tensors for i in range(levels)]
    if len(blocks) > 1:
        raise CheckpointError(f"the levels of the {half} have {sorted(blocks)} residual blocks, where all have as many")
    if half == "decoder" and not scheme.finest_first:
        widths, attends = widths[::-1], attends[::-1]
    middle = f"{half}.{scheme.middle[1]}.{scheme.norm}.weight" in tensors
    return {"widths": widths, "blocks": blocks.pop(), "attends": attends, "middle": middle}


def describe_conv(tensors: Mapping[str, Tensor], scheme: KeyScheme, image: int) -> dict[str, Any]:
    """A `tokenizer: {kind: conv}` section without its quantizer."""
    encoder, decoder = (describe_half(tensors, half, scheme) for half in ("encoder", "decoder"))
    stem = shape_of(tensors, "encoder.conv_in.weight", 4)[0]
    base = gcd(stem, *encoder["widths"], *decoder["widths"])
    if len(encoder["widths"]) != len(decoder["widths"]):
        counts = f"{len(encoder['widths'])} and {len(decoder['widths'])}"
        raise CheckpointError(f"the encoder and the decoder differ in their levels: {counts}")
    if len(encoder["widths"]) < 2:
        raise CheckpointError("an autoencoder with a single level does not change the resolution; artok has none")
    section = {
        "kind": "conv",
        "downsample": 2 ** (len(encoder["widths"]) - 1),
        "base_channels": base,
        "channel_multipliers": [width // base for width in encoder["widths"]],
        "num_res_blocks": encoder["blocks"],
        "attention_resolutions": attention_sides(encoder["attends"], image),
        "middle_attention": encoder["middle"] or decoder["middle"],
        "z_channels": shape_of(tensors, "decoder.conv_in.weight", 4)[1],
        "quantizer_kernel": shape_of(tensors, "quant_conv.weight", 4)[2],
    }
    if decoder["widths"] != encoder["widths"]:
        section["decoder_channel_multipliers"] = [width // base for width in decoder["widths"]]
    if stem != base:
        section["stem"] = stem
    if decoder["blocks"] != encoder["blocks"] + 1:
        section["decoder_num_res_blocks"] = decoder["blocks"]
    if decoder["attends"] != encoder["attends"]:
        section["decoder_attention_resolutions"] = attention_sides(decoder["attends"], image)
    return section


def attention_sides(attends: list[bool], image: int) -> list[int] | str:
    """The config's value for the levels that have attention."""
    if attends == [False] * (len(attends) - 1) + [True]:
        return "coarsest"
    return [image >> level for level, here in enumerate(attends) if here]


# ---------------------------------------------------------------------------------------------- names


def conv_sources(tokenizer: ConvTokenizer, scheme: KeyScheme) -> dict[str, Source]:
    """Sources of the tensors of the encoder, the decoder and the convolutions around the quantizer."""
    if isinstance(tokenizer.decoder, DiffusionDecoder):
        raise ConfigError("no published format has a diffusion decoder; export it with --format safetensors")
    sources = rename_layer("to_quantizer", "quant_conv") | rename_layer("from_quantizer", "post_quant_conv")
    for half, stack in (("encoder", tokenizer.encoder), ("decoder", tokenizer.decoder)):
        for own, published in _pairs(half, stack, scheme):
            sources |= _layer(stack.get_submodule(own), f"{half}.{own}", f"{half}.{published}", scheme)
    return sources


def _pairs(half: str, stack: Encoder | Decoder, scheme: KeyScheme) -> list[tuple[str, str]]:
    """artok's and the published name of every block and layer below a half."""
    pairs = [("conv_in", "conv_in"), ("norm_out", scheme.norm_out), ("conv_out", "conv_out")]
    names = [name for name in scheme.middle if stack_has(stack.middle, name == scheme.middle[1])]
    pairs += [(f"middle.{index}", name) for index, name in enumerate(names)]
    levels = len(stack.levels)
    for index, level in enumerate(stack.levels):
        number = levels - 1 - index if half == "decoder" and scheme.finest_first else index
        place = (scheme.down if half == "encoder" else scheme.up).format(i=number)
        blocks = attentions = 0
        for child, layer in enumerate(level.children()):
            if isinstance(layer, PixelAttention):
                pairs.append((f"levels.{index}.{child}", f"{place}.{scheme.attention.format(j=attentions)}"))
                attentions += 1
            else:
                pairs.append((f"levels.{index}.{child}", f"{place}.{scheme.block.format(j=blocks)}"))
                blocks += 1
        if index < levels - 1:
            own = f"downsamples.{index}.conv" if half == "encoder" else f"upsamples.{index}.conv"
            pairs.append((own, f"{place}.{scheme.downsample if half == 'encoder' else scheme.upsample}"))
    return pairs


def stack_has(middle: nn.Module, attention: bool) -> bool:
    return not attention or any(isinstance(layer, PixelAttention) for layer in middle.children())


def _layer(module: nn.Module, own: str, published: str, scheme: KeyScheme) -> dict[str, Source]:
    if isinstance(module, PixelAttention):
        sources = rename_layer(f"{own}.norm", f"{published}.{scheme.norm}")
        sources |= rename_layer(f"{own}.out", f"{published}.{scheme.out}")
        for leaf in ("weight", "bias"):
            sources[f"{own}.qkv.{leaf}"] = rename(*(f"{published}.{name}.{leaf}" for name in scheme.query))
        return sources
    if not list(module.children()):
        return rename_layer(own, published)
    sources = {}
    for name, child in module.named_children():
        if any(True for _ in child.parameters()):  # the skip of equal widths is an identity
            sources |= rename_layer(f"{own}.{name}", f"{published}.{scheme.skip if name == 'skip' else name}")
    return sources
