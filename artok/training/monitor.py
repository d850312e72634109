"""Whether a generator in training still covers its data, by a few samples now and then.

A Monitor draws no global random number and its samples have a fixed seed, so a run with it is the run without it, and
a resumed run logs what an uninterrupted one does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from artok.data.base import Split
from artok.data.memory import read_into_memory
from artok.data.order import choose_rows
from artok.data.tokens import TokenBatch
from artok.images import to_uint8
from artok.layout import last
from artok.metrics.diversity import NEIGHBOURS, measure_diversity
from artok.metrics.features import extract, parse
from artok.noise import Noise, fold
from artok.pipeline import Pipeline
from artok.training.extractor import build_extractor

BATCH = 100
FEWEST = 2 * NEIGHBOURS  # images on each side below which nothing can be told


class Monitor:
    """values = monitor(pipeline), at any time in training.

    The real images are read and looked at once, when it is made.
    """

    def __init__(
        self,
        extractor: str,
        images: int,
        train: Split,
        test: Split,
        train_labels: Tensor | None,
        test_labels: Tensor | None,
        size: int,
        device: torch.device,
        told: TokenBatch | None = None,
    ) -> None:
        """images: how many to sample, and to compare with of either split; at least `FEWEST`.

        *_labels: (N,) of all images of a split where they are known without reading them, so that the real images have
        as many of each class as the samples do. size: of the images. told: held-out images to sample for, as they are
        labelled, captioned and mapped; by default as many of each class. Errors as from `build_extractor`.
        """
        self.images, self.classes, self.device = images, len(train.classes), device
        self.labels = told.labels if told else torch.arange(images) * self.classes // images
        self.texts, self.control = (told.texts, told.control) if told else (None, None)
        self.extractor = build_extractor(parse(extractor), train, size, device)
        known = []
        for split, labels in ((train, train_labels), (test, test_labels)):
            pixels, own = read_into_memory(split, size, self._rows(split, labels))
            known.append((extract(self.extractor, pixels)[0], own))
        (self.train, self.train_labels), (self.real, self.real_labels) = known

    def _rows(self, split: Split, labels: Tensor | None) -> Tensor:
        """Which real images to look at: of each class as many as are sampled, or what there is of a rarer one."""
        if split.sequential:  # far rows of a stream would be read for nothing but to be skipped
            return torch.arange(self.images)
        if labels is None:
            return choose_rows(len(split), self.images)
        order = Noise(fold("monitor"), torch.zeros(1, dtype=torch.int64)).permutation(len(labels))[0]
        wanted = torch.bincount(self.labels, minlength=self.classes)
        rows = [order[labels[order] == label][:count] for label, count in enumerate(wanted.tolist()) if count]
        return torch.cat(rows).sort().values

    def __call__(self, pipeline: Pipeline) -> dict[str, float]:
        """The values of `artok.metrics.diversity.measure_diversity` for samples under the pipeline's own settings."""
        labels, features = self.labels, []
        for start in range(0, self.images, BATCH):
            part = slice(start, start + BATCH)
            texts = None if self.texts is None else self.texts[part]
            control = None if self.control is None else self.control[part]
            condition = pipeline.generator.condition(labels[part], texts, control=control)
            tokens = last(pipeline.steps(condition, pipeline.sampling, first=start))
            features.append(extract(self.extractor, to_uint8(pipeline.decode(tokens, pipeline.sampling.dtype)))[0])
        fake = torch.cat(features)
        return {"samples": len(fake)} | measure_diversity(
            self.real, self.train, fake, self.real_labels, self.train_labels, labels
        )
