"""What `import artok` gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import GENERATOR, generator_experiment, tokenizer_experiment

import artok
from artok.config import validate
from artok.errors import ArtokError, CheckpointError, ConfigError, RunError
from artok.interop import hub
from artok.saved import CONFIG, Saved

FACTS = {"image": [1, 16, 16], "classes": [str(digit) for digit in range(10)], "data": "", "version": ""}


@pytest.fixture(scope="module")
def pipeline() -> artok.Pipeline:
    config = validate(Saved, {**GENERATOR, "facts": FACTS}, "test")
    tokenizer = config.tokenizer.build(config.facts.image)
    generator = config.generator.build(tokenizer.layout, len(config.facts.classes))
    return artok.Pipeline(tokenizer, generator, config.facts.classes, config.sampling, config, config)


def test_importing_artok_imports_no_torch_and_names_what_it_gives() -> None:
    code = "import sys, artok; assert 'torch' not in sys.modules; assert set(artok.__all__) <= set(dir(artok))"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        artok.Pipelin  # noqa: B018


def test_train_load_generate_and_evaluate(tmp_path: Path) -> None:
    folder = artok.train(tokenizer_experiment(), out=tmp_path / "vq", device="cpu")
    tokenizer = artok.load_tokenizer(folder)
    assert tokenizer.encode(torch.zeros(2, 1, 16, 16)).values.shape == (2, 16, 1)
    artok.train(generator_experiment(str(folder)), out=tmp_path / "raster")
    assert artok.Pipeline.from_pretrained(tmp_path / "raster")([3, 4], n=2).shape == (4, 1, 16, 16)
    results = artok.evaluate(folder, n=120, extractor="pixels", device="cpu")
    assert results.measurements and (folder / "results.json").exists()


@pytest.mark.parametrize("labels", [2.0, [1.5], "cat", {"a": 1}, [True], 10**30, -1, 10, [], None, torch.ones(2)])
def test_labels_that_are_none_are_refused(pipeline: artok.Pipeline, labels: Any) -> None:
    with pytest.raises(ConfigError, match="label"):
        pipeline(labels)


@pytest.mark.parametrize("given", [{"n": 0}, {"n": 1.5}, {"seed": -1}, {"seed": 2**32}, {"cfg_scale": 1e-300}])
def test_impossible_numbers_are_refused(pipeline: artok.Pipeline, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        pipeline(0, **given)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "", ".", "/dev/null", "no/such/run"])
def test_names_of_no_run_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError):
        artok.load_tokenizer(name)
    with pytest.raises(ArtokError):
        artok.train(name)


def test_a_run_of_an_earlier_version_goes_on_under_todays_keys(tmp_path: Path) -> None:
    folder = artok.train(tokenizer_experiment(), out=tmp_path / "vq")
    text = (folder / CONFIG).read_text().replace("global_batch:", "batch:")
    (folder / CONFIG).write_text("\n".join(line for line in text.splitlines() if "_every: null" not in line))
    artok.train(tokenizer_experiment(training={"snapshot_every": 64}), out=folder)
    with pytest.raises(CheckpointError, match=r"training\.global_batch: 16, now 8"):
        artok.train(tokenizer_experiment(training={"global_batch": 8}), out=folder)


def test_a_published_checkpoint_is_imported_once_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTOK_CACHE", str(tmp_path))
    trained = artok.train(tokenizer_experiment(), out=tmp_path / "trained")
    imports = []

    def import_published(name: str, out: Path, *_: object) -> None:
        imports.append(name)
        trained.rename(out)

    monkeypatch.setattr(hub, "import_published", import_published)
    (tmp_path / "imported").mkdir()
    for name in ("llamagen-vq-ds16", "hub:llamagen-vq-ds16"):
        assert artok.load_tokenizer(name).layout.vocab == 16
    assert imports == ["llamagen-vq-ds16"]
    assert (tmp_path / "imported" / "llamagen-vq-ds16" / CONFIG).exists()


def test_without_a_network_or_such_a_checkpoint_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> Path:
        raise OSError("there is no network")

    monkeypatch.setenv("ARTOK_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_download", no_network)
    with pytest.raises(RunError, match="var-d16 could not be fetched"):
        artok.Pipeline.from_pretrained("var-d16")
    with pytest.raises(CheckpointError, match="there is no run var-d61"):
        artok.Pipeline.from_pretrained("var-d61")
