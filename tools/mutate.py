"""Mutation testing: changes one point of the source at a time and runs the tests that reach it.

    python tools/mutate.py artok/losses --sample 80 [--tests tests/losses tests/training] [--files 'lpips*'] [--list]

A mutant that no test notices is a survivor: a property that is not tested. By default the tests of artok/ROOM are those
in tests/ROOM, as far as they pass. Which test reaches which line is measured once. Processes are forked after the
imports, so a mutant costs little more than its tests. A mutant inside a function replaces that function's code; another
is imported by a process that has not yet imported the package. Processes that tests start see the mutant too. It needs
fork (Linux, macOS).

Results and measured lines are kept in build/mutation and used again: a killed mutant stays killed, a survivor is tried
again when a test that reaches it has changed. Stop it with Ctrl-C, and the same command goes on. Mutants that behave
like the source are listed in tools/equivalent_mutants.txt with the reason ("KEY  # WHY"; --keys prints keys of
survivors) and not counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mutation.mutants import Mutant, mutants
from mutation.processes import ROOT, Server, imported_anew, write

KEPT = ROOT / "build" / "mutation"
EQUIVALENT = ROOT / "tools" / "equivalent_mutants.txt"
START_UP_S = 20.0  # added to the time limit of a mutant


def main() -> None:
    options = parse()
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    KEPT.mkdir(parents=True, exist_ok=True)
    results = Results(options.json or KEPT / f"{options.room.name}.json")
    chosen = choose(options, results)
    if options.list:
        for mutant in chosen:
            print(mutant)
        print(f"{len(chosen)} mutants")
        return
    tests = [os.path.relpath(path) for path in options.tests or default_tests(options.room)]
    server = Server(tests)
    reach = measure(server, tests, {mutant.file for mutant in chosen})
    try:
        run_all(chosen, server, reach, results, options)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here")
    report(chosen, results, options.keys)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("room", type=Path, help="a folder or file of the package, such as artok/losses")
    parser.add_argument("--tests", type=Path, nargs="+", help="default tests/ROOM")
    parser.add_argument("--files", help="only files whose path matches this pattern, such as 'lpips*'")
    parser.add_argument("--sample", type=int, help="mutants, evenly over the lines; default all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--recorded", action="store_true", help="the mutants of earlier runs instead of a sample")
    parser.add_argument("--seconds", type=float, default=40, help="of covering tests per mutant, as measured")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--keys", action="store_true", help="print survivors as keys of tools/equivalent_mutants.txt")
    parser.add_argument("--again", action="store_true", help="try recorded mutants again")
    parser.add_argument("--json", type=Path, help="results; default build/mutation/ROOM.json")
    return parser.parse_args()


def default_tests(room: Path) -> list[Path]:
    parts = (ROOT / room).resolve().relative_to(ROOT).parts
    found = ROOT / "tests" / parts[1] if len(parts) > 1 else ROOT / "tests"
    if not found.is_dir():
        sys.exit(f"artok/{parts[1]} has no tests/{parts[1]}; name its tests with --tests")
    return [found]


def choose(options: argparse.Namespace, results: Results) -> list[Mutant]:
    """The sample of a room's mutants, evenly spread over its lines, or those of earlier runs."""
    room = (ROOT / options.room).resolve()
    if ROOT / "artok" not in (room, *room.parents) or not room.exists():
        sys.exit(f"{options.room} is no file or folder of artok")
    files = [room] if room.is_file() else sorted(room.rglob("*.py"))
    files = [path for path in files if not options.files or path.match(options.files)]
    found = [mutant for path in files for mutant in mutants(str(path.relative_to(ROOT)), path.read_text())]
    if not found:
        sys.exit(f"nothing to change in {options.room}")
    if options.recorded:
        return [mutant for mutant in found if mutant.key in results.found]
    if options.sample and options.sample < len(found):
        step = len(found) / options.sample
        start = random.Random(options.seed).random() * step
        found = [found[int(start + step * index)] for index in range(options.sample)]
    return found


def equivalents() -> dict[str, str]:
    """The reason by key of mutants that behave like the source."""
    lines = EQUIVALENT.read_text().splitlines() if EQUIVALENT.is_file() else []
    return {key.strip(): why.strip() for key, _, why in (line.partition("  # ") for line in lines) if why}


# ---------------------------------------------------------------------------------------------- which test reaches what


def digest(*paths: Path) -> str:
    return hashlib.blake2b(b"".join(path.read_bytes() for path in paths), digest_size=8).hexdigest()


def test_digest(file: str) -> str:
    """Of a test file and all that it may import from the tests."""
    return digest(ROOT / file, ROOT / "tests" / "conftest.py", *sorted((ROOT / "tests" / "helpers").rglob("*.py")))


