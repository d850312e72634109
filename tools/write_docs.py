"""Writes what the documentation takes from the code: the zoo, the tree, the config reference and the command line's.

    python tools/write_docs.py            say what is out of date in README.md, and exit with 1 where something is
    python tools/write_docs.py --write    write README.md's tables and docs/reference/

`make docs` calls it before the site is built.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import artok
from artok.cli import app
from artok.config import Config
from artok.interop.hub import CATALOGUE

ROOT = Path(__file__).parent.parent
LONGEST = 92  # letters of a line of the tree
FOLDERS = {
    "configs": "one YAML per experiment; its header says what it trains, what it costs and how it is launched",
    "docs": "this site",
    "notebooks": "tokenize a picture of your own; generate and watch the tokens",
    "tests": "the package's shape; contracts that every part keeps, found automatically",
    "tools": "benchmarks and what developers run",
}


# ---------------------------------------------------------------------------------------------- the tree


def summary(path: Path) -> str:
    """The first sentence of a module's docstring, without references, cut at a pause where it is long."""
    docstring = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    sentence = re.split(r"\.(?= [A-Z`]|$)", re.sub(r" \([^)]*\d{4}[^)]*\)", "", docstring).replace("`", ""))[0]
    while len(sentence) > LONGEST and re.search(r"[:;,] ", sentence):
        sentence = re.split(r"[:;,] (?!.*[:;,] )", sentence)[0]
    return sentence


def tree(levels: int) -> str:
    """The package to so many levels of folders, a line per file at the deepest, and the folders beside it."""
    found: list[str] = []

    def add(depth: int, name: str, text: str) -> None:
        found.append(f"{'  ' * depth + name:<28} {text}".rstrip())

    def folder(path: Path, depth: int) -> None:
        add(depth, path.name + "/", summary(path / "__init__.py"))
        for child in sorted(path.iterdir(), key=lambda child: (child.is_dir(), child.name)):
            if (child / "__init__.py").exists():
                if depth + 1 < levels:
                    folder(child, depth + 1)
            elif child.suffix == ".py" and child.name != "__init__.py" and levels > 2:
                add(depth + 1, child.name, summary(child))

    folder(ROOT / "artok", 0)
    for name, text in FOLDERS.items():
        add(0, name + "/", text)
    return "```\n" + "\n".join(found) + "\n```\n"


# ---------------------------------------------------------------------------------------------- tables


def zoo() -> str:
    """The published checkpoints, a row per checkpoint."""
    rows = ["| name | system | image | tokenizer | licence |", "|---|---|---|---|---|"]
    for name, entry in CATALOGUE.items():
        side = entry.size or (CATALOGUE[entry.tokenizer].size if entry.tokenizer else None)
        system = entry.family.replace("_", " ")
        rows.append(f"| `{name}` | {system} | {side} | {entry.tokenizer or 'is one'} | {entry.licence} |")
    return "\n".join(rows) + "\n"


