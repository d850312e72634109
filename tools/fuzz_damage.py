"""Bad values, and ways to damage configs and files, for `tools/fuzz.py`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

INTEGERS = (
    -1,
    0,
    1,
    2,
    3,
    7,
    255,
    256,
    10**4,
    10**6,
    10**9,
    2**31,
    2**32,
    2**32 - 1,
    2**63,
    2**64,
    10**20,
    10**30,
    -(2**63),
)
FLOATS = (0.5, -0.5, 1e-320, 1e-45, 1e308, float("inf"), float("-inf"), float("nan"), 1e-8, 3.7)
TEXTS = (
    "", " ", "²", "٣", "½", ",,,", "a" * 300, "a" * 5000, "/", ".", "..", "../..", "/proc/self/mem", "/dev/zero",
    "/dev/null", "/etc/passwd", "~", "${name}", "${oc.env:HOME}", "${nothing}", "\ud800", "\udcff\udcfe", "null",
    "true",
    "1e400", "nan", "<script>alert(1)</script>", "a\nb", "{}", "[]", "{{7*7}}", "é" * 100, "\u202e", "-", "--",
    "=", "a=b",
    "0x10", "1_000", "2024-01-01", "!!python/object:os.system x", "vq", "conv", "*a", "&a", "%", "@", "'", '"', "\t",
    "auto", "runs/x", "cpu", "cuda", "cuda:-1", "cuda:99999999999", "mps", "meta", "user/name", "hub:vq", "hub:",
    "timm:",
    "timm:nope", "inception", "classifier",
)  # fmt: skip
NESTED: Any = 1
for _ in range(60):
    NESTED = [NESTED]
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [1], [0], [-1], ["a"], [None], {"kind": "vq"},
{"kind": None}, {"a": 1},
                           {0: 1}, {"0": {"kind": "x"}}, [[1, 2], [3]], NESTED, [1] * 1000,
                           {"kind": "conv"})  # fmt: skip


def value(rng: random.Random) -> Any:
    return rng.choice(rng.choice((INTEGERS, INTEGERS, FLOATS, TEXTS, OTHERS)))


def word(rng: random.Random) -> str:
    """A value as it is typed."""
    found = value(rng)
    return found if isinstance(found, str) else json.dumps(found)


def paths(data: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key of nested sections, with those above it."""
    if not isinstance(data, dict):
        return []
    return [path for key, inside in data.items() for path in ((*above, key), *paths(inside, (*above, key)))]


def places(data: Any) -> list[str]:
    """Every key of nested sections, as training.optimizer.lr."""
    return [".".join(map(str, path)) for path in paths(data)]


def mutate(data: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy with one to three places deleted, replaced or added."""
    changed = json.loads(json.dumps(data))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        spots = paths(changed)
        if not spots:
            return changed
        *path, last = rng.choice(spots)
        section = changed
        for key in path:
            section = section[key]
        what = rng.random()
        if what < 0.15:
            del section[last]
        elif what < 0.25:
            section[rng.choice(("extra", "kind", f"{last}s", "0", "", "extends", str(last).upper()))] = value(rng)
        elif isinstance(section[last], list) and what < 0.5:
            section[last] = section[last] * rng.choice((0, 2, 100)) + [value(rng)] * rng.choice((0, 1))
        else:
            section[last] = value(rng)
    return changed


def to_yaml(data: Any, rng: random.Random) -> bytes:
    text = json.dumps(data, ensure_ascii=rng.random() < 0.5)  # JSON is YAML
    text = text.replace("Infinity", ".inf").replace("NaN", ".nan")
    return text.encode("utf-8", "surrogatepass" if rng.random() < 0.5 else "replace")


def replace(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def damage(path: Path, rng: random.Random) -> str:
    """Damage one file in place; says how."""
    whole = path.read_bytes() if path.is_file() else b""
    size = len(whole)
    ways: dict[str, Callable[[], object]] = {
        "deleted": path.unlink,
        "empty": lambda: path.write_bytes(b""),
        "truncated": lambda: path.write_bytes(whole[: rng.randrange(size or 1)]),
        "random": lambda: path.write_bytes(rng.randbytes(rng.choice((1, 8, 100, size)))),
        "bytes changed": lambda: path.write_bytes(scratch(whole, rng)),
        "header changed": lambda: path.write_bytes(scratch(whole[:200], rng) + whole[200:]),
        "longer": lambda: path.write_bytes(whole + rng.randbytes(100)),
        "a folder": lambda: replace(path, Path.mkdir),
        "a dangling link": lambda: replace(path, lambda gone: gone.symlink_to("nowhere")),
        "a link to itself": lambda: replace(path, lambda gone: gone.symlink_to(gone.name)),
        "other JSON": lambda: path.write_text(
            rng.choice(("[]", "{}", "null", "1", '"a"', "[1]\n", "[[]]", '{"a": [1', "{}\n{}"))
        ),
    }
    if path.suffix == ".yaml" and rng.random() < 0.6:
        data: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        path.write_bytes(to_yaml(mutate(data, rng), rng))
        return "mutated"
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.6:
        lines = whole.decode().splitlines() if path.suffix == ".jsonl" else [whole.decode()]
        index = rng.randrange(len(lines))
        found = json.loads(lines[index])
        lines[index] = json.dumps(mutate(found, rng) if isinstance(found, dict) else value(rng))
        path.write_text("\n".join(lines) + "\n")
        return "mutated"
    way = rng.choice(list(ways))
    ways[way]()
    return way


def scratch(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 20))):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)
