"""The tool that kills trainings and compares where they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

TOOL = REPOSITORY / "tools" / "kill.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it forks a process that has imported everything")
def test_a_killed_training_ends_as_one_that_was_not(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "tokenizer", "--work", str(tmp_path), "--times", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" 0 differences\n")


def test_differences_between_runs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import kill

    for number, run in enumerate(("whole", "killed")):
        (tmp_path / run).mkdir()
        events = [{"event": "start", "images": 0, "time": 1}] * (1 + number)
        events += [{"event": "train", "images": 8, "time": 2.0 + number, "model_loss": 1.5}]
        (tmp_path / run / "log.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
        (tmp_path / run / "model.safetensors").write_bytes(b"weights")
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def compare() -> list[str]:
        found: list[str] = kill.differences(kill.contents(whole), kill.contents(killed))
        return found

    assert compare() == []
    (killed / ".model.safetensors.7.tmp").touch()
    (killed / "model.safetensors").write_bytes(b"weightz")
    (killed / "log.jsonl").write_text('{"event": "train", "images": 8, "time": 2.0, "model_loss": 1.25}\n')
    (whole / "report.html").touch()
    assert compare() == [
        "report.html is missing",
        "temporary .model.safetensors.7.tmp is left",
        "log.jsonl differs",
        "model.safetensors differs",
    ]
