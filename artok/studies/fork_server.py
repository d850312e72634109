"""Commands run in forks of a process that has imported everything, where starting anew takes as long as a small job.

A `Server` starts `artok serve`, which reads commands from its standard input, one a line, and runs each in a fork of
itself: a process of its own, that shares no state with the ones before it. What the server has to say, the number of a
command's process and then its exit code, goes through a pipe of its own, so that commands print as they would alone.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, NoReturn

# What training and measuring import, some of it only when it is first used.
IMPORTED = (
    *("artok.training.run", "artok.commands.compare", "artok.studies.measure", "artok.studies.grid_point"),
    *("torch._dynamo", "torch.utils.flop_counter", "vector_quantize_pytorch"),  # a tenth of a second each, or seconds
    *("sklearn.datasets", "sklearn.neighbors", "scipy.linalg"),
)


def can_fork(gpus: int) -> bool:
    """A process that has so much as looked for a GPU cannot be forked."""
    return hasattr(os, "fork") and not gpus


class Server:
    """Runs commands one after another. variables: its environment, and so theirs."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        told, tells = os.pipe()
        command = [sys.executable, "-m", "artok", "serve", str(tells)]
        self._process = subprocess.Popen(command, env=dict(variables), stdin=subprocess.PIPE, pass_fds=(tells,))
        os.close(tells)
        self._told: IO[str] = os.fdopen(told)

    def start(self, arguments: Sequence[str]) -> Fork:
        """Run `artok` with these arguments. Only when the last command has ended."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # a server that died: there is no answer, which the command's end shows
            self._process.stdin.write(f"{json.dumps(list(arguments))}\n".encode())
            self._process.stdin.flush()
        return Fork(self._told)

    def close(self) -> None:
        """End the server, and wait for a command that still runs."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._told.close()


class Fork:
    """A command under way, with what `subprocess.Popen` has to say of one."""

    def __init__(self, told: IO[str]) -> None:
        self._told = told
        self._pid: int | None = None
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code once it has ended, else None; as of Popen, minus the signal that ended it."""
        while self.returncode is None and _ready(self._told):
            self._read()
        return self.returncode

    def terminate(self) -> None:
        """Ask it to save and stop."""
        while self._pid is None and self.returncode is None:
            self._read()
        if self._pid is not None and self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)

    def wait(self) -> int:
        while self.returncode is None:
            self._read()
        return self.returncode

    def _read(self) -> None:
        """Wait for a line and take it in."""
        line = _line(self._told)
        if not line:  # the server is gone, and who ends one ends it like this
            self.returncode = -signal.SIGKILL
        elif self._pid is None:
            self._pid = int(line)
        else:
            self.returncode = int(line)


def _ready(stream: IO[str]) -> bool:
    return bool(select.select([stream], [], [], 0)[0])


def _line(stream: IO[str]) -> str:
    """Byte by byte, since what a buffer holds `select` does not see."""
    found = b""
    while (byte := os.read(stream.fileno(), 1)) not in (b"", b"\n"):
        found += byte
    return found.decode()


# ---------------------------------------------------------------------------------------------- the server's side


def serve(replies: int, main: Callable[[], None]) -> None:
    """Run commands from standard input until it ends. replies: the pipe. main: runs the one that `sys.argv` holds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the commands, and their end for the conductor
    for name in IMPORTED:
        with suppress(ImportError):  # what a command really needs it will ask for itself
            importlib.import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.close(replies)
            _run(json.loads(line), main)
        _tell(replies, pid)
        _tell(replies, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)  # taking everything down would take over a second


def _tell(replies: int, value: int) -> None:
    with suppress(BrokenPipeError):  # the conductor was killed: the command goes on, as it does without a server
        os.write(replies, f"{value}\n".encode())


def _run(arguments: Sequence[str], main: Callable[[], None]) -> NoReturn:
    """One command, and the end of this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["artok", *arguments]
    code: object = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
