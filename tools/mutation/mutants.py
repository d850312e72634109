"""One-point mutants of a Python source file: what `tools/mutate.py` tries.

Left out: docstrings, messages, annotations, strings, assertions, bounds and descriptions of config fields, `frozen`
of data classes, sizes of caches, and `tiny`.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mutation.rules import BOUNDS, Site, called, variants

SILENT_CALLS = {"print", "warn", "warning", "info", "debug", "cast"}  # their arguments are for people
SKIPPED_FUNCTIONS = {"tiny", "__repr__", "__str__"}


@dataclass(frozen=True)
class Mutant:
    """file: relative to the repository. place: (ordinal of the site, ordinal of the variant). key: names it across
    edits of other lines. function: first line and name of the outermost function whose code changes; None where the
    module must be imported anew."""

    file: str
    line: int
    old: str
    new: str
    key: str
    place: tuple[int, int]
    function: tuple[int, str] | None
    runs: tuple[int, int] | None
    owner: tuple[int, int]

    def __str__(self) -> str:
        old, new = (text if len(text) <= 160 else f"{text[:157]}..." for text in (self.old, self.new))
        return f"{self.file}:{self.line}  {old}  ->  {new}"


def sites(tree: ast.Module) -> list[Site]:
    """All places where a mutant may stand, in an order that depends on the tree alone."""
    found: list[Site] = []
    whole = (1, max((getattr(node, "end_lineno", 0) or 0) for node in ast.walk(tree)))
    root = Site(tree, tree, "", None, owner=whole)
    for index, statement in enumerate(tree.body):
        _visit(statement, replace(root, parent=tree, name="body", index=index), found)
    return found


def _visit(node: ast.AST, at: Site, found: list[Site]) -> None:
    here = replace(at, node=node)
    if isinstance(node, ast.stmt):
        if _is_left_out(node):
            return
        here = replace(here, runs=_lines_of(node) if at.functions else None, context=None)
    if isinstance(node, ast.FunctionDef) and node.name in SKIPPED_FUNCTIONS:
        return
    found.append(here)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params", "ctx", "op", "ops"):
            continue
        below = _inside(node, name, here)
        for index, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if isinstance(child, ast.AST) and not _is_for_people(node, child):
                context = node if isinstance(node, ast.expr) else None
                _visit(child, replace(below, parent=node, name=name, index=index, context=context), found)


def _inside(node: ast.AST, name: str, here: Site) -> Site:
    """Context of the children in the field `name`."""
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        body = node.body if isinstance(node.body, list) else [node.body]
        lines = (body[0].lineno, body[-1].end_lineno or body[-1].lineno)
        scope = (*here.scope, getattr(node, "name", "<lambda>"))
        if name != "body":  # decorators and defaults are evaluated where the function is defined
            return replace(here, owner=lines, scope=scope)
        runs = lines if isinstance(node, ast.Lambda) and not here.functions else here.runs
        return replace(here, functions=(*here.functions, node), scope=scope, owner=lines, runs=runs)
    if isinstance(node, ast.ClassDef) and name == "body":
        return replace(here, scope=(*here.scope, node.name), owner=(node.lineno, node.end_lineno or node.lineno))
    return here


def _lines_of(node: ast.stmt) -> tuple[int, int]:
    """The lines of a statement, of a compound one those of its head."""
    body = getattr(node, "body", None)
    last = max(node.lineno, body[0].lineno - 1) if body else (node.end_lineno or node.lineno)
    return node.lineno, last


def _is_left_out(node: ast.stmt) -> bool:
    if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal | ast.Pass):
        return True
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
        return True
    if isinstance(node, ast.Expr):
        if isinstance(node.value, ast.Constant):
            return True
        return isinstance(node.value, ast.Call) and called(node.value) in SILENT_CALLS
    return False


def _is_for_people(parent: ast.AST, child: ast.AST) -> bool:
    if isinstance(child, ast.JoinedStr):
        return True
    if isinstance(child, ast.Constant) and isinstance(child.value, str):
        return True
    if isinstance(child, ast.keyword):
        return child.arg in BOUNDS
    return isinstance(parent, ast.Subscript) and ast.unparse(parent.value) in ("Literal", "Annotated", "Callable")


# ---------------------------------------------------------------------------------------------- mutants of a file


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """All mutants of a source, in the order of its lines."""
    seen: dict[str, int] = {}
    for number, site in enumerate(sites(ast.parse(source))):
        for variant, new in enumerate(variants(site)):
            old, text = _texts(site, new)
            if old == text:
                continue
            key = f"{file}::{'.'.join(site.scope)}  {old}  ->  {text}"
            seen[key] = seen.get(key, 0) + 1
            if seen[key] > 1:
                key += f"  ({seen[key]})"
            first = site.functions[0] if site.functions else None
            function = (_first_line(first), getattr(first, "name", "<lambda>")) if first else None
            line = getattr(site.node, "lineno", 0) or getattr(site.parent, "lineno", 0)
            place = (number, variant)
            yield Mutant(file, line, old, text, key, place, function, site.runs, site.owner)


def _first_line(node: ast.AST) -> int:
    """As in the code object: that of the first decorator."""
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(each.lineno for each in decorators)])  # type: ignore[attr-defined]


def _texts(site: Site, new: ast.AST) -> tuple[str, str]:
    """The changed expression before and after; with the one around it where it is short, such as a constant."""
    shown = site.context if isinstance(site.node, ast.Constant | ast.Name) and site.context is not None else None
    if shown is None:
        return _text(site.node), _text(new)
    old = _text(shown)
    site.put(new)
    text = _text(shown)
    site.put(site.node)
    return old, text


def _text(node: ast.AST) -> str:
    text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(node)))
    if isinstance(node, ast.If | ast.While | ast.With | ast.FunctionDef):
        text = text.partition(ast.unparse(node.body[0]).splitlines()[0])[0]
    return " ".join(text.split())


def apply(source: str, place: tuple[int, int]) -> ast.Module:
    """The tree of the source with one mutant in it, every line where it was."""
    tree = ast.parse(source)
    site = sites(tree)[place[0]]
    new = copy.deepcopy(variants(site)[place[1]])
    if isinstance(site.node, ast.expr | ast.stmt):
        ast.copy_location(new, site.node)
    site.put(new)
    return ast.fix_missing_locations(tree)
