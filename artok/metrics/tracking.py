"""Whether the object of a clip is where it is in the true one, and for how many frames.

It is lost from the first of two successive frames in which it is not seen, or more than 2 pixels from its true place.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from artok.metrics.base import EvalBatch, Metric, MetricConfig, MetricContext, as_series, enough
from artok.metrics.motion import require_oracle
from artok.metrics.quantity import Quantity
from artok.oracle import MotionOracle

FAR = 2.0  # pixels


class Config(MetricConfig):
    """Error of the trajectory against the true clip, and frames until the object is lost, with its standard error."""

    kind: Literal["tracking"] = "tracking"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            "tracked_frames",
            "frames until lost",
            "",
            "higher",
            "Motion",
            "Frames before the object is more than 2 pixels from its true place, or not seen, twice in a row.",
        ),
        Quantity(
            "trajectory_error_px",
            "trajectory error",
            "px",
            "lower",
            "Motion",
            "Mean distance of the object from its true place, in frames where both are seen.",
        ),
    )

    def suits(self, subject: MetricContext) -> bool:
        return subject.motion_oracle is not None

    def build(self, subject: MetricContext) -> Tracking:
        return Tracking(require_oracle(subject, "tracking"))

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class Tracking(Metric):
    needs: ClassVar[frozenset[str]] = frozenset({"clips", "true_clips"})

    def __init__(self, oracle: MotionOracle) -> None:
        self._oracle = oracle
        self._errors: list[Tensor] = []  # (B, T), NaN where an object is not seen

    @property
    def count(self) -> int:
        return sum(map(len, self._errors))

    def update(self, seen: EvalBatch) -> None:
        if seen.clips is None or seen.true_clips is None:
            return
        made, true = (self._oracle.follow(clips).centre for clips in seen.pair("clips", "true_clips"))
        self._errors.append((made - true).norm(dim=-1).double())

    def compute(self) -> dict[str, float]:
        enough("tracking", {"clips": self.count}, 1)
        errors = torch.cat(self._errors)
        frames = count_tracked(errors).double()
        spread = float(frames.std() / math.sqrt(len(frames))) if len(frames) > 1 else 0.0
        found = {"tracked_frames": float(frames.mean()), "tracked_frames/standard_error": spread}
        if not errors.isnan().all():
            found["trajectory_error_px"] = float(errors.nanmean())
        return found

    def series(self) -> dict[str, tuple[float | None, ...]]:
        return {"trajectory_error_px": as_series(torch.cat(self._errors).nanmean(0))} if self._errors else {}


def count_tracked(errors: Tensor) -> Tensor:
    """(B,) int64: frames before the object is lost, of errors (B, T) in pixels, NaN where it is not seen; all of them
    where it never is."""
    far = ~(errors <= FAR)
    twice = torch.cat([far[:, :-1] & far[:, 1:], far.new_zeros(len(far), 1)], dim=1)
    return torch.where(twice.any(1), twice.int().argmax(1), errors.shape[1])
