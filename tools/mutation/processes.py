"""Processes of mutation testing: one has collected the tests and forks a child per mutant; which lines tests run."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import _lru_cache_wrapper
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

from mutation.imports import install
from mutation.mutants import Mutant, apply

ROOT = Path(__file__).resolve().parents[2]
QUIET = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", "--tb=line")
HOOK = """
import os, sys
sys.path.append(os.environ["MUTATION_TOOLS"])
from mutation.imports import install
install(os.environ["MUTATION_FILE"], os.environ["MUTATION_PLACE"])
"""


def write(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content))
    beside.replace(path)


class Tracer:
    """Collects the lines of the package that run. `found` is replaced by whoever wants them apart."""

    def __init__(self) -> None:
        self.found: set[tuple[str, int]] = set()
        self.root = f"{ROOT / 'artok'}{os.sep}"

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        file = frame.f_code.co_filename
        if not file.startswith(self.root):
            return None

        def line(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
            if event == "line":
                self.found.add((file, frame.f_lineno))
            return line

        return line

    def by_file(self, lines: set[tuple[str, int]]) -> dict[str, list[int]]:
        files: dict[str, list[int]] = {}
        for file, number in sorted(lines):
            files.setdefault(os.path.relpath(file, ROOT), []).append(number)
        return files


class Server:
    """A process that has collected the tests, and forks a child for each request."""

    def __init__(self, tests: Sequence[str]) -> None:
        print("collecting the tests", flush=True)
        self.here, there = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self.here.close()
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when its parent is gone
            silence(keep=True)
            code = pytest.main([*tests, *QUIET], plugins=[Collected(there)])
            there.send(("failed", f"pytest ended with {code}"))
            os._exit(1)
        there.close()
        self.known: list[str] = self.receive()
        self.bare = False

    def receive(self) -> Any:
        kind, answer = self.here.recv()
        if kind == "failed":
            sys.exit(f"the tests cannot be collected: {answer}")
        return answer

    def ask(self, *request: Any) -> Any:
        self.here.send(request)
        return self.receive()

    def files(self) -> list[str]:
        return list(dict.fromkeys(name.partition("::")[0] for name in self.known))

    def imports(self) -> None:
        """Import here what the tests use except the package, so that children need not."""
        if not self.bare:
            for name in self.ask("imports"):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
            self.bare = True


def silence(keep: bool = False) -> None:
    """Write nothing to the terminal any more. keep: except errors."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1) if keep else (0, 1, 2):
        os.dup2(nothing, number)


