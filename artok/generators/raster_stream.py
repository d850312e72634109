"""A video without end from a raster transformer, in a cache that keeps the first frames and a window of the last ones
(StreamingLLM, Xiao et al. 2023, arXiv 2309.17453)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from artok.errors import ConfigError
from artok.generators.raster_decoder import CodeModel, make_cache
from artok.layout import Condition
from artok.nn.rotary import rotate
from artok.noise import Noise
from artok.sampling.guidance import Guidance
from artok.sampling.logits import draw_gumbel
from artok.sampling.settings import Sampling


class RasterStream:
    """One sampling, frame by frame: iterate for the codes (B, positions of a frame, K) of each next frame.

    When more than `sinks` + `window` frames are in the cache, the oldest after the sinks leaves, and the keys of those
    after it are turned to the places one frame earlier. So places are never later than in training. Keys and values of
    the frames that stay were made with the ones that left.
    """

    def __init__(
        self,
        model: CodeModel,
        condition: Condition,
        sampling: Sampling,
        noise: Noise,
        given: Tensor,
        window: int,
        sinks: int,
    ) -> None:
        """given: codes (B, frames, positions of a frame, K) of the frames before. ConfigError: more frames are kept
        than were seen in training, or guidance changes over the steps."""
        frames, codes = model.layout.grid[0], model.layout.length * model.layout.codes
        if window < 1 or sinks < 0 or window + sinks >= frames:
            raise ConfigError(
                f"a cache of {window} frames and {sinks} sinks does not fit {frames} frames of tokens, of which one is "
                "made; keep fewer"
            )
        if sampling.cfg_schedule != "constant" or sampling.cfg_interval != (0.0, 1.0):
            raise ConfigError("a video without end has no share of its steps; use a constant cfg_scale")
        self.model, self.sampling, self.noise = model, sampling, noise
        self.per_frame, self.sinks, self.kept = codes // frames, sinks, window + sinks
        self.guidance = Guidance(condition, sampling, 1)
        self.context = model.prefixed(self.guidance.condition)
        self.cache = make_cache(model, self.context, sampling)
        past = given.flatten(2)
        if past.shape[1] > self.kept:
            past = torch.cat([past[:, :sinks], past[:, -window:]], dim=1)
        self.codes = torch.zeros(len(condition), codes, dtype=torch.int64, device=condition.device)
        self.done = past.shape[1] * self.per_frame  # codes in the window
        self.codes[:, : self.done] = past.flatten(1)
        self.drawn, self.begun = 0, False  # codes drawn in all, and whether anything is cached

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            if self.done > self.kept * self.per_frame:
                self._forget()
            context = self.model.recall(self.context, self.guidance.repeat(self.codes, 0))
            for place in range(self.done, self.done + self.per_frame):
                begin = place if self.begun else 0
                read = self.guidance.repeat(self.codes[:, max(begin - 1, 0) : place], 0)
                logits = self.guidance(self.model.logits(read, context, begin, self.cache)[:, -1:], 0)
                self.codes[:, place : place + 1] = self._pick(logits)
                self.begun = True
            self.done += self.per_frame
            made = self.codes[:, self.done - self.per_frame : self.done]
            yield made.unflatten(1, (-1, self.model.layout.codes)).clone()

    def _pick(self, logits: Tensor) -> Tensor:
        sampling, gumbel = self.sampling, None
        if sampling.temperature:
            place = torch.full((len(logits), 1), self.drawn, device=logits.device)
            gumbel = self.noise.gumbel(place, logits.shape[-1])
        self.drawn += 1
        return draw_gumbel(logits, gumbel, sampling.temperature, sampling.top_k, sampling.top_p)

    def _forget(self) -> None:
        """Take the oldest frame after the sinks out of the codes and of the cache."""
        out, kept = self.sinks * self.per_frame, self.done - self.per_frame
        self.codes[:, out:kept] = self.codes[:, out + self.per_frame : self.done].clone()
        if self.begun:
            # the last code of all is not cached yet: it is read when the next one is drawn
            first, end = self.model.prefix + out, self.model.prefix + self.done - 1
            for layer in range(len(self.model.blocks)):
                keys = self.cache.keys[layer, :, :, first + self.per_frame : end].transpose(1, 2)
                self.cache.keys[layer, :, :, first : end - self.per_frame] = rotate(keys, self._back(keys)).transpose(
                    1, 2
                )
                values = self.cache.values[layer]
                values[:, :, first : end - self.per_frame] = values[:, :, first + self.per_frame : end].clone()
        self.done = kept

    def _back(self, keys_BNHD: Tensor) -> Tensor:
        """(N, D / 2, 2): the turn of a place to that one frame earlier, the same for all."""
        frame = self.model.rotary[self.model.prefix + self.per_frame]  # of place (1, 0, 0)
        turn = torch.stack([frame[:, 0], -frame[:, 1]], dim=-1)
        return turn.expand(keys_BNHD.shape[1], -1, -1)