def measure(server: Server, tests: Sequence[str], sources: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By test: seconds, whether it passed, and the lines of each source file that it reaches."""
    reach: dict[str, dict[str, Any]] = {}
    now = {file: digest(ROOT / file) for file in sources}
    files = server.files()
    digests = {file: test_digest(file) for file in files}  # as collected; they may be edited meanwhile
    left_out = []
    for number, file in enumerate(files, 1):
        kept = KEPT / "lines" / f"{file.replace('/', '-')}.json"
        record = json.loads(kept.read_text()) if kept.is_file() else {}
        same = {name: value for name, value in record.get("sources", {}).items() if name in now}
        if record.get("digest") != digests[file] or same != now:
            print(f"measuring {file} ({number} of {len(files)})", flush=True)
            found = server.ask("measure", file)
            if not isinstance(found, dict) or "broken" in found:
                sys.exit(f"{file} cannot be measured: {found}")
            record = {
                "digest": digests[file],
                "sources": {str(p.relative_to(ROOT)): digest(p) for p in (ROOT / "artok").rglob("*.py")},
                "tests": found,
            }
            kept.parent.mkdir(exist_ok=True)
            write(kept, record)
        for name, test in record["tests"].items():
            if test["passed"]:
                reach[name] = {**test, "digest": record["digest"]}
            elif test["passed"] is not None:
                left_out.append(name)
    if left_out:
        print(f"left out, since they fail without a mutant: {', '.join(left_out)}")
    print(f"{len(reach)} tests of {sum(test['seconds'] for test in reach.values()):.0f} s", flush=True)
    return reach


def covering(mutant: Mutant, reach: dict[str, dict[str, Any]], seconds: float) -> list[str]:
    """Tests that reach a mutant, in the order to run: the fastest of each function, then their second fastest, ..."""
    names = reaching(mutant.runs or mutant.owner, mutant.file, reach)
    if mutant.runs is None and not names:  # a class without code: all that reach its file
        names = reaching((1, 1 << 30), mutant.file, reach) or list(reach)
    names.sort(key=lambda name: reach[name]["seconds"])
    turn: Counter[str] = Counter()
    order = []
    for name in names:
        function = name.partition("[")[0]
        order.append((turn[function], reach[name]["seconds"], name))
        turn[function] += 1
    chosen: list[str] = []
    left = seconds
    for _, spent, name in sorted(order):
        if chosen and spent > left:
            continue
        chosen.append(name)
        left -= spent
    return chosen


def reaching(lines: tuple[int, int], file: str, reach: dict[str, dict[str, Any]]) -> list[str]:
    first, last = lines
    return [name for name, test in reach.items() if any(first <= line <= last for line in test["lines"].get(file, ()))]


# ---------------------------------------------------------------------------------------------- results


class Results:
    """What became of each mutant, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def recorded(self, mutant: Mutant, tests: str) -> str | None:
        """Its outcome, or None where it must be tried: it survived, and a test that reaches it has changed."""
        record = self.found.get(mutant.key)
        if record is None or (record["outcome"] != "killed" and record["tests"] != tests):
            return None
        return str(record["outcome"])

    def put(self, mutant: Mutant, tests: str, outcome: str, by: str) -> None:
        self.found[mutant.key] = {"outcome": outcome, "by": by, "tests": tests, "text": str(mutant)}
        write(self.path, self.found)


def run_all(
    chosen: Sequence[Mutant],
    server: Server,
    reach: dict[str, dict[str, Any]],
    results: Results,
    options: argparse.Namespace,
) -> None:
    equivalent = equivalents()
    start, spent = time.monotonic(), 0
    for number, mutant in enumerate(chosen, 1):
        names = covering(mutant, reach, options.seconds)
        tests = hashlib.blake2b("".join(f"{n}{reach[n]['digest']}" for n in sorted(names)).encode()).hexdigest()[:16]
        if mutant.key in equivalent or (not options.again and results.recorded(mutant, tests)):
            continue
        outcome, by = "survived", ""
        if names:
            limit = START_UP_S + 3 * sum(reach[name]["seconds"] for name in names)
            answer = server.ask("mutant", mutant, names, limit)
            if answer == "import":
                server.imports()
                answer = imported_anew(mutant, names, limit + START_UP_S)
            if isinstance(answer, dict):
                sys.exit(f"the tool failed at {mutant}\n{answer['broken']}")
            if answer:
                outcome, by = "killed", answer
        else:
            outcome = "not reached"
        results.put(mutant, tests, outcome, by)
        spent += 1
        left = (time.monotonic() - start) / spent * (len(chosen) - number)
        print(f"{number}/{len(chosen)}, {left / 60:.0f} min left: {outcome} {mutant}", flush=True)


def report(chosen: Sequence[Mutant], results: Results, keys: bool) -> None:
    equivalent = equivalents()
    left = [mutant for mutant in chosen if mutant.key not in equivalent]
    outcome = {mutant: results.found.get(mutant.key, {}).get("outcome", "not tried") for mutant in left}
    for mutant, what in outcome.items():
        if what not in ("killed", "not tried"):
            print(mutant.key if keys else f"{what}: {mutant}")
    names = [mutant for mutant in chosen if mutant.key in equivalent]
    for mutant in names:
        print(f"equivalent: {mutant}  # {equivalent[mutant.key]}")
    for file in (*sorted({mutant.file for mutant in left}), ""):
        what = Counter(value for mutant, value in outcome.items() if file in ("", mutant.file))
        tried = what.total() - what["not tried"]
        lives = tried - what["killed"]
        share = f"{lives / tried:.0%}" if tried else "-"
        print(f"{file or 'all'}: {tried} tried, {what['killed']} killed, {lives} survived ({share})")
    print(f"{len(names)} equivalent, {Counter(outcome.values())['not tried']} not tried")


if __name__ == "__main__":
    main()
