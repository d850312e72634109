"""Jobs: order, failure, and what each sees of the machine; and what the demo plans."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from artok.commands.compare import jobs_of, prepare
from artok.commands.demo import chosen, demo
from artok.errors import ArtokError, ConfigError
from artok.studies import scheduler as jobs
from artok.studies.fork_server import Server, can_fork
from artok.studies.scheduler import INTERRUPTED, Job, environment, run_jobs


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


def test_a_server_runs_commands_one_after_another_whatever_becomes_of_them(capfd: pytest.CaptureFixture[str]) -> None:
    server = Server(os.environ)
    try:
        codes = [
            server.start(arguments).wait() for arguments in (["train", "nowhere.yaml"], ["configs"], ["--nothing"])
        ]
    finally:
        server.close()
    assert codes == [2, 0, 2]
    out, err = capfd.readouterr()
    assert "no config 'nowhere.yaml'" in err
    assert "digits/vq" in out, "a command prints as it would by itself"


def test_a_command_that_is_told_to_stop_saves_and_says_so(tmp_path: Path) -> None:
    server = Server(os.environ)
    try:
        fork = server.start(["train", "digits/vq", "training.images=1000000", "--out", str(tmp_path)])
        deadline = time.monotonic() + 300
        while not (tmp_path / "log.jsonl").exists():
            assert fork.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        fork.terminate()
        assert fork.wait() == fork.poll() == INTERRUPTED
    finally:
        server.close()
    assert (tmp_path / "checkpoints").exists()


def test_a_study_that_is_stopped_stops_its_jobs_and_says_no_more(tmp_path: Path) -> None:
    train = Job("train", ("train", "digits/vq", "training.images=60000", "--out", str(tmp_path)))

    def stop(known: object) -> None:
        deadline = time.monotonic() + 300
        while not (tmp_path / "log.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([train, Job("short", ("configs",))], workers=2, done=stop)
    assert (tmp_path / "checkpoints").exists()


def test_a_server_that_is_gone_is_a_job_that_was_killed() -> None:
    server = Server(os.environ)
    server._process.kill()
    assert server.start(["configs"]).wait() == -signal.SIGKILL
    server.close()


def test_where_there_is_a_gpu_nothing_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_fork(gpus=1)
    monkeypatch.delattr(os, "fork")
    assert not can_fork(gpus=0)
    monkeypatch.setattr(jobs, "Server", None)
    assert list(run_jobs([Job("listed", ("configs",))], workers=1)) == ["listed"]


@pytest.mark.parametrize("families", [["raster"], ["raster", "gan"], []])
def test_the_demo_plans_each_tokenizer_once_and_before_its_generators(families: list[str], tmp_path: Path) -> None:
    study = chosen(families)
    planned = jobs_of(prepare(study, tmp_path), ())
    names = [job.name for job in planned]
    assert len(names) == len(set(names))
    for job in planned:
        assert set(job.after) <= set(names[: names.index(job.name)])
    for family in families or ["raster", "var", "maskgit", "mar", "dit", "gan"]:
        assert f"train {family} seed 0" in names
        assert f"measure {family}" in names
    assert ("train digits-vq" in names) == ("raster" in study.contestants)


def test_the_sweep_joins_all_families_or_where_it_is_asked_for() -> None:
    assert chosen([]).sweep == "digits-demo-sweep"
    assert chosen([], sweep=False).sweep is None
    assert chosen(["gan"]).sweep is None
    assert chosen(["gan"], sweep=True).sweep == "digits-demo-sweep"


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no family vae; it has raster"):
        demo(tmp_path, ["vae"])
