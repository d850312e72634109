"""The benchmark tool: sides in processes of their own by turns, rejected rounds, ratios, and adapters given by path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

ADAPTER = '''
import time

def build(case, checkout):
    """The checkout's speed file says how long an image takes."""
    if case["family"] == "maskgit":
        raise NotImplementedError("there is no masked generation here")
    print("what an adapter prints is no answer")
    seconds = float((checkout / "speed").read_text()) * case["batch"]

    def call():
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    return call
'''


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(REPOSITORY / "tools")])


def checkout(folder: Path, seconds: float) -> Path:
    folder.mkdir()
    (folder / "speed").write_text(str(seconds))
    (folder / "toy.py").write_text(ADAPTER)
    return folder


def test_sides_take_turns_and_a_side_that_cannot_is_named(tmp_path: Path) -> None:
    from benchmark.interleave import Process, measure

    places = {"slow": checkout(tmp_path / "slow", 0.03), "fast": checkout(tmp_path / "fast", 0.01)}
    sides = [Process(name, place / "toy.py", place, 1, "float32") for name, place in places.items()]
    case = {"what": "sample", "family": "raster", "batch": 2, "threads": 1}
    try:
        found = measure(sides, case, rounds=3, seconds=20, clock="processor")
        refused = measure(sides, case | {"family": "maskgit"}, rounds=3, seconds=20, clock="processor")
    finally:
        for side in sides:
            side.close()
    assert found["slow"]["speedup"] == [1, 1, 1] and found["slow"]["rounds"] == 3
    assert 0.06 <= found["slow"]["seconds"] < 0.08  # two images per call
    median, low, high = found["fast"]["speedup"]
    assert low <= median <= high and 2.4 < median < 3.6
    assert found["fast"]["peak_bytes"] is None or found["fast"]["peak_bytes"] > 10**7
    assert refused["slow"] == {"error": "NotImplementedError: there is no masked generation here"}


def test_a_process_that_ends_is_an_error_of_its_side(tmp_path: Path) -> None:
    from benchmark.interleave import Process

    place = checkout(tmp_path / "place", 0.0)
    (place / "toy.py").write_text("raise SystemExit(3)")
    side = Process("gone", place / "toy.py", place, 1, "float32")
    assert side.prepare({"family": "raster"}, False) == {"error": "the process of gone ended with status 3"}


def test_a_disturbed_round_is_rejected_for_all_sides() -> None:
    from benchmark.interleave import Rounds, figures

    one = Rounds(threads=1)
    for a, b, waited in ((2.0, 1.0, 1.0), (9.0, 1.0, 0.5), (2.2, 1.0, 0.99), (2.0, 7.0, 1.0)):
        one.add({"a": {"wall": a, "processor": a * waited}, "b": {"wall": b, "processor": min(b, 1.0)}})
    assert one.kept() == [0, 2]  # a waited in the second, b in the fourth
    assert figures(one, "b", "a", "wall")["speedup"] == pytest.approx([2.1, 2.0, 2.2])
    assert figures(one, "a", "a", "processor")["kept"] == 4
    two = Rounds(threads=2)
    for busy in (1.5, 1.49, 1.2):  # what one thread does alone is no disturbance
        two.add({"a": {"wall": 1.0, "processor": busy}})
    assert two.kept() == [0, 1]
    lost = Rounds(threads=1)
    lost.add({"a": {"wall": 1.0, "processor": 0.1}})
    assert figures(lost, "a", "a", "wall") | {"kept": 0, "seconds": 1.0} == figures(lost, "a", "a", "wall")


def test_cases_are_those_that_a_family_has() -> None:
    from benchmark.cases import cases

    found = [(case["what"], case["batch"], case["length"]) for case in cases(["raster"], ["digits"], *CHOICE)]
    assert found == [("sample", 1, None), ("sample", 8, None), ("sample", 1, 64), ("train", None, None)]
    assert {case["what"] for case in cases(["vq"], ["B"], *CHOICE)} == {"encode", "decode", "train"}
    assert [case["length"] for case in cases(["var"], ["digits"], *CHOICE)] == [None] * 3  # its scales are given


CHOICE = (["sample", "encode", "decode", "train"], [1, 8], [64])


def test_the_command_writes_figures_and_a_dated_page(tmp_path: Path) -> None:
    place = checkout(tmp_path / "theirs", 0.001)
    command = [sys.executable, str(REPOSITORY / "tools" / "bench.py"), "raster", "--sizes", "digits"]
    command += ["--what", "sample", "train", "--batches", "1", "--dtypes", "float32", "--rounds", "1", "--threads", "1"]
    command += ["--clock", "processor", "--folder", str(tmp_path / "pages"), "--adapter", f"{place / 'toy.py'}={place}"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    data, text = (next((tmp_path / "pages").glob(f"*-families.{ending}")).read_text() for ending in ("json", "md"))
    sample, train = json.loads(data)["rows"]
    own = sample["sides"]["artok float32"]
    assert own["tokens"] == 16 and own["tokens_per_s"] == pytest.approx(16 / own["seconds"])
    assert own["share_of_floor"] == pytest.approx(own["floor_s"] / own["seconds"]) and 0 < own["share_of_floor"] < 2
    assert sample["sides"]["toy"]["speedup"][0] > 2
    trained = train["sides"]["artok float32"]
    assert trained["batch"] == 64 and 0 < trained["mfu"] < 2 and 0.1 < trained["products"] < 1
    assert str(tmp_path) not in text and "| raster digits | 1 | toy |" in text and "TypeError" in text


def test_a_mistake_in_the_command_is_named() -> None:
    for wrong, said in ((["rater"], "there is no family rater"), (["--lengths", "63"], "63 is none")):
        command = [sys.executable, str(REPOSITORY / "tools" / "bench.py"), *wrong]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
        assert done.returncode == 2 and said in done.stderr
