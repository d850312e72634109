"""A grid over a tokenizer: its study file, a tiny one from end to end, killed and resumed, what it finds."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from helpers.html import Tags
from helpers.models import GENERATOR, TOKENIZER
from helpers.paths import REPOSITORY

from artok import cli
from artok.commands import compare as conductor
from artok.commands.compare import STUDY, compare, list_jobs, prepare, run_part
from artok.config import load, validate
from artok.errors import ArtokError, CheckpointError, ConfigError
from artok.evaluation.run_directory import is_trained
from artok.evaluation.statistics import Value
from artok.saved import WEIGHTS
from artok.studies.config import Study, load_study
from artok.studies.grid import read_axes
from artok.studies.measure import CacheKeys, list_missing
from artok.studies.resolve import StudyPlan, settle
from artok.studies.results import EntryResults, Outcome
from artok.studies.scheduler import Job, Slurm
from artok.studies.tradeoffs import find_tradeoffs
from artok.training.checkpoints import find_latest
from artok.training.experiment import Experiment
from artok.training.loop import Trainer
from artok.training.run import train

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


def study(folder: Path, **changes: Any) -> Study:
    return validate(Study, section(folder, **changes), "test")


def settled(folder: Path, **changes: Any) -> StudyPlan:
    return prepare(study(folder, **changes), folder / "out")


# ---------------------------------------------------------------------------------------------- the study file


def test_a_grid_is_the_product_of_its_axes(tmp_path: Path) -> None:
    grid = {
        "tokenizer.quantizer": [{"kind": "vq", "codebook_size": 16, "code_dim": 4}, {"kind": "fsq", "levels": [4, 4]}],
        **GRID,
    }
    grid.pop("tokenizer.quantizer.codebook_size")
    plan = settled(tmp_path, grid=grid)
    assert [entry.title for entry in plan.entries] == [
        f"quantizer {kind}, downsampling {label}" for kind in ("vq 16 4", "fsq 4x4") for label in ("4", "f8")
    ]
    assert [entry.layout.length for entry in plan.entries] == [16, 4, 16, 4]
    assert [entry.layout.width for entry in plan.entries] == [4, 4, 2, 2]
    assert [axis.name for axis in read_axes(plan.study)] == ["quantizer", "downsampling"]
    assert len({planned.folder for planned in plan.trainings()}) == 8


def test_the_budget_of_flops_gives_longer_sequences_fewer_images(tmp_path: Path) -> None:
    plan = settled(tmp_path, budget={"kind": "flops", "amount": 6e8})
    long, short = (entry.trainings[0].experiment.training for entry in plan.entries)
    assert long.images % long.global_batch == 0
    assert 3.5 < short.images / long.images < 4.5
    assert short.validate_every > long.validate_every, "the schedule keeps its proportions"


def test_each_seed_trains_the_tokenizer_and_the_generator_of_a_point(tmp_path: Path) -> None:
    plan = settled(tmp_path, seeds=[0, 3])
    for entry in plan.entries:
        assert [planned.experiment.seed for planned in entry.trainings.values()] == [0, 3]
        tokenizers = [plan.tokenizers[folder.name].experiment for folder in entry.tokenizers.values()]
        assert [experiment.seed for experiment in tokenizers] == [0, 3]
    assert settled(tmp_path).study.seeds == (0,), "a grid has one seed unless it names more"


def test_the_generator_sees_the_tokenizers_data(tmp_path: Path) -> None:
    plan = settled(tmp_path, tokenizer_settings={"data": {"kind": "digits", "size": 24}})
    assert all(entry.trainings[0].experiment.data.size == 24 for entry in plan.entries)


def test_an_axis_can_be_replaced_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(section(tmp_path)))
    axes = read_axes(load_study(str(path), ["grid.tokenizer.quantizer.codebook_size=[8,32]", "seeds=[1]"]))
    assert list(axes[1].settings) == ["8", "32"]
    assert load_study("digits-sweep", []).name == "digits-sweep"


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
        {"budget": {"kind": "hours", "amount": 9}},
        "is 'hours', but must be one of parameters, flops, images, seconds",
    ),
    "other data": ({"grid": {"data.size": [16, 24]}}, "would not compare"),
    "entries beside a grid": ({"entries": {"a": {"generator": "digits/gan"}}}, "either 'entries' or a 'grid'"),
    "a budget for nothing": ({"generator": None}, "there is none"),
    "a small budget": ({"budget": {"kind": "images", "amount": 20}}, "whole batches of 16"),
    "an unfit generator": (
        {"grid": {"tokenizer.quantizer": [{"kind": "gaussian", "latent_channels": 4}]}},
        "generator raster",
    ),
    "a share of nothing": ({"robustness": {"shares": [0, 0.5]}}, "robustness.shares"),
    "an endless budget": ({"budget": {"kind": "images", "amount": float("inf")}}, "a finite number"),
    "an unknown extractor": ({"evaluation": {"extractor": "clasifier"}}, "did you mean 'classifier'"),
    "a seed too large": ({"seeds": [2**40]}, "should be less than 4294967296"),
    "a key": ({"grids": {}}, "did you mean 'grid'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_study_is_one_sentence_before_anything_is_trained(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, words = MISTAKES[mistake]
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(section(tmp_path, **changes)))
    monkeypatch.setattr(sys, "argv", ["artok", "compare", str(path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    err = capsys.readouterr().err
    assert stop.value.code == 2, err
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_impossible_combinations_can_be_skipped_with_their_reason(tmp_path: Path) -> None:
    plan = settled(tmp_path, impossible="skip", grid={"tokenizer.quantizer.codebook_size": [16, 99999]})
    assert [entry.name for entry in plan.entries] == ["codebook_size-16"]
    assert list(plan.tokenizers) == ["codebook_size-16-seed0"], "what is skipped is not trained"
    ((point, reason),) = plan.skipped
    assert point.labels == {"codebook_size": "99999"}
    assert "larger than the data can fill" in reason
    with pytest.raises(ConfigError, match="1 of 1 combinations"):
        settled(tmp_path, impossible="skip", grid={"tokenizer.quantizer.codebook_size": [99999]})


# ---------------------------------------------------------------------------------------------- end to end


def without_times(value: Any) -> Any:
    """A JSON value without what stands under `times`."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key != "times"}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def in_this_process(
    jobs: Sequence[Job], workers: int, done: Any, gpus: int = 0, slurm: Slurm | None = None
) -> Mapping[str, float]:
    """Stands for run_jobs, without the seconds that new processes take to start."""
    waiting, finished = list(jobs), set[str]()
    while waiting:
        job = next(job for job in waiting if set(job.after) <= finished)
        arguments = job.arguments
        if arguments[0] == "train":
            assert train(load(Experiment, arguments[1]), Path(arguments[3]))
        else:
            run_part(load_study(arguments[1], []), Path(arguments[3]), arguments[5], "cpu")
        waiting.remove(job)
        finished.add(job.name)
    return {}


