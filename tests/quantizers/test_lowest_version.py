"""FSQ computes the same with the lowest vector-quantize-pytorch that pyproject.toml allows.

`tools/lowest_versions.sh` installs that version beside the other packages and names its folder in ARTOK_VQ_LOWEST.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

LOWEST = os.environ.get("ARTOK_VQ_LOWEST")
PROGRAM = """
import torch, vector_quantize_pytorch
from artok.quantizers import fsq
print(vector_quantize_pytorch.__file__)
for levels in ([8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [3]):
    quantizer = fsq.Config(levels=levels).build((4, 4)).train()
    latents = 2 * torch.randn(8, len(levels), 4, 4, generator=torch.Generator().manual_seed(0))
    latents.requires_grad_()
    out = quantizer(latents)
    out.vectors.square().sum().backward()
    assert torch.equal(quantizer.lookup(out.values), out.vectors.detach())
    print(sorted(quantizer.state_dict()), out.values.sum().item(), out.vectors.double().sum().item().hex())
    print(latents.grad.double().sum().item().hex())
"""


def run_with(*folders: Path | str) -> list[str]:
    path = os.pathsep.join(map(str, [*folders, REPOSITORY]))
    command, environment = [sys.executable, "-c", PROGRAM], os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.skipif(LOWEST is None, reason="ARTOK_VQ_LOWEST names no folder with the lowest vector-quantize-pytorch")
def test_fsq_is_the_same_with_the_lowest_version() -> None:
    assert LOWEST is not None
    installed, lowest = run_with(), run_with(LOWEST)
    assert lowest[0].startswith(LOWEST) and not installed[0].startswith(LOWEST)
    assert lowest[1:] == installed[1:]
