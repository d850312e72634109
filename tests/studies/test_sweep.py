"""A sweep: its study file, a tiny one from end to end, killed and resumed; its plots."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.models import GENERATOR, TOKENIZER
from helpers.paths import REPOSITORY

from artok import cli
from artok.commands.sweep import STUDY, sweep
from artok.config import validate
from artok.errors import ArtokError, CheckpointError, ConfigError
from artok.evaluation.run_directory import is_trained
from artok.report.sweep_text import paragraphs
from artok.saved import WEIGHTS
from artok.studies.grid import Plan, Sweep, axes_of, load_sweep, plan
from artok.studies.grid_point import Record, is_measured, parts, run_cell
from artok.studies.grid_results import as_csv, as_json, find_out
from artok.studies.scheduler import Job
from artok.training.checkpoints import latest
from artok.training.loop import Trainer

ROOT = REPOSITORY
GRID: dict[str, Any] = {
    "downsampling": [
        {"tokenizer": {"downsample": 4, "channel_multipliers": [1, 1, 1]}},
        {"label": "f8", "tokenizer": {"downsample": 8, "channel_multipliers": [1, 1, 1, 1]}},
    ],
    "tokenizer.quantizer.codebook_size": [16],
}


def section(folder: Path, **changes: Any) -> dict[str, Any]:
    """A tiny study on the configs that it writes into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vq.yaml").write_text(yaml.safe_dump(TOKENIZER))
    (folder / "raster.yaml").write_text(yaml.safe_dump(GENERATOR))
    study: dict[str, Any] = {
        "name": "tiny",
        "tokenizer": str(folder / "vq.yaml"),
        "generator": str(folder / "raster.yaml"),
        "budget": {"kind": "images", "amount": 160},
        "grid": GRID,
        "evaluation": {"n": 60},
        "workers": 1,
    }
    return {key: value for key, value in (study | changes).items() if value is not None}


def study(folder: Path, **changes: Any) -> Sweep:
    return validate(Sweep, section(folder, **changes), "test")


def settled(folder: Path, **changes: Any) -> Plan:
    return plan(study(folder, **changes), folder / "out")


# ---------------------------------------------------------------------------------------------- the study file


def test_a_grid_is_the_product_of_its_axes(tmp_path: Path) -> None:
    grid = {
        "tokenizer.quantizer": [{"kind": "vq", "codebook_size": 16, "code_dim": 4}, {"kind": "fsq", "levels": [4, 4]}],
        **GRID,
    }
    grid.pop("tokenizer.quantizer.codebook_size")
    planned = settled(tmp_path, grid=grid)
    assert [cell.title for cell in planned.cells] == [
        f"quantizer {kind}, downsampling {label}" for kind in ("vq 16 4", "fsq 4x4") for label in ("4", "f8")
    ]
    assert [cell.layout.length for cell in planned.cells] == [16, 4, 16, 4]
    assert [cell.layout.width for cell in planned.cells] == [4, 4, 2, 2]
    assert [axis.name for axis in planned.axes] == ["quantizer", "downsampling"]
    folders = [trial.folder for cell in planned.cells for trial in cell.trials]
    assert len(set(folders)) == 4


def test_the_budget_of_flops_gives_longer_sequences_fewer_images(tmp_path: Path) -> None:
    planned = settled(tmp_path, budget={"kind": "flops", "amount": 3e8})
    spent = {}
    for cell in planned.cells:
        (trial,) = cell.trials
        assert trial.generator is not None and cell.flops is not None
        spent[cell.title] = trial.generator.training.images * cell.flops
        assert trial.generator.training.images % trial.generator.training.global_batch == 0
    assert list(spent.values()) == pytest.approx([3e8, 3e8], rel=0.05)
    long, short = (cell.trials[0].generator for cell in planned.cells)
    assert long is not None and short is not None
    assert 3.5 < short.training.images / long.training.images < 4.5
    assert short.training.validate_every > long.training.validate_every  # the schedule keeps its proportions