WHOLE = {**GRID, "tokenizer.quantizer.codebook_size": [16, 99999]}
ASKED: dict[str, Any] = {"grid": WHOLE, "impossible": "skip", "title": "Tiny <grid>"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid that no one stopped."""
    folder = tmp_path_factory.mktemp("grid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conductor, "run_jobs", in_this_process)
        page = compare(study(folder, **ASKED), folder / "out", "cpu")
    assert page == folder / "out" / "report.html"
    return folder


def results(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "out" / "results.json").read_text()))


def values(found: dict[str, Any], entry: str, point: str) -> dict[str, float]:
    rows = [*found["measurements"], *found["times"]]
    return {row["metric"]: row["value"] for row in rows if (row["entry"], row["point"]) == (entry, point)}


def test_its_page_holds_everything_and_needs_nothing(swept: Path) -> None:
    page = (swept / "out" / "report.html").read_text(encoding="utf-8")
    tags = Tags(page)
    assert "Tiny &lt;grid&gt;" in page
    for words in (
        "downsampling 4, codebook_size 16",
        "downsampling f8, codebook_size 16",
        "larger than the data can fill",
    ):
        assert words in tags.text
    ids = {attributes["id"] for _, attributes in tags.found if attributes.get("id")}
    assert {"summary", "guide", "pareto", "maps", "training", "metrics", "origin"} <= ids
    for heading in ("Pareto front", "Dominated settings", "Heat maps"):
        assert heading in tags.text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) >= 5 + 7 + 8  # fronts, heat maps, pictures of two settings
    assert all(re.search(r'alt="[^"]{10,}"', image) for image in images)
    assert 'class="dominated"' not in page, "with one seed nothing is said to be dominated"


def test_its_figures_are_in_json_and_csv(swept: Path) -> None:
    found = results(swept)
    names = ["downsampling-4_codebook_size-16", "downsampling-f8_codebook_size-16"]
    assert list(found["entries"]) == names
    rows = list(csv.DictReader((swept / "out" / "results.csv").open()))
    for name, tokens in zip(names, (16, 4), strict=True):
        codes, samples, costs = (values(found, name, point) for point in ("tokenizer", "final", "cost"))
        assert codes["tokens_per_image"] == costs["tokens_per_image"] == tokens
        assert codes["bits_per_image"] == 4 * tokens
        assert codes["bits_per_pixel"] == pytest.approx(4 * tokens / 256)
        assert costs["images_trained"] == 160
        assert {"fd", "fd/replaced_0.1", "psnr_db", "codebook_usage"} <= set(codes)
        assert {"fd", "recall", "bits_per_dim"} <= set(samples)
        positions = [bits for place in found["code_entropy_bits"][f"{name}-seed0"] for bits in place]
        assert len(positions) == tokens
        assert codes["code_entropy_by_position_bits"] == pytest.approx(sum(positions) / tokens)
        written = {
            row["metric"]: float(row["value"]) for row in rows if (row["entry"], row["point"]) == (name, "final")
        }
        assert written == samples
        assert values(found, name, "round=0")["latency_s"] > 0
    assert len(found["skipped"]) == 2
    assert len(found["fronts"]) == 5 and set(found["fronts"]["times"]) and not found["dominated"]


def test_killed_and_resumed_it_trains_nothing_twice_and_reports_the_same(swept: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(section(swept, **ASKED), sort_keys=False))
    command = [sys.executable, "-m", "artok", "compare", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    tokenizers = tmp_path / "out" / "tokenizers"
    first, second = (tokenizers / f"downsampling-{label}_codebook_size-16-seed0" for label in ("4", "f8"))
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (second / "config.yaml").exists():  # in the midst of the second training
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    partial = tmp_path / "out" / f".results.csv.{process.pid}.tmp"
    partial.touch()
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    assert any(path.name == WEIGHTS for path in before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conductor, "run_jobs", in_this_process)
        compare(load_study(str(tmp_path / "study.yaml"), []), tmp_path / "out", "cpu")
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()} == before
    resumed, whole = results(tmp_path), results(swept)
    assert without_times(resumed) == without_times(whole)
    assert not partial.exists()


def test_a_training_killed_after_a_checkpoint_is_finished_before_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are there by then, but they are those of the checkpoint."""
    brief = {"training": {"checkpoint_every": 32}}
    plan = settled(tmp_path, generator=None, budget=None, tokenizer_settings=brief)
    planned, save = next(plan.trainings()), Trainer.save

    def killed(trainer: Trainer) -> None:
        save(trainer)
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Trainer, "save", killed)
        train(planned.experiment, planned.folder)
    assert (planned.folder / WEIGHTS).exists() and not is_trained(planned.experiment, planned.folder)
    assert planned.name in [job.name for job in list_jobs(plan, ())]
    assert train(planned.experiment, planned.folder) and is_trained(planned.experiment, planned.folder)
    assert int(find_latest(planned.folder / "checkpoints").name) == planned.experiment.training.images  # type: ignore[union-attr]


