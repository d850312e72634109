"""Imports run one way. A room may import from the rooms it is listed with, and from itself."""

import ast
import itertools
from pathlib import Path

from helpers.paths import REPOSITORY

ROOT = REPOSITORY / "artok"
LEAVES = {
    "",
    "allocator",
    "cache",
    "device",
    "discard",
    "errors",
    "files",
    "layout",
    "noise",
    "oracle",
    "config",
    "images",
    "locks",
    "masks",
    "mistakes",
    "weights",
    "renamed",
}
ALLOWED = {
    **dict.fromkeys(LEAVES, LEAVES),
    "nn": LEAVES,
    "quantizers": LEAVES | {"nn"},
    "tokenizers": LEAVES | {"nn", "quantizers"},
    "sampling": LEAVES | {"nn"},
    "adversarial": LEAVES | {"nn"},
    "conditioning": LEAVES | {"nn"},
    "generators": LEAVES | {"nn", "sampling", "adversarial", "conditioning"},
    "distillation": LEAVES | {"nn", "sampling", "adversarial", "conditioning", "generators"},
    "data": LEAVES,
    "metrics": LEAVES | {"nn"},
    "losses": LEAVES | {"nn", "adversarial", "metrics"},
}
MODELS = (
    LEAVES
    | {"nn", "quantizers", "tokenizers", "sampling", "adversarial", "conditioning", "generators"}
    | {"distillation"}
)
ALLOWED["saved"] = MODELS
ALLOWED["pipeline"] = MODELS | {"saved"}
ALLOWED["rollout"] = MODELS | {"saved", "pipeline"}
ALLOWED["cascade"] = ALLOWED["pipeline"] | {"pipeline"}
ALLOWED["training"] = MODELS | {"saved", "pipeline", "rollout", "losses", "data", "metrics"}
ALLOWED["interop"] = MODELS | {"saved", "pipeline", "metrics"}
for below, above in itertools.pairwise(("training", "planning", "evaluation", "studies", "report", "commands")):
    ALLOWED[above] = ALLOWED[below] | {below}
for above in ("evaluation", "commands"):
    ALLOWED[above] |= {"cascade"}
ALLOWED["api"] = ALLOWED["evaluation"] | {"evaluation"}
ALLOWED[""] = {"api", "pipeline"}  # for type checkers, and when a public name is first used
ALLOWED["commands"] |= {"interop"}
ALLOWED["cli"] = ALLOWED["commands"] | {"commands"}
ALLOWED["__main__"] = {"cli"}


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


IMPORTED = {path: imported_modules(path) for path in sorted(ROOT.rglob("*.py"))}


def test_a_file_imports_only_from_the_rooms_below_it() -> None:
    offenders = []
    for path, modules in IMPORTED.items():
        own = room(path)
        for module in modules:
            package, _, rest = module.partition(".")
            target = rest.split(".")[0].replace("__version__", "")
            if package == "artok" and target != own and target not in ALLOWED[own]:
                offenders.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not offenders


def test_only_training_knows_accelerate() -> None:
    knows = [path for path, modules in IMPORTED.items() if any(name.split(".")[0] == "accelerate" for name in modules)]
    assert knows and not [str(path.relative_to(ROOT)) for path in knows if room(path) != "training"]


def test_a_file_stays_readable() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in IMPORTED}
    assert not {name: length for name, length in lengths.items() if length > 400}
