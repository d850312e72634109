"""Temporary files that kills leave."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artok import files
from artok.files import remove_partial, retry
from artok.saved import write_text
from artok.training.log import Log, read_log


def test_partial_files_of_processes_that_are_gone_are_removed_and_no_others(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [tmp_path / f".results.csv.{gone.pid}.tmp", tmp_path / "records" / f".final.json.{gone.pid}.tmp"]
    kept = [tmp_path / f".a.json.{os.getpid()}.tmp", tmp_path / ".own.tmp", tmp_path / f"b.json.{gone.pid}.tmp"]
    kept += [tmp_path / ".a.json.1.tmp", tmp_path / f".folder.{gone.pid}.tmp" / "checkpoint"]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    remove_partial(tmp_path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


class Failing:
    """A function that fails so many times with an error."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.left, self.calls = error, times, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= self.left:
            raise self.error


STALE = OSError(errno.ESTALE, "Stale file handle")
IN_RUST = RuntimeError("Error while serializing: I/O error: Input/output error (os error 5)")


@pytest.mark.parametrize("error", [STALE, IN_RUST])
def test_a_write_is_tried_again_for_some_seconds(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = list[float]()
    monkeypatch.setattr(files.time, "sleep", waits.append)
    write = Failing(error, 3)
    retry(write)
    assert write.calls == 4 and waits == [0.1, 0.5, 2.5]
    with pytest.raises(type(error)):
        retry(Failing(error, 4))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), PermissionError(errno.EACCES, "no"), ValueError("x")])
def test_an_error_that_stays_is_raised_at_once(error: Exception) -> None:
    write = Failing(error, 1)
    with pytest.raises(type(error)):
        retry(write)
    assert write.calls == 1


def test_files_and_logs_are_whole_after_an_error_that_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WAITS", (0.0,))
    replace, opened = os.replace, Path.open
    failing = Failing(STALE, 1)

    def replace_later(source: Any, target: Any) -> None:
        failing()
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_later)
    write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole" and failing.calls == 2
    log = Log(tmp_path / "log.jsonl", -1)
    log.write("train", 16, {"model_loss": 1.0})
    broken = Failing(STALE, 1)

    def half(self: Path, *arguments: Any, **settings: Any) -> Any:
        if self.name == "log.jsonl" and arguments == ("ab",) and broken.calls < 1:
            with opened(self, "ab") as file:
                file.write(b'{"event": "tra')
            broken()
        return opened(self, *arguments, **settings)

    monkeypatch.setattr(Path, "open", half)
    log.write("train", 32, {"model_loss": 0.5})
    monkeypatch.undo()
    assert [event["images"] for event in read_log(tmp_path / "log.jsonl")] == [16, 32]
