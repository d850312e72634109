"""`artok evaluate` of runs: what it notes of the weights, of unfinished training and of other data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import artok
from helpers.images import paint
from helpers.models import generator_experiment, tokenizer_experiment

from artok.config import read_yaml
from artok.evaluation.evaluate import compare_classes
from artok.metrics.results import Results
from artok.saved import CONFIG, count_training_images, describe_unfinished, digest_weights, read_saved
from artok.training.merged_log import log_interval
from artok.training.run import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    brief = {"monitor_images": 0, "validate_every": 128, "preview_every": 128}
    assert train(tokenizer_experiment(training=brief), folder / "vq")
    assert train(generator_experiment(str(folder / "vq"), training=brief), folder / "raster")
    return folder


def test_results_name_the_weights_they_are_of(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = "evaluation.metrics=[frechet]"
    assert artok(monkeypatch, "evaluate", runs / "raster", "-n", 40, "--extractor", "pixels", metrics) == 0
    results = Results.load(runs / "raster" / "results.json")
    assert results.weights == digest_weights(runs / "raster")
    assert (results.images_seen, results.images_wanted, results.finished, results.notes) == (128, 128, True, ())
    assert digest_weights(runs / "raster").endswith(digest_weights(runs / "vq"))  # a generator's with its tokenizer's
    data = json.loads((runs / "raster" / "results.json").read_text())
    assert data["weights"] and data["metrics"][0]["k"] is None
    for later in ("weights", "images_seen", "images_wanted", "notes"):
        data.pop(later)
    (runs / "raster" / "old.json").write_text(json.dumps(data))
    old = Results.load(runs / "raster" / "old.json")  # of a version that noted none of these
    assert (old.weights, old.finished, old["fd"]) == ("", None, results["fd"])


def test_more_images_than_a_tokenizer_can_be_measured_on(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert artok(monkeypatch, "evaluate", runs / "vq", "-n", 541, "--extractor", "pixels") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("artok: vq is a tokenizer") and "-n 540 or fewer, not 541" in error


@pytest.mark.parametrize("section", ["", "training: []\n", "training: {images: many}\n"])
def test_a_run_whose_config_says_nothing_of_training_is_not_called_unfinished(tmp_path: Path, section: str) -> None:
    (tmp_path / CONFIG).write_text(f"name: a\n{section}")
    (tmp_path / "checkpoints" / "000000000008").mkdir(parents=True)
    (tmp_path / "checkpoints" / "000000000008" / "state.json").write_text("{}")
    assert describe_unfinished(tmp_path) is None
    assert log_interval(tmp_path) == 1


def test_an_unfinished_run_says_so(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = runs / "vq" / CONFIG
    assert describe_unfinished(runs / "vq") is None
    whole = config.read_text()
    assert read_yaml(config)["training"]["images"] == 128
    config.write_text(whole.replace("images: 128", "images: 5000"))
    words = f"{runs / 'vq'} is unfinished: its weights have seen 128 of 5,000 training images"
    try:
        assert count_training_images(runs / "vq") == (128, 5000)
        assert describe_unfinished(runs / "vq") == words
        metrics = "evaluation.metrics=[reconstruction]"
        assert artok(monkeypatch, "evaluate", runs / "vq", "-n", 20, "--extractor", "pixels", metrics) == 0
        shown = capsys.readouterr()
        assert words in shown.out and words in shown.err
        assert Results.load(runs / "vq" / "results.json").finished is False
        paint(tmp_path / "grey.png", 100)
        for command in (
            ("reconstruct", runs / "vq", tmp_path / "grey.png", "--out", tmp_path / "sheets"),
            ("encode", runs / "vq", "--split", "test", "--out", tmp_path / "tokens"),
            ("export", runs / "vq", "--out", tmp_path / "export"),
        ):
            assert artok(monkeypatch, *command) == 0
            assert f"note: {words}" in capsys.readouterr().err
        assert f"**Note:** {words}." in (tmp_path / "export" / "README.md").read_text()
    finally:
        config.write_text(whole)
    assert artok(monkeypatch, "sample", runs / "raster", "-n", 1, "--labels", 1, "--out", tmp_path / "samples") == 0
    assert "unfinished" not in capsys.readouterr().err


def test_classes_of_other_names_are_noted(runs: Path) -> None:
    saved = read_saved(runs / "raster")
    digits = [str(digit) for digit in range(10)]
    assert saved.facts.classes == tuple(digits)
    assert compare_classes(saved, ["x", *digits[1:]], runs) is None  # it knows its classes by number only

    def named(*names: str):
        return saved.model_copy(update={"facts": saved.facts.model_copy(update={"classes": names})})

    assert compare_classes(named("cat", "dog"), ["cat", "dog"], runs) is None
    note = compare_classes(named("cat", "dog"), ["dog", "zebra"], Path("runs/pets"))
    assert note == (
        "the classes of the data have other names than those of pets: label 0 is 'dog' here and 'cat' to the model; "
        "2 of 2 differ"
    )
    with pytest.raises(Exception, match="makes images of 2 classes and the data have 3"):
        compare_classes(named("cat", "dog"), ["a", "b", "c"], runs)
