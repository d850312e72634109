"""What several tests share: a cache of their own, and what a processor without bfloat16 units sees.

`ARTOK_TEST_BF16=0` makes the precision `auto` what it is on such a processor; with `ATEN_CPU_CAPABILITY=avx2` and
`ONEDNN_MAX_CPU_ISA=AVX2` the arithmetic is that of an AVX2 machine too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from helpers.paths import DATA, FIXTURES  # read before the environment is changed


def pytest_configure() -> None:
    """A folder that is asked for and is not there would only skip tests."""
    for variable, folder in (("ARTOK_DATA", DATA), ("ARTOK_FIXTURES", FIXTURES)):
        if variable in os.environ and not folder.is_dir():
            raise pytest.UsageError(f"{variable} names {folder}, which is not a folder")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trained extractors and cached tokens of the tests stay out of the user's cache."""
    os.environ.pop("ARTOK_DATA", None)  # only tests that ask for local copies get them: see helpers.paths
    before = os.environ.get("ARTOK_CACHE")
    os.environ["ARTOK_CACHE"] = str(tmp_path_factory.getbasetemp().parent / "artok-cache")
    torch.set_num_threads(1)
    if os.environ.get("ARTOK_TEST_BF16") == "0":
        torch.cpu._is_avx512_bf16_supported = lambda: False
    yield
    if before is None:
        del os.environ["ARTOK_CACHE"]
    else:
        os.environ["ARTOK_CACHE"] = before
