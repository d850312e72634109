"""Noise levels of a video's frames in sampling: which frames are made first.

Frame by frame and in a pyramid as in Diffusion Forcing (Chen et al. 2024, arXiv 2407.01392, section 3.2), the pyramid
also as in rolling diffusion (Ruhe et al. 2024, arXiv 2402.09470); key frames first, and then those between them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

FrameOrder = Literal["together", "in_order", "pyramid", "key_frames"]


def key_frames(free: list[int], stride: int) -> list[int]:
    """Of the frames to be made, in order, every `stride`-th one and the last."""
    return sorted({*free[stride - 1 :: stride], *free[-1:]})


def frame_levels(order: FrameOrder, free: list[int], frames: int, steps: int, stride: int) -> Tensor:
    """(M + 1, F) int64: the level of each frame before each of M steps and after the last, from `steps`, noise, to 0.

    free: the frames to be made; the others are at 0. together: all at once. in_order: one after the other. pyramid:
    each starts an equal share of the steps after the one before. key_frames: those of `key_frames`, then the others.
    """
    begin = torch.zeros(frames, dtype=torch.int64)
    for place, frame in enumerate(free):
        if order == "in_order":
            begin[frame] = place * steps
        elif order == "pyramid":
            begin[frame] = place * lag(steps, len(free))
        elif order == "key_frames":
            begin[frame] = 0 if frame in key_frames(free, stride) else steps
    if not free:
        return torch.zeros(2, frames, dtype=torch.int64)
    now = torch.arange(int(begin.max()) + steps + 1)
    levels = (steps - (now[:, None] - begin)).clamp(0, steps)
    levels[:, [frame for frame in range(frames) if frame not in free]] = 0
    return levels


def lag(steps: int, frames: int) -> int:
    """Solver steps from one frame of a pyramid to the next."""
    return max(1, round(steps / max(frames, 1)))


def count_passes(order: FrameOrder, frames: int, steps: int, stride: int) -> int:
    """Steps for a video of which nothing is known."""
    return len(frame_levels(order, list(range(frames)), frames, steps, stride)) - 1
