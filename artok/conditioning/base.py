"""What every conditioner keeps to: a Condition in, a Context out. One file a kind, each for one part of a Condition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from artok.conditioning.encoders.base import TextEncoder
from artok.config import Part
from artok.layout import GUIDED, Condition, ConditionPart
from artok.nn.vit import CrossAttention
from artok.noise import Noise


@dataclass(frozen=True)
class Context:
    """A condition as vectors of width W.

    pooled: (B, W), the whole of it as one vector. sequence: (B, L, W), the same as a sequence, and mask: (B, L) bool,
    where it has entries, or None for everywhere. spatial: (B, W, *grid), or None where the condition has no map.
    mapped: (B,) bool, the rows that have a map; None for all. keys_values: of the sequence, by the cross-attention
    that reads it; those that `project` has computed.
    """

    pooled: Tensor
    sequence: Tensor
    mask: Tensor | None = None
    spatial: Tensor | None = None
    mapped: Tensor | None = None
    keys_values: Mapping[CrossAttention, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pooled)

    @property
    def places(self) -> Tensor | None:
        """The map as (B, N, W), row-major; None where there is none."""
        return None if self.spatial is None else self.spatial.flatten(2).transpose(1, 2)

    def __getitem__(self, rows: slice | Tensor) -> Context:
        optional = self.mask, self.spatial, self.mapped
        mask, spatial, mapped = (None if part is None else part[rows] for part in optional)
        keys_values = {layer: part[rows] for layer, part in self.keys_values.items()}
        return Context(self.pooled[rows], self.sequence[rows], mask, spatial, mapped, keys_values)

    def project(self, network: nn.Module) -> Context:
        """The same with the keys and values of all cross-attention of a network, which all its passes then share."""
        layers = [layer for layer in network.modules() if isinstance(layer, CrossAttention)]
        return replace(self, keys_values={layer: layer.project(self.sequence) for layer in layers})

    def heard(self, layer: CrossAttention | None) -> tuple[Tensor | None, ...]:
        """What a cross-attention reads besides the tokens; nothing where there is none."""
        return () if layer is None else (self.sequence, self.mask, self.keys_values.get(layer))

    def left_padded(self) -> Context:
        """The same with the entries of each sequence moved to its end, for causal attention."""
        if self.mask is None:
            return self
        order_BL = self.mask.long().argsort(dim=1, stable=True)
        sequence = self.sequence.gather(1, order_BL[..., None].expand_as(self.sequence))
        return replace(self, sequence=sequence, mask=self.mask.gather(1, order_BL))


@dataclass(frozen=True)
class ContextShape:
    """What contexts fit. width: W of their vectors. grid: of their maps. image: (channels, *size) of the samples."""

    width: int
    grid: tuple[int, ...]
    image: tuple[int, ...]


class Conditioner(nn.Module, ABC):
    """Turns one part of a condition into a context.

    part: its name. length: of its contexts' sequences. One whose part is text has its `TextEncoder` as `encoder`.
    """

    part: ClassVar[ConditionPart]
    length: int

    @abstractmethod
    def forward(self, condition: Condition) -> Context:
        """The context; where the part is missing or null, that of its null."""

    @abstractmethod
    def example(self, rows: int, device: torch.device) -> Condition:
        """A condition of its part alone, of the largest size; for counting costs."""

    @abstractmethod
    def initialise(self, fill: Callable[[Tensor], object]) -> None:
        """Give the weights that stand for the condition their first values. fill: sets a tensor in place."""


def add_last(x_BND: Tensor, places_BnD: Tensor) -> Tensor:
    """x with a map's vectors added to its last n entries, those that predict the n positions of the map."""
    first = x_BND.shape[1] - places_BnD.shape[1]
    return torch.cat([x_BND[:, :first], x_BND[:, first:] + places_BnD], dim=1)


class ConditionerConfig(Part, ABC):
    """An entry of the `conditioning:` list. gives_map: whether its contexts have a map."""

    gives_map: ClassVar[bool] = False

    dropout: float = Field(0.0, ge=0, lt=1, description="share of rows that hide this part alone in training")

    @abstractmethod
    def build(self, shape: ContextShape, classes: int, null: bool) -> Conditioner:
        """The conditioner to contexts of this shape. null: whether it has a null, which guidance needs."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> ConditionerConfig:
        """The smallest sensible setting, which the contract tests run."""


class Conditioners(nn.ModuleDict):
    """The conditioners of a generator by the names of their parts, with one context of them all."""

    def __init__(
        self,
        configs: tuple[ConditionerConfig, ...],
        shape: ContextShape,
        classes: int,
        null: bool = True,
        null_map: bool = True,
    ) -> None:
        """null, null_map: whether they embed a missing part, and a missing map; contexts without one have no map."""
        built = [config.build(shape, classes, null_map if config.gives_map else null) for config in configs]
        super().__init__({conditioner.part: conditioner for conditioner in built})

        self.null_map = null_map
        self.gives_map = any(config.gives_map for config in configs)
        self.dropouts = {conditioner.part: config.dropout for conditioner, config in zip(built, configs, strict=True)}

    def _all(self) -> list[Conditioner]:
        return cast(list[Conditioner], list(self.values()))

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(self.keys())

    @property
    def length(self) -> int:
        """Of the contexts' sequences."""
        return sum(conditioner.length for conditioner in self._all())

    @property
    def encoder(self) -> TextEncoder | None:
        """The encoder of texts; None where text is not a part."""
        found = (getattr(each, "encoder", None) for each in self._all())
        return next((encoder for encoder in found if isinstance(encoder, TextEncoder)), None)

    def example(self, rows: int, device: torch.device) -> Condition:
        """A condition with every part, each of the largest size; for counting costs."""
        each = [conditioner.example(rows, device) for conditioner in self._all()]
        return Condition(**{part: getattr(one, part) for one in each for part in one.parts})

    def drop(self, condition: Condition, share: float, noise: Noise) -> Condition:
        """The condition with parts hidden at random: those that guidance drops together in a share of the rows, and
        each part in its own share."""
        hidden_B = noise.uniform() < share
        for part in condition.parts:
            own = self.dropouts.get(part, 0.0)
            if part in GUIDED:
                condition = condition.dropped(part, hidden_B | (noise.uniform() < own) if own else hidden_B)
            elif own:
                condition = condition.dropped(part, noise.uniform() < own)
        return condition

    def initialise(self, fill: Callable[[Tensor], object]) -> None:
        for conditioner in self._all():
            conditioner.initialise(fill)

    def forward(self, condition: Condition) -> Context:
        """Pooled vectors are summed, sequences follow one another."""
        contexts: list[Context] = [conditioner(condition) for conditioner in self._all()]
        if len(contexts) == 1:
            return contexts[0]
        masks = [
            torch.ones_like(context.sequence[..., 0], dtype=torch.bool) if context.mask is None else context.mask
            for context in contexts
        ]
        masked = any(context.mask is not None for context in contexts)
        maps = [context for context in contexts if context.spatial is not None]
        assert len(maps) <= 1, "one part of a condition is a map"
        return Context(
            torch.stack([context.pooled for context in contexts]).sum(0),
            torch.cat([context.sequence for context in contexts], dim=1),
            torch.cat(masks, dim=1) if masked else None,
            maps[0].spatial if maps else None,
            maps[0].mapped if maps else None,
        )
