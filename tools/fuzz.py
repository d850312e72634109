"""Feeds generated bad input to every command and reports tracebacks, hangs, odd exit codes and files left behind.

    python tools/fuzz.py [--cases 3000] [--first 0] [--seed 0] [--only damaged,paths] [--work FOLDER]

Case i depends on the seed and i alone, so `--first i --cases 1 --show` repeats it. Each case is a forked child of a
process that has imported everything, in a folder of its own, under a limit of memory and time. Nothing is fetched.
Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pkgutil
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from fuzz_cases import Case
from fuzz_data import KINDS, DataMaker
from fuzz_material import make_material

import artok
from artok import cli
from artok.commands import compare as comparing
from artok.errors import ArtokError

LIMIT, WALL_LIMIT = 10.0, 60.0  # seconds of processor and of wall time
MEMORY = 6 * 2**30  # bytes of address space beyond what the imports take
FILE = 2**28  # largest file


def import_everything() -> None:
    """Every module that a command imports late, since a child without rights may not read the standard library."""
    for module in pkgutil.walk_packages(artok.__path__, "artok."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                import_module(module.name)
    for name in (
        "plistlib",
        "matplotlib.pyplot",
        "matplotlib.backends.backend_agg",
        "sklearn.datasets",
        "sklearn.neighbors",
        "scipy.linalg",
        "torch._dynamo",
        "torch.utils.flop_counter",
        "huggingface_hub",
        "torch.onnx",
        "onnx",
        "onnxscript",
        "diffusers",
        "matplotlib.backends.backend_svg",
        "PIL.EpsImagePlugin",
    ):
        with contextlib.suppress(ImportError):
            import_module(name)


@dataclass
class Outcome:
    number: int
    kind: str
    arguments: list[str]
    note: str
    code: int | None
    seconds: float
    output: str
    left: list[str]
    faults: list[str]


def run_case(number: int, kind: str, material: Path, folder: Path, seed: int) -> Outcome:
    rng = random.Random(f"{seed} {number}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case: Case = getattr(DataMaker(material, folder, rng), kind)()
    before = listing(folder)
    stamp = listing(material)
    began = time.perf_counter()
    output = folder.with_suffix(".out")
    pid = os.fork()
    if not pid:
        enter(case, folder, material, output)
    code = wait(pid, began)
    seconds = time.perf_counter() - began
    text = output.read_text(errors="replace") if output.exists() else ""
    left = sorted(set(listing(folder)) - set(before))
    faults = judge(case, code, seconds, text, left)
    if gone := [name for name in before if name not in listing(folder) and code == 2]:
        faults.append(f"lost {gone[0]}")
    changed = {
        name for name, mark in listing(material).items() if stamp.get(name) != mark and not name.startswith("cache")
    }
    if changed:
        faults.append(f"changed outside: {sorted(changed)[0]}")
    return Outcome(number, kind, case.arguments, case.note, code, round(seconds, 2), text[-3000:], left[:10], faults)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            with contextlib.suppress(OSError):
                status = os.lstat(path)
                found[os.path.relpath(path, folder)] = (
                    (0, 0) if name in folders else (status.st_size, status.st_mtime_ns)
                )
    return found


def enter(case: Case, folder: Path, material: Path, output: Path) -> NoReturn:
    """The child: one command, then the end of the process."""
    code = 97
    try:
        os.setsid()
        os.chdir(folder)
        file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for standard, own in ((0, null), (1, file), (2, file)):
            os.dup2(own, standard)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
        pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (pages + MEMORY, pages + MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        os.environ["HOME"] = str(folder / "home")
        os.environ["ARTOK_CACHE"] = str(material / "cache")
        if case.nobody:
            for root, folders, files in os.walk(folder):
                for name in (root, *(os.path.join(root, each) for each in (*folders, *files))):
                    os.chown(name, 65534, 65534, follow_symlinks=False)
            os.environ["ARTOK_CACHE"] = str(folder / "home" / "cache")
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        for name, given in case.env.items():
            os.environ.pop(name, None)
            if given is not None:
                os.environ[name] = given
        if case.closed:
            read, write = os.pipe()
            os.close(read)
            os.dup2(write, 1)
        if case.note == "prepare only":
            comparing._conduct_studies = lambda *_: None  # type: ignore[assignment]
        comparing.run_jobs = run_here
        if case.call is not None:
            try:
                case.call()
                code = 0
            except ArtokError as error:
                print(f"artok: {' '.join(str(error).split())}", file=sys.stderr)
                code = error.exit_code
        else:
            sys.argv = ["artok", *case.arguments]
            cli.main()
            code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 96
    except BaseException:
        traceback.print_exc()
        code = 98
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def run_here(jobs: Any, workers: int, done: Any = None, gpus: int = 0, slurm: Any = None) -> dict[str, float]:
    """The jobs of a study in this process, in their order."""
    for job in jobs:
        sys.argv = ["artok", *job.arguments]
        with contextlib.suppress(SystemExit):
            cli.app(standalone_mode=False)
    return {}


def wait(pid: int, began: float) -> int | None:
    """The exit code; None after the limit of time, when the child and its children are killed."""
    while time.perf_counter() - began < WALL_LIMIT and processor_seconds(pid) < LIMIT:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def judge(case: Case, code: int | None, seconds: float, text: str, left: list[str]) -> list[str]:
    """What is wrong with an outcome."""
    faults = []
    if "Traceback (most recent call last)" in text or "Exception ignored" in text:
        lines = [line for line in text.splitlines() if line and not line.startswith(" ")]
        faults.append(f"traceback: {lines[-1][:150] if lines else ''}")
    if code is None:
        faults.append("slow" if text.strip() else "hang")
    elif code not in (0, 1, 2) and not (code == 98 and faults):
        faults.append(f"exit code {code}")
    if code in (1, 2) and not faults and not (case.closed and code == 1):
        last = text.strip().splitlines()[-1] if text.strip() else ""
        if not last.startswith("artok: ") and "╰──" not in last and "Usage" not in text:
            faults.append(f"no sentence: {last[:150]}")
        elif last.startswith("artok: ") and len(last) > 1000:
            faults.append(f"long sentence ({len(last)})")
    begun = "new/log.jsonl" in left  # by a training that met bad data on its way
    if (
        code == 2
        and not begun
        and (
            kept := [
                name for name in left if not name.endswith(".lock") and name != "home" and not name.startswith("home/")
            ]
        )
    ):
        faults.append(f"left behind: {', '.join(kept[:4])}")
    if "Error:" in text.splitlines()[-1:] or ("Warning:" in text and "UserWarning" in text):
        faults.append("warning: " + next(line for line in text.splitlines() if "Warning" in line)[:120])
    return faults


def describe(outcome: Outcome) -> str:
    """A line about a case, in ASCII."""
    words = " ".join(word if len(word) < 80 else f"{word[:77]}..." for word in outcome.arguments)
    what = f"{outcome.number} {outcome.kind} [{outcome.code}, {outcome.seconds}s] artok {words} ({outcome.note})"
    return ascii(f"{what}: {'; '.join(outcome.faults)}")[1:-1]


def main() -> None:
    if os.environ.get("HF_HUB_OFFLINE") != "1":  # read when the hub's client is imported
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"HF_HUB_OFFLINE": "1"})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help=", ".join(KINDS))
    parser.add_argument("--work", type=Path, default=Path("/tmp/artok-fuzz"))
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    material = given.work.resolve() / "material"
    material.mkdir(parents=True, exist_ok=True)
    os.umask(0o022)
    import_everything()
    make_material(material)
    kinds = given.only.split(",") if given.only else [kind for kind, weight in KINDS.items() for _ in range(weight)]
    counts: Counter[str] = Counter()
    with open(given.work / "outcomes.jsonl", "a") as record:
        for number in range(given.first, given.first + given.cases):
            kind = random.Random(f"kind {given.seed} {number}").choice(kinds)
            outcome = run_case(number, kind, material, given.work / "case", given.seed)
            record.write(json.dumps(vars(outcome)) + "\n")
            counts[f"exit code {outcome.code}"] += 1
            counts.update(fault.split(":")[0] for fault in outcome.faults)
            if outcome.faults or given.show:
                print(describe(outcome))
                if given.show:
                    print(outcome.output, outcome.left)
            sys.stdout.flush()
    print(f"{given.cases} cases: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
