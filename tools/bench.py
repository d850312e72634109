"""Measures sampling, encoding, decoding and training of every family, and compares implementations by turns.

    python tools/bench.py raster var --sizes B --dtypes float32 auto --batches 1 8
    python tools/bench.py raster --what sample --against ../artok-before
    python tools/bench.py raster --adapter adapters/llamagen.py=../LlamaGen

Each side (a precision of artok, another checkout of artok, another implementation) runs in a process of its own. In
each round every side runs once, so that a machine whose speed drifts treats all alike. A round in which a side had to
wait for the processor is rejected. Ratios are taken within a round; their median, smallest and largest are given. On a
machine with other work use --clock processor with one thread.

The figures go to a JSON file and a dated page in --folder. Weights are random: cost does not depend on them.
docs/benchmarks.md says what an adapter is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from benchmark.cases import FAMILIES, GROWS, TOKENIZERS, WHAT, cases
from benchmark.interleave import Process, SideError, measure
from benchmark.machine import describe, floors
from benchmark.page import page

ROOT = Path(__file__).resolve().parent.parent
OWN = Path(__file__).with_name("benchmark") / "artok_side.py"


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    machine = describe(options.threads)
    limits = floors()
    sides = [Process(f"artok {dtype}", OWN, ROOT, options.threads, dtype) for dtype in options.dtypes]
    for place in options.against:
        sides += [Process(f"{place.name} {t}", OWN, place.resolve(), options.threads, t) for t in options.dtypes]
    for adapter, place in options.adapter:
        sides.append(Process(adapter.stem, adapter, place.resolve(), options.threads, "float32"))
    alone = [side for side in sides if side.dtype == options.dtypes[0] or side.adapter != OWN]
    rows: list[dict[str, Any]] = []
    target = options.folder / f"{machine['date']}-{options.name}"
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        for case in cases(options.families, options.sizes, options.what, options.batches, options.lengths):
            row = case | {"threads": options.threads}
            able = sides if row["what"] in ("sample", "decode") else alone  # others know no sampling precision
            row["sides"] = measure(able, row, options.rounds, options.seconds, options.clock)
            for side in able:
                if side.dtype in limits and "error" not in row["sides"][side.name]:
                    add_facts(row, side, limits[side.dtype])
            rows.append(row)
            print(line(row), flush=True)
            result = {"machine": machine, "floors": limits, "clock": options.clock, "rows": rows}
            target.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            target.with_suffix(".md").write_text(page(result), encoding="utf-8")
    finally:
        for side in sides:
            side.close()
    print(f"written to {target}.md and .json")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(FAMILIES), metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--sizes", nargs="*", default=["B", "digits"], choices=["B", "digits"])
    parser.add_argument("--what", nargs="*", default=list(WHAT), choices=WHAT)
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument(
        "--lengths", nargs="*", type=int, default=[], help=f"tokens per image, square numbers, for {', '.join(GROWS)}"
    )
    parser.add_argument("--dtypes", nargs="*", default=["float32", "auto"])
    parser.add_argument("--against", nargs="*", type=Path, default=[], help="other checkouts of artok")
    parser.add_argument("--adapter", nargs="*", type=split, default=[], metavar="FILE.py=CHECKOUT")
    parser.add_argument("--rounds", type=int, default=5, help="undisturbed ones wanted")
    parser.add_argument("--seconds", type=float, default=60, help="longest time of a case's rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--name", default="families", help="of the page")
    options = parser.parse_args()
    if unknown := set(options.families) - set(FAMILIES):
        parser.error(f"there is no family {', '.join(sorted(unknown))}; there are {', '.join(FAMILIES)}")
    if options.clock == "processor" and options.threads != 1:
        parser.error("--clock processor compares single threads; give --threads 1")
    if bad := [each for each in options.lengths if round(each**0.5) ** 2 != each]:
        parser.error(f"lengths are square numbers, and {bad[0]} is none")
    return options


def split(text: str) -> tuple[Path, Path]:
    """FILE.py=CHECKOUT."""
    adapter, _, place = text.partition("=")
    if not Path(adapter).is_file() or not Path(place or ".").is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not the file of an adapter, '=' and a folder")
    return Path(adapter), Path(place or ".")


def add_facts(row: dict[str, Any], side: Process, limits: list[float]) -> None:
    """Adds the facts of a case, and to its side rates, the share of the floor and the use of the matrix rate."""
    figures = row["sides"][side.name]
    try:
        facts = side.ask({"facts": {key: value for key, value in row.items() if key != "sides"} | {"floors": limits}})
    except SideError as error:
        figures["facts_error"] = str(error)
        return
    figures |= facts
    seconds = figures["seconds"]
    if (batch := row["batch"] or facts.get("batch")) is not None:
        figures["images_per_s"] = batch / seconds
        if "tokens" in facts and row["family"] not in TOKENIZERS:
            figures["tokens_per_s"] = facts["tokens"] * batch / seconds
    if "floor_s" in facts:
        figures["share_of_floor"] = facts["floor_s"] / seconds
    if row["what"] == "train":
        figures["mfu"] = facts["flops"] / seconds / limits[0]


def line(row: dict[str, Any]) -> str:
    """One case in one line of the terminal."""
    parts = [f"{row['family']} {row['size']} {row['what']} batch {row['batch'] or 'own'}"]
    if row["length"]:
        parts[0] += f" length {row['length']}"
    for name, each in row["sides"].items():
        if "error" in each:
            parts.append(f"{name}: {each['error']}")
        else:
            ratio, low, high = each["speedup"]
            parts.append(
                f"{name}: {each['seconds']:.4g} s, {ratio:.2f}x ({low:.2f} to {high:.2f}), {each['kept']} kept"
            )
    return "; ".join(parts)


if __name__ == "__main__":
    main()
