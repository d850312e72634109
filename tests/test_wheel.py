"""What a wheel holds: every file of the package, its page templates too, and the configs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from helpers.paths import REPOSITORY


@pytest.mark.slow
def test_the_wheel_holds_modules_templates_and_configs(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="pip install hatchling")
    build = [sys.executable, "-m", "pip", "wheel", str(REPOSITORY), "--wheel-dir", str(tmp_path)]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*build, *offline], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("artok-*.whl")
    held = set(ZipFile(wheel).namelist())
    modules = set((REPOSITORY / "artok").rglob("*.py"))
    templates = set((REPOSITORY / "artok" / "report" / "templates").iterdir())
    configs = {path for path in (REPOSITORY / "configs").rglob("*") if path.is_file()}
    assert modules and templates and configs
    wanted = {str(path.relative_to(REPOSITORY)) for path in modules | templates}
    wanted |= {f"artok/{path.relative_to(REPOSITORY)}" for path in configs}
    assert not wanted - held
