"""Measures tokenizers and generators on held-out data, with one evaluator for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from copy import copy
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from artok.data.base import DataConfig, Split, SplitName
from artok.data.captions import pick_captions
from artok.data.loader import Batch, choose_of, read_rows
from artok.data.order import choose_rows
from artok.data.tokens import evaluation_tokens
from artok.errors import ConfigError
from artok.evaluation.controls import HeldOutControls
from artok.evaluation.generation_cost import generation_times, generation_work
from artok.images import from_uint8, to_uint8
from artok.layout import TokenLayout, last
from artok.metrics import cost
from artok.metrics.base import EvalBatch, MetricConfig, MetricContext
from artok.metrics.evaluate import Evaluation
from artok.metrics.features import Extractor, extract, parse
from artok.metrics.floor import SETS as PAIR
from artok.metrics.floor import class_counts, floor, largest, stratified
from artok.metrics.reference import AgainstReference, Reference
from artok.metrics.results import Measurement, Results
from artok.metrics.selection import MetricChoice
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling
from artok.saved import fingerprint
from artok.tokenizers.base import Tokenizer
from artok.training.encode import open_or_encode
from artok.training.extractor import build_extractor, find_modes
from artok.training.progress import Progress

BATCH = 64
READ = 256  # real images read, and passed through the extractor, at once
MOST = 50_000  # held-out images that samples are compared with; a random subset of more
SETS = frozenset({"images", "labels", "real_features", "fake_features"})  # fields that both kinds of run fill
SAMPLES = SETS | {"samples", "conditions"}
PROMPTED = frozenset({"prompted", "prompts"})
MOVING = frozenset({"clips", "clip_classes"})
PREDICTED = frozenset({"real_predicted", "fake_predicted"})


class Evaluator:
    """One evaluator: the same real images, extractor and N for everything it measures.

    Images are read as they are needed and never all held; of real ones only the features are kept.

    n: images to measure, or None for as many as samples are compared with. choice: of metrics. reference: a published
    set that generated images, and reconstructions, are compared with too.
    """

    def __init__(
        self,
        data: DataConfig,
        extractor: str,
        device: str,
        n: int | None,
        progress: Progress,
        choice: MetricChoice | None = None,
        reference: Reference | None = None,
    ) -> None:
        self.choice, self.reference = choice or MetricChoice(), reference
        self.data = data.model_copy(update={"control": None})  # images without the maps that may go with them
        self.with_control, self.controls = data, HeldOutControls(data.control)
        self.device, self.progress = torch.device(device), progress
        self.train_split, self.test_split = data.open("train"), data.open("test")
        progress.notes(self.train_split, self.test_split)
        self.rows = choose_of(self.test_split, MOST)
        self.n = n or len(self.rows)
        self.extractor: Extractor = build_extractor(
            parse(extractor), self.train_split, data.size, device, watch=progress
        )
        progress.say(f"measuring with {self.extractor.name} features on {self.n:,} images")
        first, _ = next(self.read(self.test_split, self.rows[:1]))
        predicts = extract(self.extractor, first)[1] is not None
        self.modes = find_modes(self.train_split, data.size) if predicts else None
        self._floor: dict[str, float] | None = None
        self._others: dict[int, Evaluator] = {}

    def read(self, split: Split, rows: Tensor, batch: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, H, W) uint8 and labels (B,) of a split, in the order of rows."""
        for part in self.read_batches(split, rows, batch):
            yield part.pixels, part.labels

    def read_batches(
        self, split: Split, rows: Tensor, batch: int | None = None, data: DataConfig | None = None
    ) -> Iterator[Batch]:
        """Batches of a split with uint8 images, in the order of rows. data: to be read with another section."""
        for part in read_rows(split, data or self.data, rows.split(batch or READ)):
            yield replace(part, pixels=to_uint8(part.images))

    @cached_property
    def held_out(self) -> EvalBatch:
        """Features, predicted classes, labels and one caption each of the held-out images that samples are compared
        with."""
        features, predicted, labels, texts, done = [], [], [], list[str](), 0
        asked = self.asked_rows() if self.controls.config is not None else torch.zeros(0, dtype=torch.int64)
        for batch in self.read_batches(self.test_split, self.rows, data=self.controls.section(self.with_control)):
            numbers = torch.arange(done, done + len(batch))
            self.controls.keep(batch, numbers, torch.isin(numbers, asked))
            done += len(batch)
            found, logits = extract(self.extractor, batch.pixels)
            features.append(found)
            labels.append(batch.labels)
            texts += choose_captions(batch)
            if logits is not None:
                predicted.append(logits.argmax(1))
        return EvalBatch(
            labels=torch.cat(labels),
            real_features=torch.cat(features),
            real_predicted=torch.cat(predicted) if predicted else None,
            prompts=texts or None,
        )

    def of(self, n: int | None) -> Evaluator:
        """The same evaluator for another number of images; for its own when None."""
        if n is None or n == self.n:
            return self
        if n not in self._others:
            other = copy(self)
            other.n, other._floor, other._others, other.held_out = n, None, {}, self.held_out
            self._others[n] = other
        return self._others[n]

    def tokenizer(self, tokenizer: Tokenizer, name: str) -> Results:
        """Reconstructions of held-out images, and the use of the codebook. A ConfigError when fewer are held out."""
        if self.n > len(self.test_split):
            raise ConfigError(
                f"{name} is a tokenizer and is measured on held-out images, of which the data have "
                f"{len(self.test_split):,}: ask for -n {len(self.test_split)} or fewer, not {self.n}"
            )
        layout = tokenizer.layout
        fields = SETS | {"reconstructions"} | ({"codes"} if layout.discrete else set())
        fields |= MOVING | {"true_clips"} | (PROMPTED if self.test_split.captioned else set())
        evaluation = self.evaluation(self.select(fields, layout), layout)
        against = self.against(layout)
        rows = choose_of(self.test_split, self.n)
        with torch.no_grad(), self.progress.over(0, self.n):
            done = 0
            for batch in self.read_batches(self.test_split, rows, BATCH):
                images, texts = batch.pixels, choose_captions(batch)
                tokens = tokenizer.encode(from_uint8(images).to(self.device))
                decoded = to_uint8(tokenizer.decode(tokens)).cpu()
                codes = tokens.values.cpu() if layout.discrete else None
                seen = EvalBatch(images=images, labels=batch.labels, reconstructions=decoded, codes=codes)
                if texts:
                    seen = replace(seen, prompted=decoded, prompts=texts)
                seen = evaluation.update(seen)
                if against is not None:
                    against.update(seen)
                done += len(images)
                self.progress.advance(done)
        results = self.conclude(evaluation, against, name, 0, layout)
        one = torch.zeros(1, *layout.image, device=self.device)
        with torch.no_grad():
            flops = cost.flops(lambda: tokenizer.decode(tokenizer.encode(one)))
        costs: dict[str, float] = {"parameters": cost.parameters(tokenizer), "flops_per_image": flops}
        if layout.discrete:
            costs |= {"bits_per_image": layout.bits, "bits_per_pixel": layout.bits_per_pixel}
        return replace(results, cost={"tokens_per_image": layout.length * layout.codes} | costs)

    def generator(self, pipeline: Pipeline, name: str, sampling: Sampling, timed: bool = True) -> Results:
        """Samples with the classes of the held-out images, against those; and likelihood, where there is one.

        timed: whether the cost includes times, which say little while something else is running.
        """
        layout = pipeline.tokenizer.layout
        sampling = pipeline.settings({}, sampling)
        fields = SAMPLES | self.predicted | self.told(pipeline) | {"train_images"}
        wanted = self.select(fields | {"log_likelihood"}, layout)
        wants_nats = any("log_likelihood" in config.build(self.subject(layout)).needs for config in wanted)
        nats = list(self.likelihoods(pipeline)) if wants_nats else []
        evaluation = self.evaluation(wanted if nats else self.select(fields, layout), layout, sampling.seed)
        for seen in nats:
            evaluation.update(seen)
        results = self.measure(pipeline, sampling, evaluation, name)
        costs = generation_work(pipeline, sampling) | (generation_times(pipeline, sampling) if timed else {})
        return replace(results, cost=costs)

    def samples_alone(self, pipeline: Pipeline, name: str, sampling: Sampling) -> Results:
        """What can be said from the samples and the held-out images: no likelihood, no search for copies, no cost."""
        layout, sampling = pipeline.tokenizer.layout, pipeline.settings({}, sampling)
        fields = SAMPLES | self.predicted | self.told(pipeline)
        evaluation = self.evaluation(self.select(fields, layout), layout, sampling.seed)
        return self.measure(pipeline, sampling, evaluation, name)

    def measure(self, pipeline: Pipeline, sampling: Sampling, evaluation: Evaluation, name: str) -> Results:
        """Shows real images, samples and training images to the metrics."""
        layout = pipeline.tokenizer.layout
        against = self.against(layout, sampling.seed)
        for seen in self.real(evaluation.wanted):
            evaluation.update(seen)
        for seen in self.samples(pipeline, sampling):
            seen = evaluation.update(seen)
            if against is not None:
                against.update(seen)
        if "unseen" in evaluation.wanted and self.test_split.unseen is not None:
            for seen in self.unseen(pipeline, sampling, self.test_split.unseen):
                evaluation.update(seen)
        if "train_images" in evaluation.wanted:
            for seen in self.training():
                evaluation.update(seen)
        results = self.conclude(evaluation, against, name, sampling.seed, layout)
        return replace(results, sampling=sampling.model_dump(mode="json"))

    # ------------------------------------------------------------------------------------------ parts

    @property
    def predicted(self) -> frozenset[str]:
        return PREDICTED if self.held_out.real_predicted is not None else frozenset()

    def told(self, pipeline: Pipeline) -> frozenset[str]:
        """The fields that say whether samples follow their captions and their control, and how they move."""
        return self.prompted(pipeline) | self.mapped(pipeline) | MOVING

    def prompted(self, pipeline: Pipeline) -> frozenset[str]:
        """The fields of images made for captions, where the generator hears these."""
        return PROMPTED if "text" in pipeline.generator.hears and self.test_split.captioned else frozenset()

    def mapped(self, pipeline: Pipeline) -> frozenset[str]:
        """The fields that say whether samples follow their control."""
        control = self.with_control.control
        compares = "control" in pipeline.generator.hears and control is not None and not control.stored
        return frozenset({"controls", "made_controls"}) if compares else frozenset()

    def subject(self, layout: TokenLayout, seed: int = 0) -> MetricContext:
        return MetricContext(
            layout=layout,
            extractor=self.extractor.name,
            seed=seed,
            modes=self.modes,
            oracle=self.test_split.oracle,
            motion_oracle=self.test_split.motion_oracle,
            clips=len(self.data.image) == 4,
            train_images=len(self.train_split),
            device=str(self.device) if self.device.type == "cuda" else "cpu",  # others may lack float64
            control=self.with_control.control.kind if self.with_control.control else None,
        )

    def select(self, fields: Set[str], layout: TokenLayout) -> list[MetricConfig]:
        return self.choice.select(self.subject(layout), fields)

    def evaluation(self, configs: Sequence[MetricConfig], layout: TokenLayout, seed: int = 0) -> Evaluation:
        return Evaluation([config.build(self.subject(layout, seed)) for config in configs], self.extractor)

    def against(self, layout: TokenLayout, seed: int = 0) -> AgainstReference | None:
        """The comparison with the published reference, where one was named."""
        if self.reference is None:
            return None
        metrics = [config.build(self.subject(layout, seed)) for config in self.select(PAIR, layout)]
        return AgainstReference(self.reference, self.extractor, metrics)

    def conclude(
        self, evaluation: Evaluation, against: AgainstReference | None, name: str, seed: int, layout: TokenLayout
    ) -> Results:
        results = evaluation.results(name, seed=seed, floor=self.floor(layout))
        more: list[Measurement] = against.measurements(seed) if against is not None else []
        return replace(results, measurements=(*results.measurements, *more))

    def floor(self, layout: TokenLayout) -> dict[str, float]:
        """The distances of as many training images to the held-out ones; none where there are too few."""
        if self._floor is None:
            real, labels = self.held_out, self.train_split.labels
            assert real.labels is not None and real.real_features is not None
            most = 0 if labels is None else largest(labels, real.labels)
            if labels is None or most < self.n:
                reason = f"training images with these classes suffice for {most:,}" if most else "labels are not known"
                self.progress.say(f"floors of {self.n:,} images are left out: {reason}")
                self._floor = {}
                return self._floor
            rows = stratified(labels, real.labels, self.n)  # the features of no others are wanted
            train = torch.cat([extract(self.extractor, images)[0] for images, _ in self.read(self.train_split, rows)])
            metrics = [config.build(self.subject(layout)) for config in self.select(PAIR, layout)]
            self._floor = floor(metrics, train, labels[rows], real.real_features, real.labels, self.n)
        return self._floor

    def real(self, wanted: Set[str]) -> Iterator[EvalBatch]:
        """Held-out images with their features; features alone where no metric wants the images."""
        if "images" not in wanted:
            yield self.held_out
            return
        known, done = self.held_out, 0
        for images, labels in self.read(self.test_split, self.rows):
            part = slice(done, done + len(images))
            done += len(images)
            assert known.real_features is not None
            predicted = None if known.real_predicted is None else known.real_predicted[part]
            yield EvalBatch(
                images=images,
                labels=labels,
                prompts=None if known.prompts is None else known.prompts[part],
                real_features=known.real_features[part],
                real_predicted=predicted,
            )

    def training(self) -> Iterator[EvalBatch]:
        """Training images: all, or as many as the choice of metrics names."""
        rows = choose_of(self.train_split, self.choice.train_images)
        if len(rows) > MOST:
            self.progress.say(
                f"searching {len(rows):,} training images for copies; evaluation.train_images=N reads fewer"
            )
        with self.progress.over(0, len(rows)):
            done = 0
            for images, _ in self.read(self.train_split, rows):
                yield EvalBatch(train_images=images)
                done += len(images)
                self.progress.advance(done)

    def samples(self, pipeline: Pipeline, sampling: Sampling) -> Iterator[EvalBatch]:
        """Generated images, their classes shared out as those of the held-out images, or for the captions and control
        of these."""
        done = 0
        with self.progress.over(0, self.n):
            for asked in self.asked(pipeline):
                condition = pipeline.generator.condition(asked.conditions, asked.prompts, control=asked.controls)
                tokens = last(pipeline.steps(condition, sampling, first=done))
                made = to_uint8(pipeline.decode(tokens, sampling.dtype)).cpu()
                seen = replace(asked, samples=made, made_controls=self.control_of(asked, made))
                yield seen if asked.prompts is None else replace(seen, prompted=made)
                done += len(made)
                self.progress.advance(done)

    def unseen(self, pipeline: Pipeline, sampling: Sampling, split: Split) -> Iterator[EvalBatch]:
        """Images for captions of combinations that are held out of training."""
        with self.progress.over(0, self.n):
            done = 0
            for batch in self.read_batches(split, torch.arange(self.n), BATCH):
                prompts = choose_captions(batch)
                tokens = last(pipeline.steps(pipeline.generator.condition(batch.labels, prompts), sampling, first=done))
                unseen = torch.ones(len(prompts), dtype=torch.bool)
                yield EvalBatch(
                    prompted=to_uint8(pipeline.decode(tokens, sampling.dtype)).cpu(), prompts=prompts, unseen=unseen
                )
                done += len(prompts)
                self.progress.advance(done)

    def asked(self, pipeline: Pipeline) -> Iterator[EvalBatch]:
        """What to sample for, n in batches: labels, and for a generator that hears them captions and control."""
        held_out, hears = self.held_out, pipeline.generator.hears
        assert held_out.labels is not None
        if not hears & {"text", "control"}:
            counts = class_counts(held_out.labels, self.n)
            for labels in torch.arange(len(counts)).repeat_interleave(counts).split(BATCH):
                yield EvalBatch(conditions=labels)
            return
        if "control" in hears and self.with_control.control is None:
            raise ConfigError("the generator hears control, and the data give none; set data.control")
        for part in self.asked_rows().split(BATCH):
            told = held_out.prompts
            texts = None if told is None or "text" not in hears else [told[row] for row in part.tolist()]
            maps = self.maps(part) if "control" in hears else None
            yield EvalBatch(conditions=held_out.labels[part], prompts=texts, controls=maps)

    def asked_rows(self) -> Tensor:
        """The held-out images, numbered as in `held_out`, whose captions and control are asked for: n of them."""
        count = len(self.rows)
        return choose_rows(count, self.n) if self.n < count else torch.arange(self.n) % count

    def maps(self, rows: Tensor) -> Tensor:
        """The control (B, ...) uint8 of up to BATCH held-out images, numbered as in `held_out`, each made once."""
        missing = rows[self.controls.missing(rows)]
        if len(missing):
            section = self.controls.section(self.with_control)
            (batch,) = self.read_batches(self.test_split, self.rows[missing], BATCH, section)
            self.controls.keep(batch, missing, torch.ones(len(batch), dtype=torch.bool))
        return self.controls.of(rows, self.with_control.image[1:])

    def control_of(self, asked: EvalBatch, made: Tensor) -> Tensor | None:
        """The maps of generated images, where maps are made of images and were asked for."""
        control = self.with_control.control
        return None if asked.controls is None or control is None or control.stored else control.compute(made)

    @torch.no_grad()
    def likelihoods(self, pipeline: Pipeline) -> Iterator[EvalBatch]:
        """Log-likelihoods of held-out and of training images, as many of each."""
        mark = fingerprint(pipeline.tokenizer)
        for held_out in (True, False):
            name: SplitName = "test" if held_out else "train"
            data = self.with_control if "control" in pipeline.generator.hears else self.data
            cache = open_or_encode(pipeline.tokenizer, mark, data, name, 1, None, self.device, self.progress)
            for batch in evaluation_tokens(cache, BATCH, self.n):
                batch = batch.to(self.device)
                condition = pipeline.generator.condition(batch.labels, batch.texts, control=batch.control)
                nats = pipeline.generator.log_likelihood(batch.tokens, condition, pipeline.tokenizer)
                if nats is None:
                    return
                yield EvalBatch(log_likelihood=nats.cpu()) if held_out else EvalBatch(train_log_likelihood=nats.cpu())


def choose_captions(batch: Batch) -> list[str]:
    """One caption of each image, in turn where there are several, or the empty text; none of data without captions."""
    return [] if batch.captions is None else pick_captions(batch.captions, batch.positions.tolist())