def configs() -> Iterator[type[Config]]:
    """Every config class of the package, each once, in the order of the modules."""
    seen: set[type] = {Config}
    for module in pkgutil.walk_packages(artok.__path__, "artok."):
        if module.name.startswith("artok.configs") or module.name.endswith("__main__"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            ours = inspect.isclass(value) and issubclass(value, Config) and value.__module__ == module.name
            if ours and value not in seen and value.model_fields:
                seen.add(value)
                yield value


def type_name(annotation: object) -> str:
    """A type as a reader of YAML would say it."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    text = re.sub(r"(?:typing|collections\.abc|pathlib)\.", "", text)
    text = re.sub(r"Annotated\[([^,\]]+),.*?\]", r"\1", text)
    text = re.sub(r"\bartok(?:\.\w+)*\.(\w+)\b", r"\1", text)
    return text.replace("Optional", "").replace("|", "\\|").replace("NoneType", "None")


def default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    if isinstance(value, Config):
        return f"its own ({value.kind})" if hasattr(value, "kind") else "its own"
    return f"`{value!r}`".replace("|", "\\|") if len(repr(value)) < 60 else "see the class"


def said(cls: type[Config], key: str) -> str:
    """What the docstring of a config, or of one that it inherits from, says of a key: the text after `key:`.

    Several keys may share a text, as in `r1, r2: ...`.
    """
    for above in cls.__mro__:
        text = " ".join((above.__doc__ or "").split()) if above.__module__.startswith("artok") else ""
        entries = [
            entry
            for entry in re.finditer(r"(?<![\w`.])(\w+(?:, \w+)*): ", text)
            if set(entry[1].split(", ")) & set(cls.model_fields)
        ]
        for entry, following in zip(entries, [*entries[1:], None], strict=False):
            if key in entry[1].split(", "):
                return text[entry.end() : following.start() if following else len(text)].strip()
    return ""


def introduction(cls: type[Config]) -> str:
    """A config's docstring up to where it says what its keys mean."""
    text = inspect.cleandoc(cls.__doc__ or "")
    keys = [
        entry.start()
        for entry in re.finditer(r"(?<![\w`.])(\w+(?:, \w+)*): ", text)
        if set(entry[1].split(", ")) & set(cls.model_fields)
    ]
    return text[: min(keys, default=len(text))].strip()


def config_reference() -> str:
    """Every section with its keys, types, defaults and what is said of them."""
    parts = ["# Config reference\n\nGenerated from the typed configs. `kind: NAME` chooses the file of that name.\n"]
    for cls in configs():
        place = f"{cls.__module__.removeprefix('artok.')}.{cls.__qualname__}"
        docstring = introduction(cls).replace("<", "&lt;")
        rows = []
        for name, field in cls.model_fields.items():
            meaning = (field.description or said(cls, name)).replace("|", "\\|").replace("<", "&lt;")
            rows.append(f"| `{name}` | {type_name(field.annotation)} | {default(field)} | {meaning} |")
        table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
        parts.append(f"## {place}\n\n{docstring}\n\n{table}\n")
    return "\n".join(parts)


def command_reference() -> str:
    """Every command with its arguments and options."""
    group = typer.main.get_command(app)
    parts = ["# Command line\n\nGenerated from the commands. Each of them has `--help` too.\n"]
    for name, command in sorted(group.commands.items()):  # type: ignore[attr-defined]
        if command.hidden:
            continue
        rows = ["| | |", "|---|---|"]
        for parameter in command.params:
            if getattr(parameter, "hidden", False) or parameter.name == "help":
                continue
            names = ", ".join(f"`{each}`" for each in parameter.opts if each.startswith("-"))
            text = (getattr(parameter, "help", "") or "").replace("|", "\\|")
            rows.append(f"| {names or f'`{(parameter.name or str()).upper()}`'} | {text} |")
        parts.append(f"## artok {name}\n\n{inspect.cleandoc(command.help or '')}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def api_reference() -> str:
    """A page of mkdocstrings for what is public from Python and for what a new part builds on."""
    names = {
        "The package": ["artok.api", "artok.pipeline"],
        "Tokens and conditions": ["artok.layout", "artok.conditioning.base"],
        "What a new part builds on": [
            "artok.quantizers.base",
            "artok.tokenizers.base",
            "artok.generators.base",
            "artok.losses.base",
            "artok.metrics.base",
            "artok.data.base",
        ],
        "Training and measuring": ["artok.training.experiment", "artok.training.settings", "artok.sampling.settings"],
    }
    parts = ["# Python API\n"]
    for title, modules in names.items():
        parts.append(f"## {title}\n")
        parts += [f"::: {module}\n" for module in modules]
    return "\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "config.md": config_reference,
    "commands.md": command_reference,
    "api.md": api_reference,
    "tree.md": lambda: "# The code\n\nA line per file, from the files' own docstrings.\n\n" + tree(9),
    "zoo.md": lambda: (
        "# Published checkpoints\n\n`artok import hub:NAME --out runs/NAME` makes a run of any of these, and "
        '`Pipeline.from_pretrained("NAME")` imports a generator once and then loads it.\n\n' + zoo()
    ),
}


def readme() -> str:
    """README.md with its tables as they should be."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, write in {"zoo": zoo, "tree": lambda: tree(2)}.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        text = before + begin + "\n" + write() + "\n" + end + rest.partition(end)[2]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        if readme() != (ROOT / "README.md").read_text(encoding="utf-8"):
            sys.exit("README.md is out of date; run python tools/write_docs.py --write")
        return
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    folder = ROOT / "docs" / "reference"
    folder.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
