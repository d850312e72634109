"""Makes `import` give a mutated module. Processes started by tests under `tools/mutate.py` load it too."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from mutation.mutants import apply


class Loader(importlib.machinery.SourceFileLoader):
    place: tuple[int, int] = (0, 0)

    def get_code(self, fullname: str) -> object:  # type: ignore[override]
        tree = apply(self.get_data(self.path).decode(), self.place)
        return compile(tree, self.path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    def __init__(self, file: str, place: tuple[int, int]) -> None:
        self.file, self.place = file, place

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        name = fullname.rpartition(".")[2]
        if name not in (os.path.basename(self.file)[:-3], os.path.basename(os.path.dirname(self.file))):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin != self.file:
            return None
        loader = Loader(fullname, self.file)
        loader.place = self.place
        spec.loader = loader
        return spec


def install(file: str, place: str) -> None:
    """From now on importing the file gives it with the mutant at `place`, JSON of its two numbers."""
    ordinal, variant = json.loads(place)
    sys.meta_path.insert(0, Finder(file, (ordinal, variant)))
