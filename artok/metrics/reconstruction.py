"""How close reconstructions are to their originals: PSNR, SSIM and L1, as means over images."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from artok.errors import ArtokError
from artok.metrics.base import EvalBatch, Metric, MetricConfig, MetricContext, enough
from artok.metrics.quantity import Quantity

PSNR_CAP = 100.0  # dB, what an exact reconstruction counts as: without a cap a single one makes the mean infinite
WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class Config(MetricConfig):
    """PSNR (dB), SSIM and L1 of reconstructions against held-out images."""

    kind: Literal["reconstruction"] = "reconstruction"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            "psnr_db",
            "PSNR",
            "dB",
            "higher",
            "Reconstruction",
            "Peak signal-to-noise ratio; 6 dB more halve the error.",
        ),
        Quantity(
            "ssim",
            "SSIM",
            "",
            "higher",
            "Reconstruction",
            "Structural similarity: local contrast and shape, 1 when equal.",
        ),
        Quantity("l1", "L1", "", "lower", "Reconstruction", "Mean absolute error of pixels that span -1 to 1."),
    )

    def build(self, subject: MetricContext) -> ReconstructionError:
        return ReconstructionError()

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class ReconstructionError(Metric):
    needs: ClassVar[frozenset[str]] = frozenset({"images", "reconstructions"})

    def __init__(self) -> None:
        self._count = 0
        self._sums = {"psnr_db": 0.0, "ssim": 0.0, "l1": 0.0}

    @property
    def count(self) -> int:
        return self._count

    def update(self, seen: EvalBatch) -> None:
        if seen.reconstructions is None:
            return
        pair = seen.pair("images", "reconstructions")
        self._count += len(pair[0])
        self._sums["psnr_db"] += float(psnr(*pair).sum())
        self._sums["ssim"] += float(ssim(*pair).sum())
        self._sums["l1"] += float(l1(*pair).sum())

    def compute(self) -> dict[str, float]:
        enough("reconstruction error", {"reconstructions": self._count}, 1)
        return {name: total / self._count for name, total in self._sums.items()}


def _difference(images: Tensor, reconstructions: Tensor) -> Tensor:
    """(B, C*H*W) float64, in uint8 steps."""
    for name, tensor in (("images", images), ("reconstructions", reconstructions)):
        if tensor.dtype != torch.uint8:
            raise ArtokError(f"{name} must be uint8 (artok.images.to_uint8), got {tensor.dtype}")
    if images.shape != reconstructions.shape:
        raise ArtokError(
            f"reconstructions of shape {tuple(reconstructions.shape)} do not fit images of {tuple(images.shape)}"
        )
    return (images.to(torch.float64) - reconstructions.to(torch.float64)).flatten(1)


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, (B,) float64 in dB: 10 log10(255^2 / MSE), at most 100.

    images, reconstructions: (B, C, H, W) uint8; of clips (B, C, T, H, W) the mean over their frames. The metric is the
    mean of these, not the PSNR of the mean error.
    """
    if images.ndim == 5:
        return by_frame(psnr, images, reconstructions).mean(1)
    error = _difference(images, reconstructions).square().mean(1)
    return (10 * torch.log10(255.0**2 / error)).clamp(max=PSNR_CAP)


def by_frame(measure: Callable[[Tensor, Tensor], Tensor], clips: Tensor, others: Tensor) -> Tensor:
    """(B, T): what compares images, of each frame of clips (B, C, T, H, W)."""
    _difference(clips, others)  # for its checks
    frames = (each.transpose(1, 2).flatten(0, 1) for each in (clips, others))
    return measure(*frames).unflatten(0, (len(clips), -1))


def l1(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean absolute difference of each image, (B,) float64, of pixels in [-1, 1] (so at most 2)."""
    return _difference(images, reconstructions).abs().mean(1) / 127.5


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity of each image, (B,) float64 (Wang et al. 2004, "Image Quality Assessment", eq. 13).

    Gaussian window of 11x11 pixels and deviation 1.5, population covariance, data range 255, mean over channels and
    over the positions where the window fits. An image with a side below 11 gets the largest odd window that fits it,
    so its values compare only with images of its own size. Of clips (B, C, T, H, W) it is the mean over their frames.
    """
    if images.ndim == 5:
        return by_frame(ssim, images, reconstructions).mean(1)
    _difference(images, reconstructions)  # for its checks
    channels, height, width = images.shape[1:]
    side = min(WINDOW, height, width)
    side -= 1 - side % 2
    offsets = torch.arange(side, dtype=torch.float64, device=images.device) - side // 2
    kernel = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).expand(channels, 1, 1, side)

    def blur(x: Tensor) -> Tensor:
        rows = functional.conv2d(x, kernel, groups=channels)
        return functional.conv2d(rows, kernel.transpose(2, 3), groups=channels)

    x, y = images.to(torch.float64), reconstructions.to(torch.float64)
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + C1) * (2 * covariance + C2)) / (
        (mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2)
    )
    return similarity.flatten(1).mean(1)
