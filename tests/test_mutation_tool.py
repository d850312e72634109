"""What `tools/mutate.py` changes in a source, and what it leaves alone."""

from __future__ import annotations

import sys

import pytest
from helpers.paths import REPOSITORY

SOURCE = '''
"""Adds 1 to 2."""
RATE = 0.5

def f(x: int | None, low, high=3):
    """Returns 1."""
    if x is None:
        raise ValueError(f"no {1 + 1}")
    y = x + low * 2
    y.clamp_(min=0)
    return low, g(y.detach(), dim=1)
'''
EXPECTED = {
    ("0.5", "1.0"),
    ("3", "4"),
    ("3", "2"),
    ("if x is None:", "if False:"),
    ("x is None", "x is not None"),
    ("x + low * 2", "x - low * 2"),
    ("x + low * 2", "x"),
    ("low * 2", "low / 2"),
    ("low * 2", "low"),
    ("low * 2", "low * 3"),
    ("low * 2", "low * 1"),
    ("y.clamp_(min=0)", "pass"),
    ("y.clamp_(min=0)", "y"),
    ("y.clamp_(min=0)", "y.clamp_()"),
    ("0", "1"),
    ("return (low, g(y.detach(), dim=1))", "return (g(y.detach(), dim=1), low)"),
    ("g(y.detach(), dim=1)", "g(y.detach())"),
    ("y.detach()", "y"),
    ("1", "2"),
    ("1", "0"),
}


def test_each_mutant_changes_one_point_and_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(REPOSITORY / "tools")])
    from mutation.mutants import apply, mutants

    found = list(mutants("artok/made.py", SOURCE))
    assert {(mutant.old, mutant.new) for mutant in found} == EXPECTED
    assert len({mutant.key for mutant in found}) == len(found)
    assert {mutant.line for mutant in found if mutant.function is None} == {3, 5}  # of what runs at import
    for mutant in found:
        assert compile(apply(SOURCE, mutant.place), "made", "exec")
