"""What a mutant changes: replacements for each kind of node."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from dataclasses import dataclass

SWAPPED_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
SWAPPED_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
PAIRS = (
    "min max",
    "amin amax",
    "argmin argmax",
    "minimum maximum",
    "sum mean",
    "any all",
    "floor ceil",
    "zeros ones",
    "zeros_like ones_like",
    "cos sin",
    "tril triu",
    "cumsum cumprod",
    "zeros_ ones_",
)
SWAPPED_NAMES = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
DROPPED_METHODS = {  # x.name(...) becomes x
    *("detach", "clamp", "clamp_", "abs", "square", "sqrt", "exp", "log", "tanh", "sigmoid", "softmax", "log_softmax"),
    *("requires_grad_", "eval", "round", "ceil", "floor", "masked_fill", "nan_to_num", "flip", "argsort"),
}
DROPPED_FUNCTIONS = {
    *("silu", "gelu", "relu", "softplus", "sqrt", "exp", "log", "sigmoid", "tanh", "normalize", "dropout"),
}
SYMMETRIC = {"isinstance", "getattr", "setattr", "min", "max", "minimum", "maximum"}  # or their order is plain
NO_GRADIENTS = {"no_grad", "inference_mode"}
BOUNDS = {
    "ge",
    "gt",
    "le",
    "lt",
    "min_length",
    "max_length",
    "description",
    "pattern",
    "multiple_of",
    "frozen",
    "maxsize",
}


@dataclass(frozen=True)
class Site:
    """A node and where it hangs. functions: the enclosing ones. runs: the lines that show that a test reaches it;
    None for what runs at import. owner: the lines of the enclosing function, class or module body."""

    node: ast.AST
    parent: ast.AST
    name: str
    index: int | None
    functions: tuple[ast.FunctionDef | ast.Lambda, ...] = ()
    scope: tuple[str, ...] = ()
    runs: tuple[int, int] | None = None
    owner: tuple[int, int] = (0, 0)
    context: ast.AST | None = None

    def put(self, new: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.name, new)
        else:
            getattr(self.parent, self.name)[self.index] = new


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def variants(site: Site) -> list[ast.AST]:
    """Replacements of a node."""
    node = site.node
    found: list[ast.AST] = []
    for kind, rule in RULES:
        if isinstance(node, kind):
            found += rule(node, site)
    return found


def _with(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _arithmetic(node: ast.BinOp, site: Site) -> list[ast.AST]:
    if any(isinstance(side, ast.JoinedStr) or _is_string(side) for side in (node.left, node.right)):
        return []
    if isinstance(node.op, ast.BitOr) and not site.functions:
        return []  # a union of types
    found: list[ast.AST] = []
    if type(node.op) in SWAPPED_OPERATORS:
        found.append(_with(node, op=SWAPPED_OPERATORS[type(node.op)]()))
    if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
        found.append(node.left)
    return found


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _comparison(node: ast.Compare, site: Site) -> list[ast.AST]:
    return [
        _with(node, ops=[*node.ops[:index], other(), *node.ops[index + 1 :]])
        for index, op in enumerate(node.ops)
        for other in SWAPPED_COMPARISONS[type(op)]
    ]


def _boolean(node: ast.BoolOp, site: Site) -> list[ast.AST]:
    other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    return [_with(node, op=other), node.values[0]]


def _unary(node: ast.UnaryOp, site: Site) -> list[ast.AST]:
    if isinstance(node.op, ast.Not):
        return [node.operand]
    return [] if isinstance(node.operand, ast.Constant) else [node.operand]  # a negative constant is changed itself


def _constant(node: ast.Constant, site: Site) -> list[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        return [ast.Constant(not value)]
    if isinstance(value, int):
        term = isinstance(site.parent, ast.BinOp) and isinstance(site.parent.op, ast.Add | ast.Sub)
        less = value > 1 or (value == 1 and not (term and site.name == "right"))  # `x + 0` is the mutant `x`
        return [ast.Constant(value + 1), *([ast.Constant(value - 1)] if less else [])]
    if isinstance(value, float):
        return [ast.Constant(2 * value if value else 1.0)]
    return []


def _choice(node: ast.IfExp, site: Site) -> list[ast.AST]:
    return [] if _is_negated_itself(node.test) else [_with(node, body=node.orelse, orelse=node.body)]


def _branch(node: ast.If | ast.While, site: Site) -> list[ast.AST]:
    found = [_with(node, test=ast.Constant(False))]
    if not _is_negated_itself(node.test):
        found.append(_with(node, test=ast.UnaryOp(ast.Not(), node.test)))
    return found


def _is_negated_itself(test: ast.expr) -> bool:
    """Its own mutants negate it."""
    return isinstance(test, ast.Compare | ast.UnaryOp)


def _call(node: ast.Call, site: Site) -> list[ast.AST]:
    found: list[ast.AST] = []
    name = called(node)
    if name in SWAPPED_NAMES:
        swapped = SWAPPED_NAMES[name]
        func = _with(node.func, attr=swapped) if isinstance(node.func, ast.Attribute) else ast.Name(swapped, ast.Load())
        found.append(_with(node, func=func))
    if isinstance(node.func, ast.Attribute) and name in DROPPED_METHODS and _is_value(node.func.value):
        found.append(node.func.value)
    elif name in DROPPED_FUNCTIONS and node.args:
        found.append(node.args[0])
    for index, keyword in enumerate(node.keywords):
        if keyword.arg not in BOUNDS and keyword.arg not in (None, "device"):
            found.append(_with(node, keywords=node.keywords[:index] + node.keywords[index + 1 :]))
    plain = [isinstance(each, ast.Name | ast.Attribute) for each in node.args[:2]]
    if plain == [True, True] and name not in SYMMETRIC:
        found.append(_with(node, args=[node.args[1], node.args[0], *node.args[2:]]))
    return found


def _is_value(node: ast.AST) -> bool:
    """Not a module such as `torch` or `F`, whose functions are no methods."""
    return not (isinstance(node, ast.Name) and node.id in ("torch", "F", "math", "np", "nn", "functional"))


def _returned(node: ast.Return, site: Site) -> list[ast.AST]:
    if isinstance(node.value, ast.Tuple) and len(node.value.elts) > 1:
        first, second, *rest = node.value.elts
        return [_with(node, value=_with(node.value, elts=[second, first, *rest]))]
    return []


def _statement(node: ast.Expr, site: Site) -> list[ast.AST]:
    return [ast.Pass()] if isinstance(node.value, ast.Call) else []


def _removed(node: ast.AST, site: Site) -> list[ast.AST]:
    return [ast.Pass()]


def _block(node: ast.With, site: Site) -> list[ast.AST]:
    kept = [item for item in node.items if not _stops_gradients(item.context_expr)]
    if len(kept) == len(node.items):
        return []
    return [_with(node, items=kept) if kept else ast.If(ast.Constant(True), node.body, [])]


def _decorated(node: ast.FunctionDef, site: Site) -> list[ast.AST]:
    kept = [each for each in node.decorator_list if not _stops_gradients(each)]
    return [_with(node, decorator_list=kept)] if len(kept) < len(node.decorator_list) else []


def _stops_gradients(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and called(node) in NO_GRADIENTS


def _filter(node: ast.comprehension, site: Site) -> list[ast.AST]:
    return [_with(node, ifs=[])] if node.ifs else []


Rule = Callable[..., list[ast.AST]]
RULES: tuple[tuple[type | tuple[type, ...], Rule], ...] = (
    (ast.BinOp, _arithmetic),
    (ast.Compare, _comparison),
    (ast.BoolOp, _boolean),
    (ast.UnaryOp, _unary),
    (ast.Constant, _constant),
    (ast.IfExp, _choice),
    ((ast.If, ast.While), _branch),
    (ast.Call, _call),
    (ast.Return, _returned),
    (ast.Expr, _statement),
    ((ast.AugAssign, ast.Continue, ast.Break), _removed),
    (ast.With, _block),
    (ast.FunctionDef, _decorated),
    (ast.comprehension, _filter),
)
