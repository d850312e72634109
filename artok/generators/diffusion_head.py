"""MAR's diffusion head: a small diffusion model per token (Li et al. 2024, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from artok.errors import ConfigError
from artok.layout import Codec
from artok.nn.denoiser_mlp import DenoiserMlp
from artok.nn.time import IntervalEmbedding
from artok.noise import Noise
from artok.sampling.diffusion import Diffusion, DiffusionConfig, Network, starting_noise
from artok.sampling.guidance import guide
from artok.sampling.settings import Sampling

Objective = Callable[[Tensor, Tensor, Noise, Codec | None], dict[str, Tensor]]
"""objective(vectors (R, 1, D), conditions z (R, 1, Z), noise of the rows, None): weighted scalar losses."""


class DiffusionHead(nn.Module):
    """p(token | z) over vectors of `width` numbers, under conditions z of `condition` numbers."""

    def __init__(self, config: DiffusionConfig, width: int, condition: int, net_width: int, depth: int) -> None:
        super().__init__()
        if config.reads_scale:
            raise ConfigError("a diffusion head reads no guidance scale; leave diffusion.reads_scale off")
        self.width = width
        self.diffusion = Diffusion(config)
        self.net = DenoiserMlp(width, condition, net_width, depth, config.channels(width))
        if config.averages:
            self.net.time = IntervalEmbedding(net_width)
        self.objective: Objective | None = None  # of distillation, in the place of the diffusion's own losses

    @property
    def network(self) -> DenoiserMlp:
        return self.net

    def under(self, z: Tensor, codec: Codec | None = None) -> Network:
        """The net under conditions z (R, 1, Z): noisy vectors (R, 1, D) and times of rows to its output."""
        condition = self.net.condition(z)
        return lambda x, times: self.net.denoise(x, self.net.time(times)[:, None] + condition)

    def losses(self, tokens: Tensor, z: Tensor, uniform: Tensor, normal: Tensor) -> dict[str, Tensor]:
        """Loss terms (R,) of R tokens (R, D) under z (R, Z), each the mean over M draws of time and noise.

        uniform: (R, M) in [0, 1). normal: (R, M, D).
        """
        draws = uniform.shape[1]
        repeated = self.net.condition(z).repeat_interleave(draws, 0)
        terms = self.diffusion.losses(
            lambda x, time: self.net(x, time, repeated),
            tokens.repeat_interleave(draws, 0),
            normal.flatten(0, 1),
            self.diffusion.times(uniform.flatten()),
        )
        return {name: term.unflatten(0, (-1, draws)).mean(1) for name, term in terms.items()}

    def sample(self, z: Tensor, scale: float, sampling: Sampling, noise: Noise) -> Tensor:
        """Tokens (B, n, D) under z (B, n, Z).

        scale: of guidance; unless it is 1, z is (2B, n, Z), the unconditional half second, and both get the same noise.
        """
        rows = len(z) if scale == 1 else len(z) // 2
        shape = (z.shape[1], self.width)
        solver, steps = self.diffusion.config.plan(sampling, sampling.head_steps)
        drawn = noise.normals(steps + 1, *shape)
        start = starting_noise(next(drawn), solver, sampling).flatten(0, 1)
        network = self.guide_network(z.flatten(0, 1), scale)
        embed = None if self.diffusion.config.averages else self.net.time
        x = start
        options = self.diffusion.options(sampling)
        for state, _ in self.diffusion.sample(
            network, start, lambda: next(drawn).flatten(0, 1), solver, steps, options, embed
        ):
            x = state
        return x.unflatten(0, (rows, z.shape[1]))

    def guide_network(self, z: Tensor, scale: float) -> Callable[[Tensor, Tensor], Tensor]:
        """The net under z (R, Z), which takes embedded times, or intervals of time where it reads these. Unless the
        scale is 1, z is (2R, Z), the unconditional half second, and the predicted target is guided; a learned variance
        is the conditional one."""
        condition, averages = self.net.condition(z), self.diffusion.config.averages

        def given(time: Tensor) -> Tensor:
            return (self.net.time(time) if averages else time) + condition

        if scale == 1:
            return lambda x, time: self.net.denoise(x, given(time))
        return lambda x, time: guide(self.net.denoise(torch.cat([x, x]), given(time)), scale, self.width)
