"""Ctrl-C and SIGTERM as a request to save and stop, followed by all processes at the same step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from accelerate import Accelerator

ASK_EVERY = 10  # steps between checks whether another process got a signal; each is a collective operation


@dataclass
class Interrupt:
    """received: the signal's number, 0 for none."""

    received: int = 0

    def should_stop(self, accelerator: Accelerator, step: int) -> bool:
        """Whether to stop now, the same answer in every process."""
        if accelerator.num_processes == 1:
            return bool(self.received)
        if step % ASK_EVERY:
            return False
        told = torch.tensor([float(self.received)], device=accelerator.device)
        self.received = int(accelerator.reduce(told, "sum").item()) and (self.received or signal.SIGTERM)
        return bool(self.received)


@contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Catch the first SIGINT or SIGTERM; a second one ends the program at once."""
    interrupt = Interrupt()

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.received = number
        signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
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
