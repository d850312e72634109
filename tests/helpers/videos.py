"""Small models of videos with random weights."""

from __future__ import annotations

import torch

from artok.config import find
from artok.generators.base import GeneratorConfig
from artok.pipeline import Pipeline
from artok.quantizers.base import QuantizerConfig
from artok.sampling.settings import Sampling
from artok.saved import Facts, Saved
from artok.tokenizers import conv3d
from helpers.generators import CLASSES, randomise_zeros

IMAGE = (3, 17, 16, 16)  # 5 frames of 4 x 4 tokens, of 4 frames each after the first


def pipeline(config: GeneratorConfig, quantizer: str = "fsq") -> Pipeline:
    """A generator on a tiny conv3d tokenizer of 5 x 4 x 4 tokens."""
    torch.manual_seed(0)
    around = find("quantizers", quantizer)
    assert issubclass(around, QuantizerConfig)
    tiny = conv3d.Config.tiny().model_copy(update={"quantizer": around.tiny()})
    tokenizer = tiny.build(IMAGE)
    tokenizer(torch.rand(4, *IMAGE) * 2 - 1)
    tokenizer.eval().requires_grad_(False)
    generator = config.build(tokenizer.layout, CLASSES).eval()
    randomise_zeros(generator)
    facts = Facts(image=IMAGE, classes=tuple("abcd"), data="", version="test")
    saved = Saved(tokenizer=tiny, generator=config, facts=facts)
    made = Pipeline(tokenizer, generator, tuple("abcd"), Sampling(), saved, Saved(tokenizer=tiny, facts=facts))
    assert made.generator.layout.grid == (5, 4, 4)
    return made
