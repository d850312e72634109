"""Latent diffusion: all tokens of a sample are denoised together (Rombach et al. 2022; DiT, Peebles and Xie 2023; SiT,
Ma et al. 2024).

It works on the latents of a KL autoencoder, the pixels of the pixel tokenizer, or the vectors of codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from artok.conditioning.base import Conditioners
from artok.config import OPEN, dump_fixed, of_kind
from artok.errors import ConfigError
from artok.generators.base import Generator, GeneratorConfig
from artok.generators.frame_diffusion import Forcing, History, Sliding, draw_levels, lower, orders
from artok.generators.networks import dit
from artok.generators.networks.base import NetworkConfig
from artok.layout import GUIDED, Codec, Condition, TokenLayout, Tokens
from artok.noise import Noise
from artok.sampling.diffusion import Diffusion, DiffusionConfig, Network, starting_noise
from artok.sampling.frames import count_passes
from artok.sampling.guidance import Guidance, guide, scale_at
from artok.sampling.repaint import repaint
from artok.sampling.schedules import Levels
from artok.sampling.settings import FRAMES, GUIDANCE, Sampling
from artok.sampling.solvers import Draw, States, evaluations

Objective = Callable[[Tensor, Condition, Noise, Codec | None], dict[str, Tensor]]
"""objective(clean tokens (B, N, D), condition, noise, codec): weighted scalar losses."""


class Config(GeneratorConfig):
    """kind: diffusion.

    network: the denoiser, a file in `artok/generators/networks`.
    inpaint: train with masks: the network also reads the known vectors and where they are, by input channels whose
        weights start at zero (as Stable Diffusion's inpainting model, Rombach et al. 2022). Without it, known tokens
        are kept by RePaint, which takes several times the evaluations.
    controlnet: the network of the run that `init` names stays as it is, and a trained copy of its first blocks hears
        the control (Zhang et al. 2023). Without a control, the samples are those of that run.
    forcing: of a video's frames in training. none: one noise level for all. diffusion: one for each frame, so that
        sampling may take them in any order (Diffusion Forcing). teacher: a random number of first frames is given. With
        either, known frames are read as they are, and without, they are kept as `inpaint` says.
    history_noise: with teacher forcing, the highest noise level of given frames, as a share of all levels.
    guided_channels: number of leading channels that are guided; default all (3 of 4 in DiT's published samples).
    """

    kind: Literal["diffusion"] = "diffusion"
    network: Annotated[NetworkConfig, of_kind("generators.networks"), OPEN]
    inpaint: bool = False
    controlnet: bool = False
    forcing: Forcing = "none"
    history_noise: float = Field(0.0, ge=0, lt=1)
    guided_channels: int | None = Field(None, ge=1)
    diffusion: DiffusionConfig = DiffusionConfig(variance="learned", steps=250)

    @model_validator(mode="after")
    def _check_controlnet(self) -> Self:
        if self.controlnet and not any(entry.gives_map for entry in self.conditioning):
            raise ValueError("controlnet hears a control; add {kind: control} to 'conditioning'")
        if self.controlnet and self.inpaint:
            raise ValueError(
                "controlnet leaves the network as it is, and inpaint trains it; train with masks first, or without"
            )
        return self

    @model_validator(mode="after")
    def _check_forcing(self) -> Self:
        if self.forcing == "none":
            if self.history_noise:
                raise ValueError("history_noise belongs to forcing teacher, which gives the first frames")
            return self
        if self.inpaint:
            raise ValueError(f"forcing {self.forcing} reads known frames without masks; leave inpaint out")
        if self.diffusion.averages or self.diffusion.reads_scale:
            raise ValueError(f"forcing {self.forcing} needs a network that reads one time for each frame")
        if not self.network.takes_frame_times:
            raise ValueError(f"forcing {self.forcing} needs network kind dit, and text_attention cross or none")
        return self

    @property
    def needs_init(self) -> bool:
        return self.controlnet

    def refuse_initial(self, saved: GeneratorConfig) -> str | None:
        if not self.controlnet:
            return None
        if not isinstance(saved, Config):
            return f"is a {saved.kind}, and a ControlNet steers a diffusion model"
        if any(entry.gives_map for entry in saved.conditioning) and not saved.controlnet:
            return "hears control already, and a ControlNet gives it to a model that does not"
        if saved.inpaint:
            return "is trained with masks, which a ControlNet does not take"
        other = [
            name
            for name in ("network", "diffusion")
            if dump_fixed(getattr(self, name)) != dump_fixed(getattr(saved, name))
        ]
        return (
            f"has another section {other[0]}; a ControlNet needs that of the model which it steers" if other else None
        )

    @property
    def guides(self) -> bool:
        return self.diffusion.reads_scale or self.class_dropout > 0

    def refuse(self, layout: TokenLayout) -> str | None:
        if len(layout.grids) != 1 or layout.codes != 1:
            return "needs a single grid with one vector or one code per position"
        if self.guided_channels is not None and self.guided_channels > layout.width:
            return f"with guided_channels {self.guided_channels} needs tokens at least as wide"
        if self.forcing != "none" and len(layout.grid) != 3:
            return f"with forcing {self.forcing} needs the tokens of a video, in frames, rows and columns"
        return self.network.refuse(layout.grid)

    def build(self, layout: TokenLayout, classes: int) -> LatentDiffusion:
        return LatentDiffusion(self, layout, classes)

    @classmethod
    def tiny(cls) -> Config:
        diffusion = DiffusionConfig(timesteps=50, variance="learned", steps=10)
        return cls(network=dit.Config.tiny(), diffusion=diffusion)


class LatentDiffusion(Generator):
    """p(tokens | condition) by diffusion or flow matching."""

    keeps_known = True
    reads: ClassVar = GUIDANCE | FRAMES | {"steps", "solver", "eta", "temperature", "jump_length", "jump_n_sample"}

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__(layout, classes)
        self.config = config
        conditioners = partial(config.conditioners, image=layout.image, classes=classes, null_map=not config.controlnet)
        out = config.diffusion.channels(layout.width)
        self.network = config.network.build(layout.grid, layout.width, out, conditioners)
        if config.inpaint:
            self.network.widen(layout.width + 1)
        if config.controlnet:
            self.network.add_controlnet()
        if config.diffusion.averages:
            self.network.read_intervals()
        if config.diffusion.reads_scale:
            self.network.read_scales()
        self.diffusion = Diffusion(config.diffusion)
        self._objective: tuple[Objective, ...] = ()  # in a tuple, so that no module in it is saved as a part of this

    @property
    def trains_known(self) -> bool:
        return self.config.inpaint

    @property
    def conditioner(self) -> Conditioners:  # type: ignore[override]
        return self.network.conditioner

    def attach_objective(self, objective: Objective) -> None:
        """Set the losses that `forward` gives in the place of the diffusion's own."""
        self._objective = (objective,)

    def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        clean = self.vectors(tokens, codec)
        for objective in self._objective:
            return objective(clean, condition, noise, codec)
        if self.config.forcing != "none":
            frames, forcing = self.layout.grid[0], self.config.forcing
            levels, weights = draw_levels(self.diffusion, forcing, noise, frames, self.config.history_noise)
            terms = self.diffusion.losses(self.under(condition, codec), clean, noise.normal(*clean.shape[1:]), levels)
            return {name: (term * weights).sum(1).mean() for name, term in terms.items()}
        times, added = self.diffusion.times(noise.uniform()), noise.normal(*clean.shape[1:])
        terms = self.diffusion.losses(self.under(condition, codec), clean, added, times)
        return {name: term.mean() for name, term in terms.items()}

    def under(self, condition: Condition, codec: Codec | None) -> Network:
        """The network under a condition: noisy tokens (B, N, D) and times to its output."""
        context, given = self.context(condition), self.given(condition, codec)
        return lambda x, time: self.network(x, time, context, given)

    def given(self, condition: Condition, codec: Codec | None) -> Tensor | None:
        """What a network trained with masks reads, (B, N, D + 1): the known vectors, zero where hidden, and a channel
        that is 1 there; else None."""
        if not self.config.inpaint:
            return None
        if condition.known is None:
            given = torch.zeros(len(condition), self.layout.length, self.layout.width + 1, device=condition.device)
            given[..., -1] = 1
            return given
        flags = condition.known.flags[..., None]
        vectors = self.vectors(condition.known, codec)
        return torch.cat([torch.where(flags, vectors, 0), (~flags).to(vectors.dtype)], dim=-1)

    def vectors(self, tokens: Tokens, codec: Codec | None) -> Tensor:
        """The diffused vectors (B, N, D): continuous tokens, or the standardised vectors of codes."""
        if not self.layout.discrete:
            return tokens.values
        codec = self.require(codec)
        mean, deviation = moments(code_vectors(codec, tokens.values.device))
        return (rearrange(codec.embed(replace(tokens, known=None)), "b d ... -> b (...) d").float() - mean) / deviation

    def tokens(self, vectors: Tensor, codec: Codec | None) -> Tokens:
        """The tokens of vectors (B, N, D); for codes, the nearest ones."""
        if not self.layout.discrete:
            return Tokens(vectors, self.layout)
        table = code_vectors(self.require(codec), vectors.device)
        mean, deviation = moments(table)
        distances = torch.cdist((vectors * deviation + mean).flatten(0, 1), table)
        return Tokens(distances.argmin(1).view(*vectors.shape[:2], 1), self.layout)

    def require(self, codec: Codec | None) -> Codec:
        if codec is None:
            raise ConfigError("diffusion over codes needs the tokenizer that made them, for the vectors of codes")
        return codec

    def steps(self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None) -> Iterator[Tokens]:
        """Yield the predicted tokens after each evaluation; the last are the sample."""
        shape, known = (self.layout.length, self.layout.width), condition.known
        solver, count = self.config.diffusion.plan(sampling, sampling.steps)
        length, times = sampling.jump_length, sampling.jump_n_sample
        drawn = noise.normals(count + 1, *shape)
        x = starting_noise(next(drawn), solver, sampling)
        levels = self.config.diffusion.sampling_levels(count)
        predict = Guided(self, condition, sampling, self.passes(sampling), codec)
        options = self.diffusion.options(sampling)
        frames = self.known_frames(known)
        if known is not None and frames is not None:
            vectors, share = self.vectors(known, codec), sampling.history_noise
            predict.history = History.of(self.diffusion, frames, vectors, noise.branch("history").normal(*shape), share)

        if sampling.frame_order != "together":
            if frames is None:
                frames = self.no_frames(condition, known)
            schedule = orders(frames, sampling.frame_order, count, sampling.key_frame_stride)
            for clean, done in lower(predict, self.diffusion, x, levels, schedule):
                yield self.finish(clean, known, codec, None if bool(done.all()) else done)
            return
        if known is None or not known.flags.any():
            for _, clean in self.diffusion.solve(predict, x, levels, drawn.__next__, solver, options):
                yield self.tokens(clean, codec)
            return
        flags, vectors = known.flags[..., None], self.vectors(known, codec)
        again = noise.branch("jump")

        def solve(state: Tensor, part: Levels, source: Draw, done: int) -> States:
            predict.done = round(done * predict.total / count)
            return self.diffusion.solve(predict, state, part, source, solver, options, keep)

        def keep(clean: Tensor) -> Tensor:
            return torch.where(flags, vectors, clean)

        if self.config.inpaint or frames is not None:
            # The known vectors are an input. The state follows the network everywhere, as it did in training, where the
            # known places held the vectors of the whole image and not those of one with a hole.
            states = self.diffusion.solve(predict, x, levels, drawn.__next__, solver, options)
        else:
            rows = flags.any(1, keepdim=True)
            states = repaint(solve, x, levels, length, times, drawn.__next__, lambda: again.normal(*shape), rows)
        for _, clean in states:
            yield self.finish(clean, known, codec)

    def finish(
        self, vectors: Tensor, known: Tokens | None, codec: Codec | None, done_BF: Tensor | None = None
    ) -> Tokens:
        """The tokens of vectors with the known ones as they are. done_BF: the frames that are decided; None for all."""
        made = self.tokens(vectors, codec)
        flags = None if done_BF is None else done_BF.repeat_interleave(self.layout.length // done_BF.shape[1], dim=1)
        values = made.values if known is None else torch.where(known.flags[..., None], known.values, made.values)
        return replace(made, values=values, known=flags)

    def known_frames(self, known: Tokens | None) -> Tensor | None:
        """(B, F) bool: the known frames, which a network trained with forcing reads; None where it reads none, or where
        part of a frame is known."""
        if self.config.forcing == "none" or known is None:
            return None
        by_frame = known.flags.unflatten(1, (self.layout.grid[0], -1))
        return by_frame.all(2) if torch.equal(by_frame.all(2), by_frame.any(2)) else None

    def no_frames(self, condition: Condition, known: Tokens | None) -> Tensor:
        """(B, F) False. ConfigError: parts of frames are known, which only sampling all frames together can keep."""
        if known is not None and known.flags.any():
            raise ConfigError("with a frame_order whole frames are known or none; use frame_order together for masks")
        return torch.zeros(len(condition), self.layout.grid[0], dtype=torch.bool, device=condition.device)

    def slide(
        self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None, history: int
    ) -> Callable[[Tokens], Tokens]:
        """ConfigError: the model was trained without diffusion forcing, or guidance changes over the steps."""
        if self.config.forcing != "diffusion":
            raise ConfigError("sliding-window denoising needs a diffusion model trained with forcing diffusion")
        if sampling.cfg_schedule != "constant" or sampling.cfg_interval != (0.0, 1.0):
            raise ConfigError("in sliding-window denoising every frame is at another step; use a constant cfg_scale")
        _, count = self.config.diffusion.plan(sampling, sampling.steps)
        shape, frames = (self.layout.length, self.layout.width), self.layout.grid[0]
        area, past = self.layout.length // frames, noise.branch("history")
        window = Sliding(self.diffusion, frames, history, count, lambda: noise.normal(*shape))
        flags = (torch.arange(frames, device=condition.device) < history).expand(len(condition), -1)
        predict = Guided(self, condition, sampling, 1, codec)

        def network(x: Tensor, time: Tensor) -> Tensor:
            predict.done = 0
            return predict(x, time)

        def advance(known: Tokens) -> Tokens:
            vectors = self.vectors(known, codec)
            again, share = past.normal(*shape), sampling.history_noise
            predict.history = History.of(self.diffusion, flags, vectors, again, share)
            made = vectors.clone()
            made[:, history * area : (history + 1) * area] = window.advance(network, vectors[:, : history * area])
            done = (torch.arange(frames, device=flags.device) <= history).expand(len(condition), -1)
            return self.finish(made, known, codec, done)

        return advance

    def check(self, sampling: Sampling) -> None:
        if self.config.diffusion.reads_scale and sampling.cfg_parts != GUIDED:
            raise ConfigError("this model reads its guidance scale, so cfg_parts cannot be chosen; leave them out")
        self.config.diffusion.plan(sampling, sampling.steps)
        wanted = {name for name in FRAMES if getattr(sampling, name) != Sampling.model_fields[name].default}
        forcing = self.config.forcing
        if wanted and (forcing == "none" or (forcing == "teacher" and "frame_order" in wanted)):
            needs = "forcing diffusion" if "frame_order" in wanted else "forcing diffusion or teacher"
            raise ConfigError(
                f"{', '.join(sorted(wanted))} needs a model of videos trained with {needs}, and this one has forcing "
                f"{forcing}"
            )

    def passes(self, sampling: Sampling) -> int:
        solver, count = self.config.diffusion.plan(sampling, sampling.steps)
        if sampling.frame_order == "together":
            return evaluations(solver, count)
        return count_passes(sampling.frame_order, self.layout.grid[0], count, sampling.key_frame_stride)


class Guided:
    """The guided network under a condition, at one time for all rows or one for each. It counts its evaluations for the
    guidance schedule."""

    def __init__(
        self, model: LatentDiffusion, condition: Condition, sampling: Sampling, total: int, codec: Codec | None
    ) -> None:
        self.model, self.done, self.total = model, 0, total
        self.scales: list[float] = []  # that the network reads
        if model.config.diffusion.reads_scale:
            self.scales = [scale_at(sampling, step, total) for step in range(total)]
            sampling = sampling.model_copy(update={"cfg_scale": 1.0})
        self.guidance = Guidance(condition, sampling, total)
        self.context = model.context(self.guidance.condition).project(model.network)
        self.given = model.given(condition, codec)
        self.channels = model.config.guided_channels or model.layout.width
        self.history: History | None = None  # frames that the network reads in the place of the state's

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        step, guidance = self.done, self.guidance
        self.done += 1
        if self.history is not None:
            x, time = self.history.read(x, time)
        if self.scales:
            time = torch.stack([time, torch.full_like(time, self.scales[step])], dim=1)
        given = None if self.given is None else guidance.repeat(self.given, step)
        times = time if len(time) == 1 else guidance.repeat(time, step)
        output = self.model.network(guidance.repeat(x, step), times, guidance.take(self.context, step), given)
        return guide(output, guidance.scales[step], self.channels) if guidance.doubled[step] else output


def code_vectors(codec: Codec, device: torch.device) -> Tensor:
    """The vectors (V, D) of all codes, looked up as the tokens of as many images as needed."""
    length, vocab = codec.layout.length, codec.layout.vocab
    assert vocab is not None
    codes = torch.arange(math.ceil(vocab / length) * length, device=device).clamp(max=vocab - 1)
    with torch.no_grad():
        vectors = codec.embed(Tokens(codes.view(-1, length, 1), codec.layout))
    return rearrange(vectors, "b d ... -> (b ...) d")[:vocab].float()


def moments(table_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of the codes' vectors."""
    return table_VD.mean(0), table_VD.std(0).clamp(min=1e-6)