class Watch:
    """A pytest plugin that remembers whether a test failed, and which lines of fixtures belong to which."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self.tracer, self.failed, self.skipped = tracer, "", False
        self.lines: dict[int, set[tuple[str, int]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid
        self.skipped |= report.skipped

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        if self.tracer is None:
            return (yield)
        outside, self.tracer.found = self.tracer.found, set()
        try:
            return (yield)
        finally:
            self.lines[id(fixturedef)] = self.tracer.found
            self.tracer.found = outside | self.tracer.found


class Collected:
    """The pytest plugin of the server: answers requests instead of running the tests."""

    def __init__(self, wire: Connection) -> None:
        self.wire = wire

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            self.wire.send(("failed", "an error while importing them; run pytest on them"))
            os._exit(1)
        self.items = {item.nodeid: item for item in session.items}
        self.wire.send(("ok", list(self.items)))
        gc.collect()
        gc.freeze()  # forked children then copy fewer pages
        while True:
            try:
                kind, *request = self.wire.recv()
            except EOFError:
                os._exit(0)
            self.wire.send(("ok", getattr(self, kind)(*request)))

    def imports(self) -> list[str]:
        own = ("artok", "test_", "helpers", "conftest", "_pytest", "pytest", "__", "mutants")
        return [name for name in sys.modules if not name.startswith(own)]

    def measure(self, file: str) -> Any:
        items = [item for name, item in self.items.items() if name.partition("::")[0] == file]
        return in_child(lambda: trace(items), 3600)

    def mutant(self, mutant: Mutant, names: list[str], limit: float) -> Any:
        def work() -> Any:
            if not swap_code(mutant):
                return "import"
            return run_items([self.items[name] for name in names if name in self.items])

        return in_child(work, limit, mutant)


def in_child(work: Callable[[], Any], limit: float, mutant: Mutant | None = None) -> Any:
    """The result of `work` in a forked process, or why there is none: the time limit, or a crash."""
    folder = Path(tempfile.mkdtemp(prefix="mutation-"))
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        silence()
        try:
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
            if mutant is not None:
                show_to_subprocesses(folder, mutant)
            result = work()
        except BaseException:
            result = {"broken": traceback.format_exc()}
        write(folder / "result", result)
        os._exit(0)
    until, parent = time.monotonic() + limit, os.getppid()
    try:
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > until or os.getppid() != parent:
                raise TimeoutError
            time.sleep(0.01)
        return json.loads((folder / "result").read_text())
    except TimeoutError:
        return "time limit"
    except FileNotFoundError:
        return "crash"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        shutil.rmtree(folder, ignore_errors=True)


def show_to_subprocesses(folder: Path, mutant: Mutant) -> None:
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(HOOK)
    os.environ["MUTATION_TOOLS"] = str(ROOT / "tools")
    os.environ["MUTATION_FILE"], os.environ["MUTATION_PLACE"] = str(ROOT / mutant.file), json.dumps(mutant.place)
    path = (str(folder / "site"), str(ROOT), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))


def run_items(items: Sequence[pytest.Item], watch: Watch | None = None) -> str:
    """Run tests until one fails: its name, or nothing."""
    watch = watch or Watch()
    if items:
        import torch

        manager = items[0].config.pluginmanager
        manager.register(watch)
        for item, following in zip(items, [*items[1:], None], strict=True):
            torch.manual_seed(0)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if watch.failed:
                break
        manager.unregister(watch)
    return watch.failed


def trace(items: Sequence[pytest.Item]) -> dict[str, Any]:
    """Run the tests of a file one after another: time, outcome and lines of each."""
    caches = [each for each in gc.get_objects() if isinstance(each, _lru_cache_wrapper)]
    caches = [each for each in caches if each.__module__.startswith(("artok", "helpers", "test_"))]
    tracer, found = Tracer(), {}
    shared: dict[int, set[tuple[str, int]]] = {}
    sys.settrace(tracer)
    for item, following in zip(items, [*items[1:], None], strict=True):
        for each in caches:  # what one test leaves to the next is reached by both
            each.cache_clear()
        tracer.found, watch = set(), Watch(tracer)
        watch.lines = shared
        start = time.perf_counter()
        items_config = item.config
        items_config.pluginmanager.register(watch)
        import torch

        torch.manual_seed(0)
        items_config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        items_config.pluginmanager.unregister(watch)
        definitions = getattr(item, "_fixtureinfo", None)
        lines = set(tracer.found)
        for each in (one for group in definitions.name2fixturedefs.values() for one in group) if definitions else ():
            lines |= shared.get(id(each), set())
        passed = None if watch.skipped and not watch.failed else not watch.failed
        seconds = time.perf_counter() - start
        found[item.nodeid] = {"seconds": seconds, "passed": passed, "lines": tracer.by_file(lines)}
    sys.settrace(None)
    return found


# ---------------------------------------------------------------------------------------------- putting a mutant in


def swap_code(mutant: Mutant) -> bool:
    """Replace the code of the mutated function in this process. False: the module must be imported anew."""
    path = str(ROOT / mutant.file)
    if mutant.function is None or not any(getattr(each, "__file__", None) == path for each in sys.modules.values()):
        return False
    tree = apply(Path(path).read_text(), mutant.place)
    codes = [
        code for code in inner(compile(tree, path, "exec")) if (code.co_firstlineno, code.co_name) == mutant.function
    ]
    if len(codes) != 1:
        return False
    gc.unfreeze()
    functions = [each for each in gc.get_objects() if isinstance(each, FunctionType)]
    found = [each for each in functions if is_code(each.__code__, path, mutant.function)]
    for function in found:
        if len(function.__code__.co_freevars) != len(codes[0].co_freevars):
            return False
    for function in found:
        function.__code__ = codes[0]
    return bool(found)


def is_code(code: CodeType, path: str, function: tuple[int, str]) -> bool:
    return code.co_filename == path and (code.co_firstlineno, code.co_name) == function


def inner(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from inner(constant)


def imported_anew(mutant: Mutant, names: list[str], limit: float) -> Any:
    """As `Collected.mutant`, in a process that has not imported the package."""

    class Chosen(Watch):
        collected = 0

        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            place = {name: index for index, name in enumerate(names)}
            items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])
            self.collected = len(items)

    def work() -> str:
        install(str(ROOT / mutant.file), json.dumps(mutant.place))
        watch = Chosen()
        files = dict.fromkeys(name.partition("::")[0] for name in names)
        code = pytest.main([*files, *QUIET], plugins=[watch])
        return watch.failed or ("collection" if code not in (0, 5) else "")

    return in_child(work, limit, mutant)
