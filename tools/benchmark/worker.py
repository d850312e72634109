"""One side of a benchmark: a process that builds what its adapter describes and runs it when told.

    python tools/benchmark/worker.py ADAPTER CHECKOUT THREADS

Requests and answers are lines of JSON. It imports nothing of artok, so that an adapter is free to use another checkout.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import torch


def import_adapter(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("adapter", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed(call: Callable[[], object]) -> dict[str, float]:
    """Wall and processor seconds of one call, a GPU's work finished."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
    wall, processor = time.perf_counter(), time.process_time()
    call()
    if cuda:
        torch.cuda.synchronize()
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def peak(call: Callable[[], object]) -> dict[str, int | None]:
    """Most bytes in use during one call, weights included: of torch's allocator on a GPU, resident on Linux."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        call()
        return {"bytes": torch.cuda.max_memory_allocated()}
    try:
        ctypes.CDLL(None).malloc_trim(0)  # pages that were freed but kept would hide what the call takes
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        call()
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except (OSError, AttributeError):
        return {"bytes": None}
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return {"bytes": int(line.split()[1]) * 1024}


class Side:
    """What an adapter made of the latest case."""

    def __init__(self, adapter: ModuleType, checkout: Path) -> None:
        self.adapter, self.checkout = adapter, checkout
        self.call: Callable[[], object] | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "build" in request:
            self.call = None  # frees the case before
            self.call = self.adapter.build(request["build"], self.checkout)
            return {}
        if "facts" in request:
            facts = getattr(self.adapter, "facts", None)
            return facts(request["facts"], self.checkout) if facts else {}
        assert self.call is not None
        with torch.inference_mode(request.get("train") is not True):
            return timed(self.call) if request["run"] == "time" else peak(self.call)


def serve(side: Side, requests: TextIO, answers: TextIO) -> None:
    for line in requests:
        try:
            answer = side.answer(json.loads(line))
        except Exception as error:  # whatever foreign code raises is this side's result
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    path, checkout, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the adapter prints goes to stderr
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    sys.path[0] = checkout  # in the place of this file's folder
    serve(Side(import_adapter(Path(path)), Path(checkout)), sys.stdin, answers)


if __name__ == "__main__":
    main()
