"""A study from end to end: settled, matched to its budget, trained, stopped and resumed, measured, reported."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.html import Tags
from helpers.models import GENERATOR, TOKENIZER
from PIL import Image

from artok.commands import compare as conductor
from artok.commands.compare import compare, count_workers, find_launcher, list_jobs, prepare, run_part
from artok.config import dump, load, merge, validate
from artok.data.digits import Config as Digits
from artok.data.hub import Config as Hub
from artok.errors import ArtokError, CheckpointError, ConfigError, LayoutError, RunError
from artok.evaluation.evaluator import Evaluator
from artok.locks import hold_lock
from artok.metrics import cost
from artok.metrics.extractors import classifier
from artok.metrics.results import Results
from artok.pipeline import Pipeline
from artok.report import study as study_page
from artok.saved import WEIGHTS, read_saved, write_text
from artok.studies import measure
from artok.studies.budget import SPEEDS, match, read_speeds, speed, training_cost
from artok.studies.config import LOCK, Study, load_study
from artok.studies.resolve import settle
from artok.studies.results import PAGE, RESULTS, TABLE, gather
from artok.studies.scheduler import Job, Slurm
from artok.training.experiment import Experiment
from artok.training.run import train

MASKGIT = {"kind": "maskgit", "depth": 1, "width": 16, "heads": 2, "dropout": 0.0, "steps": 4}
BRIEF = {"images": 64, "log_every": 16, "validate_every": 64, "preview_every": 64, "checkpoint_every": 32}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configs and 48 images of noise in two classes, on which an extractor is soon trained."""
    folder = tmp_path_factory.mktemp("compare")
    noise = torch.Generator().manual_seed(0)
    for name, light in (("dark", 0), ("light", 128)):
        for index in range(24):
            pixels = torch.randint(0, 128, (16, 16), generator=noise, dtype=torch.uint8) + light
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(folder / "images" / name / f"{index}.png")
    data = {"kind": "folder", "root": str(folder / "images"), "size": 16, "holdout": 0.5, "channels": 1}
    for name, base in (("vq", TOKENIZER), ("raster", GENERATOR | {"tokenizer": "runs/tiny"})):
        section = merge(base, {"name": name, "data": data, "training": BRIEF})
        write_text(folder / f"{name}.yaml", dump(validate(Experiment, section, name)))
    return folder


def section(root: Path, **changes: Any) -> dict[str, Any]:
    own = {"tokenizer": str(root / "vq.yaml"), "generator": str(root / "raster.yaml")}
    whole = {
        "name": "tiny",
        "entries": {"raster": own, "maskgit": own | {"settings": {"generator": MASKGIT}}},
        "budget": {"kind": "images", "amount": 64},
        "seeds": [0, 1],
        "evaluation": {"n": 16, "extractor": "classifier"},
        "curve": {"points": 2},
        "sampling_grid": {"steps": [1, 4], "cfg_scale": [1, 2]},
        "timing": {"batches": [2, 4], "rounds": 2},
    }
    return whole | changes


def study(root: Path, **changes: Any) -> Study:
    return validate(Study, section(root, **changes), "test")


class Workers:
    """Runs jobs in this process, in an order that respects their needs; stops after some."""

    def __init__(self, most: int | None = None) -> None:
        self.most, self.done = most, list[str]()

    def __call__(
        self,
        jobs: Sequence[Job],
        workers: int,
        said: Callable[[Mapping[str, float]], None] | None = None,
        gpus: int = 0,
        slurm: Slurm | None = None,
    ) -> dict[str, float]:
        seconds: dict[str, float] = {}
        waiting = list(jobs)
        while waiting:
            job = next(job for job in waiting if set(job.after) <= set(seconds))
            if len(self.done) == self.most:
                raise KeyboardInterrupt
            arguments = job.arguments
            if arguments[0] == "train":
                assert train(load(Experiment, arguments[1]), Path(arguments[3]))
            else:
                run_part(load_study(arguments[1], []), Path(arguments[3]), arguments[5], "cpu")
            waiting.remove(job)
            seconds[job.name] = 1.0
            self.done.append(job.name)
        return seconds


