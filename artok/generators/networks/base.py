"""The base class of diffusion networks: noisy tokens, times and a context in, a prediction per token out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from artok.conditioning.base import Conditioners, Context
from artok.config import Part
from artok.nn.controlnet import ControlNet
from artok.nn.time import GuidedTimeEmbedding, IntervalEmbedding, TimeEmbedding


class DiffusionNetwork(nn.Module, ABC):
    """conditioner: makes the contexts that it reads. time: embeds times. controlnet: adds a context's map, where there
    is one. gradient_checkpointing: of its blocks."""

    conditioner: Conditioners
    controlnet: ControlNet | None
    gradient_checkpointing: bool
    time: TimeEmbedding | IntervalEmbedding

    def read_intervals(self) -> None:
        """Let it read times (B, 2), of x and of where it goes, in the place of times (B,)."""
        last = self.time.layers[-1]
        assert isinstance(last, nn.Linear)
        self.time = IntervalEmbedding(last.out_features)

    @property
    @abstractmethod
    def stages(self) -> list[nn.Module]:
        """The parts whose outputs, (B, N, W) or (B, W, *grid), are its features, from input to output."""

    @abstractmethod
    def forward(self, x_BND: Tensor, times_B: Tensor, context: Context, given_BNG: Tensor | None = None) -> Tensor:
        """(B, N, out) for noisy tokens (B, N, D) row-major. times_B: or (B, F), one for each frame, where the config
        `takes_frame_times`. given_BNG: the input that `widen` made room for."""

    def read_scales(self) -> None:
        """Let it read times (B, 2), of x and of the guidance scale, in the place of times (B,)."""
        last = self.time.layers[-1]
        assert isinstance(last, nn.Linear)
        self.time = GuidedTimeEmbedding(last.out_features)

    @abstractmethod
    def widen(self, width: int) -> None:
        """Make room for `width` more input channels, whose weights are zero: they change nothing before training."""

    @abstractmethod
    def add_controlnet(self) -> None:
        """Freeze the network, and have a trained copy of its first blocks read the context's map."""


class NetworkConfig(Part, ABC):
    """The `network:` section. takes_frame_times: whether the frames of a video may be at different times."""

    @property
    def takes_frame_times(self) -> bool:
        return False

    @abstractmethod
    def refuse(self, grid: tuple[int, ...]) -> str | None:
        """The reason why it cannot run on such a grid (a phrase such as "needs two axes"), or None."""

    @abstractmethod
    def build(
        self, grid: tuple[int, ...], width: int, out: int, conditioners: Callable[[int, tuple[int, ...]], Conditioners]
    ) -> DiffusionNetwork:
        """Build the network from tokens of D = `width` numbers to `out` numbers. The grid has passed `refuse`.

        conditioners: makes conditioners with contexts of a given width and maps of a given grid.
        """

    @classmethod
    @abstractmethod
    def tiny(cls) -> NetworkConfig:
        """A small config for the contract tests."""
