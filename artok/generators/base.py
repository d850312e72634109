"""What every generator keeps to: tokens and a condition to losses, a condition to new tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from pydantic import Field
from torch import Tensor, nn

from artok.adversarial.critic import Critic
from artok.config import Part
from artok.errors import ConfigError
from artok.layout import Codec, Condition, TokenLayout, Tokens
from artok.noise import Noise
from artok.sampling.settings import Sampling


class Generator(nn.Module, ABC):
    """A model of the tokens of one layout, conditioned on a class.

    classes: number of classes; the label `classes` itself means "no label".
    """

    def __init__(self, layout: TokenLayout, classes: int) -> None:
        super().__init__()
        self.layout = layout
        self.classes = classes

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
        self._opponent: tuple[Critic, ...] = ()  # not a submodule: its weights are not this model's

    @property
    def opponent(self) -> Critic:
        """The critic that `face` named; a ConfigError before that."""
        if not self._opponent:
            raise ConfigError(f"{type(self).__name__} has a loss only against its critic; give it one with `face`")
        return self._opponent[0]

    def face(self, critic: Critic) -> None:
        """Train against this critic from now on."""
        self._opponent = (critic,)

    @abstractmethod
    def made(self, condition: Condition, noise: Noise) -> Tensor:
        """What the critic is shown as made, (B, D, *grid)."""

    @abstractmethod
    def pictures(self, tokens: Tokens) -> Tensor:
        """What the critic is shown as real, (B, D, *grid)."""


class GeneratorConfig(Part, ABC):
    """The `generator:` section."""

    class_dropout: float = Field(0.1, ge=0, le=1, description="share of labels hidden in training, for guidance")

    @abstractmethod
    def refuse(self, layout: TokenLayout) -> str | None:
        """Why this generator cannot model such tokens (a phrase such as "needs codes"), or None when it can."""

    @abstractmethod
    def build(self, layout: TokenLayout, classes: int) -> Generator:
        """The generator, with fresh weights. The layout has passed `refuse`."""

    def build_critic(self, layout: TokenLayout, classes: int) -> Critic | None:
        """The opponent of an AdversarialGenerator, with fresh weights; None for all others."""
        return None

    @classmethod
    @abstractmethod
    def tiny(cls) -> GeneratorConfig:
        """The smallest sensible setting, which the contract tests run."""
