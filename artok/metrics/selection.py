"""Which metrics an evaluation computes: those that its config names, or every one that suits what is measured."""

from __future__ import annotations

from collections.abc import Set
from typing import Annotated

from pydantic import Field, field_validator

from artok.config import OPEN, Config, find, kinds, of_kind
from artok.metrics.base import MetricConfig, MetricContext
from artok.metrics.quantity import GROUPS


class Rollout(Config):
    """How held-out clips are continued: from their first `given` frames to `frames`; `clips` of them."""

    given: int = Field(9, ge=1)
    frames: int = Field(65, ge=2)
    clips: int = Field(96, ge=2)


class MetricChoice(Config):
    """The section `evaluation` of an experiment, and part of that of a study."""

    metrics: tuple[Annotated[MetricConfig, of_kind("metrics"), OPEN], ...] | None = Field(
        None, description="kinds, or sections such as {kind: kid, subsets: 10}; all metrics that suit unless given"
    )
    edits: tuple[str, ...] = Field(
        (), description="masks, as in `artok edit`, that held-out images are edited and measured with; see --edit"
    )
    rollout: Rollout | None = Field(
        None, description="of generators of clips: held-out clips are continued and measured with; see --rollout"
    )
    train_images: int | None = Field(
        None, ge=1, description="training images that copies are looked for among, a random subset; all unless given"
    )

    @field_validator("metrics", mode="before")
    @classmethod
    def _sections(cls, entries: object) -> object:
        """A kind alone is a section with the kind's defaults."""
        if not isinstance(entries, list | tuple):
            return entries
        return [{"kind": entry} if isinstance(entry, str) else entry for entry in entries]

    def select(self, subject: MetricContext, fields: Set[str]) -> list[MetricConfig]:
        """The chosen metrics that suit the subject and need no field beyond `fields`, in the order of tables.

        Those that do not are left out: one choice serves tokenizers and generators.
        """
        chosen = list(self.metrics) if self.metrics is not None else _all_metrics()
        suiting = [config for config in chosen if config.suits(subject)]
        return sorted(
            (config for config in suiting if config.build(subject).needs <= fields),
            key=lambda config: GROUPS.index(config.quantities[0].group),
        )


def _all_metrics() -> list[MetricConfig]:
    """Every metric of the package with its defaults, without those that are computed only by name."""
    found = [find("metrics", kind).model_validate({"kind": kind}) for kind in kinds("metrics")]
    return [config for config in found if isinstance(config, MetricConfig) and not config.by_name]
