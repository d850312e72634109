"""How the object of a clip moves, as the oracle that some data have sees it in every frame.

No value is enough alone: a still picture keeps its class, and a blurred one its place. Held-out clips give the floors.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from artok.errors import ArtokError
from artok.metrics.base import HELD_OUT, EvalBatch, Metric, MetricConfig, MetricContext, as_series, enough
from artok.metrics.quantity import Quantity
from artok.oracle import Motion, MotionOracle

JUMP = 1.5  # times the fastest step of the data, what counts as a jump


class Config(MetricConfig):
    """Class kept, speed, acceleration, jumps and mass of the object; the data must have an oracle, as moving digits."""

    kind: Literal["motion"] = "motion"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("class_kept", "class kept", "", "higher", "Motion", "Share of frames that show the class asked for."),
        Quantity(
            "speed_px", "speed", "px/frame", "at the floor", "Motion", "Mean way of the object from frame to frame."
        ),
        Quantity(
            "acceleration_px",
            "acceleration",
            "px/frame²",
            "lower",
            "Motion",
            "Mean change of the step from frame to frame, away from the borders; uneven motion has a large one.",
        ),
        Quantity("jumps", "jumps", "", "lower", "Motion", "Share of steps far longer than any in the data."),
        Quantity(
            "mass", "mass", "", "at the floor", "Motion", "What the object weighs, 1 when whole; fading lowers it."
        ),
    )

    def suits(self, subject: MetricContext) -> bool:
        return subject.motion_oracle is not None

    def build(self, subject: MetricContext) -> ObjectMotion:
        return ObjectMotion(require_oracle(subject, "motion"))

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class Sums:
    """Means of named streams of numbers."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, name: str, values: Tensor) -> None:
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + float(values.double().sum()), count + values.numel()

    def means(self) -> dict[str, float]:
        """Without the streams that were empty."""
        return {name: total / count for name, (total, count) in self._sums.items() if count}


class ObjectMotion(Metric):
    needs: ClassVar[frozenset[str]] = frozenset({"clips", "clip_classes"})
    optional: ClassVar[frozenset[str]] = frozenset({"images", "labels"})

    def __init__(self, oracle: MotionOracle) -> None:
        self._oracle, self._sums, self._count = oracle, Sums(), 0
        self._frames: dict[str, Tensor] = {}  # (T,) sums over clips

    @property
    def count(self) -> int:
        return self._count

    def update(self, seen: EvalBatch) -> None:
        if seen.clips is not None:
            found = self._add(*seen.pair("clips", "clip_classes"), "")
            for name in ("class_kept", "mass"):
                self._frames[name] = self._frames.get(name, 0) + found[name].double().sum(0)
            self._count += len(seen.clips)
        if seen.images is not None and seen.labels is not None:
            self._add(seen.images, seen.labels, HELD_OUT)

    def _add(self, clips: Tensor, classes: Tensor, end: str) -> dict[str, Tensor]:
        found = describe_motion(self._oracle.follow(clips), classes, self._oracle.fastest)
        for name, values in found.items():
            self._sums.add(name + end, values)
        return found

    def compute(self) -> dict[str, float]:
        enough("the motion of objects", {"clips": self._count}, 1)
        return self._sums.means()

    def series(self) -> dict[str, tuple[float | None, ...]]:
        return {name: as_series(total / self._count) for name, total in self._frames.items()}


def describe_motion(motion: Motion, classes: Tensor, fastest: float) -> dict[str, Tensor]:
    """Class kept and mass of each frame (B, T), and the values of all steps, or pairs of steps, in a row.

    classes: (B,) asked for. Frames without an object count in the first two alone.
    """
    steps = motion.centre.diff(dim=1)
    way, change = steps.norm(dim=-1), steps.diff(dim=1).norm(dim=-1)
    free = motion.margin[:, 1:-1] > fastest  # a bounce cannot fall between such a frame and its neighbours
    seen = ~way.isnan()
    return {
        "class_kept": (motion.label == classes[:, None]).double(),
        "speed_px": way[seen],
        "acceleration_px": change[free & ~change.isnan()],
        "jumps": (way[seen] > JUMP * fastest).double(),
        "mass": motion.mass,
    }


def require_oracle(subject: MetricContext, metric: str) -> MotionOracle:
    if subject.motion_oracle is None:
        raise ArtokError(f"the metric {metric} needs data that know how things move in their clips, as moving_digits")
    return subject.motion_oracle
