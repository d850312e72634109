"""Jobs: order, failure and interruption; and what the demo plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from artok.errors import ArtokError, ConfigError
from artok.studies.demo import GENERATORS, TOKENIZERS, demo, plan
from artok.studies.jobs import Job, run_jobs


def test_a_job_waits_for_those_it_needs(tmp_path: Path) -> None:
    first = Job("first", ("configs",))
    second = Job("second", ("configs",), after=("first",))
    seconds = run_jobs([second, first], workers=2)
    assert list(seconds) == ["first", "second"]


def test_a_failing_job_is_named_and_stops_the_rest(capfd: pytest.CaptureFixture[str]) -> None:
    jobs = [Job("bad", ("train", "nowhere.yaml")), Job("good", ("configs",), after=("bad",))]
    with pytest.raises(ArtokError, match="bad failed"):
        run_jobs(jobs, workers=1)
    out, err = capfd.readouterr()
    assert "no config 'nowhere.yaml'" in err
    assert "digits/vq" not in out


@pytest.mark.parametrize("families", [["raster"], ["raster", "var"], list(GENERATORS)])
def test_the_demo_plans_each_tokenizer_once_and_before_its_generators(families: list[str]) -> None:
    jobs = plan(Path("demo"), families)
    names = [job.name for job in jobs]
    assert len(names) == len(set(names))
    for job in jobs:
        assert set(job.after) <= set(names[: names.index(job.name)])
    for family in families:
        assert f"train {GENERATORS[family][1]}" in names
        assert f"evaluate {family}" in names
    used = {GENERATORS[family][1] for family in families}
    assert {name for name in TOKENIZERS if f"train {name}" in names} == used


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no family vae; it has raster"):
        demo(tmp_path, ["vae"])
