"""Every shipped config is valid, builds, and says in its header what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from artok.config import load
from artok.training.experiment import Experiment

ROOT = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.rglob("*.yaml"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_config_is_valid_and_says_what_it_is(name: str) -> None:
    experiment = load(Experiment, name)
    lines = (ROOT / f"{name}.yaml").read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert len(header) >= 3, "what it trains, what it costs, how it is launched"
    assert any(f"artok train {name}" in line for line in header)
    assert experiment.name == name.replace("/", "-")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_tokenizer_builds(name: str) -> None:
    experiment = load(Experiment, name)
    if isinstance(experiment.tokenizer, str):
        pytest.skip("trains a generator on another config's tokenizer")
    with torch.device("meta"):
        tokenizer = experiment.tokenizer.build(experiment.image)
    assert tokenizer.layout.image == experiment.image


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_generator_builds_on_its_tokenizers_tokens(name: str) -> None:
    experiment = load(Experiment, name)
    if experiment.generator is None:
        pytest.skip("trains a tokenizer")
    if isinstance(experiment.tokenizer, str):
        other = load(Experiment, experiment.tokenizer.removeprefix("runs/").replace("-", "/", 1))
        assert not isinstance(other.tokenizer, str)
        section, image = other.tokenizer, other.image
        assert image == experiment.image
    else:
        section, image = experiment.tokenizer, experiment.image
    with torch.device("meta"):
        layout = section.build(image).layout
        assert experiment.generator.refuse(layout) is None
        experiment.generator.build(layout, 10)
