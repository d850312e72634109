"""The Markdown page of a benchmark's results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MISSING = "-"


def page(result: dict[str, Any]) -> str:
    """The page of what `tools/bench.py` writes as JSON."""
    return "\n".join(lines(result)) + "\n"


def lines(result: dict[str, Any]) -> Iterator[str]:
    machine = result["machine"]
    yield f"# Benchmark of {machine['date']}"
    yield ""
    where = machine["gpu"] or f"{machine['processor']} ({', '.join(machine['instructions'])})"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    yield f"{where}, {machine['memory_gb']} GiB, {threads}, {machine['system']}."
    yield f"artok {machine['artok']}, torch {machine['torch']}, Python {machine['python']}."
    yield ""
    yield "Random weights. Sides of a comparison ran by turns, each in a process of its own. Seconds are medians of the"
    if result["clock"] == "processor":
        yield "rounds, in processor time, since the machine had other work."
    else:
        yield "undisturbed rounds. With 0 kept rounds all were disturbed, and all are used."
    yield "Speed-ups are medians, smallest and largest of the ratios within a round, against the first side."
    yield "The floor is the time of the products alone at the measured rates; its share is floor over time."
    yield ""
    yield "| precision | matrix products, GFLOP/s | memory, GB/s |"
    yield "|---|---:|---:|"
    for name, (rate, bandwidth, _) in result["floors"].items():
        yield f"| {name} | {rate / 1e9:.0f} | {bandwidth / 1e9:.1f} |"
    for what in dict.fromkeys(row["what"] for row in result["rows"]):
        yield ""
        yield f"## {what.capitalize()}"
        yield ""
        yield from table([row for row in result["rows"] if row["what"] == what], what == "train")


def table(rows: list[dict[str, Any]], train: bool) -> Iterator[str]:
    last = ["FLOPs used", "products"] if train else ["tokens/s", "share of floor"]
    heads = ["case", "batch", "side", "seconds", "speed-up", "kept", "images/s", "peak MB", *last]
    yield f"| {' | '.join(heads)} |"
    yield "|---|---:|---|" + "---:|" * (len(heads) - 3)
    for row in rows:
        case = f"{row['family']} {row['size']}" + (f", {row['length']} tokens" if row["length"] else "")
        for name, each in row["sides"].items():
            if "error" in each:
                yield f"| {case} | {row['batch'] or MISSING} | {name} | {each['error']} |" + " |" * (len(heads) - 4)
                continue
            batch = row["batch"] or each.get("batch", MISSING)
            ratio, low, high = each["speedup"]
            cells = [
                case,
                str(batch),
                name,
                f"{each['seconds']:.4g}",
                f"{ratio:.2f} ({low:.2f} to {high:.2f})",
                f"{each['kept']} of {each['rounds']}",
                number(each.get("images_per_s")),
                MISSING if each["peak_bytes"] is None else f"{each['peak_bytes'] / 1e6:.0f}",
            ]
            shares = ("mfu", "products") if train else (None, "share_of_floor")
            cells += [share(each.get(key)) if key else number(each.get("tokens_per_s")) for key in shares]
            yield f"| {' | '.join(cells)} |"


def number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4g}"


def share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0%}"