def test_other_settings_are_refused_and_other_measures_measured_again(swept: Path) -> None:
    grid = {**GRID, "downsampling": GRID["downsampling"][1:]}

    def unmeasured(**changes: Any) -> list[str]:
        plan = settle(study(swept, grid=grid, **changes), swept / "out")
        return [record.name for record in list_missing(plan, plan.entries[0].name, CacheKeys(plan))]

    assert unmeasured() == []
    assert unmeasured(robustness={"shares": [0.5]}) == ["tokenizer"]
    assert unmeasured(evaluation={"n": 60, "edits": ["left"]}) == ["final"]
    changed = study(swept, grid=grid, tokenizer_settings={"training": {"global_batch": 8}})
    with pytest.raises(CheckpointError, match=r"training.global_batch: 16, now 8.*artok compare"):
        compare(changed, swept / "out", "cpu")


@pytest.mark.parametrize("command", ["compare", "sweep"])
def test_an_interruption_says_how_to_go_on(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conductor, "run_jobs", stopped)
    monkeypatch.setattr(sys, "argv", ["artok", command, str(swept / "out" / STUDY), "--out", str(swept / "out")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert "run the same command again" in capsys.readouterr().err


def test_one_point_can_be_measured_alone(swept: Path) -> None:
    wanted = load_study(str(swept / "out" / STUDY), [])
    run_part(wanted, swept / "out", "downsampling-4_codebook_size-16", "cpu")
    with pytest.raises(ArtokError, match="no 'nothing' to measure; it has downsampling-4_codebook_size-16"):
        run_part(wanted, swept / "out", "nothing", "cpu")


def test_latent_channels_and_tokenizers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conductor, "run_jobs", in_this_process)
    quantizers = [{"kind": "gaussian", "latent_channels": width} for width in (2, 4)]
    axis = [{"label": str(each["latent_channels"]), "tokenizer": {"quantizer": each}} for each in quantizers]
    page = compare(
        study(tmp_path, grid={"latent channels": axis}, generator=None, budget=None), tmp_path / "out", "cpu"
    )
    assert page is not None
    found = results(tmp_path)
    for (name, entry), width in zip(found["entries"].items(), (2, 4), strict=True):
        assert entry["layout"]["width"] == width
        codes = values(found, name, "tokenizer")
        assert {"psnr_db", "fd", "tokens_per_image"} <= set(codes)
        assert not {"bits_per_image", "perplexity", "fd/replaced_0.1"} & set(codes)
    assert len(found["fronts"]) == 2, "one front and the times"
    tags = Tags(page.read_text())
    assert "latent channels 2" in tags.text and "guide" not in [each.get("id") for _, each in tags.found]


# ---------------------------------------------------------------------------------------------- what it finds


def test_fronts_and_dominated_settings_follow_the_noise(tmp_path: Path) -> None:
    plan = settled(tmp_path, seeds=[0, 1], grid={**GRID, "tokenizer.quantizer.codebook_size": [16, 32]})
    figures = {  # rFD, FD, bits
        "downsampling-4_codebook_size-16": (2.0, 5.0, 64),
        "downsampling-4_codebook_size-32": (1.0, 6.0, 80),
        "downsampling-f8_codebook_size-16": (4.0, 4.0, 16),
        "downsampling-f8_codebook_size-32": (4.5, 7.0, 20),
    }

    def outcome(spread: float, seeds: int) -> Outcome:
        made = []
        for entry in plan.entries:
            rebuilt, sampled, bits = figures[entry.name]
            known = {
                ("fd", "tokenizer"): Value(rebuilt, spread, seeds),
                ("fd", "generator"): Value(sampled, spread, seeds),
                ("bits_per_image", "tokenizer"): Value(bits, exact=True),
            }
            get = lambda metric, side="generator", known=known: known.get((metric, side))  # noqa: E731
            made.append(SimpleNamespace(name=entry.name, entry=entry, value=get))
        return Outcome(replace(plan), cast(list[EntryResults], made), {}, {})

    found = find_tradeoffs(outcome(0.007, 2))
    (beaten,) = found.dominated
    assert (beaten.name, beaten.by) == ("downsampling-f8_codebook_size-32", "downsampling-f8_codebook_size-16")
    assert set(beaten.gains) == {"rFD[classifier]", "FD[classifier]", "bits per image"}
    fronts = {(front.quality.title, front.cost.metric): front.names for front in found.fronts}
    assert fronts["FD[classifier]", "bits_per_image"] == ("downsampling-f8_codebook_size-16",)
    assert not find_tradeoffs(outcome(3.0, 2)).dominated, "the noise may explain it"
    single = find_tradeoffs(outcome(0.0, 1))
    assert not single.dominated, "one seed says nothing of the noise"
    assert {front.names for front in single.fronts} == {front.names for front in found.fronts}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "studies").glob("*-sweep*.yaml")), ids=lambda path: path.stem
)
def test_a_shipped_grid_is_valid_and_says_what_it_is(path: Path) -> None:
    wanted = load_study(path.stem, [])
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert len(header) >= 3, "what it trains, what it costs, how it is launched"
    assert any(f"artok compare {path.stem}" in line for line in header)
    assert wanted.name == path.stem
    assert read_axes(wanted)
