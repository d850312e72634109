"""Class labels, each an embedding; one row more, the last, stands for "no label"."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from artok.conditioning.base import Conditioner, ConditionerConfig, Context, ContextShape
from artok.errors import LayoutError
from artok.layout import NO_LABEL, Condition, ConditionPart


class Config(ConditionerConfig):
    """kind: labels."""

    kind: Literal["labels"] = "labels"

    def build(self, shape: ContextShape, classes: int, null: bool) -> Labels:
        return Labels(shape.width, classes, null)

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class Labels(Conditioner):
    """A label's embedding, pooled and as a sequence of one."""

    part: ClassVar[ConditionPart] = "labels"
    length = 1

    def __init__(self, width: int, classes: int, null: bool) -> None:
        super().__init__()
        self.classes, self.null = classes, null
        self.embedding = nn.Embedding(classes + null, width)

    def forward(self, condition: Condition) -> Context:
        labels = condition.labels
        if labels is None:
            if not self.null:
                raise LayoutError("this generator makes nothing without labels, and the condition has none")
            labels = torch.full((len(condition),), NO_LABEL, device=condition.device)
        if self.null:
            labels = labels.masked_fill(labels == NO_LABEL, self.classes)
        pooled = self.embedding(labels)
        return Context(pooled, pooled[:, None])

    def example(self, rows: int, device: torch.device) -> Condition:
        return Condition(labels=torch.zeros(rows, dtype=torch.int64, device=device))

    def initialise(self, fill: Callable[[Tensor], object]) -> None:
        fill(self.embedding.weight)
