"""Batch normalisation over the images of all processes (Ioffe and Szegedy 2015)."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, with the statistics of the images that all processes have in this pass.

    torch's SyncBatchNorm does so on GPUs only. Parts of an accumulated step are normalised one by one, as everywhere.
    The sums run in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        if not (self.training and several):
            return super().forward(x)
        wide = x.float()
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        mean = all_reduce(wide.sum((0, 2, 3))) / count
        around = wide - mean[:, None, None]
        variance = all_reduce(around.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        return torch.addcmul(self.bias[:, None, None], around, scale[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Bring the statistics of a pass into the running ones."""
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
