"""Temporary files that kills leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from artok.files import remove_partial


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
