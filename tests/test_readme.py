"""The README tells the truth: its tables are the code's, its commands exist, its files are there."""

from __future__ import annotations

import re
import sys

from helpers.paths import REPOSITORY

ROOT = REPOSITORY
README = (ROOT / "README.md").read_text()


def test_its_tables_are_those_of_the_code() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import write_docs
    finally:
        sys.path.remove(str(ROOT / "tools"))
    assert write_docs.readme() == README, "run: python tools/write_docs.py --write"
    assert len(write_docs.zoo().splitlines()) == 2 + 33


def test_its_commands_and_configs_exist() -> None:
    from artok.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    used = re.findall(r"artok (\w+)", " ".join(re.findall(r"^artok .*|`artok [^`]*`|-m artok .*", README, re.M)))
    assert used
    assert set(used) <= commands
    for config in re.findall(r"artok train ([\w-]+/[\w-]+)", README):
        assert (ROOT / "configs" / f"{config}.yaml").exists()


def test_its_pictures_exist() -> None:
    for url in re.findall(r"!\[.*?\]\((.*?)\)", README):
        inside = url.partition("/artok/artok/main/")[2]  # absolute, so that the package index shows it too
        assert not inside or (ROOT / inside).exists(), url
