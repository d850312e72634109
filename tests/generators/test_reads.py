"""The sampling settings that a family declares are those that it reads, so that others can be refused."""

from __future__ import annotations

import pytest
import torch
from helpers.models import IMAGE, TOKENIZERS

from artok.config import find, kinds
from artok.generators.base import Generator
from artok.layout import Condition
from artok.noise import Noise
from artok.sampling.settings import Sampling
from artok.tokenizers.base import Tokenizer

READ: set[str] = set()


class Recorded(Sampling):
    """Settings that note which of them are read."""

    def __getattribute__(self, name: str) -> object:
        if name in Sampling.model_fields:
            READ.add(name)
        return super().__getattribute__(name)


@torch.no_grad()
@pytest.mark.parametrize("kind", kinds("generators"))
def test_a_family_reads_the_settings_that_it_declares(kind: str) -> None:
    config = find("generators", kind).tiny()
    built = (tokenizer().build(IMAGE).eval() for tokenizer in TOKENIZERS.values())
    codec: Tokenizer = next(codec for codec in built if config.refuse(codec.layout) is None)
    generator: Generator = config.build(codec.layout, 3).eval()
    READ.clear()
    sampling = Recorded(cfg_scale=2, cfg_schedule="cosine", truncation=1)
    generator.check(sampling)
    for _ in generator.steps(Condition(torch.tensor([0, 1])), sampling, Noise(0, torch.arange(2)), codec):
        pass
    assert READ - {"dtype", "seed"} == set(generator.reads)
