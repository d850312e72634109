"""The sampling settings of all families. Each family reads the ones that it uses."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from artok.config import Config
from artok.layout import GUIDED
from artok.noise import Seed
from artok.sampling.frames import FrameOrder
from artok.sampling.solvers import SolverName

GUIDANCE = frozenset(  # what every guided family reads
    {"cfg_scale", "cfg_schedule", "cfg_power", "cfg_interval", "cfg_parts"}
)
DRAWS = frozenset({"temperature", "top_k", "top_p"})  # what every family of codes reads

DRAFTS = frozenset({"decoding", "draft_length", "draft_model", "steps"})  # what autoregressive families of codes read

LONG = frozenset({"rollout", "overlap", "history", "cache_frames", "sinks"})  # what videos longer than a clip read
FRAMES = frozenset({"frame_order", "key_frame_stride", "history_noise"})  # what diffusion of frames reads

Decoding = Literal["sequential", "jacobi", "speculative", "parallel", "next_neighbour", "row_parallel"]
GuidedPart = Literal["labels", "text", "control"]
AT_ONCE = frozenset({"parallel", "next_neighbour", "row_parallel"})  # decodings that draw several codes in a pass
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Sampling(Config):
    """The `sampling:` section.

    cfg_scale: classifier-free guidance, uncond + cfg_scale * (cond - uncond); 1 is off. cfg_schedule: of the scale over
    the steps, from 1 to `cfg_scale`. cfg_interval: start and end of the guided steps, as shares of all. cfg_parts: the
    parts of the condition that its unconditional half does not hear.
    decoding: of raster's codes. sequential takes a pass for each; jacobi drafts several, keeps those that sequential
    would draw, and so gives the same sample in fewer passes; speculative takes drafts from `draft_model` and leaves the
    distribution as it is; parallel draws several at once in `steps` passes, of a model trained with order random; of
    such a model next_neighbour draws a diagonal in each pass, and row_parallel a row.
    eta: DDIM's share of DDPM's noise. choice_temperature: of the Gumbel noise on the confidences of masked generation
    (4.5 in MaskGIT's code).
    jump_length, jump_n_sample: of RePaint, for known tokens of a diffusion that was not trained with masks: how many
    steps it goes back at once, and how often it passes them; 1 never goes back.
    frame_order: of a video's frames, by diffusion trained with forcing diffusion: together; in_order; a pyramid, each
    frame noisier than the one before; or key_frames, every key_frame_stride-th and the last, before those between them.
    history_noise: the noise level, as a share of all levels, at which the known frames of a video are read by diffusion
    trained with forcing: noise hides the small errors of what it made before, with which it would drift.
    rollout: how a video longer than the clips of training is made. chunks: clip after clip, each with the last frames
    of the one before as known tokens. sliding: by diffusion trained with forcing diffusion, one frame of tokens after
    the other, the later ones of a window being noisier. stream: by a raster, from a cache of the last `cache_frames`
    frames and the first `sinks`.
    overlap: frames of tokens that a chunk or window starts with; default half of a clip's, rounded up.
    history: what they are: frames, encoded anew as the beginning of a clip, as in training; or tokens, as they were
    made, and the video is then decoded as one.
    cache_frames: of tokens; default as many as fit a clip.
    dtype: of the linear layers' weights and products. auto is the fastest one near float32: on a GPU bfloat16; on a CPU
    weights in float16, and bfloat16 for many rows and for the decoder where the CPU multiplies it natively.
    """

    cfg_scale: float = Field(1.0, ge=0)
    cfg_schedule: Literal["constant", "linear", "cosine"] = "constant"
    cfg_power: float = Field(1.0, gt=0, description="power of the cosine schedule")
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    cfg_parts: tuple[GuidedPart, ...] = Field(GUIDED, min_length=1)
    temperature: float = Field(1.0, ge=0, description="0 takes the most likely token")
    truncation: float | None = Field(None, gt=0, description="largest number in a GAN's latents")
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    decoding: Decoding = "sequential"
    draft_length: int | None = Field(
        None, ge=1, description="codes drafted for a pass; of jacobi by default as many as pay"
    )
    draft_model: str | None = Field(None, description="a small run of the same tokenizer, for decoding speculative")
    steps: int | None = Field(None, ge=1, description="sampling steps, where a family has a choice")
    solver: SolverName | None = Field(None, description="for diffusion")
    head_steps: int | None = Field(None, ge=1, description="solver steps of a diffusion head, for each token")
    eta: float = Field(0.0, ge=0, le=1)
    choice_temperature: float = Field(4.5, ge=0)
    jump_length: int = Field(5, ge=1, description="steps of a jump back, for known tokens")
    jump_n_sample: int = Field(4, ge=1, description="passes over the steps of a jump")
    frame_order: FrameOrder = "together"
    key_frame_stride: int = Field(4, ge=2)
    history_noise: float = Field(0.0, ge=0, lt=1)
    rollout: Literal["chunks", "sliding", "stream"] = "chunks"
    overlap: int | None = Field(None, ge=1)
    history: Literal["frames", "tokens"] = "frames"
    cache_frames: int | None = Field(None, ge=1)
    sinks: int = Field(1, ge=0)
    edit_rounds: int = Field(
        1, ge=1, description="how often an edit makes the hidden part, each time beside the last result"
    )
    dtype: Precision | None = Field(None, description="default bfloat16 on a GPU that has it, else float32")
    seed: Seed = 0

    @property
    def activations(self) -> torch.dtype:
        """The type of the activations, and so of the cached keys and values."""
        return torch.float32 if self.dtype in (None, "auto") else getattr(torch, self.dtype)

    @property
    def guides(self) -> bool:
        """Whether guidance needs the unconditional half."""
        return self.cfg_scale != 1
