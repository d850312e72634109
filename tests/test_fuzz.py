"""The tool that feeds bad input to every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="its cases run under Linux's limits")
def test_bad_input_gives_neither_traceback_nor_odd_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "fuzz.py"), "--work", str(tmp_path), "--cases", "40"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()[-1]
    assert said.startswith("40 cases: ")
    assert "traceback" not in said and "exit code 9" not in said, done.stdout
