"""The documentation: it builds without a warning, the walks of CONTRIBUTING work, the notebooks run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

WALKS = dict(
    re.findall(r"^## (Add a [\w ]+)\n(.*?)(?=^## |\Z)", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.M | re.S)
)
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
COPIED = ("artok", "configs", "tests", "pyproject.toml")


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder, whose package is the one imported."""
    env = {**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_there_are_four_walks() -> None:
    assert list(WALKS) == ["Add a quantizer", "Add a generator", "Add a metric", "Add a data set"]


@pytest.mark.slow
@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_of_contributing_works_as_written(walk: str, tmp_path: Path) -> None:
    """In a copy of the repository: the files with a title are written, then the commands are run."""
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    files = re.findall(r'^```\w+ title="(.*?)"\n(.*?)^```', WALKS[walk], re.M | re.S)
    commands = re.findall(r"^```bash\n(.*?)^```", WALKS[walk], re.M | re.S)
    assert files and commands
    for name, text in files:
        assert not (tmp_path / name).exists(), f"{name} is there already"
        (tmp_path / name).write_text(text)
    parts = [name for name, _ in files if name.endswith(".py")]
    for check in (["check"], ["format", "--check"]):
        done = run([sys.executable, "-m", "ruff", *check, *parts], tmp_path)
        assert done.returncode == 0, done.stdout
    for line in "".join(commands).splitlines():
        command = line.replace("python -m", f"{sys.executable} -m", 1)
        command = re.sub(r"^artok ", f"{sys.executable} -m artok ", command)
        done = run(["bash", "-o", "pipefail", "-c", command], tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        if "pytest" in line:
            assert re.search(r"\d+ passed", done.stdout), done.stdout


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install artok[docs]")
    pytest.importorskip("mkdocstrings", reason="pip install artok[docs]")
    site = tmp_path / "site"
    written = run([sys.executable, "tools/write_docs.py", "--write"], REPOSITORY)
    assert written.returncode == 0, written.stderr[-3000:]
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    done = run(command, REPOSITORY, NO_MKDOCS_2_WARNING="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    for page in ("reference/config", "reference/commands", "reference/api", "adding-a-part", "reference/tree"):
        assert (site / page / "index.html").exists()
    assert "codebook_size" in (site / "reference/config/index.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="pip install artok[notebooks]")
    nbclient = pytest.importorskip("nbclient", reason="pip install artok[notebooks]")
    pytest.importorskip("ipykernel", reason="pip install artok[notebooks]")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
