"""One evaluation: the images' features are computed once and every metric sees them.

evaluation = Evaluation([config.build(subject) for config in configs], extractor)
for batch in held_out:
    evaluation.update(EvalBatch(images=batch.images, labels=batch.labels))
for batch in generated:
    evaluation.update(EvalBatch(samples=batch.images, conditions=batch.labels))
results = evaluation.results("raster", seed=0, floor=...)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from artok.errors import ArtokError, RunError
from artok.metrics.base import FIELDS, HELD_OUT, EvalBatch, Metric, Rows, SetMetric
from artok.metrics.features import Extractor, extract
from artok.metrics.results import Measurement, Results

FEATURES = frozenset({"real_features", "fake_features", "real_predicted", "fake_predicted"})


class Evaluation:
    """Shows batches to metrics, with the features that any of them wants. wanted: fields that any metric reads."""

    def __init__(self, metrics: Sequence[Metric], extractor: Extractor | None = None, batch: int = 256) -> None:
        """extractor: needed when a metric needs features; refused in one sentence when it is missing.

        batch: images passed through the extractor at once.
        """
        self.metrics, self.extractor, self.batch = list(metrics), extractor, batch
        self.wanted = frozenset().union(*(metric.needs | metric.optional for metric in metrics))
        sets = [metric for metric in metrics if isinstance(metric, SetMetric)]
        self._rows = Rows(*frozenset().union(*(metric.needs for metric in sets)))
        for metric in sets:
            metric.rows = self._rows
        self._others = [metric for metric in metrics if not isinstance(metric, SetMetric)]
        needed = frozenset().union(*(metric.needs for metric in metrics)) & FEATURES
        if needed and extractor is None:
            raise ArtokError(f"these metrics need a feature extractor, for {', '.join(sorted(needed))}")
        self._real = 0

    def update(self, seen: EvalBatch) -> EvalBatch:
        """Adds the missing features of real and generated images, and lets every metric see the batch; returns it.

        Generated images are the samples or, where there are none, the reconstructions. Where they are clips, they are
        also those whose motion is measured.
        """
        made = seen.samples if seen.samples is not None else seen.reconstructions
        if made is not None and made.ndim == 5 and seen.clips is None:
            if seen.samples is not None:
                seen = replace(seen, clips=made, clip_classes=seen.conditions)
            else:
                seen = replace(seen, clips=made, clip_classes=seen.labels, true_clips=seen.images)
        for side, images in (("real", seen.images), ("fake", made)):
            wanted = {f"{side}_features", f"{side}_predicted"} & self.wanted
            given = getattr(seen, f"{side}_features") is not None
            if self.extractor is None or images is None or not wanted or given:
                continue
            features, logits = extract(self.extractor, images, self.batch)
            seen = _with(seen, f"{side}_features", features)
            if logits is not None:
                seen = _with(seen, f"{side}_predicted", logits.argmax(1))
        if self._needs_classes(seen):
            name = self.extractor.name if self.extractor else "none"
            raise ArtokError(f"class consistency needs an extractor that predicts classes, and {name} does not")
        if seen.real_features is not None:
            self._real += len(seen.real_features)
        self._rows.update(seen)
        for metric in self._others:
            metric.update(seen)
        return seen

    def _needs_classes(self, seen: EvalBatch) -> bool:
        needed = any("fake_predicted" in metric.needs for metric in self.metrics)
        return needed and seen.fake_features is not None and seen.fake_predicted is None

    def results(
        self, name: str, seed: int, reference: str = "held-out", floor: Mapping[str, float] | None = None
    ) -> Results:
        """All values with what they were computed from.

        name: of what was evaluated, for tables. reference: what the real images are. floor: from
        `artok.metrics.floor.floor`; where a metric itself measured held-out images, that is its floor. An ArtokError
        when a metric saw too few images, a RunError when a value is not finite.
        """
        known = dict(floor or {})
        measurements = []
        for metric in self.metrics:
            values = metric.compute()
            known |= {key.removesuffix(HELD_OUT): value for key, value in values.items() if key.endswith(HELD_OUT)}
            featured = bool(metric.needs & FEATURES)
            paired = bool({"real_features", "fake_features"} & metric.needs)
            for key, value in values.items():
                if key.endswith(HELD_OUT):
                    continue
                if not math.isfinite(value):
                    raise RunError(f"{key} is not finite: the images or likelihoods that it was computed from are not")
                measurements.append(
                    Measurement(
                        name=key,
                        value=value,
                        n=metric.count,
                        seed=seed,
                        extractor=self.extractor.name if self.extractor and featured else None,
                        fingerprint=self.extractor.fingerprint if self.extractor and featured else None,
                        dim=self.extractor.dim if self.extractor and paired else None,
                        reference=metric.reference or reference,
                        reference_n=self._real if paired else None,
                        floor=known.get(key),
                        k=metric.k,
                    )
                )
        series = {key: values for metric in self.metrics for key, values in metric.series().items()}
        return Results(name, tuple(measurements), series=series)


def _with(seen: EvalBatch, field: str, value: object) -> EvalBatch:
    assert field in FIELDS
    return replace(seen, **{field: value})  # type: ignore[arg-type]
