"""What is measured: families, sizes, batches and lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

FAMILIES: dict[str, dict[str, list[str]]] = {  # size: config and overrides
    "raster": {"B": ["imagenet/raster-b"], "digits": ["digits/raster"]},
    "var": {"B": ["imagenet/var-d16"], "digits": ["digits/var"]},
    "mar": {"B": ["imagenet/mar-base", "sampling.steps=16", "sampling.head_steps=25"], "digits": ["digits/mar"]},
    "causal_mar": {"digits": ["digits/mar-causal"]},
    "maskgit": {"B": ["imagenet/maskgit"], "digits": ["digits/maskgit"]},
    "dit": {
        "B": ["imagenet/dit-xl-2", "generator.network.size=B", "generator.network.patch_size=4", "sampling.steps=50"],
        "digits": ["digits/dit"],
    },
    "unet": {"digits": ["digits/unet-pixels"]},
    "gan": {"digits": ["digits/gan"]},
    "vq": {"B": ["imagenet/vq-f16"], "digits": ["digits/vq"]},
    "msvq": {"B": ["imagenet/msvq-f16"], "digits": ["digits/msvq"]},
    "kl": {"B": ["imagenet/kl-f16"], "digits": ["digits/kl"]},
}
TOKENIZERS = ("vq", "msvq", "kl")
GROWS = ("raster", "causal_mar", "maskgit", "mar", "dit")  # families whose number of tokens is free
WHAT = ("sample", "encode", "decode", "train")
TRAINING_BATCHES = {"B": 4}  # at published size; at digits size the config's own


def cases(
    families: Sequence[str], sizes: Sequence[str], what: Sequence[str], batches: Sequence[int], lengths: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Each case as a side gets it, without threads and dtype.

    batch: images per call. length: tokens per image, None for the config's own. overrides: of artok's config.
    """
    for family in families:
        for size, (config, *overrides) in FAMILIES[family].items():
            if size not in sizes:
                continue
            base = {"family": family, "size": size, "config": config, "overrides": overrides, "length": None}
            for each in what:
                if (each in ("encode", "decode")) != (family in TOKENIZERS) and each != "train":
                    continue
                if each == "train":
                    yield base | {"what": each, "batch": TRAINING_BATCHES.get(size)}
                    continue
                for batch in batches:
                    yield base | {"what": each, "batch": batch}
                if each == "sample" and size == "digits" and family in GROWS:
                    for length in lengths:
                        yield base | {"what": each, "batch": 1, "length": length}
