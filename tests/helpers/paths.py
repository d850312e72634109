"""Where the repository is, and the data and fixtures that the environment names: ARTOK_DATA and ARTOK_FIXTURES."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("ARTOK_DATA", "/nowhere"))  # a folder for each data set, such as cifar10/train.parquet
FIXTURES = Path(os.environ.get("ARTOK_FIXTURES", "/nowhere"))  # outputs recorded from the published code
CIFAR10 = DATA / "cifar10"

needs_cifar10 = pytest.mark.skipif(
    not (CIFAR10 / "train.parquet").is_file(), reason="set ARTOK_DATA to a folder with cifar10/{train,test}.parquet"
)
