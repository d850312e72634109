"""Text and image as one stream of tokens, both of which are generated (DALL-E, Ramesh et al. 2021, arXiv 2102.12092).

The sequence is [start, text id 0, ... text id L - 1, code 0, code 1, ...], read by the blocks of `raster`. A label
comes before or after the text, as `conditioning` lists them. Each position that a text leaves free has a padding vector
of its own (section 2.2). Text and image have a head each, so no text id is predicted for an image or the other way
round. Attention is dense, where the paper's is sparse.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from artok.conditioning import labels, text
from artok.conditioning.base import Conditioner, ConditionerConfig, Context
from artok.conditioning.encoders import learned
from artok.conditioning.encoders.learned import PAD, LearnedEncoder
from artok.conditioning.text import Texts
from artok.config import OPEN, of_kind
from artok.generators import raster
from artok.layout import Codec, Condition, Text, TokenLayout, Tokens
from artok.nn.attention import KVCache, causal_mask
from artok.noise import Noise
from artok.sampling.logits import draw
from artok.sampling.settings import Sampling


class Config(raster.Config):
    """kind: dalle. The settings of raster, with a text in `conditioning`.

    text_weight: share of the text in the loss, by default (text + 7 image) / 8 (Ramesh et al. 2021, section 2.2).
    The text's encoder is `learned` of depth 0, of which no entry depends on those after it.
    """

    kind: Literal["dalle"] = "dalle"  # type: ignore[assignment]
    conditioning: tuple[Annotated[ConditionerConfig, of_kind("conditioning"), OPEN], ...] = Field(
        (text.Config(encoder=learned.Config(depth=0)),), min_length=1
    )
    class_position: Literal["origin"] = "origin"
    text_weight: float = Field(1 / 8, gt=0, lt=1)

    @field_validator("conditioning")
    @classmethod
    def _check_text(cls, entries: tuple[ConditionerConfig, ...]) -> tuple[ConditionerConfig, ...]:
        told = next((entry for entry in entries if isinstance(entry, text.Config)), None)
        if told is None or not isinstance(told.encoder, learned.Config) or told.encoder.depth:
            raise ValueError(
                "generator dalle generates text too; list {kind: text, encoder: {kind: learned, depth: 0}} in "
                "'conditioning', or take kind raster, which hears any text and needs none"
            )
        return entries

    def build(self, layout: TokenLayout, classes: int) -> Dalle:
        return Dalle(self, layout, classes)

    @classmethod
    def tiny(cls) -> Config:
        told = text.Config(encoder=learned.Config.tiny().model_copy(update={"depth": 0}))
        return cls(depth=2, width=32, heads=2, multiple_of=8, conditioning=(labels.Config(), told))


class Dalle(raster.Raster):
    """p(text) p(codes | text), each a product over its tokens. Without a text, as guidance hears it, all of the text's
    positions are padding.

    image_weight: of the codes in the loss.
    """

    writes_text: ClassVar = True

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__(config, layout, classes, ahead=1)
        self.image_weight = 1 - config.text_weight
        lengths = {name: cast(Conditioner, part).length for name, part in self.conditioner.items()}
        before = list(lengths)[: list(lengths).index("text")]
        self.first = 1 + sum(lengths[name] for name in before)  # place of text id 0
        self.end = self.first + lengths["text"]
        self.start = nn.Parameter(0.02 * torch.randn(1, self.width))
        self.text_head = nn.Linear(self.width, self.encoder.config.vocab_size, bias=False)
        nn.init.zeros_(self.text_head.weight)

    @property
    def encoder(self) -> LearnedEncoder:
        return cast(LearnedEncoder, self.conditioner.encoder)

    def prefixed(self, condition: Condition) -> Context:
        context = self.context(condition)
        sequence_BLW = torch.cat([self.start.expand(len(context), 1, -1), context.sequence], dim=1)
        if condition.text is not None:
            padding_LW = cast(Tensor, cast(Texts, self.conditioner["text"]).null)
            part = sequence_BLW[:, self.first : self.end]
            part = torch.where(condition.text.mask[..., None], part, padding_LW.to(part.dtype))
            sequence_BLW = torch.cat([sequence_BLW[:, : self.first], part, sequence_BLW[:, self.end :]], dim=1)
        return replace(context, sequence=sequence_BLW, mask=None)

    def text_logits(self, states_BLD: Tensor) -> Tensor:
        return self.text_head(self.norm(states_BLD)).float()

    def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        """The mean over the codes, and over the ids of each text with its end, the first padding. A hidden text has
        none."""
        nll, states = self.nll(tokens, condition, noise)
        given = self.text_of(condition)
        logits = self.text_logits(states[:, self.first - 1 : self.end - 1])
        nats = F.cross_entropy(logits.transpose(1, 2), given.values.masked_fill(~given.mask, PAD), reduction="none")
        read = F.pad(given.mask, (1, -1), value=True) & given.mask.any(1, keepdim=True)
        text_nll = (nats * read).sum(1).div(read.sum(1).clamp(min=1)).mean()
        return {"nll": self.image_weight * nll, "text_nll": (1 - self.image_weight) * text_nll}

    def text_of(self, condition: Condition) -> Text:
        """The condition's text, of which a missing one has no entries."""
        if condition.text is not None:
            return condition.text
        ids = torch.full((len(condition), self.end - self.first), PAD, device=condition.device)
        return Text(ids, torch.zeros_like(ids, dtype=torch.bool))

    # ------------------------------------------------------------------------------------------ writing text

    def complete(self, condition: Condition, sampling: Sampling, noise: Noise) -> Condition:
        """The condition with a text drawn for each row that has none: id by id until its end, without guidance."""
        given = self.text_of(condition)
        context = self.prefixed(condition)
        rows, length, head_width = len(context), self.encoder.length, self.width // self.heads
        device, dtype = condition.device, sampling.activations
        cache = KVCache.allocate(len(self.blocks), rows, self.heads, self.end - 1, head_width, device, dtype)
        uniform = noise.uniform(length)
        ids = torch.full_like(given.values, PAD)
        latest, goes_on = context.sequence[:, : self.first], torch.ones(rows, dtype=torch.bool, device=device)
        for place in range(length):
            done, count = cache.filled, latest.shape[1]
            mask = causal_mask(count, device, done)
            logits = self.text_logits(self.transform(latest, self.rotary[done : done + count], mask, cache)[:, -1])
            cache.filled += count
            if place == 0:
                logits[:, PAD] = -math.inf
            drawn = draw(logits, uniform[:, place], sampling.temperature, sampling.top_k, sampling.top_p)
            goes_on = goes_on & (drawn != PAD)
            ids[:, place] = drawn.where(goes_on, PAD)
            told = self.prefixed(replace(condition, text=Text(ids, ids != PAD))).sequence
            latest = told[:, self.first + place : self.first + place + 1]
        missing_B1 = ~given.mask.any(1, keepdim=True)
        drawn_text = Text(torch.where(missing_B1, ids, given.values), torch.where(missing_B1, ids != PAD, given.mask))
        return replace(condition, text=drawn_text)

    def write(self, condition: Condition, sampling: Sampling, noise: Noise) -> list[str]:
        texts = self.encoder.decode(self.text_of(self.complete(condition, sampling, noise)))
        return [" ".join(each.split()) for each in texts]  # a line each
