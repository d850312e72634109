"""Texts, such as captions: the vectors of a text encoder as a sequence, and their mean as one vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from artok.conditioning.base import Conditioner, ConditionerConfig, Context, ContextShape
from artok.conditioning.encoders import learned
from artok.conditioning.encoders.base import TextEncoder, TextEncoderConfig
from artok.config import OPEN, of_kind
from artok.errors import LayoutError
from artok.layout import Condition, ConditionPart


class Config(ConditionerConfig):
    """kind: text. encoder: a file in `artok/conditioning/encoders`.

    null_length: entries of the null in the place of a text that is dropped, in training and by guidance: all, or as
        many as the text has (as in LlamaGen).
    """

    kind: Literal["text"] = "text"
    encoder: Annotated[TextEncoderConfig, of_kind("conditioning.encoders"), OPEN] = learned.Config()
    null_length: Literal["all", "text"] = "all"

    def build(self, shape: ContextShape, classes: int, null: bool) -> Texts:
        return Texts(self.encoder.build(shape.width), shape.width, null, self.null_length == "text")

    @classmethod
    def tiny(cls) -> Config:
        return cls(encoder=learned.Config.tiny())


class Texts(Conditioner):
    """The encoder's vectors; those of an empty text are learned (as LlamaGen's and PixArt's null captions are).

    alike: a dropped text is read as the last entries of the null, as many as it had.
    """

    part: ClassVar[ConditionPart] = "text"
    encoder: TextEncoder

    def __init__(self, encoder: TextEncoder, width: int, null: bool, alike: bool = False) -> None:
        super().__init__()
        self.encoder, self.length, self.alike = encoder, encoder.length, alike
        self.null = nn.Parameter(0.02 * torch.randn(encoder.length, width)) if null else None

    def forward(self, condition: Condition) -> Context:
        text, rows = condition.text, len(condition)
        if text is None:
            if self.null is None:
                raise LayoutError("this generator makes nothing without a text, and the condition has none")
            return self._context(self.null.expand(rows, -1, -1), torch.ones(rows, self.length, device=condition.device))
        sequence, mask = self.encoder(text), text.mask
        if self.null is not None:
            empty_B1, heard = ~mask.any(1, keepdim=True), torch.ones_like(mask)
            null: Tensor = self.null
            if self.alike and text.undropped is not None:
                counts_B1 = text.undropped.sum(1, keepdim=True)
                counts_B1 = counts_B1.masked_fill(counts_B1 == 0, self.length)
                places = torch.arange(self.length, device=mask.device)
                null, heard = null[(places - counts_B1) % self.length], places < counts_B1
            sequence = torch.where(empty_B1[..., None], null.to(sequence.dtype), sequence)
            mask = torch.where(empty_B1, heard, mask)
        return self._context(sequence, mask)

    def _context(self, sequence_BLW: Tensor, mask_BL: Tensor) -> Context:
        weights = mask_BL.to(sequence_BLW.dtype)[..., None]
        pooled = (sequence_BLW * weights).sum(1) / weights.sum(1).clamp(min=1)
        return Context(pooled, sequence_BLW, mask_BL.bool())

    def example(self, rows: int, device: torch.device) -> Condition:
        return Condition(text=self.encoder.example(rows, device))

    def initialise(self, fill: Callable[[Tensor], object]) -> None:
        self.encoder.initialise(fill)
        if self.null is not None:
            fill(self.null)
