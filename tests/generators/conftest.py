"""What the tests of generators share."""

from __future__ import annotations

import pytest
from helpers.generators import PAIRS, build, tokenizer

from artok.generators.base import Generator
from artok.tokenizers.base import Tokenizer


@pytest.fixture(params=PAIRS, ids="-on-".join)
def pair(request: pytest.FixtureRequest) -> tuple[Generator, Tokenizer]:
    """A family on a tokenizer that it accepts."""
    kind, name = request.param
    codec = tokenizer(name)
    return build(kind, codec), codec
