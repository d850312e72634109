"""`--fresh` discards a run or a study, and no folder of somebody else; an empty `--out` is no folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.models import generator_experiment, tokenizer_experiment

from artok import api
from artok.discard import check_discardable, discard
from artok.errors import CheckpointError, ConfigError
from artok.evaluation.evaluate import evaluate
from artok.locks import hold_lock
from artok.training.progress import Progress
from artok.training.run import LOCK, train


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A generator's run with everything that a run may hold, and what kills leave in it."""
    short = {"images": 64, "snapshot_every": 32, "trackers": ["tensorboard"]}
    assert train(tokenizer_experiment(training=short), tmp_path / "vq")
    run = tmp_path / "raster"
    assert train(generator_experiment(str(tmp_path / "vq"), training=short), run)
    evaluate(str(run), 16, "pixels", [], "cpu", Progress("test", quiet=True))
    (run / "report.html").write_text("a page")
    for left in (
        ".config.yaml.7.tmp",
        "best/model.safetensors",
        "best/.tmpU6fuqQ",
        "checkpoints/.000000000096.tmp/optimizer.bin",
        "checkpoints/damaged-000000000096/ema.safetensors",
    ):
        (run / left).parent.mkdir(exist_ok=True)
        (run / left).write_text("half")
    return run


def test_a_run_is_discarded_but_for_its_lock(finished: Path) -> None:
    with hold_lock(finished / LOCK):
        discard(finished)
        assert [path.name for path in finished.iterdir()] == [f"{LOCK}.lock"]


@pytest.mark.parametrize(
    "strange",
    ["notes.txt", "samples/holiday.jpg", "checkpoints/000000000064/photo.png", "tokenizer/notes/a.txt", "data.csv"],
)
def test_a_run_with_a_file_of_somebody_else_is_not_discarded(finished: Path, strange: str) -> None:
    (finished / strange).parent.mkdir(exist_ok=True)
    (finished / strange).write_text("mine")
    with pytest.raises(CheckpointError, match=rf"{strange}.*move them away"):
        train(tokenizer_experiment(), finished, fresh=True)
    assert (finished / strange).read_text() == "mine" and (finished / "model.safetensors").exists()


def test_a_link_to_a_folder_is_not_followed(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").write_text("mine")
    (finished / "photos").symlink_to(tmp_path / "photos")
    with pytest.raises(CheckpointError, match="photos"):
        discard(finished)
    assert (tmp_path / "photos" / "0.png").exists()


@pytest.mark.parametrize(
    "files",
    [
        {"holiday/1.jpg": "", "2.jpg": "", "3.jpg": "", "4.jpg": ""},
        {"config.yaml": "site_name: mine\n", "samples/000.png": ""},
        {"results.json": "{}", "report.html": ""},
        {"log.jsonl": '{"message": "mine"}\n'},
        {"study.yaml": "school: mine\n", "configs/a.yaml": ""},
    ],
)
def test_a_folder_of_somebody_else_is_not_discarded(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_text(text)
    with pytest.raises(CheckpointError, match="so --fresh does not discard it"):
        train(tokenizer_experiment(), tmp_path / "own", fresh=True)
    assert all((tmp_path / "own" / name).read_text() == text for name, text in files.items())


def test_the_first_strange_files_are_named(tmp_path: Path) -> None:
    for index in range(5):
        (tmp_path / f"{index}.jpg").touch()
    with pytest.raises(CheckpointError, match=r"\(0.jpg, 1.jpg, 2.jpg and 2 more\)"):
        check_discardable(tmp_path)


def test_a_study_is_discarded(tmp_path: Path) -> None:
    run = "trained/raster/seed0"
    for name in (
        *("study.yaml", "results.json", "results.csv", "report.html", "speeds.json", ".study.lock", "slurm/12.out"),
        *("configs/raster-seed-0.yaml", "records/times/raster.json", "records/entries/raster/seed0.json"),
        *(f"{run}/{name}" for name in ("config.yaml", "tokenizer/model.safetensors", ".training.lock")),
        *(f"{run}/snapshots/000000000032.safetensors", "tokenizers/vq/model.safetensors", "probes/raster/log.jsonl"),
        *("beside/study.yaml", "beside/tokenizers/a-seed0/checkpoints/000000000064/optimizer.bin"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("entries:\n" if name == "study.yaml" else "")
    discard(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".study.lock"]


def test_an_empty_place_to_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in ("", " "):
        with pytest.raises(ConfigError, match="is empty"):
            api.train(tokenizer_experiment(), out=out)
    assert not list(tmp_path.iterdir())
