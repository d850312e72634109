"""Imported published checkpoints compute what official code computed: every tensor of every fixture that is found.

The fixtures lie in the folder that the environment variable ARTOK_FIXTURES names; other sizes of the same families may
be put there. Each is written to a file as the published ones are and goes through the code of `artok import`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.parity import continuous, discrete, tokenizers
from helpers.parity.fixtures import FOLDER, Fixture, disagreement, fixture, names
from helpers.paths import REPOSITORY
from torch import Tensor

FAMILIES: dict[str, Callable[[Fixture], dict[str, Tensor]]] = {
    "taming_vqgan": tokenizers.vq,
    "llamagen_vq": tokenizers.vq,
    "var_vqvae": tokenizers.var_vqvae,
    "mar_kl": tokenizers.mar_kl,
    "sd_vae_kl": tokenizers.sd_vae_kl,
    "llamagen_gpt": discrete.llamagen_gpt,
    "var_transformer": discrete.var_transformer,
    "mar": continuous.mar,
    "dit": continuous.dit,
}


@pytest.mark.skipif(not names(), reason=f"no official fixtures in {FOLDER}; set ARTOK_FIXTURES to their folder")
@pytest.mark.parametrize("name", names())
@torch.inference_mode()
def test_every_recorded_tensor(name: str, tmp_path: Path) -> None:
    recorded = fixture(name, tmp_path)
    ours = FAMILIES[recorded.about["family"]](recorded)
    inputs, outputs = recorded.about["inputs"], recorded.about["outputs"]
    assert recorded.io.keys() == {*inputs, *outputs}, "recorded and not named"
    assert not set(outputs) - set(ours), "recorded and not computed"
    outputs = [*outputs, *(name for name in inputs if name in ours)]  # what artok computes too, such as VAR's input
    wrong = [disagreement(output, ours[output], recorded.io[output]) for output in outputs]
    assert not any(wrong), [reason for reason in wrong if reason]


@pytest.mark.slow
def test_without_fixtures_the_reason_names_the_variable() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ARTOK_FIXTURES"}
    command = [sys.executable, "-m", "pytest", __file__, "-rs", "-k", "every_recorded", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0 and "set ARTOK_FIXTURES" in done.stdout, done.stdout
