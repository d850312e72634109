"""The raster autoregressive transformer: Llama blocks read an image's codes row by row (LlamaGen, Sun et al. 2024).

The sequence is [prefix, code 0, code 1, ...], the prefix being the context's sequence: a class, or a text with its
padding on the left. The output at the prefix's end and at each code predicts the next code. With several codes at a
position (residual quantizers), a position's codes follow one another, coarse to fine. The control at the position that
is predicted, if there is one, is added to the input (ControlAR, Li et al. 2024, arXiv 2410.02705, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.conditioning.base import Context, add_last
from artok.config import Depth
from artok.errors import ConfigError
from artok.generators.base import Generator, GeneratorConfig
from artok.generators.masked import schedule
from artok.generators.raster_decoder import RasterDecoder, given_codes, in_order, in_waves, known_first
from artok.generators.raster_stream import RasterStream
from artok.layout import Codec, Condition, TokenLayout, Tokens
from artok.nn.attention import KVCache, causal_mask
from artok.nn.dropout import Dropout
from artok.nn.gradient_checkpointing import run
from artok.nn.grid_layers import PastFrames
from artok.nn.rotary import rotary_table
from artok.nn.transformer import LlamaBlock
from artok.noise import Noise
from artok.sampling.decoding import jacobi, parallel, sequential, speculative
from artok.sampling.settings import AT_ONCE, DRAFTS, DRAWS, GUIDANCE, Sampling

DRAFTED = 4  # codes that a draft model draws for a pass

SIZES = {  # layers, heads, width: the published LlamaGen models
    "B": (12, 12, 768),
    "L": (24, 16, 1024),
    "XL": (36, 20, 1280),
    "XXL": (48, 24, 1536),
    "3B": (24, 32, 3200),
}


class Config(GeneratorConfig):
    """kind: raster.

    size: a published model. Or set `depth`: by default width is 64 * depth and there are depth heads.
    hidden: width inside SwiGLU; default 8/3 of the width, rounded up to a multiple of `multiple_of`.
    class_position: the rotary entry of the prefix. Zeros are published, also for texts, and make attention weigh its
        entries alike. The grid's origin lets it tell the words of a text apart. Default: zero for a prefix of one
        entry, such as a class, and origin for a longer one.
    order: of the tokens in training: raster; random, another order for each image (RAR, Yu et al. 2024, arXiv
        2411.00776; sigma-GPT, Pannatier et al. 2024, arXiv 2404.09562); or known_first, those that an editing mask
        leaves and then the hidden ones, for which tokens are encoded at each step. Beyond raster, sampling takes known
        tokens first.
    target_init: deviation of the initial weights of an embedding of the position that is predicted next (RAR, section
        3.3). Beyond raster order it is needed, and .02 by default. In raster order there is none by default, since the
        rotary embedding tells positions apart; a short training learns faster with it what to draw where.
    past_frames: of a video, how many frames before the predicted one a convolution reads around the predicted place, to
        be added to the input. In short runs on video it learns what moves much sooner than attention alone.
    history_noise: the largest share of the codes read in training that are replaced by random ones; each sample draws
        one below it. A model that is used to wrong codes drifts less over its own.
    """

    kind: Literal["raster"] = "raster"
    size: Literal["B", "L", "XL", "XXL", "3B"] | None = None
    depth: Depth | None = None
    width: int | None = Field(None, ge=4)
    heads: int | None = Field(None, ge=1)
    hidden: int | None = Field(None, ge=1)
    multiple_of: int = Field(256, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    qk_norm: bool = False
    tied_head: bool = Field(False, description="share the output weights with the token embedding")
    rope_base: float = Field(10000.0, gt=1)
    class_position: Literal["zero", "origin"] | None = None
    order: Literal["raster", "random", "known_first"] = "raster"
    target_init: float | None = Field(None, gt=0)
    past_frames: int = Field(0, ge=0)
    history_noise: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> Config:
        if (self.size is None) == (self.depth is None):
            raise ValueError("give either size (B, L, XL, XXL, 3B) or depth")
        if self.size and (self.width or self.heads):
            raise ValueError("width and heads follow from size; leave them out, or give depth instead of size")
        _, heads, width = self.shape()
        if width % (2 * heads):
            raise ValueError(f"width {width} must be a multiple of twice the heads ({heads})")
        if self.past_frames and self.order != "raster":
            raise ValueError(f"past_frames reads the frames before, and order {self.order} has none; choose raster")
        return self

    def shape(self) -> tuple[int, int, int]:
        """Layers, heads, width."""
        if self.size:
            return SIZES[self.size]
        assert self.depth is not None
        return self.depth, self.heads or self.depth, self.width or 64 * self.depth

    def hidden_width(self) -> int:
        """LlamaGen's rule: two thirds of 4 * width, rounded down, then up to a multiple of `multiple_of`."""
        wanted = int(2 * (4 * self.shape()[2]) / 3)
        return self.hidden or self.multiple_of * math.ceil(wanted / self.multiple_of)

    def refuse(self, layout: TokenLayout) -> str | None:
        if not layout.discrete:
            return "needs codes, since it predicts a distribution over a vocabulary"
        if len(layout.grids) != 1:
            return "needs a single grid, since it reads tokens row by row"
        if self.tied_head and layout.codes != 1:
            return "with tied_head needs one code per position, since each level has its own embeddings"
        if self.past_frames and len(layout.grid) != 3:
            return "with past_frames needs the tokens of a video, in frames, rows and columns"
        return None

    def build(self, layout: TokenLayout, classes: int) -> Raster:
        return Raster(self, layout, classes)

    @classmethod
    def tiny(cls) -> Config:
        return cls(depth=2, width=32, heads=2, multiple_of=8)


