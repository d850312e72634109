"""How close clips are to the true ones frame by frame, and whether they change from frame to frame as those do."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from artok.metrics.base import EvalBatch, Metric, MetricConfig, MetricContext, as_series, enough
from artok.metrics.quantity import Quantity
from artok.metrics.reconstruction import by_frame, psnr, ssim

NAME = "change_error"
SCALES = 3  # of the pyramid: pixels, and means of 2x2 and 4x4


class Config(MetricConfig):
    """Error of the change from frame to frame, and PSNR and SSIM of each frame."""

    kind: Literal["frames"] = "frames"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            NAME,
            "change error",
            "",
            "lower",
            "Motion",
            "How much more or less successive frames differ than those of the true clip: flicker and standstill.",
        ),
    )

    def suits(self, subject: MetricContext) -> bool:
        return subject.clips

    def build(self, subject: MetricContext) -> Frames:
        return Frames()

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class Frames(Metric):
    needs: ClassVar[frozenset[str]] = frozenset({"clips", "true_clips"})

    def __init__(self) -> None:
        self._count, self._error = 0, 0.0
        self._series: dict[str, Tensor] = {}  # (T,) sums over clips

    @property
    def count(self) -> int:
        return self._count

    def update(self, seen: EvalBatch) -> None:
        if seen.clips is None or seen.true_clips is None:
            return
        pair = seen.pair("clips", "true_clips")
        self._count += len(pair[0])
        self._error += float(change_error(*pair).sum())
        for name, measure in (("psnr_db", psnr), ("ssim", ssim)):
            self._series[name] = self._series.get(name, 0) + by_frame(measure, *pair).sum(0)

    def compute(self) -> dict[str, float]:
        enough("the change of frames", {"clips": self._count}, 1)
        return {NAME: self._error / self._count}

    def series(self) -> dict[str, tuple[float | None, ...]]:
        return {name: as_series(total / self._count) for name, total in self._series.items()}


def change_error(clips: Tensor, true: Tensor) -> Tensor:
    """Mean over the steps of |d(x_t, x_t+1) - d(y_t, y_t+1)| for clips x and y (B, C, T, H, W) uint8, (B,) float64.

    As tLPIPS (Chu et al. 2020, arXiv 1811.09393, eq. 3), with another distance d than LPIPS, so that nothing has to be
    fetched: the root mean square difference of pixels in [0, 1], summed over means of 1x1, 2x2 and 4x4 pixels. 0 for a
    clip of one frame.
    """
    gap = (_changes(clips) - _changes(true)).abs()
    return gap.mean(1) if gap.shape[1] else gap.new_zeros(len(gap))


def _changes(clips: Tensor) -> Tensor:
    """d of each pair of successive frames, (B, T - 1) float64."""
    difference = (clips.double() / 255).diff(dim=2).transpose(1, 2)
    batch, steps = difference.shape[:2]
    planes, total = difference.flatten(0, 1), difference.new_zeros(batch * steps)
    for scale in range(SCALES):
        if scale:
            planes = functional.avg_pool2d(planes, 2, ceil_mode=True)
        total = total + planes.square().flatten(1).mean(1).sqrt()
    return total.unflatten(0, (batch, steps))
