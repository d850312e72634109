"""Every shipped config is valid, builds, and says in its header what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.paths import DATA, REPOSITORY, needs_cifar10
from PIL import Image

from artok.config import load, validate
from artok.data import hub
from artok.training.experiment import Experiment

ROOT = REPOSITORY / "configs"
STUDIES = "studies"  # these are configs of another kind, with tests of their own
CONFIGS = sorted(
    str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.rglob("*.yaml") if path.parent.name != STUDIES
)


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


@needs_cifar10
def test_the_cifar_configs_read_local_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTOK_DATA", str(DATA))
    data = load(Experiment, "cifar10/vq").data
    train, test = data.open("train"), data.open("test")
    assert (len(train), len(test)) == (50_000, 10_000)
    assert train.classes[3] == "cat"
    assert test.read([0]).images.shape == (1, 3, 32, 32)


def test_local_copies_go_before_the_hub_and_their_absence_does_not(tmp_path: Path) -> None:
    section = {"kind": "hub", "path": "someone/pictures", "size": 8, "local": str(tmp_path)}
    assert validate(hub.Config, section, "test").files is None
    (tmp_path / "train.parquet").touch()
    found = validate(hub.Config, section, "test")
    assert found.files == {"train": str(tmp_path / "train.parquet")}
    assert validate(hub.Config, found.model_dump(), "test") == found


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few rows of the data sets that shipped configs name, with their splits, columns, classes and kinds of labels."""
    import datasets

    root = tmp_path_factory.mktemp("published")
    described = {
        "imagenet-1k": ("image", 1000, {"train": [0, 1, 999] * 4, "validation": [1, 999, 0], "test": [-1] * 4}),
        "cifar10": ("img", 10, {"train": [0, 9, 3] * 4, "test": [1, 2, 9]}),
    }
    for name, (column, classes, splits) in described.items():
        names = datasets.ClassLabel(names=[f"class {index}" for index in range(classes)])
        features = datasets.Features({column: datasets.Image(), "label": names})
        for split, labels in splits.items():
            images = [Image.new("RGB", (300, 280), (row, 0, 0)) for row in range(len(labels))]
            (root / name).mkdir(exist_ok=True)
            table = datasets.Dataset.from_dict({column: images, "label": labels}, features)
            table.to_parquet(root / name / f"{split}.parquet")
    return root


@pytest.mark.parametrize("name", [name for name in CONFIGS if isinstance(load(Experiment, name).data, hub.Config)])
def test_a_shipped_config_opens_its_data(name: str, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", published / "cache")
    monkeypatch.setenv("ARTOK_DATA", str(published))
    data = load(Experiment, name).data
    train, test = data.open("train"), data.open("test")
    assert len(train) == 12 and len(test) == 3
    assert train.classes == test.classes and len(train.classes) in (10, 1000)
    assert sorted(test.read(range(3)).labels.tolist()) in ([0, 1, 999], [1, 2, 9])
    assert train.read([0]).images.shape == (1, *train.shape)