@pytest.fixture(scope="module", autouse=True)
def quick_extractor() -> Iterator[None]:
    """A classifier that is trained for a moment: any features do to tell one result from another."""
    with pytest.MonkeyPatch.context() as patch:
        fully = classifier.train
        patch.setattr(classifier, "train", lambda training, steps, **rest: fully(training, steps=6, **rest))
        yield


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one page is as good as none: drawing it takes longer than all else."""
    monkeypatch.setattr(study_page, "render", lambda outcome, device: outcome.entries[-1].entry.adjustment)


@pytest.fixture(scope="module")
def finished(root: Path) -> Path:
    """The tiny study, trained and measured without a stop."""
    with pytest.MonkeyPatch.context() as patch:
        workers = Workers()
        patch.setattr(conductor, "run_jobs", workers)
        page = compare(study(root), root / "whole", "cpu")
    assert page == root / "whole" / PAGE
    assert sorted(workers.done) == sorted(
        [
            *("train vq", "train classifier", "measure raster", "measure maskgit", "measure tokenizer:vq", "time tiny"),
            *(f"train {name} seed {seed}" for name in ("raster", "maskgit") for seed in (0, 1)),
        ]
    )
    return root / "whole"


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(inside) for key, inside in value.items() if key != "times"}
    return [without_times(inside) for inside in value] if isinstance(value, list) else value


def results(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / RESULTS).read_text()))


# ---------------------------------------------------------------------------------------------- end to end


def values(found: dict[str, Any], entry: str, metric: str, point: str = "final") -> list[float]:
    rows = [*found["measurements"], *found["times"]]
    return [row["value"] for row in rows if (row["entry"], row["metric"], row["point"]) == (entry, metric, point)]


def test_all_is_measured_for_every_seed(finished: Path) -> None:
    found = results(finished)
    assert list(found["entries"]) == ["raster", "maskgit"]
    for name in found["entries"]:
        assert len(values(found, name, "fd")) == 2
        assert values(found, name, "images_trained", "cost") == [64]
        assert len(values(found, name, "fd", "images=32")) == 1
        assert values(found, name, "latency_s", "round=1") and values(found, name, "throughput_images_per_s", "batch=4")
        measured = {row["metric"] for row in found["measurements"] if (row["entry"], row["point"]) == (name, "final")}
        assert {"classes_covered", "class_consistency", "precision", "kid", "recall"} <= measured
    points = [row["point"] for row in found["measurements"] if (row["entry"], row["metric"]) == ("maskgit", "fd")]
    assert [point for point in points if "=" in point and not point.startswith("images")] == [
        "steps=1", "steps=4", "cfg_scale=1", "cfg_scale=2"
    ]  # fmt: skip
    assert not values(found, "raster", "fd", "steps=4")
    assert len(values(found, "raster", "nats_per_token")) == 2
    assert len(values(found, "vq", "psnr_db", "tokenizer")) == 1
    rows = list(csv.DictReader((finished / TABLE).open(encoding="utf-8")))
    recall = [row for row in rows if (row["entry"], row["point"], row["metric"]) == ("raster", "final", "recall")]
    assert [row["seed"] for row in recall] == ["0", "1"]
    assert {row["n"] for row in recall} == {"16"} and {row["extractor"] for row in recall} == {"classifier"}
    assert {row["depends_on_machine"] for row in rows} == {"0", "1"}


def test_the_page_is_whole_and_describes_its_pictures(finished: Path) -> None:
    page = (finished / PAGE).read_text(encoding="utf-8")
    tags = Tags(page)
    for tag, attributes in tags.found:
        assert tag not in ("script", "iframe", "object")
        for name in ("src", "srcset", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"{tag} {name}={value[:60]}"
    pictures = [attributes for tag, attributes in tags.found if tag == "img"]
    assert all(len(attributes.get("alt") or "") > 10 for attributes in pictures)
    ids = {attributes["id"] for _, attributes in tags.found if attributes.get("id")}
    assert {"summary", "guide", "tradeoffs", "generators", "tokenizers", "training", "metrics", "origin"} <= ids
    main = page.partition("<main>")[2]
    assert main.index("<img") < main.index("<table"), "pictures come first"
    assert any("Quality against latency" in str(attributes["alt"]) for attributes in pictures)


def test_a_stopped_study_goes_on_and_ends_as_one_that_was_not(
    root: Path, finished: Path, no_page: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root / "stopped"
    first = Workers(most=4)
    monkeypatch.setattr(conductor, "run_jobs", first)
    with pytest.raises(KeyboardInterrupt):
        compare(study(root), folder, "cpu")
    half = folder / "trained" / "raster" / "seed1"  # as a kill in the middle of a training leaves it
    if (half / "checkpoints" / f"{64:012d}").exists():
        shutil.rmtree(half / "checkpoints" / f"{64:012d}")
    second = Workers()
    monkeypatch.setattr(conductor, "run_jobs", second)
    compare(study(root), folder, "cpu")
    again = {name for name in first.done if name in second.done}
    assert again <= {"train raster seed 1", "train classifier"}, "what was finished is kept"
    assert without_times(results(folder)) == without_times(results(finished))


def test_a_finished_study_has_nothing_left_to_do(
    root: Path, finished: Path, no_page: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list_jobs(prepare(study(root), finished), ()) == []
    cell = finished / "records" / "entries" / "raster" / "seed0" / "cfg_scale-2.json"
    before = cell.read_text()
    cell.write_text(before[: len(before) // 2])  # a cell cut off is measured again, and nothing else
    workers = Workers()
    monkeypatch.setattr(conductor, "run_jobs", workers)
    compare(study(root), finished, "cpu")
    assert workers.done == ["measure raster"]
    assert cell.read_text() == before


def test_data_of_the_hub_are_called_by_their_name() -> None:
    files = {"train": "a.parquet"}
    names = [
        study_page.data_text(Hub(path="uoft-cs/cifar10", size=32)),
        study_page.data_text(Hub(path="parquet", local="copies/cifar10", files=files, size=32)),
        study_page.data_text(Hub(path="parquet", files=files, size=32)),
        study_page.data_text(Digits(size=16)),
    ]
    assert names == ["cifar10", "cifar10", "hub", "digits"]


def test_a_setting_that_stands_twice_in_the_grid_is_sampled_once(
    root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {"raster": {"run": str(finished / "trained" / "raster" / "seed0")}}
    few: dict[str, Any] = {
        "curve": {"n": 8},
        "sampling_grid": {"cfg_scale": [1, 2], "n": 8},
        "seeds": [0],
        "budget": None,
    }
    plan = prepare(study(root, entries=entries, **few), tmp_path)
    sampled, sample = [], Evaluator.samples_alone
    monkeypatch.setattr(Evaluator, "samples_alone", lambda *args: sampled.append(args[-1]) or sample(*args))
    for owner in measure.owners(plan):
        measure.measure(plan, owner, "cpu")
    assert [each.cfg_scale for each in sampled] == [1, 1, 2], "half-way; at the end, its own and at guidance 1; at 2"
    cells = tmp_path / "records" / "entries" / "raster" / "seed0"
    contents = [json.loads((cells / f"{name}.json").read_text()) for name in ("images-64", "own", "cfg_scale-1")]
    assert contents[0] == contents[1] == contents[2]
    assert contents[0] != json.loads((cells / "cfg_scale-2.json").read_text())
    fewer = study_page.fewer(gather(plan))
    assert "8 images" in fewer and "16" in fewer


def test_other_settings_in_the_same_folder_are_refused(root: Path, finished: Path) -> None:
    with pytest.raises(CheckpointError, match=r"training.images: 64, now 96.*artok compare"):
        compare(study(root, budget={"kind": "images", "amount": 96}), finished, "cpu")


def test_finished_runs_are_compared_without_training(
    root: Path, finished: Path, no_page: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = [str(finished / "trained" / "raster" / f"seed{seed}") for seed in (0, 1)]
    runs = {"mine": {"run": seeds}, "other": {"run": str(finished / "trained" / "maskgit" / "seed0")}}
    workers = Workers()
    monkeypatch.setattr(conductor, "run_jobs", workers)
    compare(study(root, entries=runs, budget=None), root / "given", "cpu")
    assert all(name.startswith(("measure", "time")) for name in workers.done)
    known, found = results(finished), results(root / "given")
    for metric in ("fd", "recall", "class_consistency", "nats_per_token"):
        assert values(found, "mine", metric) == values(known, "raster", metric)
    distances = values(found, "other", "fd")
    assert distances[0] == values(known, "maskgit", "fd")[0]
    assert distances[0] != distances[1], "the seeds of a single run are those of its samples"
    assert found["entries"]["mine"]["images"] is None
    page = (root / "given" / PAGE).read_text(encoding="utf-8")
    assert "a finished run, used unchanged" in page


def test_a_grid_beside_a_study_stands_on_its_page(
    root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"name": "codes", "tokenizer": str(root / "vq.yaml"), "grid": {"tokenizer.quantizer.codebook_size": [8, 16]}}
    write_text(tmp_path / "codes.yaml", json.dumps(grid | {"title": "Which <codebook>", "evaluation": {"n": 16}}))
    runs = {"mine": {"run": str(finished / "trained" / "raster" / "seed0")}}
    wanted = study(root, entries=runs, budget=None, seeds=[0], beside=str(tmp_path / "codes.yaml"))
    workers = Workers()
    monkeypatch.setattr(conductor, "run_jobs", workers)
    page = compare(wanted, tmp_path / "out", "cpu")
    names = [f"codebook_size-{size}" for size in (8, 16)]
    trained = [f"codes: train {name}-seed0" for name in names]
    measured = ["measure mine", *(f"codes: measure {name}" for name in names)]
    assert sorted(workers.done) == sorted([*trained, *measured, "codes: train classifier", "time tiny"])
    assert page is not None
    tags = Tags(page.read_text(encoding="utf-8"))
    assert "Which <codebook>" in tags.text and "codebook_size 8" in tags.text
    assert any("codebook_size 16" in str(attributes.get("alt")) for tag, attributes in tags.found if tag == "img")
    assert all((attributes.get("href") or "#").startswith(("#", "data:")) for _, attributes in tags.found)
    ids = [attributes["id"] for _, attributes in tags.found if attributes.get("id")]
    assert len(ids) == len(set(ids)) and "grid" in ids
    found = results(tmp_path / "out")["beside"]
    assert list(found["entries"]) == names
    tokens, bits = (values(found, names[1], f"{what}_per_image", "tokenizer") for what in ("tokens", "bits"))
    assert bits == [4 * tokens[0]]
    rows = list(csv.DictReader((tmp_path / "out" / TABLE).open(encoding="utf-8")))
    written = [row["value"] for row in rows if row["entry"] == names[1] and row["metric"] == "bits_per_image"]
    assert [float(value) for value in written] == bits
    before = page.stat().st_mtime_ns
    compare(wanted, tmp_path / "out", "cpu")
    assert len(workers.done) == 7 and page.stat().st_mtime_ns > before, "what is measured stays"


def test_an_impossible_grid_beside_is_refused_before_anything_is_trained(root: Path, tmp_path: Path) -> None:
    grid = {"name": "c", "tokenizer": str(root / "vq.yaml"), "grid": {"tokenizer.quantizer.codebook_size": [99_999]}}
    write_text(tmp_path / "codes.yaml", json.dumps(grid))
    with pytest.raises(ConfigError, match="larger than the data can fill"):
        compare(study(root, beside=str(tmp_path / "codes.yaml")), tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()


def test_a_study_of_an_earlier_version_is_still_read(root: Path) -> None:
    old = section(root)
    old["contestants"] = old.pop("entries")
    old["grid"] = {"steps": [1, 4], "guidance": [1, 2]}
    del old["sampling_grid"]
    assert validate(Study, old, "old") == study(root)


def test_the_grids_own_point_is_measured_once(
    root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, value = list[str](), measure.measure_samples

    def counted(evaluator: Evaluator, pipeline: Pipeline, record: measure.Record) -> Results:
        measured.append(record.name)
        return value(evaluator, pipeline, record)

    monkeypatch.setattr(measure, "measure_samples", counted)
    runs = {"mine": {"run": str(finished / "trained" / "maskgit" / "seed0")}}
    grid = {"steps": [1, 4], "cfg_scale": [1.5], "n": 8}
    wanted = study(root, entries=runs, budget=None, seeds=[0], sampling_grid=grid)
    run_part(wanted, tmp_path, "mine", "cpu")
    assert measured == ["final", "images-32", "own", "steps-1", "cfg_scale-1.5"], "it samples in 4 steps anyway"
    plan = settle(wanted, tmp_path)
    keys = measure.CacheKeys(plan)
    read = {each.name: measure.read_record(plan, each, keys) for each in measure.list_records(plan, "mine")}
    own, same, other = (read[name] for name in ("own", "steps-4", "steps-1"))
    assert own is not None and same is not None and other is not None
    assert same.measurements == own.measurements != other.measurements


# ---------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    ("kind", "amount"), [("parameters", 60_000), ("parameters", 100_000), ("flops", 2e9), ("images", 5_000)]
)
def test_every_entry_meets_the_budget(root: Path, tmp_path: Path, kind: str, amount: float) -> None:
    small = {"settings": {"training": {"global_batch": 8}}}
    plan = prepare(study(root, budget={"kind": kind, "amount": amount}, **small), tmp_path)
    for entry in plan.entries:
        found = training_cost(plan, entry, {})
        assert found is not None and found.spent(kind) == pytest.approx(amount, rel=0.05)
        assert "budget" in entry.adjustment or "became" in entry.adjustment
        one = entry.trainings[0].experiment
        assert one.generator is not None
        with torch.device("meta"):
            generator = one.generator.build(entry.layout, entry.classes)
        assert cost.parameters(generator) == found.parameters
        assert found.images == one.training.steps() * one.training.global_batch


def test_the_operations_of_a_critic_are_part_of_training(tmp_path: Path) -> None:
    def flops(**critic: float) -> float:
        settings = {"generator": {"critic": {"r1": 0.0, "r2": 0.0} | critic}}
        gan = {"generator": "digits/gan", "settings": settings}
        plan = prepare(validate(Study, {"name": "x", "entries": {"gan": gan}, "seeds": [0]}, "test"), tmp_path)
        found = training_cost(plan, plan.entries[0], {})
        assert found is not None
        return found.flops_per_image

    plain = flops()
    assert flops(r1=1.0) > 1.15 * plain, "a penalty differentiates twice"
    assert plain < flops(r1=1.0, penalty_every=4) < flops(r1=1.0)
    assert flops(n_critic=5) < plain, "a model that has its turn less often costs less"


def test_seconds_become_images_by_the_speed_that_was_measured(root: Path, tmp_path: Path) -> None:
    plan = settle(study(root, budget={"kind": "seconds", "amount": 8}), tmp_path)
    match(plan, {"raster": 250.0, "maskgit": 1000.0})
    images = [entry.trainings[1].experiment.training.images for entry in plan.entries]
    assert images == pytest.approx([2000, 8000], rel=0.01)
    event = {"event": "train", "device": "cpu"}
    log = [{"event": "start", "images": 0, "time": 0.0, "device": "cpu", "processes": 2}] + [
        event | {"images": images, "time": 3.0 * images, "core_seconds": seconds}
        for images, seconds in ((16, 9.0), (32, 10.0), (48, 11.0))
    ]
    assert speed(log) == 8.0  # 32 images in 2 core-seconds of each process; the start is left out
    on_gpu = [{**event, "device": "cuda"} if event["event"] == "start" else event for event in log]
    assert speed(on_gpu) == pytest.approx(1 / 3)


def test_a_budget_of_seconds_times_each_entry_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(most=4)
    monkeypatch.setattr(conductor, "run_jobs", workers)
    wanted = study(root, budget={"kind": "seconds", "amount": 1.0, "tolerance": 0.5}, seeds=[0])
    with pytest.raises(KeyboardInterrupt):
        compare(wanted, tmp_path, "cpu")
    assert workers.done[:3] == ["train vq", "time raster", "time maskgit"]
    speeds = json.loads((tmp_path / "speeds.json").read_text())
    assert all(value > 0 for value in speeds.values())
    plan = prepare(wanted, tmp_path)
    for entry in plan.entries:
        images = entry.trainings[0].experiment.training.images
        assert images / speeds[entry.name] == pytest.approx(1.0, rel=0.5)


@pytest.mark.parametrize("text", ['{"raster": 3', "[]", '{"raster": "x"}', '{"raster": -1}', '{"raster": NaN}', "{}"])
def test_damaged_speeds_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / SPEEDS).write_text(text)
    with pytest.raises(CheckpointError, match=r"speeds\.json does not hold speeds; delete it"):
        read_speeds(None, tmp_path)


def test_the_schedule_keeps_its_shape(root: Path, tmp_path: Path) -> None:
    optimizer = {"training": {"optimizer": {"warmup": 16}}}
    plan = prepare(study(root, settings=optimizer, budget={"kind": "images", "amount": 640}), tmp_path)
    training = plan.entries[0].trainings[0].experiment.training
    assert (training.images, training.optimizer.warmup, training.log_every) == (640, 160, 160)
    assert training.snapshot_every == 320


# ---------------------------------------------------------------------------------------------- mistakes

CONV = {
    "kind": "conv",
    "downsample": 4,
    "base_channels": 8,
    "channel_multipliers": [1, 1, 1],
    "z_channels": 8,
    "groups": 4,
}
DEEPER = {"generator": {"depth": 3}}
OWN = {"tokenizer": "{root}/vq.yaml", "generator": "{root}/raster.yaml"}
MISTAKES: dict[str, tuple[dict[str, Any], type[ArtokError], str]] = {
    "unknown config": ({"entries": {"a": {"generator": "digits/rastr"}}}, ConfigError, "did you mean"),
    "unknown key": ({"entry": {}}, ConfigError, "did you mean 'entries'"),
    "no entries": ({"entries": {}}, ConfigError, "entries"),
    "a bad name": ({"entries": {"a/b": OWN}}, ConfigError, "entries"),
    "the same twice": ({"entries": {"a": OWN, "b": OWN}}, ConfigError, "a and b are the same"),
    "the same in other words": (
        {"entries": {"a": OWN, "b": OWN | {"settings": {"generator": {"depth": 2}}}}},
        ConfigError,
        "a and b are the same once their settings are read",
    ),
    "neither run nor config": ({"entries": {"a": {}}}, ConfigError, "either a 'generator' config"),
    "a missing run": ({"entries": {"a": {"run": "runs/nowhere"}}, "budget": None}, CheckpointError, "no run"),
    "a budget for runs": ({"entries": {"a": {"run": "{root}/made"}}}, ConfigError, "only finished runs"),
    "no tokenizer": ({"entries": {"a": {"generator": "{root}/raster.yaml"}}}, ConfigError, "needs a 'tokenizer'"),
    "a generator as tokenizer": (
        {"entries": {"a": {"tokenizer": "{root}/raster.yaml", "generator": "{root}/raster.yaml"}}},
        ConfigError,
        "but that trains a generator",
    ),
    "tokens that do not fit": (
        {"entries": {"a": OWN | {"settings": {"generator": {"kind": "var", "depth": 1}}}}},
        LayoutError,
        "var needs tokens of several scales",
    ),
    "other data": (
        {"entries": {"a": OWN, "b": OWN | {"settings": {"data": {"size": 16, "resize": 20}}}}},
        ConfigError,
        "b trains on other data than a",
    ),
    "too small a budget": ({"budget": {"kind": "images", "amount": 5}}, ConfigError, "whole batches of 16"),
    "too few parameters": ({"budget": {"kind": "parameters", "amount": 10}}, ConfigError, "no size within 5% of 10"),
    "seeds twice": ({"seeds": [1, 1]}, ConfigError, "must be different"),
    "runs for other seeds": (
        {"entries": {"a": {"run": ["x", "y", "z"]}}, "budget": None},
        ConfigError,
        "a names 3 runs for 2 seeds",
    ),
    "a tokenizer as generator": (
        {"entries": {"a": {"tokenizer": "{root}/vq.yaml", "generator": "{root}/vq.yaml"}}, "settings": DEEPER},
        ConfigError,
        "but that trains a tokenizer",
    ),
    "an endless budget": ({"budget": {"kind": "images", "amount": float("inf")}}, ConfigError, "a finite number"),
    "more images than can be counted": (
        {"budget": {"kind": "flops", "amount": 1e37}},
        ConfigError,
        "raster: the budget is too large",
    ),
    "operations as parameters": (
        {"budget": {"kind": "parameters", "amount": 4e12}},
        ConfigError,
        "for a budget of training FLOPs use kind flops",
    ),
    "a speed of nothing": (
        {"budget": {"kind": "seconds", "amount": 9, "speeds": {"raster": 0}}},
        ConfigError,
        "budget.speeds.raster",
    ),
    "a seed too large": ({"seeds": [2**40]}, ConfigError, "should be less than 4294967296"),
    "no seeds": ({"seeds": []}, ConfigError, "'seeds' needs at least 1 entry"),
    "an unknown extractor": ({"evaluation": {"extractor": "clasifier"}}, ConfigError, "did you mean 'classifier'"),
    "steps of nothing": ({"sampling_grid": {"steps": [0, 2]}}, ConfigError, "from 1 on"),
    "a guidance below none": ({"sampling_grid": {"cfg_scale": [-1]}}, ConfigError, "from 0 on"),
    "a launcher that is not here": ({"launch": "nonesuch --fast"}, ConfigError, "names no program of this machine"),
    "a launcher half quoted": ({"launch": "'torchrun"}, ConfigError, "no closing quotation"),
    "speeds of nobody": (
        {"budget": {"kind": "seconds", "amount": 9, "speeds": {"c": 1}}},
        ConfigError,
        "'c', which is no entry",
    ),
}


def filled(value: Any, root: Path) -> Any:
    if isinstance(value, dict):
        return {key: filled(inside, root) for key, inside in value.items()}
    if isinstance(value, list):
        return [filled(inside, root) for inside in value]
    return value.replace("{root}", str(root)) if isinstance(value, str) else value


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_before_anything_is_trained(
    root: Path, finished: Path, tmp_path: Path, mistake: str
) -> None:
    changes, kind, words = MISTAKES[mistake]
    if "made" in str(changes) and not (root / "made").exists():
        shutil.copytree(finished / "trained" / "raster" / "seed0", root / "made")
    with pytest.raises(kind) as caught:
        compare(study(root, **filled(changes, root)), tmp_path / "out", "cpu")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_another_command_takes_is_handed_on_in_words(root: Path) -> None:
    with pytest.raises(ConfigError, match="try 'artok train digits/vq'"):
        load_study("digits/vq", [])


def test_two_cannot_conduct_one_study(root: Path, tmp_path: Path) -> None:
    with hold_lock(tmp_path / LOCK), pytest.raises(RunError, match="another 'artok compare' is at work"):
        compare(study(root), tmp_path, "cpu")
    assert not (tmp_path / "trained").exists()


def test_a_finished_study_may_be_moved(
    root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "moved")
    assert list_jobs(prepare(study(root), tmp_path / "moved"), ()) == []
    monkeypatch.chdir(tmp_path)
    assert list_jobs(prepare(study(root), Path("moved")), ()) == []


def test_runs_of_another_data_set_are_refused(root: Path, finished: Path, tmp_path: Path) -> None:
    other = {"kind": "digits", "size": 16}
    runs = {"a": {"run": str(finished / "trained" / "raster" / "seed0")}}
    with pytest.raises(CheckpointError, match=r"a: the run .* was trained on another data set than the study has"):
        settle(study(root, entries=runs, data=other, budget=None), tmp_path)


# ---------------------------------------------------------------------------------------------- processes


def test_each_training_is_launched_over_as_many_processes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = study(root, launch="torchrun --nproc_per_node 2")
    command, *rest = find_launcher(given)
    assert (Path(command).is_file(), Path(command).name, rest) == (True, "torchrun", ["--nproc_per_node", "2"])
    assert count_workers(given, find_launcher(given), "cpu") == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    launched = find_launcher(study(root))
    assert launched[-2:] == ("--nproc_per_node", "2")
    jobs = list_jobs(prepare(study(root), tmp_path), launched)
    assert {job.launcher for job in jobs if job.arguments[0] == "train"} == {launched}
    assert {job.launcher for job in jobs if job.arguments[0] == "compare"} == {()}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(ConfigError, match="runs on one machine"):
        find_launcher(study(root))
    monkeypatch.setenv("RANK", "1")
    assert compare(study(root), tmp_path / "out", "cpu") is None
    assert not (tmp_path / "out").exists()


def test_the_weights_of_the_course_do_not_change_training(finished: Path) -> None:
    kept = sorted(path.stem for path in (finished / "trained" / "raster" / "seed0" / "snapshots").iterdir())
    assert kept == [f"{32:012d}"]
    assert not (finished / "trained" / "raster" / "seed1" / "snapshots").exists()
    assert (finished / "trained" / "raster" / "seed1" / WEIGHTS).exists()
    assert read_saved(finished / "trained" / "raster" / "seed1").generator is not None


@pytest.mark.parametrize("changes", [{"beside": "nope"}, {"evaluation": {"extractor": "timm:nope"}}])
def test_a_study_that_is_refused_leaves_nothing(root: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtokError):
        compare(study(root, **changes), tmp_path / "study", "cpu")
    assert not (tmp_path / "study").exists()


def test_a_study_that_is_refused_discards_nothing(root: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(CheckpointError, match=r"photo.jpg"):
        compare(study(root), tmp_path, "cpu", fresh=True)
    (tmp_path / "photo.jpg").rename(tmp_path / "results.csv")
    (tmp_path / "study.yaml").write_text("entries: {}")
    with pytest.raises(ArtokError):
        compare(study(root, evaluation={"extractor": "timm:nope"}), tmp_path, "cpu", fresh=True)
    assert {path.name for path in tmp_path.iterdir()} == {"study.yaml", "results.csv"}
