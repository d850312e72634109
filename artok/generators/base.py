"""What every generator keeps to: tokens and a condition to losses, a condition to new tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from artok.adversarial.critic import Critic
from artok.conditioning import labels
from artok.conditioning.base import ConditionerConfig, Conditioners, Context
from artok.config import OPEN, Part, of_kind
from artok.errors import ConfigError, LayoutError
from artok.layout import Codec, Condition, TokenLayout, Tokens
from artok.noise import Noise
from artok.sampling.settings import Sampling


class Generator(nn.Module, ABC):
    """A model of the tokens of one layout under a condition.

    classes: number of classes. conditioner: what turns a condition into the context that it reads; a family makes it.
    keeps_known: whether `steps` keeps the known tokens of its condition. reads: the sampling settings that change what
    it generates, besides seed and dtype.
    """

    conditioner: Conditioners
    keeps_known: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset(Sampling.model_fields)

    def __init__(self, layout: TokenLayout, classes: int) -> None:
        super().__init__()
        self.layout = layout
        self.classes = classes

    @property
    def hears(self) -> frozenset[str]:
        """The parts of a condition that it makes use of."""
        return self.conditioner.parts | ({"known"} if self.keeps_known else frozenset())

    def context(self, condition: Condition) -> Context:
        """What the condition says. LayoutError: it has a part that this generator makes no use of."""
        unheard = [part for part in condition.parts if part not in self.hears]
        if unheard:
            raise LayoutError(
                f"generator {type(self).__module__.rpartition('.')[2]} hears {', '.join(sorted(self.hears))}, and the "
                f"condition also has {', '.join(unheard)}"
            )
        if condition.known is not None and condition.known.layout != self.layout:
            raise LayoutError(f"the known tokens are {condition.known.layout}, and the generator's {self.layout}")
        context: Context = self.conditioner(condition)
        return context

    @abstractmethod
    def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        """Weighted scalar losses, whose sum is trained. Label dropout has been applied to the condition already.

        noise: the samples' random numbers, for a model that needs some (masks, diffusion times).
        """

    @abstractmethod
    def steps(self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None) -> Iterator[Tokens]:
        """Tokens as they are decided, a yield for each step; the last is the finished sample."""

    def log_likelihood(self, tokens: Tokens, condition: Condition, codec: Codec | None) -> Tensor | None:
        """Exact log p(tokens | condition) in nats, (B,) float64, or None for a family that has none."""
        return None

    def check(self, sampling: Sampling) -> None:
        """A ConfigError when it cannot sample so, such as in more steps than it has. All else is ignored."""
        return

    def passes(self, sampling: Sampling) -> int:
        """Network passes that one sample takes (both halves of guidance count as one)."""
        raise ConfigError(f"{type(self).__name__} does not say how many passes it takes")


class AdversarialGenerator(Generator, ABC):
    """A generator that has a loss only against a critic, which trains beside it."""

    def __init__(self, layout: TokenLayout, classes: int) -> None:
        super().__init__(layout, classes)
        self._critic: tuple[Critic, ...] = ()  # not a submodule: its weights are not this model's

    @property
    def critic(self) -> Critic:
        """The critic that `attach_critic` was given; a ConfigError before that."""
        if not self._critic:
            raise ConfigError(
                f"{type(self).__name__} has a loss only against its critic; give it one with `attach_critic`"
            )
        return self._critic[0]

    def attach_critic(self, critic: Critic) -> None:
        """Train against this critic from now on."""
        self._critic = (critic,)

    @abstractmethod
    def generate(self, condition: Condition, noise: Noise) -> Tensor:
        """What the critic is shown as made, (B, D, *grid)."""

    @abstractmethod
    def to_grid(self, tokens: Tokens) -> Tensor:
        """What the critic is shown as real, (B, D, *grid)."""


class GeneratorConfig(Part, ABC):
    """The `generator:` section."""

    conditioning: tuple[Annotated[ConditionerConfig, of_kind("conditioning"), OPEN], ...] = Field(
        (labels.Config(),), min_length=1
    )
    class_dropout: float = Field(0.1, ge=0, le=1, description="share of labels hidden in training, for guidance")

    @abstractmethod
    def refuse(self, layout: TokenLayout) -> str | None:
        """Why this generator cannot model such tokens (a phrase such as "needs codes"), or None when it can."""

    @abstractmethod
    def build(self, layout: TokenLayout, classes: int) -> Generator:
        """The generator, with fresh weights. The layout has passed `refuse`."""

    def conditioners(self, width: int, classes: int, null: bool = True) -> Conditioners:
        """Those of `conditioning`, to contexts of `width`. null: whether they know the lack of a condition."""
        return Conditioners(self.conditioning, width, classes, null)

    def build_critic(self, layout: TokenLayout, classes: int) -> Critic | None:
        """The critic of an AdversarialGenerator, with fresh weights; None for all others."""
        return None

    @classmethod
    @abstractmethod
    def tiny(cls) -> GeneratorConfig:
        """The smallest sensible setting, which the contract tests run."""