class Raster(Generator):
    """p(codes | condition) as a product in raster order, or in any order if it was trained on others."""

    keeps_known = True
    reads: ClassVar = GUIDANCE | DRAWS | DRAFTS

    def __init__(self, config: Config, layout: TokenLayout, classes: int, ahead: int = 0) -> None:
        """ahead: entries of the prefix ahead of the context's."""
        super().__init__(layout, classes)
        depth, self.heads, width = config.shape()
        assert layout.vocab is not None
        self.config, self.width, self.vocab, self.gradient_checkpointing = config, width, layout.vocab, False
        self._draft: tuple[Raster, ...] = ()  # in a tuple, so that it is no submodule
        self.conditioner = config.conditioners(width, layout.grid, image=layout.image, classes=classes)
        self.token_embedding = nn.Embedding(layout.codes * layout.vocab, width)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            LlamaBlock(width, self.heads, config.hidden_width(), config.dropout, config.qk_norm) for _ in range(depth)
        )
        self.past = PastFrames(width, layout.grid, config.past_frames) if config.past_frames else None
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.ordered = config.order != "raster"  # each image has an order of its own
        self.target = nn.Embedding(layout.length, width) if self.ordered or config.target_init else None
        self.head = nn.Linear(width, layout.vocab, bias=False)
        table = rotary_table(layout.grid, width // self.heads, config.rope_base)
        self.prefix = ahead + self.conditioner.length
        position = config.class_position or ("zero" if self.prefix == 1 else "origin")
        first = torch.zeros_like(table[:1]) if position == "zero" else table[:1]
        table = torch.cat([first.expand(self.prefix, -1, -1), table.repeat_interleave(layout.codes, 0)])
        self.rotary: Tensor
        self.level_offset: Tensor
        self.register_buffer("rotary", table, persistent=False)
        self.register_buffer("level_offset", torch.arange(layout.codes) * layout.vocab, persistent=False)
        for name, module in self.named_children():
            if name == "conditioner":
                self.conditioner.initialise(partial(nn.init.normal_, std=0.02))
            else:
                module.apply(self._initialise)
        if config.tied_head:
            self.head.weight = self.token_embedding.weight
        else:
            nn.init.zeros_(self.head.weight)
        if self.target is not None:
            nn.init.normal_(self.target.weight, std=config.target_init or 0.02)

    @property
    def trains_known(self) -> bool:
        return self.config.order == "known_first"

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    # ------------------------------------------------------------------------------------------ one pass

    def logits(
        self,
        codes: Tensor,
        context: Context,
        start: int | Tensor = 0,
        cache: KVCache | None = None,
        order: Tensor | None = None,
        ahead: int = 1,
    ) -> Tensor:
        """Logits (B, n, V) float32 of codes start, start + 1, ...

        codes: (B, n - 1), codes 0, 1, ... when `start` is 0, else (B, n), codes start - 1, start, ... start: of all
        rows, or of each (B,), above 0; what the cache holds from there on is written anew. order: (B, N) positions, in
        which the codes are given; raster order unless given. context: of `prefixed`. ahead: of how many codes after the
        last one read, each without the others, where n grows by ahead - 1.
        """
        begins = isinstance(start, int) and start == 0
        x_BND = self.states(codes, context, start, cache, order, ahead)
        return self.head(self.norm(x_BND[:, self.prefix - 1 if begins else 0 :])).float()

    def states(
        self,
        codes: Tensor,
        context: Context,
        start: int | Tensor = 0,
        cache: KVCache | None = None,
        order: Tensor | None = None,
        ahead: int = 1,
    ) -> Tensor:
        """The last block's output at the codes, (B, n, D), after that at the prefix when `start` is 0. As `logits`."""
        begins = isinstance(start, int) and start == 0
        # of `codes`, among all codes of the image: (n,), or (B, n) where rows differ
        places = torch.arange(codes.shape[1], device=codes.device)
        if not begins:
            places = places + (start - 1 if isinstance(start, int) else start[:, None] - 1)
        x_BND = self.token_embedding(codes + self.level_offset[places % self.layout.codes])
        predicted = F.pad(places + 1, (1, 0)) if begins else places + 1
        if begins:
            x_BND = torch.cat([context.sequence, x_BND], dim=1)
        if ahead > 1:
            predicted = torch.cat([predicted, predicted[-1:] + torch.arange(1, ahead, device=codes.device)])
        aims, own = predicted // self.layout.codes, places
        if order is not None:
            aims = order.gather(1, aims.expand(len(order), -1))
            own = order.gather(1, (places // self.layout.codes).expand(len(order), -1)) * self.layout.codes
        rotary = self.rotary[self.prefix + own]
        if begins:
            before = self.rotary[: self.prefix]
            rotary = torch.cat([before.expand(*rotary.shape[:-3], -1, -1, -1), rotary], dim=-3)
        if ahead > 1:  # the last entry once for each code that it predicts
            x_BND = torch.cat([x_BND, x_BND[:, -1:].expand(-1, ahead - 1, -1)], dim=1)
            rotary = torch.cat([rotary, rotary[..., -1:, :, :].expand(*rotary.shape[:-3], ahead - 1, -1, -1)], dim=-3)
        if context.places is not None:
            at = aims.expand(len(x_BND), -1)[..., None].expand(-1, -1, self.width)
            x_BND = add_last(x_BND, context.places.gather(1, at))
        if self.target is not None:
            x_BND = add_last(x_BND, self.target(aims).expand(len(x_BND), -1, -1))
        rows = None if isinstance(start, int) else self.prefix + start - 1
        filled = 0 if begins else self.prefix - 1 + (start if isinstance(start, int) else int(start.max()))
        if cache is not None:
            cache.filled, cache.rows = filled, rows
        alone = ahead if ahead > 1 else 0
        mask = causal_mask(x_BND.shape[1], x_BND.device, filled, context.mask, rows, alone)
        return self.transform(x_BND, rotary, mask, cache)

    def transform(self, x_BND: Tensor, rotary: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """All blocks."""
        x_BND = self.dropout(x_BND)
        for layer, block in enumerate(self.blocks):
            x_BND = run(block, x_BND, rotary, mask, cache, layer, checkpoint=self.gradient_checkpointing)
        return x_BND

    def prefixed(self, condition: Condition) -> Context:
        """The context whose sequence is the prefix."""
        return self.context(condition).left_padded()

    def recall(self, context: Context, codes: Tensor) -> Context:
        """The context with what `past_frames` before each place tell of it. codes: (B, all), of which a place reads
        those of the frames before its own."""
        if self.past is None:
            return context
        places = self.layout.length, self.layout.codes
        vectors = self.token_embedding(codes.unflatten(1, places) + self.level_offset).sum(2)
        told = self.past(vectors).transpose(1, 2).unflatten(2, self.layout.grid)
        return replace(context, spatial=told if context.spatial is None else context.spatial + told)

    def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        return {"nll": self.nll(tokens, condition, noise)[0]}

    def nll(self, tokens: Tokens, condition: Condition, noise: Noise) -> tuple[Tensor, Tensor]:
        """The mean over the codes, and the `states` that predict them.

        Given known tokens, they are read in place of the image's own and not predicted.
        """
        known = condition.known if self.ordered else None
        order = noise.permutation(self.layout.length) if self.config.order == "random" else known_first(known)
        codes = in_order(tokens.values, order).flatten(1)
        read = codes
        if known is not None:
            read = torch.where(given_codes(known, order), in_order(known.values, order).flatten(1), codes)
        if self.config.history_noise:
            wrong = noise.uniform(read.shape[1]) < self.config.history_noise * noise.uniform()[:, None]
            read = torch.where(wrong, noise.integers(self.vocab, read.shape[1]), read)
        states = self.states(read[:, :-1], self.recall(self.prefixed(condition), read), order=order)
        logits = self.head(self.norm(states[:, self.prefix - 1 :])).float()
        nats = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none")
        if known is None:
            return nats.mean(), states
        hidden = ~given_codes(known, order)
        return (nats.view_as(hidden) * hidden).sum(1).div(hidden.sum(1).clamp(min=1)).mean(), states

    def log_likelihood(
        self, tokens: Tokens, condition: Condition, codec: Codec | None, order: Tensor | None = None
    ) -> Tensor:
        """order: (B, N) positions in which the codes are predicted; raster order unless given."""
        codes = in_order(tokens.values, order).flatten(1)
        context = self.recall(self.prefixed(condition), codes)
        log_probability = self.logits(codes[:, :-1], context, order=order).log_softmax(-1)
        return log_probability.gather(-1, codes[..., None])[..., 0].double().sum(1)

    # ------------------------------------------------------------------------------------------ sampling

    def steps(self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None) -> Iterator[Tokens]:
        """One step per pass; known codes replace the drawn ones. The known codes that all rows begin with take no step.

        In raster order a code is drawn without those known ones that follow it. The code of each place is drawn with
        the place's own noise, so jacobi decoding gives the sample of sequential decoding.
        """
        decoder = RasterDecoder(self, condition, sampling, noise)
        for done in self._decode(decoder, condition, sampling, noise):
            yield self._unfinished(decoder.codes, done, decoder.order, condition.known)

    def _decode(
        self, decoder: RasterDecoder, condition: Condition, sampling: Sampling, noise: Noise
    ) -> Iterator[int] | Iterator[Tensor]:
        left = self.layout.length - decoder.first
        if sampling.decoding == "parallel":
            return parallel(decoder, schedule(left, min(self.passes(sampling), left)))
        if sampling.decoding in AT_ONCE:
            after = in_waves(self.layout.grid, sampling.decoding)[1]
            return parallel(decoder, [left, *(each for each in after if each < left)])
        if sampling.decoding == "sequential" or condition.device.type == "meta":  # without values no draft is right
            return sequential(decoder)
        if sampling.decoding == "jacobi":
            return jacobi(decoder, sampling.draft_length)
        if not self._draft:
            raise ConfigError(
                "decoding speculative needs a draft model; name a small run of this tokenizer as draft_model"
            )
        draft = RasterDecoder(self._draft[0], condition, sampling, noise)
        return speculative(decoder, draft, sampling.draft_length or DRAFTED, noise)

    def stream(
        self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None, given: Tensor
    ) -> Iterator[Tensor]:
        if self.ordered:
            raise ConfigError("a video without end is drawn in raster order, and this model was trained in others")
        window = self.layout.grid[0] - 1 - sampling.sinks if sampling.cache_frames is None else sampling.cache_frames
        return iter(RasterStream(self, condition, sampling, noise, given, window, sampling.sinks))

    def attach_draft(self, draft: Generator) -> None:
        if not isinstance(draft, Raster) or draft.layout != self.layout or draft.config.order != self.config.order:
            raise ConfigError(
                "a draft model draws the same codes in the same order: train a small raster on this run's tokenizer, "
                f"with order {self.config.order}"
            )
        self._draft = (draft,)

    def _unfinished(self, codes: Tensor, done: int | Tensor, order: Tensor | None, known: Tokens | None) -> Tokens:
        values = codes.unflatten(1, self.layout.value_shape())
        count_B = torch.as_tensor(done, device=codes.device).expand(len(codes)) // self.layout.codes
        whole = torch.arange(self.layout.length, device=codes.device) < count_B[:, None]
        if order is not None:
            places = order.argsort(1)
            values, whole = in_order(values, places), whole.gather(1, places)
        if (done if isinstance(done, int) else int(done.min())) == codes.shape[1]:
            return Tokens(values.clone(), self.layout)
        return Tokens(values.clone(), self.layout, known=whole if known is None else whole | known.flags)

    def check(self, sampling: Sampling) -> None:
        decoding, steps, length = sampling.decoding, sampling.steps, self.layout.length
        if sampling.draft_length is not None and decoding not in ("jacobi", "speculative"):
            raise ConfigError("draft_length is of decoding jacobi and speculative, which draft codes; leave it out")
        if (sampling.draft_model is not None) != (decoding == "speculative"):
            raise ConfigError("decoding speculative and draft_model go together; give both or neither")
        if steps is not None and decoding != "parallel":
            raise ConfigError(f"decoding {decoding} has no choice of steps, which is of parallel; leave it out")
        if decoding in AT_ONCE and (self.config.order != "random" or self.layout.codes > 1):
            raise ConfigError(
                f"decoding {decoding} needs one code per position and a model trained with order random, and this one "
                f"has {self.layout.codes} and order {self.config.order}; decoding jacobi is for all"
            )
        if steps is not None and steps > length:
            raise ConfigError(f"{steps} steps are more than the {length} codes; ask for fewer")

    def passes(self, sampling: Sampling) -> int:
        """With drafts, the most that it may take."""
        if sampling.decoding == "parallel":
            return sampling.steps or max(1, self.layout.length // 2)
        if sampling.decoding in AT_ONCE:
            return len(in_waves(self.layout.grid, sampling.decoding)[1])
        return self.layout.length * self.layout.codes
