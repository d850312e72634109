"""Ctrl-C, SIGTERM and SIGUSR1 as a request to save and stop, followed by all processes at the same step."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import torch
from accelerate import Accelerator

ASK_EVERY = 10  # steps at most between checks whether another process got a signal; each is a collective operation
ASK_SECONDS = 1.0  # between such checks, where steps are slow: torchrun kills 30 s after a signal

SIGNALS = (signal.SIGINT, signal.SIGTERM)
BEFORE_TIME = getattr(signal, "SIGUSR1", None)  # of Slurm's --signal=USR1@SECONDS; not on Windows


@dataclass
class Interrupt:
    """received: the signal's number, 0 for none. ask: the step after which the processes ask one another again."""

    received: int = 0
    ask: int = 0
    asked: tuple[int, float] = field(default_factory=lambda: (0, time.perf_counter()))  # last step and time

    def should_stop(self, accelerator: Accelerator, step: int) -> bool:
        """Whether to stop now, the same answer in every process. step: finished ones, counted from 1."""
        if accelerator.num_processes == 1:
            return bool(self.received)
        if step < self.ask:
            return False
        last, then = self.asked
        self.asked = step, time.perf_counter()
        pace = (self.asked[1] - then) / max(step - last, 1)
        told = torch.tensor([float(self.received > 0), pace], device=accelerator.device)
        signalled, pace = accelerator.reduce(told, "mean").tolist()
        self.ask = step + max(1, min(ASK_EVERY, int(ASK_SECONDS / max(pace, 1e-9))))
        self.received = self.received or (signal.SIGTERM if signalled else 0)
        return bool(signalled)


@contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Catch the first SIGINT or SIGTERM, and SIGUSR1 where nothing else handles it. A second one ends the program at
    once, but not under torchrun, which repeats the signals that reach a whole job."""
    interrupt, launched = Interrupt(), "TORCHELASTIC_RUN_ID" in os.environ

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.received = number
        if number != BEFORE_TIME and not launched:
            signal.signal(number, previous[number])

    previous = {int(number): signal.getsignal(number) for number in SIGNALS}
    if BEFORE_TIME is not None and signal.getsignal(BEFORE_TIME) == signal.SIG_DFL:
        previous[int(BEFORE_TIME)] = signal.SIG_DFL
    try:
        for number in previous:
            signal.signal(number, note)
    except ValueError:  # only the main thread can set signal handlers
        previous = {}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
