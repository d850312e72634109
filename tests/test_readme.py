"""The README tells the truth: its tree is the code's, its commands exist, its files are there."""

from __future__ import annotations

import re
import sys

from helpers.paths import REPOSITORY

ROOT = REPOSITORY
README = (ROOT / "README.md").read_text()


def test_the_tree_is_that_of_the_code() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import tree
    finally:
        sys.path.remove(str(ROOT / "tools"))
    assert tree.replaced(README) == README, "run: python tools/tree.py --write"


def test_its_commands_and_configs_exist() -> None:
    from artok.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    used = re.findall(r"artok (\w+)", " ".join(re.findall(r"^artok .*|`artok [^`]*`|-m artok .*", README, re.M)))
    assert used
    assert set(used) <= commands
    for config in re.findall(r"artok train ([\w-]+/[\w-]+)", README):
        assert (ROOT / "configs" / f"{config}.yaml").exists()


def test_its_pictures_exist() -> None:
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).exists(), path
