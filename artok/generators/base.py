"""The base classes of generators: tokens and a condition to losses, a condition to new tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from artok.adversarial.critic import Critic
from artok.conditioning import labels
from artok.conditioning.base import ConditionerConfig, Conditioners, Context, ContextShape
from artok.config import OPEN, Part, of_kind
from artok.errors import ConfigError, LayoutError
from artok.images import from_uint8
from artok.layout import Codec, Condition, TokenLayout, Tokens
from artok.noise import Noise
from artok.sampling.settings import Sampling


class Generator(nn.Module, ABC):
    """A model of the tokens of one layout under a condition.

    classes: number of classes. conditioner: maps a condition to the family's context.
    keeps_known: whether `steps` keeps the known tokens of its condition. reads: the sampling settings that affect its
    samples, besides seed and dtype. writes_text: whether it generates texts too, with `write`.
    """

    conditioner: Conditioners
    keeps_known: ClassVar[bool] = False
    writes_text: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset(Sampling.model_fields)

    def __init__(self, layout: TokenLayout, classes: int) -> None:
        super().__init__()
        self.layout = layout
        self.classes = classes

    @property
    def trains_known(self) -> bool:
        """Whether training shows it known tokens, encoded from images with hidden pixels."""
        return False

    @property
    def hears(self) -> frozenset[str]:
        """The parts of a condition that it uses."""
        return self.conditioner.parts | ({"known"} if self.keeps_known else frozenset())

    @property
    def needs_control(self) -> bool:
        """Whether it was given a control for every image in training, so that it knows nothing without one."""
        return self.conditioner.dropouts.get("control") == 0 and self.conditioner.null_map

    def context(self, condition: Condition) -> Context:
        """The context of a condition. LayoutError: the condition has a part that this generator does not use."""
        unheard = [part for part in condition.parts if part not in self.hears]
        if unheard:
            raise LayoutError(
                f"generator {self.kind} hears {', '.join(sorted(self.hears))}, and the condition also has "
                f"{', '.join(unheard)}"
            )
        if condition.known is not None and condition.known.layout != self.layout:
            raise LayoutError(f"the known tokens are {condition.known.layout}, and the generator's {self.layout}")
        context: Context = self.conditioner(condition)
        return context

    def condition(
        self,
        labels: Tensor | None = None,
        texts: Sequence[str] | None = None,
        negative: Sequence[str] | None = None,
        control: Tensor | None = None,
    ) -> Condition:
        """The condition of labels (B,) int64, B texts and B maps, on the device of the weights, without the parts that
        the generator does not use. negative: B texts for the unconditional half of guidance. control: (B, C, *size)
        uint8 or float in [-1, 1].

        LayoutError: nothing is left.
        """
        device, encoder = next(self.parameters()).device, self.conditioner.encoder
        heard = labels if "labels" in self.hears else None
        told, against = (
            None if encoder is None or each is None else encoder.encode(each) for each in (texts, negative)
        )
        if heard is None and told is None:
            raise LayoutError(
                f"this generator is conditioned on {', '.join(sorted(self.hears))}, and none of it is given"
            )
        maps = control if "control" in self.hears else None
        if maps is not None and maps.dtype == torch.uint8:
            maps = from_uint8(maps)
        return Condition(labels=heard, text=told, negative=against, control=maps).to(device)

    @abstractmethod
    def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        """Weighted scalar losses, whose sum is minimised. Label dropout was applied to the condition before.

        noise: the samples' random numbers, such as for masks and diffusion times.
        """

    @abstractmethod
    def steps(self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None) -> Iterator[Tokens]:
        """Yield the tokens after each sampling step; the last are the finished sample."""

    def log_likelihood(self, tokens: Tokens, condition: Condition, codec: Codec | None) -> Tensor | None:
        """Exact log p(tokens | condition) in nats, (B,) float64, or None for a family without a likelihood."""
        return None

    def write(self, condition: Condition, sampling: Sampling, noise: Noise) -> list[str]:
        """The text of each row, drawn where the condition has none. ConfigError: the family does not generate text."""
        raise ConfigError(f"{type(self).__name__} generates no text")

    def slide(
        self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None, history: int
    ) -> Callable[[Tokens], Tokens]:
        """Sliding-window denoising of a video without end. The result takes a window whose first `history` frames are
        given, and returns it with the frame after them. ConfigError: the family or its training does not allow it."""
        raise ConfigError(f"a {self.kind} makes no video by a sliding window; use rollout chunks")

    def stream(
        self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None, given: Tensor
    ) -> Iterator[Tensor]:
        """The values (B, positions of a frame, K) of each next frame of a video without end, from a cache.

        given: (B, frames, positions of a frame, K), at least none. ConfigError: as of `slide`.
        """
        raise ConfigError(f"a {self.kind} has no cache that a video streams from; use rollout chunks")

    @property
    def kind(self) -> str:
        """The name of its family."""
        return type(self).__module__.rpartition(".")[2]

    def attach_draft(self, draft: Generator) -> None:
        """Set the model whose codes `decoding: speculative` verifies. ConfigError: it cannot draft for this one."""
        raise ConfigError(f"a {self.kind} takes no drafts; leave draft_model out")

    def check(self, sampling: Sampling) -> None:
        """Raise a ConfigError for impossible sampling settings, such as more steps than tokens."""
        return

    def passes(self, sampling: Sampling) -> int:
        """Network passes per sample; both halves of guidance count as one."""
        raise ConfigError(f"{type(self).__name__} does not say how many passes it takes")


class AdversarialGenerator(Generator, ABC):
    """A generator whose loss needs a critic, which is trained with it."""

    def __init__(self, layout: TokenLayout, classes: int) -> None:
        super().__init__(layout, classes)
        self._critic: tuple[Critic, ...] = ()  # in a tuple, so that it is no submodule and its weights are not saved

    @property
    def critic(self) -> Critic:
        """The critic of `attach_critic`. ConfigError: there is none yet."""
        if not self._critic:
            raise ConfigError(
                f"{type(self).__name__} has a loss only against its critic; give it one with `attach_critic`"
            )
        return self._critic[0]

    def attach_critic(self, critic: Critic) -> None:
        """Set the critic to train against."""
        self._critic = (critic,)

    @abstractmethod
    def generate(self, condition: Condition, noise: Noise) -> Tensor:
        """Generated tokens for the critic, (B, D, *grid)."""

    @abstractmethod
    def to_grid(self, tokens: Tokens) -> Tensor:
        """Real tokens for the critic, (B, D, *grid)."""


class GeneratorConfig(Part, ABC):
    """The `generator:` section. reads_maps: whether the family uses a context's map."""

    reads_maps: ClassVar[bool] = True

    conditioning: tuple[Annotated[ConditionerConfig, of_kind("conditioning"), OPEN], ...] = Field(
        (labels.Config(),), min_length=1
    )
    class_dropout: float = Field(
        0.1, ge=0, le=1, description="share of conditions hidden whole in training, for guidance"
    )

    @model_validator(mode="after")
    def _check_conditioning(self) -> Self:
        kinds = [entry.kind for entry in self.conditioning]
        twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
        if twice is not None:
            raise ValueError(f"'conditioning' lists kind {twice} twice; a generator hears each once")
        if all(entry.gives_map for entry in self.conditioning):
            raise ValueError(
                "'conditioning' lists a map alone; add {kind: labels}, which for data of one class is where a sample "
                "starts"
            )
        if not self.reads_maps and any(entry.gives_map for entry in self.conditioning):
            raise ValueError(f"generator {self.kind} hears no control; leave it out of 'conditioning'")
        return self

    @property
    def needs_init(self) -> bool:
        """Whether a part of it is not trained, whose weights `init` names."""
        return False

    @property
    def hears_text(self) -> bool:
        return any(entry.kind == "text" for entry in self.conditioning)

    @property
    def guides(self) -> bool:
        """Whether it can be guided."""
        return self.class_dropout > 0

    @abstractmethod
    def refuse(self, layout: TokenLayout) -> str | None:
        """The reason why it cannot model such tokens (a phrase such as "needs codes"), or None."""

    @abstractmethod
    def build(self, layout: TokenLayout, classes: int) -> Generator:
        """Build the generator with random weights. The layout has passed `refuse`."""

    def conditioners(
        self,
        width: int,
        grid: tuple[int, ...],
        *,
        image: tuple[int, ...],
        classes: int,
        null: bool = True,
        null_map: bool = True,
    ) -> Conditioners:
        """The conditioners of `conditioning`, to contexts of `width` with maps of `grid`, of samples of shape `image`.

        null, null_map: as in `Conditioners`.
        """
        return Conditioners(self.conditioning, ContextShape(width, grid, image), classes, null, null_map)

    def refuse_initial(self, saved: GeneratorConfig) -> str | None:
        """The reason why it cannot start from the weights of such a generator (a phrase such as "hears control"), or
        None: what does not fit is new."""
        return None

    def build_critic(self, layout: TokenLayout, classes: int) -> Critic | None:
        """Build the critic of an AdversarialGenerator with random weights; None for other generators."""
        return None

    @classmethod
    @abstractmethod
    def tiny(cls) -> GeneratorConfig:
        """A small config for the contract tests."""
