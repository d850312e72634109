"""Runs artok's command line in this process."""

from __future__ import annotations

import sys

import pytest

from artok import cli


def artok(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of `artok ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["artok", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)