def test_seeds_are_trials_of_a_cell(tmp_path: Path) -> None:
    planned = settled(tmp_path, seeds=[0, 3])
    for cell in planned.cells:
        assert [trial.seed for trial in cell.trials] == [0, 3]
        assert [trial.tokenizer.seed for trial in cell.trials] == [0, 3]
        assert [trial.generator.seed for trial in cell.trials if trial.generator] == [0, 3]
        assert cell.trials[1].folder.name == "seed-3"


def test_an_axis_can_be_replaced_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(section(tmp_path)))
    axes = axes_of(load_sweep(str(path), ["grid.tokenizer.quantizer.codebook_size=[8,32]", "seeds=[1]"]))
    assert [entry.label for entry in axes[1].entries] == ["8", "32"]
    assert load_sweep("digits-sweep", []).name == "digits-sweep"


SMALL = {"quantizer": {"codebook_size": 16}}
DEEPER = {"generator": {"depth": 3}}
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no such config": ({"tokenizer": "digits/vqq"}, "no config 'digits/vqq'"),
    "no grid": ({"grid": {}}, "grid"),
    "an empty axis": ({"grid": {"tokenizer.downsample": []}}, "no entries"),
    "a name that is no setting": ({"grid": {"downsampling": [2, 4]}}, "must be a section of settings"),
    "an entry twice": ({"grid": {"tokenizer.quantizer.codebook_size": [16, 16]}}, "has 16 twice"),
    "an unknown setting": ({"grid": {"tokenizer.quantizer.codebook_sise": [16]}}, "did you mean 'codebook_size'"),
    "an impossible combination": (
        {"grid": {"tokenizer.downsample": [4, 8]}},
        "1 of 2 combinations cannot be trained (downsample 8: ",
    ),
    "a codebook too large": (
        {"grid": {"tokenizer.quantizer.codebook_size": [16, 99999]}},
        "larger than the data can fill",
    ),
    "two entries that come to the same": (
        {"grid": {"codebook": [{"tokenizer": SMALL}, {"label": "again", "tokenizer": SMALL}]}},
        "codebook 16 and codebook again are the same",
    ),
    "seeds as an axis": ({"grid": {"seed": [1, 2]}}, "seed 1 and seed 2 are the same"),
    "a generator to sweep": ({"tokenizer": "digits/raster"}, "digits/raster trains no tokenizer"),
    "a tokenizer as generator": ({"generator": "digits/vq", "settings": DEEPER}, "digits/vq trains no generator"),
    "a reason for many": (
        {"grid": {"tokenizer.quantizer.codebook_size": [16, 32, 64]}, "settings": {"training": {"global_batch": -1}}},
        "(codebook_size 16 and codebook_size 32 and 1 more: ",
    ),
    "a label as long as a page": (
        {"grid": {"codebook": [{"label": "x" * 300, "tokenizer": SMALL}]}},
        "give entries a short label",
    ),
    "an unknown kind of budget": (
        {"budget": {"kind": "seconds", "amount": 9}},
        "is 'seconds', but must be one of images, flops\n",
    ),
    "other data": ({"grid": {"data.size": [16, 24]}}, "would not compare"),
    "a budget for nothing": ({"generator": None}, "there is none"),
    "a small budget": ({"budget": {"kind": "images", "amount": 20}}, "less than 10 steps"),
    "an unfit generator": (
        {"grid": {"tokenizer.quantizer": [{"kind": "gaussian", "latent_channels": 4}]}},
        "generator raster",
    ),
    "a share of nothing": ({"robustness": {"shares": [0, 0.5]}}, "robustness.shares"),
    "an endless budget": ({"budget": {"kind": "images", "amount": float("inf")}}, "a finite number"),
    "an unknown extractor": ({"evaluation": {"extractor": "clasifier"}}, "did you mean 'classifier'"),
    "a seed too large": ({"seeds": [2**40]}, "from 0 to 4,294,967,295"),
    "a key": ({"grids": {}}, "did you mean 'grid'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_study_is_one_sentence_before_anything_is_trained(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, words = MISTAKES[mistake]
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(section(tmp_path, **changes)))
    monkeypatch.setattr(sys, "argv", ["artok", "sweep", str(path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    err = capsys.readouterr().err
    assert stop.value.code == 2, err
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_impossible_combinations_can_be_skipped_with_their_reason(tmp_path: Path) -> None:
    planned = settled(tmp_path, impossible="skip", grid={"tokenizer.quantizer.codebook_size": [16, 99999]})
    assert [cell.name for cell in planned.cells] == ["codebook_size-16"]
    ((labels, reason),) = planned.skipped
    assert labels == {"codebook_size": "99999"}
    assert "larger than the data can fill" in reason
    with pytest.raises(ConfigError, match="1 of 1 combinations"):
        settled(tmp_path, impossible="skip", grid={"tokenizer.quantizer.codebook_size": [99999]})


# ---------------------------------------------------------------------------------------------- end to end


def without_times(value: Any) -> Any:
    """A JSON value without what stands under `times`, and without folders."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in ("times", "study")}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def in_this_process(jobs: list[Job], workers: int, done: Any, gpus: int = 0) -> dict[str, float]:
    """Stands for run_jobs, without the seconds that new processes take to start."""
    for job in jobs:
        _, file, _, folder, _, name = job.arguments
        planned = plan(load_sweep(file, []), Path(folder), only=name)
        assert run_cell(planned, planned.cells[0], "cpu")
    return {}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that no one stopped."""
    folder = tmp_path_factory.mktemp("sweep")
    grid = {**GRID, "tokenizer.quantizer.codebook_size": [16, 99999]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("artok.commands.sweep.run_jobs", in_this_process)
        page = sweep(study(folder, grid=grid, impossible="skip", title="Tiny <sweep>"), folder / "out", "cpu")
    assert page == folder / "out" / "report.html"
    return folder


@pytest.mark.slow
def test_its_page_holds_everything_and_needs_nothing(swept: Path) -> None:
    page = (swept / "out" / "report.html").read_text(encoding="utf-8")
    assert "Tiny &lt;sweep&gt;" in page
    for words in (
        "downsampling 4, codebook_size 16",
        "downsampling f8, codebook_size 16",
        "larger than the data can fill",
    ):
        assert words in page
    for words in ("rFD[classifier]", "bits/dim (rate)", "latency (ms)", "peak memory per image (MB)", "PSNR (dB)"):
        assert words in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) >= 5 + 9 + 8  # fronts, heat maps, pictures of two cells
    assert all(re.search(r'alt="[^"]{10,}"', image) for image in images)
    assert "@media print" in page


@pytest.mark.slow
def test_its_figures_are_in_json_and_csv(swept: Path) -> None:
    results = json.loads((swept / "out" / "results.json").read_text())
    rows = list(csv.DictReader((swept / "out" / "results.csv").open()))
    assert [row["cell"] for row in rows] == ["downsampling-4_codebook_size-16", "downsampling-f8_codebook_size-16"]
    for cell, row, tokens in zip(results["cells"], rows, (16, 4), strict=True):
        values = {name: value["mean"] for name, value in cell["values"].items()}
        assert values["tokens_per_image"] == tokens == float(row["tokens_per_image"])
        assert values["bits_per_image"] == 4 * tokens
        assert values["bits_per_pixel"] == pytest.approx(4 * tokens / 256)
        assert values["images_trained"] == 160
        (trial,) = cell["seeds"]
        positions = [bits for place in trial["entropy_by_position_bits"] for bits in place]
        assert len(positions) == tokens
        assert values["code_entropy_by_position_bits"] == pytest.approx(sum(positions) / tokens)
        assert float(row["rfd"]) == values["rfd"]
        assert {"latency_s", "train_core_seconds"} <= set(cell["times"])
    assert len(results["skipped"]) == 2
    assert set(results["fronts"]) == {
        f"{quality} against {cost}" for quality in ("rfd", "fd") for cost in ("tokens_per_image", "bits_per_image")
    }


@pytest.mark.slow
def test_killed_and_resumed_it_trains_nothing_twice_and_reports_the_same(swept: Path, tmp_path: Path) -> None:
    grid = {**GRID, "tokenizer.quantizer.codebook_size": [16, 99999]}
    asked = section(swept, grid=grid, impossible="skip", title="Tiny <sweep>")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(asked))
    command = [sys.executable, "-m", "artok", "sweep", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    cells = tmp_path / "out" / "cells"
    first, second = cells / "downsampling-4_codebook_size-16", cells / "downsampling-f8_codebook_size-16"
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (second / "tokenizer" / "config.yaml").exists():  # in the midst of the second cell
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (first / "cell.json").exists()
    assert not (second / "cell.json").exists()
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    assert any(path.name == WEIGHTS for path in before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("artok.commands.sweep.run_jobs", in_this_process)
        sweep(load_sweep(str(tmp_path / "study.yaml"), []), tmp_path / "out", "cpu")
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()} == before
    resumed, whole = (json.loads((root / "out" / "results.json").read_text()) for root in (tmp_path, swept))
    assert without_times(resumed) == without_times(whole)


def test_a_training_killed_after_a_checkpoint_is_finished_before_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are there by then, but they are those of the checkpoint."""
    brief = {"training": {"checkpoint_every": 32}}
    asked = study(tmp_path, generator=None, budget=None, tokenizer_settings=brief)
    planned = plan(asked, tmp_path / "out")
    (cell, *_), save = planned.cells, Trainer.save
    experiment, place = next(parts(cell.trials[0]))

    def killed(trainer: Trainer) -> None:
        save(trainer)
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Trainer, "save", killed)
        run_cell(planned, cell, "cpu")
    assert (place / WEIGHTS).exists() and not is_trained(experiment, place)
    assert run_cell(planned, cell, "cpu")
    assert is_trained(experiment, place)
    assert int(latest(place / "checkpoints").name) == experiment.training.images  # type: ignore[union-attr]


@pytest.mark.slow
def test_other_settings_are_refused_and_other_measures_measured_again(swept: Path) -> None:
    grid = {**GRID, "downsampling": GRID["downsampling"][1:]}
    other = plan(study(swept, grid=grid), swept / "out")
    assert is_measured(other, other.cells[0].trials[0])
    other = plan(study(swept, grid=grid, robustness={"shares": [0.5]}), swept / "out")
    assert not is_measured(other, other.cells[0].trials[0])
    changed = study(swept, grid=grid, tokenizer_settings={"training": {"global_batch": 8}})
    with pytest.raises(CheckpointError, match=r"training.global_batch: 16, now 8.*artok sweep"):
        sweep(changed, swept / "out", "cpu")


@pytest.mark.slow
def test_an_interruption_says_how_to_go_on(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("artok.commands.sweep.run_jobs", stopped)
    monkeypatch.setattr(sys, "argv", ["artok", "sweep", str(swept / "out" / STUDY), "--out", str(swept / "out")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.slow
def test_one_cell_can_be_asked_for(swept: Path) -> None:
    wanted = load_sweep(str(swept / "out" / STUDY), [])
    assert [cell.name for cell in plan(wanted, swept / "out", only="downsampling-4_codebook_size-16").cells]
    with pytest.raises(ArtokError, match="no cell nothing; it has downsampling-4_codebook_size-16"):
        plan(wanted, swept / "out", only="nothing")


def test_latent_channels_and_tokenizers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artok.commands.sweep.run_jobs", in_this_process)
    quantizers = [{"kind": "gaussian", "latent_channels": width} for width in (2, 4)]
    entries = [{"label": str(each["latent_channels"]), "tokenizer": {"quantizer": each}} for each in quantizers]
    grid = {"latent channels": entries}
    page = sweep(study(tmp_path, grid=grid, generator=None, budget=None), tmp_path / "out", "cpu").read_text()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for cell, width in zip(results["cells"], (2, 4), strict=True):
        assert cell["layout"]["width"] == width
        assert {"psnr_db", "rfd", "tokens_per_image"} <= set(cell["values"])
        assert not {"bits_per_image", "perplexity", "fd", "rfd/replaced_0.1"} & set(cell["values"])
    assert set(results["fronts"]) == {"rfd against tokens_per_image"}
    assert "latent channels 2" in page
    assert "entropy," not in page


# ---------------------------------------------------------------------------------------------- findings and plots


def test_findings_name_fronts_and_what_nobody_should_choose(tmp_path: Path) -> None:
    planned = settled(tmp_path, seeds=[0, 1], grid={**GRID, "tokenizer.quantizer.codebook_size": [16, 32]})
    figures = {  # rFD, FD, bits
        "downsampling-4_codebook_size-16": (2.0, 5.0, 64),
        "downsampling-4_codebook_size-32": (1.0, 6.0, 80),
        "downsampling-f8_codebook_size-16": (4.0, 4.0, 16),
        "downsampling-f8_codebook_size-32": (4.5, 7.0, 20),
    }
    records = [
        Record(name, seed, {**named(rebuilt + 0.01 * seed, sampled + 0.01 * seed), "bits_per_image": bits}, [])
        for name, (rebuilt, sampled, bits) in figures.items()
        for seed in (0, 1)
    ]
    findings = find_out(planned, records)
    (beaten,) = findings.dominated
    assert (beaten.name, beaten.by) == ("downsampling-f8_codebook_size-32", "downsampling-f8_codebook_size-16")
    assert set(beaten.gains) == {"rfd", "fd", "bits_per_image"}
    fronts = {(front.quality.name, front.cost.name): front.names for front in findings.fronts}
    assert fronts["fd", "bits_per_image"] == ("downsampling-f8_codebook_size-16",)
    text = " ".join(paragraphs(findings, measured=100))
    assert "less than half" not in text
    assert "Images come back best from downsampling 4, codebook_size 32" in text
    assert "New images are best from downsampling f8, codebook_size 16" in text
    assert "comes 3rd of 4" in text
    assert "Nobody should choose downsampling f8, codebook_size 32" in text
    assert len(as_csv(findings).splitlines()) == 9
    assert as_json(findings)["cells"][0]["values"]["rfd"]["seeds"] == 2


def test_a_codebook_is_called_idle_only_where_tokens_could_fill_it(tmp_path: Path) -> None:
    planned = settled(tmp_path, grid={**GRID, "tokenizer.quantizer.codebook_size": [16, 1024]})
    figures = {**named(1.0, 1.0), "bits_per_image": 9, "codebook_usage": 0.3}
    records = [Record(cell.name, 0, figures, []) for cell in planned.cells]
    text = " ".join(paragraphs(find_out(planned, records), measured=100))  # 400 or 1,600 tokens
    idle = next(sentence for sentence in text.split(". ") if "less than half" in sentence)
    assert (
        "downsampling 4, codebook_size 16, downsampling 4, codebook_size 1024 and downsampling f8, codebook_size 16"
        in idle
    )
    assert "downsampling f8, codebook_size 1024" not in idle  # 307 codes of 400 tokens


def named(rebuilt: float, sampled: float) -> dict[str, float]:
    return {"rfd": rebuilt, "fd": sampled, "tokens_per_image": 4, "images_trained": 160}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "studies").glob("*-sweep*.yaml")), ids=lambda path: path.stem
)
def test_a_shipped_sweep_is_valid_and_says_what_it_is(path: Path) -> None:
    wanted = load_sweep(path.stem, [])
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert len(header) >= 3, "what it trains, what it costs, how it is launched"
    assert any(f"artok sweep {path.stem}" in line for line in header)
    assert wanted.name == path.stem
    assert axes_of(wanted)
