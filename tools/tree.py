"""The README's tree of the code, a line a file, from the files' own docstrings.

python tools/tree.py            print it
python tools/tree.py --write    put it into README.md, which a test holds to it
"""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- tree -->\n", "<!-- end of tree -->\n"
WIDTH, LONGEST = 26, 92
ROOMS = {
    "configs": "one YAML an experiment; its header says what it trains, what it costs, how it is launched",
    "tests": "contracts that every part keeps, found automatically; what is special to one",
    "tools": "benchmarks and what developers run",
}


def summary(path: Path) -> str:
    """The first sentence of a module's docstring, without asides, cut at a pause where it is long."""
    docstring = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    sentence = re.split(r"\.(?= [A-Z`]|$)", re.sub(r" \([^)]*\d{4}[^)]*\)", "", docstring).replace("`", ""))[0]
    while len(sentence) > LONGEST and re.search(r"[:;,] ", sentence):
        sentence = re.split(r"[:;,] (?!.*[:;,] )", sentence)[0]
    return sentence


def lines() -> list[str]:
    """The tree, each line indented for a Markdown code block."""
    found = []

    def add(depth: int, name: str, text: str) -> None:
        indented = "  " * depth + name
        found.append(f"    {indented:<{WIDTH}} {text}".rstrip())

    def folder(path: Path, depth: int) -> None:
        add(depth, path.name + "/", summary(path / "__init__.py"))
        children = sorted(path.iterdir(), key=lambda child: (child.is_dir(), child.name))
        for child in children:
            if child.is_dir() and (child / "__init__.py").exists():
                folder(child, depth + 1)
            elif child.suffix == ".py" and child.name != "__init__.py":
                add(depth + 1, child.name, summary(child))

    folder(ROOT / "artok", 0)
    for name, text in ROOMS.items():
        add(0, name + "/", text)
        if name == "configs":
            for child in sorted((ROOT / name).iterdir()):
                add(1, child.name + "/", ", ".join(sorted(path.stem for path in child.glob("*.yaml"))))
        elif name == "tools":
            for child in sorted((ROOT / name).glob("*.py")):
                add(1, child.name, summary(child))
    return found


def section() -> str:
    return BEGIN + "\n" + "\n".join(lines()) + "\n\n" + END


def replaced(readme: str) -> str:
    """The README's text with its tree as it should be."""
    before, _, rest = readme.partition(BEGIN)
    return before + section() + rest.partition(END)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        path = ROOT / "README.md"
        path.write_text(replaced(path.read_text()))
    else:
        print("\n".join(lines()))


if __name__ == "__main__":
    main()
