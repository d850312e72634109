"""Imports run one way. A room may import from the rooms it is listed with, and from itself."""

import ast
import itertools
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

ROOT = REPOSITORY / "artok"
LEAVES = {"", "errors", "layout", "noise", "config", "images", "locks", "weights", "renamed"}
ALLOWED = {
    **dict.fromkeys(LEAVES, LEAVES),
    "nn": LEAVES,
    "quantizers": LEAVES | {"nn"},
    "tokenizers": LEAVES | {"nn", "quantizers"},
    "sampling": LEAVES | {"nn"},
    "adversarial": LEAVES | {"nn"},
    "generators": LEAVES | {"nn", "sampling", "adversarial"},
    "data": LEAVES,
    "metrics": LEAVES | {"nn"},
    "losses": LEAVES | {"nn", "adversarial", "metrics"},
}
MODELS = LEAVES | {"nn", "quantizers", "tokenizers", "sampling", "adversarial", "generators"}
ALLOWED["saved"] = MODELS
ALLOWED["pipeline"] = MODELS | {"saved"}
ALLOWED["training"] = MODELS | {"saved", "pipeline", "losses", "data", "metrics"}
ALLOWED["interop"] = MODELS | {"saved", "pipeline", "metrics"}
for below, above in itertools.pairwise(("training", "planning", "evaluation", "studies", "report", "commands")):
    ALLOWED[above] = ALLOWED[below] | {below}
ALLOWED["cli"] = ALLOWED["commands"] | {"commands", "interop"}
ALLOWED["__main__"] = {"cli"}

FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports anywhere, functions included."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            inside = node.module == "artok"
            modules |= {f"artok.{alias.name}" for alias in node.names} if inside else {node.module}
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_the_rooms_below_it(path: Path) -> None:
    own = room(path)
    for module in imported_modules(path):
        package, _, rest = module.partition(".")
        if package == "artok":
            target = rest.split(".")[0].replace("__version__", "")
            assert target == own or target in ALLOWED[own], f"{own} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_training_knows_accelerate(path: Path) -> None:
    if room(path) != "training":
        assert not any(module.split(".")[0] == "accelerate" for module in imported_modules(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_stays_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
