"""The order of the house: sizes of rooms, no circles among modules, retired words, nothing of a workshop in it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from artok.renamed import RENAMED

PACKAGE = REPOSITORY / "artok"
SHIPPED = (
    "artok",
    "configs",
    "docs",
    "tools",
    "notebooks",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "pyproject.toml",
)
TEXTS = {".py", ".md", ".yaml", ".toml", ".jinja", ".ipynb", ".csv"}
RETIRED = {  # word: the field's
    r"\bcontestants?\b": "entry",
    r"\bJudge\b": "Evaluator",
    r"\bglance\b": "headline table",
    r"\bunbroken\b": "merged log",
    r"\bconscience\b": "usage balancing",
    r"\brevival\b|\brevived?\b": "dead-code restart",
    r"\bby heart\b": "memorised",
    r"[Nn]obody should choose": "dominated settings",
    r"\bvariety\b": "diversity",
    r"\bmoments/": "snapshots/",
    r"\bopponents?\b": "discriminator or generator",
    r"\b(?:tokens|images|bits|codes|nats|FLOPs|passes|steps|MB) (?:an image|a second|a token|a pixel)\b": "per",
}
READS_OLD_NAMES = (
    "artok/renamed.py",
    "artok/studies/config.py",  # a study of 0.1 is refused by its old key
    "artok/quantizers/balance.py",  # cites a paper with the word in its title
    "CHANGELOG.md",
    "docs/reference",
)
AS_RUN = re.compile(r"docs/studies/[^/]+/(study\.yaml|results\.csv)")  # what was run and found, under the names of then


def shipped() -> list[Path]:
    found = []
    for name in SHIPPED:
        path = REPOSITORY / name
        found += [path] if path.is_file() else [each for each in path.rglob("*") if each.suffix in TEXTS]
    names = {each: str(each.relative_to(REPOSITORY)) for each in found}
    return [each for each, name in names.items() if not name.startswith(READS_OLD_NAMES) and not AS_RUN.match(name)]


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_readme_is_short() -> None:
    assert lines(REPOSITORY / "README.md") <= 160


def test_no_two_test_files_share_a_name() -> None:
    """Test folders are no packages, so pytest imports a file by its name alone and refuses the second of one name."""
    names = Counter(path.name for path in (REPOSITORY / "tests").rglob("test_*.py"))
    assert [name for name, times in names.items() if times > 1] == []


def test_no_room_is_more_than_a_quarter_of_the_package() -> None:
    sizes = {
        room.name: sum(lines(path) for pattern in ("*.py", "*.jinja") for path in room.rglob(pattern))
        for room in PACKAGE.iterdir()
        if room.is_dir() and (room / "__init__.py").exists()
    }
    whole = sum(sizes.values()) + sum(map(lines, PACKAGE.glob("*.py")))
    assert {room: size for room, size in sizes.items() if size > whole / 4} == {}


def test_no_modules_import_one_another_in_a_circle() -> None:
    names = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    imports: dict[str, set[str]] = {}
    for name, path in names.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        imports[name] = found & set(names) - {name}
    settled: set[str] = set()
    while ready := {name for name in imports if name not in settled and imports[name] <= settled}:
        settled |= ready
    assert set(imports) - settled == set(), "these import one another, or something that does"


def test_nothing_shipped_names_the_workshop() -> None:
    place = re.compile(r"\.\./shared")
    assert [str(path) for path in shipped() if place.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("word", RETIRED)
def test_retired_words_are_gone(word: str) -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:80]}"
        for path in shipped()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(word, line)
    ]
    assert found == [], f"say {RETIRED[word]}"


def test_configs_use_todays_keys() -> None:
    only_old = {old for table in RENAMED.values() for old in table} - {
        new for table in RENAMED.values() for new in table.values()
    }
    ambiguous = {
        "width",
        "widths",
        "blocks",
        "levels",
        "patch",
        "latent",
        "batch",
        "attention",
        "target",
        "final",
        "clip",
        "weight",
    }
    for path in (REPOSITORY / "configs").rglob("*.yaml"):
        keys = set(re.findall(r"(?:^|[{,])\s*(\w+):", path.read_text(encoding="utf-8"), re.M))
        assert not keys & (only_old - ambiguous), path
