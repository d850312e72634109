"""Diffusion whose frames have noise levels of their own: drawn in training, lowered frame by frame in sampling.

Diffusion forcing draws a level for each frame (Chen et al. 2024, arXiv 2407.01392, algorithm 1). Teacher forcing gives
the first frames and draws one level for all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from artok.noise import Noise
from artok.sampling.diffusion import Diffusion, Network, Times, over_tokens
from artok.sampling.frames import FrameOrder, frame_levels, lag
from artok.sampling.schedules import CLEAN, Levels

Forcing = Literal["none", "diffusion", "teacher"]


def draw_levels(
    diffusion: Diffusion, forcing: Forcing, noise: Noise, frames: int, history_noise: float
) -> tuple[Times, Tensor]:
    """Levels (B, F) of training, and the weights (B, F) of the frames' losses, which add up to 1.

    history_noise: the highest level of given frames, as a share of all; each sample draws one below it.
    """
    if forcing == "diffusion":
        drawn = diffusion.times(noise.uniform(frames))
        return drawn, torch.full_like(drawn.time, 1 / frames)
    counts = noise.integers(frames)
    given = torch.arange(frames, device=counts.device) < counts[:, None]
    future = diffusion.times(noise.uniform())
    past = diffusion.levels(history_noise * noise.uniform().double())
    weights = (~given).float()
    return put_past(given, past, future), weights / weights.sum(1, keepdim=True)


def put_past(given_BF: Tensor, past: Times, future: Times) -> Times:
    """Levels (B, F): those of `past` (B,) where a frame is given, those of `future` elsewhere."""
    pairs = ((past.signal, future.signal), (past.sigma, future.sigma), (past.time, future.time))
    signal, sigma, time = (torch.where(given_BF, ours[:, None], theirs[:, None]) for ours, theirs in pairs)
    index = None
    if past.index is not None and future.index is not None:
        index = torch.where(given_BF, past.index[:, None], future.index[:, None])
    return Times(signal, sigma, time, index)


@dataclass(frozen=True)
class History:
    """Given frames, which take the place of the state's at a low noise level before the network reads it.

    flags: (B, F) bool, the frames that are given. vectors: (B, N, D), noisy. time: of their level, the network's input.
    """

    flags: Tensor
    vectors: Tensor
    time: float

    @classmethod
    def of(cls, diffusion: Diffusion, flags: Tensor, vectors: Tensor, noise: Tensor, share: float) -> History:
        """share: the level, as a share of all; 0 is clean, to the bit."""
        level = diffusion.levels(torch.tensor([share], dtype=torch.float64, device=vectors.device))
        if not share:
            return cls(flags, vectors, CLEAN.time)
        return cls(flags, level.signal * vectors + level.sigma * noise, float(level.time))

    def put(self, x: Tensor) -> Tensor:
        return torch.where(over_tokens(self.flags, x), self.vectors, x)

    def read(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The state (B, N, D) and the times (1,) or (B, F) with the given frames' in place: times (B, F)."""
        whole = time[:, None] if time.ndim == 1 else time
        return self.put(x), torch.where(self.flags, self.time, whole)


class LevelTable:
    """The levels of a solver by their number, 0 being clean."""

    def __init__(self, levels: Levels, device: torch.device) -> None:
        every = [CLEAN, *(levels[index] for index in range(len(levels)))]
        columns = ([level.signal for level in every], [level.sigma for level in every], [level.time for level in every])
        self.signal, self.sigma, self.time = (torch.tensor(column, device=device) for column in columns)


def descend(
    network: Network, diffusion: Diffusion, x: Tensor, table: LevelTable, before: Tensor, after: Tensor
) -> tuple[Tensor, Tensor]:
    """x (B, N, D) with each frame moved from its level `before` to `after` (B, F) along the probability flow, by
    Euler's method, and the prediction of x_0, which is x where it is clean."""
    signal, sigma = (over_tokens(column[before], x) for column in (table.signal, table.sigma))
    found = diffusion.denoise(network(x, table.time[before]).float(), x, signal, sigma).clean
    clean = torch.where(sigma == 0, x, found)
    noise = (x - signal * clean) / sigma.clamp(min=1e-12)
    moved = over_tokens(table.signal[after], x) * clean + over_tokens(table.sigma[after], x) * noise
    return torch.where(over_tokens(before == after, x), x, moved), clean


def orders(given_BF: Tensor, order: FrameOrder, steps: int, stride: int) -> Tensor:
    """(B, M + 1, F): `frame_levels` of each row, whose frames that are not given are made. Rows done early stay
    at 0."""
    frames = given_BF.shape[1]
    rows = [
        frame_levels(order, [frame for frame in range(frames) if not given[frame]], frames, steps, stride)
        for given in given_BF.tolist()
    ]
    most = max(map(len, rows))
    padded = [torch.cat([row, row[-1:].expand(most - len(row), -1)]) for row in rows]
    return torch.stack(padded).to(given_BF.device)


def lower(
    network: Network, diffusion: Diffusion, x: Tensor, levels: Levels, schedule: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield predictions of x_0 (B, N, D) and the frames (B, F) that are done, after each step of a schedule of levels
    (B, M + 1, F)."""
    table = LevelTable(levels, x.device)
    for before, after in zip(schedule[:, :-1].unbind(1), schedule[:, 1:].unbind(1), strict=True):
        x, clean = descend(network, diffusion, x, table, before, after)
        yield clean, after == 0


class Sliding:
    """Sliding-window denoising: the window's first frames are given, and each later one is noisier than the one before
    (Ruhe et al. 2024; FIFO-Diffusion, Kim et al. 2024, arXiv 2405.11473). Each `advance` finishes one frame.

    history: given frames of the window. steps: of a frame, rounded to a multiple of the frames that are made.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        frames: int,
        history: int,
        steps: int,
        draw: Callable[[], Tensor],
    ) -> None:
        """draw: standard noise (B, N, D) of a whole window."""
        self.diffusion, self.history, self.made, self.draw = diffusion, history, frames - history, draw
        self.lag = lag(steps, self.made)
        self.steps = self.lag * self.made
        self.table: LevelTable | None = None
        self.x = draw()
        self.area = self.x.shape[1] // frames
        self.rest = torch.tensor([0] * history + [self.lag * (place + 1) for place in range(self.made)])
        self.now = torch.tensor([0] * history + [self.steps] * self.made)

    def advance(self, network: Network, given: Tensor) -> Tensor:
        """The next frame's vectors (B, n, D), with given frames (B, history n, D)."""
        device = self.x.device
        if self.table is None:
            self.table = LevelTable(self.diffusion.config.sampling_levels(self.steps), device)
        x, end = self.x.clone(), self.history * self.area
        x[:, :end] = given
        target = (self.rest - self.lag).clamp(min=0)
        clean, now = x, self.now
        while not torch.equal(now, target):
            # The first time all frames start from noise, and the nearer ones go further.
            after = torch.maximum(now - 1, target)
            rows = (each.to(device).expand(len(x), -1) for each in (now, after))
            x, clean = descend(network, self.diffusion, x, self.table, *rows)
            x[:, :end], now = given, after
        frame = clean[:, end : end + self.area]
        self.x = torch.cat([x[:, self.area :], self.draw()[:, -self.area :]], dim=1)
        self.now = torch.cat([target[1:], torch.tensor([self.steps])])
        return frame
