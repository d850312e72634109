"""Jobs: order, failure, and what each sees of the machine; and what the demo plans."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from artok.commands.compare import list_jobs, prepare
from artok.commands.demo import choose, demo
from artok.errors import ArtokError, ConfigError, RunError
from artok.studies.scheduler import Job, Slurm, environment, run_jobs


@pytest.fixture(autouse=True)
def own_server() -> Iterator[None]:
    """The process that jobs are forked from keeps the output and the variables of the test that started it."""
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_job_waits_for_those_it_needs(tmp_path: Path) -> None:
    first = Job("first", ("configs",))
    second = Job("second", ("configs",), after=("first",))
    seconds = run_jobs([second, first], workers=2)
    assert list(seconds) == ["first", "second"]


def test_a_failing_job_is_named_and_stops_the_rest(capfd: pytest.CaptureFixture[str]) -> None:
    wanted = [Job("bad", ("train", "nowhere.yaml")), Job("good", ("configs",), after=("bad",))]
    with pytest.raises(ArtokError, match="bad failed"):
        run_jobs(wanted, workers=1)
    out, err = capfd.readouterr()
    assert "no config 'nowhere.yaml'" in err
    assert "digits/vq" not in out


def test_what_waits_for_a_failed_job_is_left_out_and_the_rest_goes_on() -> None:
    script = ("-c", "import sys; sys.exit(1)")
    bad = Job("bad", (), launcher=(sys.executable, *script), may_fail=True)
    wanted = [bad, Job("after", ("configs",), after=("bad",)), Job("good", ("configs",))]
    told: list[list[str]] = []
    seconds = run_jobs(wanted, workers=1, done=lambda known: told.append(list(known)))
    assert list(seconds) == ["good"]
    assert told == [[], ["good"]]


def test_each_worker_sees_one_gpu_and_nothing_of_another_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    job = Job("any", ("configs",))
    second = environment(job, workers=2, slot=1, gpus=2)
    assert second["CUDA_VISIBLE_DEVICES"] == "6"
    assert second["OMP_NUM_THREADS"] == "1"
    assert "RANK" not in second and "TORCHELASTIC_RUN_ID" not in second
    launched = Job("many", ("configs",), launcher=("torchrun", "--nproc_per_node", "2"))
    assert environment(launched, workers=1, slot=0, gpus=2)["CUDA_VISIBLE_DEVICES"] == "4,6"
    assert launched.command == ["torchrun", "--nproc_per_node", "2", "-m", "artok", "configs"]


def test_a_job_that_is_killed_is_a_failure_and_the_next_one_runs() -> None:
    with pytest.raises(RunError, match="long failed"):
        run_jobs([Job("long", (), launcher=(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))], workers=1)
    assert list(run_jobs([Job("listed", ("configs",))], workers=1)) == ["listed"]


@pytest.mark.slow
def test_a_study_that_is_stopped_stops_its_jobs_and_says_no_more(tmp_path: Path) -> None:
    train = Job("train", ("train", "digits/vq", "training.images=60000", "--out", str(tmp_path)))

    def stop(known: object) -> None:
        wait_for(tmp_path / "log.jsonl")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([train, Job("short", ("configs",))], workers=2, done=stop)
    assert (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("apart", [False, True], ids=["fork", "own process"])
def test_a_study_that_is_killed_leaves_no_training_behind(tmp_path: Path, apart: bool) -> None:
    """Its jobs notice, save and stop."""
    launcher = (sys.executable,) if apart else ()
    script = f"""
from artok.studies.scheduler import Job, run_jobs
if __name__ == "__main__":
    arguments = ("train", "digits/vq", "training.images=1000000", "--out", {str(tmp_path / "run")!r})
    run_jobs([Job("train", arguments, launcher={launcher!r})], workers=1)
"""
    (tmp_path / "conductor.py").write_text(script)
    with (tmp_path / "errors").open("w") as errors:
        conductor = subprocess.Popen([sys.executable, str(tmp_path / "conductor.py")], stderr=errors, stdout=errors)
        wait_for(tmp_path / "run" / "log.jsonl")
        conductor.kill()
        conductor.wait()
        wait_for(tmp_path / "run" / "checkpoints")
    deadline = time.monotonic() + 120
    while '"stop"' not in (tmp_path / "run" / "log.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_where_there_is_a_gpu_each_job_has_a_process_of_its_own() -> None:
    assert list(run_jobs([Job("own", ("configs",))], workers=1, gpus=1)) == ["own"]


def test_slurm_runs_jobs_and_tells_of_their_failure(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    slurm = Slurm(tmp_path, {"cluster": "local", "timeout_min": 5})
    good, bad = Job("good", ("configs",)), Job("bad", ("train", "nowhere.yaml"), after=("good",))
    assert list(run_jobs([good], workers=2, slurm=slurm)) == ["good"]
    assert "digits/vq" in "".join(path.read_text() for path in tmp_path.glob("*.out"))
    with pytest.raises(ArtokError, match="bad failed"):
        run_jobs([good, bad], workers=2, slurm=slurm)


@pytest.mark.parametrize("families", [["raster"], ["raster", "gan"], []])
def test_the_demo_plans_each_tokenizer_once_and_before_its_generators(families: list[str], tmp_path: Path) -> None:
    study = choose(families)
    planned = list_jobs(prepare(study, tmp_path), ())
    names = [job.name for job in planned]
    assert len(names) == len(set(names))
    for job in planned:
        assert set(job.after) <= set(names[: names.index(job.name)])
    for family in families or ["raster", "var", "maskgit", "mar", "dit", "gan"]:
        assert f"train {family} seed 0" in names
        assert f"measure {family}" in names
    assert ("train digits-vq" in names) == ("raster" in study.entries)


def test_the_sweep_joins_all_families_or_where_it_is_asked_for() -> None:
    assert choose([]).beside == "digits-demo-sweep"
    assert choose([], sweep=False).beside is None
    assert choose(["gan"]).beside is None
    assert choose(["gan"], sweep=True).beside == "digits-demo-sweep"


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no family vae; it has raster"):
        demo(tmp_path, ["vae"])
