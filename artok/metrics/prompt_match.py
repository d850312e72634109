"""Prompt match: the share of images that show what was asked for, as read by the oracle that some data have.

Exact means right in everything that the caption asks. The parts tell attributes apart, and captions of one object from
those of two. `unseen` is the share among combinations that training never shows (composition). `shuffled` is the share
of images that match the caption of another image: what a generator that ignores its captions would reach. Of a
tokenizer the reconstructions are scored, which bounds every generator on its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from artok.errors import ArtokError
from artok.metrics.base import EvalBatch, Metric, MetricConfig, MetricContext, enough
from artok.metrics.quantity import Quantity
from artok.oracle import Oracle

NAME = "prompt_match"
NUMBERS = {1: "one_object", 2: "two_objects"}


class Config(MetricConfig):
    """Share of images that show what their caption asks for; the data must have an oracle, as shapes do."""

    kind: Literal["prompt_match"] = "prompt_match"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            NAME,
            "prompt match",
            "",
            "higher",
            "Fidelity to the condition",
            "Share of images that show all that was asked, by the data's oracle; shuffled is the share for captions of "
            "other images.",
        ),
    )

    def suits(self, subject: MetricContext) -> bool:
        return subject.oracle is not None

    def build(self, subject: MetricContext) -> PromptMatch:
        if subject.oracle is None:
            raise ArtokError("the metric prompt_match needs data whose captions can be checked in an image, as shapes")
        return PromptMatch(subject.oracle, subject.seed)

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class PromptMatch(Metric):
    needs: ClassVar[frozenset[str]] = frozenset({"prompted", "prompts"})
    optional: ClassVar[frozenset[str]] = frozenset({"unseen"})

    def __init__(self, oracle: Oracle, seed: int) -> None:
        self._oracle, self._seed = oracle, seed
        self._images: list[Tensor] = []
        self._prompts: list[str] = []
        self._scores: dict[str, list[Tensor]] = {}

    @property
    def count(self) -> int:
        return len(self._prompts)

    def update(self, seen: EvalBatch) -> None:
        images, prompts = seen.prompted, seen.prompts
        if images is None or prompts is None:  # those of real images stand alone
            return
        if len(images) != len(prompts):
            raise ArtokError(f"there are {len(images)} images for {len(prompts)} prompts")
        if seen.unseen is not None:
            new = seen.unseen.nonzero().flatten().tolist()
            found = self._oracle.match(images[new], [prompts[row] for row in new])
            self._scores.setdefault("unseen", []).append(found["exact"])
            known = (~seen.unseen).nonzero().flatten().tolist()
            images, prompts = images[known], [prompts[row] for row in known]
        self._score(images, prompts)
        self._images.append(images)
        self._prompts += prompts

    def _score(self, images: Tensor, prompts: Sequence[str]) -> None:
        found = self._oracle.match(images, prompts)
        things = torch.tensor([self._oracle.things(prompt) for prompt in prompts])
        for number, name in NUMBERS.items():
            found[name] = found["exact"][things == number]
        for name, values in found.items():
            self._scores.setdefault("" if name == "exact" else name, []).append(values)

    def compute(self) -> dict[str, float]:
        enough("prompt match", {"images with prompts": self.count}, 1)
        scores = {name: torch.cat(parts) for name, parts in self._scores.items()}
        others = torch.randperm(self.count, generator=torch.Generator().manual_seed(self._seed))
        # each image of the random order against the caption of the one before, so none meets its own
        images, before = torch.cat(self._images)[others], others.roll(1).tolist()
        scores["shuffled"] = self._oracle.match(images, [self._prompts[row] for row in before])["exact"]
        shares = {name: float(values.nanmean()) for name, values in scores.items() if not values.isnan().all()}
        if "" not in shares:
            raise ArtokError(f"the oracle understands none of the prompts, such as {self._prompts[0]!r}")
        return {f"{NAME}/{name}" if name else NAME: share for name, share in shares.items()}
