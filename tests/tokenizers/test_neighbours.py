"""Near neighbours of codes, for every quantizer that has codes; and what replacing codes by them does."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from helpers.models import IMAGE, TOKENIZERS
from torch import Tensor

from artok.config import validate
from artok.data import digits
from artok.errors import ConfigError
from artok.evaluation.code_usage import examine
from artok.evaluation.evaluator import Evaluator
from artok.layout import TokenLayout, Tokens
from artok.noise import Noise
from artok.tokenizers.base import Reconstruction, Tokenizer
from artok.tokenizers.neighbours import near_codes, replace_codes
from artok.training.progress import Progress


def built(kind: str) -> Tokenizer:
    torch.manual_seed(0)
    return TOKENIZERS[kind]().build(IMAGE).eval()


DISCRETE = [kind for kind in TOKENIZERS if built(kind).layout.discrete]


@pytest.mark.parametrize("kind", DISCRETE)
def test_every_code_has_different_neighbours_in_order_of_distance(kind: str) -> None:
    tokenizer = built(kind)
    layout = tokenizer.layout
    near = near_codes(tokenizer, 3)
    assert near.shape == (len(layout.grids), layout.codes, layout.vocab, 3)
    own = torch.arange(layout.vocab or 0)[:, None]
    assert (near != own).all()
    assert all(len(set(row.tolist())) == 3 for row in near.flatten(0, 2))
    assert near.min() >= 0
    assert near.max() < (layout.vocab or 0)
    first = near[-1, 0]
    gaps = [_distance(tokenizer, own[:, 0], first[:, rank]) for rank in range(3)]
    assert (gaps[0] <= gaps[1] + 1e-5).all()
    assert (gaps[1] <= gaps[2] + 1e-5).all()


def _distance(tokenizer: Tokenizer, one: Tensor, other: Tensor) -> Tensor:
    """In the middle of the latent, with the codes everywhere in the finest scale and the first level."""
    layout, vectors = tokenizer.layout, []
    for codes in (one, other):
        values = torch.zeros(len(codes), *layout.value_shape(), dtype=torch.int64)
        values[:, list(layout.scales())[-1], 0] = codes[:, None]
        latents = tokenizer.embed(Tokens(values, layout))
        vectors.append(latents[(slice(None), slice(None), *(side // 2 for side in layout.grid))])
    return (vectors[0] - vectors[1]).norm(dim=1)


def test_a_table_gives_its_nearest_rows() -> None:
    tokenizer = built("conv-vq")
    table = tokenizer.quantizer.codebook().double()  # type: ignore[union-attr,operator]
    distance = torch.cdist(table, table).fill_diagonal_(math.inf)
    assert torch.equal(near_codes(tokenizer, 2)[0, 0], distance.topk(2, largest=False).indices)


def test_codes_without_a_table_have_neighbours_too() -> None:
    bits = near_codes(built("conv-lfq"), 4)[0, 0]
    flipped = bits ^ torch.arange(16)[:, None]
    assert sorted(flipped[5].tolist()) == [1, 2, 4, 8]  # 4 bits, one flipped at a time
    finite = built("conv-fsq")
    levels = finite.quantizer.codebook()  # type: ignore[union-attr,operator]
    nearest = near_codes(finite, 1)[0, 0, :, 0]
    assert ((levels - levels[nearest]).abs() > 1e-6).sum(1).eq(1).all()  # one channel differs


def test_a_small_codebook_gives_what_it_has_and_latents_are_refused() -> None:
    assert near_codes(built("conv-vq"), 99).shape[-1] == 15
    with pytest.raises(ConfigError, match="no codes"):
        near_codes(built("pixels"), 2)


@pytest.mark.parametrize("kind", ["conv-vq", "conv-residual", "conv-multiscale"])
def test_replaced_codes_are_neighbours_as_many_as_asked_and_the_same_each_time(kind: str) -> None:
    tokenizer = built(kind)
    layout, near = tokenizer.layout, near_codes(tokenizer, 3)
    values = torch.randint(layout.vocab or 0, (40, *layout.value_shape()))
    tokens, images = Tokens(values, layout), torch.arange(40)

    def changed(share: float) -> Tensor:
        return replace_codes(tokens, near, share, Noise(0, images)).values

    assert torch.equal(changed(0), values)
    every, some = changed(1), changed(0.25)
    assert (every != values).all()
    assert 0.2 < (some != values).double().mean() < 0.3
    assert torch.equal(some, torch.where(some != values, every, values))  # a part of those at a larger share
    assert torch.equal(changed(0.25), some)
    for scale, positions in enumerate(layout.scales()):
        for level in range(layout.codes):
            allowed = near[scale, level][values[:, positions, level]]
            assert (allowed == every[:, positions, level, None]).any(-1).all()
    part = replace_codes(tokens[5:9], near, 0.25, Noise(0, images[5:9])).values
    assert torch.equal(part, some[5:9])  # an image's changes do not depend on its batch


# ---------------------------------------------------------------------------------------------- robustness


class Grey(Tokenizer):
    """Squares of 2x2 pixels as one of 16 greys: a tokenizer that needs no training and whose codes have an order."""

    def __init__(self) -> None:
        super().__init__()
        self.layout = TokenLayout(((8, 8),), width=1, vocab=16, image=(1, 16, 16))

    def encode(self, images: Tensor) -> Tokens:
        means = torch.nn.functional.avg_pool2d(images, 2).flatten(1)
        return Tokens(((means + 1) * 7.5).round().clamp(0, 15).long()[..., None], self.layout)

    def embed(self, tokens: Tokens) -> Tensor:
        return (tokens.values.float() / 7.5 - 1).transpose(1, 2).unflatten(2, (8, 8))

    def decode(self, tokens: Tokens) -> Tensor:
        return self.embed(tokens).repeat_interleave(2, 2).repeat_interleave(2, 3)

    def forward(self, images: Tensor) -> Reconstruction:
        tokens = self.encode(images)
        return Reconstruction(self.decode(tokens), tokens, {}, {})

    def prefix(self, tokens: Tokens, scales: int) -> Tensor:
        return self.embed(tokens)

    def prefixes(self, tokens: Tokens) -> list[Tensor]:
        return [self.embed(tokens)]

    def measure(self, batches: Iterable[Tensor]) -> dict[str, float]:
        return {}


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    data = validate(digits.Config, {"kind": "digits", "size": 16}, "test")
    return Evaluator(data, "classifier", "cpu", 200, Progress("test", quiet=True))


def test_no_replaced_code_is_the_plain_distance_and_more_are_worse(evaluator: Evaluator) -> None:
    tokenizer = Grey()
    plain = evaluator.tokenizer(tokenizer, "grey")["fd"]
    found = examine(evaluator, tokenizer, (0, 0.1, 0.3, 1), neighbours=4).perturbed
    values = [entry.value for entry in found]
    assert values[0] == pytest.approx(plain.value, rel=1e-6)
    assert values == sorted(values)
    assert values[1] > 1.01 * values[0]
    assert values[3] > 2 * values[0]
    assert found[1].name == "fd/replaced_0.1"
    assert (found[1].n, found[1].reference_n) == (plain.n, plain.reference_n)
    again = examine(evaluator, tokenizer, (0.3,), neighbours=4).perturbed
    assert again[0].value == values[2]
    closer = examine(evaluator, tokenizer, (0.3,), neighbours=1).perturbed
    assert closer[0].value < values[2]  # neighbours one grey away, not up to four


def test_entropy_by_position_is_that_of_each_position(evaluator: Evaluator) -> None:
    class Told(Grey):
        """The code at position 0 says nothing, at 1 one bit, at 2 two bits, whatever the image; elsewhere 0."""

        def encode(self, images: Tensor) -> Tokens:
            numbers = torch.arange(len(images))
            values = torch.zeros(len(images), 64, 1, dtype=torch.int64)
            values[:, 1, 0], values[:, 2, 0] = numbers % 2, numbers % 4
            return Tokens(values, self.layout)

    positions = examine(evaluator, Told(), (), neighbours=2).positions
    assert positions.shape == (64, 1)
    assert positions[:3, 0].tolist() == pytest.approx([0, 1, 2], abs=1e-12)  # 200 images: a multiple of 4
    assert positions[3:].abs().max() == 0
