"""`artok evaluate`: a tokenizer or a generator measured on held-out data, with one evaluator for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from copy import copy
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from artok.config import override, read_yaml, validate
from artok.data.base import DataConfig, SplitName
from artok.data.memory import read_into_memory
from artok.data.order import choose_rows
from artok.data.tokens import evaluation_tokens
from artok.errors import ConfigError
from artok.images import from_uint8, to_uint8
from artok.layout import Condition, TokenLayout, last
from artok.metrics import cost
from artok.metrics.base import EvalBatch, MetricConfig, MetricContext
from artok.metrics.evaluate import Evaluation
from artok.metrics.features import Extractor, extract, parse
from artok.metrics.floor import class_counts, floor, largest, stratified
from artok.metrics.results import Results
from artok.metrics.selection import MetricChoice
from artok.noise import Noise
from artok.pipeline import Pipeline
from artok.planning.op_trace import Trace
from artok.sampling.settings import Sampling
from artok.saved import CONFIG, find_saved, fingerprint, load_tokenizer, read_saved
from artok.tokenizers.base import Tokenizer
from artok.training.encode import open_or_encode, read_data_section
from artok.training.extractor import build_extractor, find_modes
from artok.training.progress import Progress

BATCH = 64
RESULTS = "results.json"
SETS = frozenset({"images", "labels", "real_features", "fake_features"})  # fields that both kinds of run fill
SAMPLES = SETS | {"samples", "conditions"}
PREDICTED = frozenset({"real_predicted", "fake_predicted"})
TRACED = 4  # images of the batch whose peak memory is taken


def evaluate(
    name: str, n: int | None, extractor: str, changes: Sequence[str], device: str, progress: Progress
) -> Results:
    """Measure a run on the held-out images of its data and write `results.json` beside it.

    n: images, all held-out ones unless given. changes: sampling settings as key=value, settings of the data as
    data.key=value and the choice of metrics as evaluation.key=value. Errors as in loading, a ConfigError when the data
    do not fit the model, and an ArtokError when n is larger than what a floor can be measured for.
    """
    folder = find_saved(name)
    saved = read_saved(folder)
    of_data = [change for change in changes if change.startswith("data.")]
    of_choice = [change.partition(".")[2] for change in changes if change.startswith("evaluation.")]
    of_sampling = [change for change in changes if not change.startswith(("data.", "evaluation."))]
    data = read_data_section(folder, saved.facts.image, of_data)
    if saved.generator is None and of_sampling:
        raise ConfigError(f"{folder} is a tokenizer; sampling settings such as {of_sampling[0]} do not apply")
    pipeline = Pipeline.from_pretrained(folder, device) if saved.generator is not None else None
    sampling = pipeline.settings(override({}, of_sampling)) if pipeline is not None else Sampling()
    section = read_yaml(folder / CONFIG).get("evaluation") or {}
    choice = validate(MetricChoice, override(section, of_choice), "evaluation")
    evaluator = Evaluator(data, extractor, device, n, progress, choice)
    if pipeline is None:
        tokenizer, _ = load_tokenizer(folder)
        results = evaluator.tokenizer(tokenizer.to(device), folder.name)
    else:
        classes = evaluator.train_split.classes
        if len(classes) != len(saved.facts.classes):
            raise ConfigError(
                f"{folder} makes images of {len(saved.facts.classes)} classes and the data have {len(classes)}; "
                "name the data that it was made for with data.key=value"
            )
        results = evaluator.generator(pipeline, folder.name, sampling)
    results.save(folder / RESULTS)
    return results


class Evaluator:
    """One evaluator: the same real images, extractor and N for everything it measures.

    n: images to measure, or None for all that are held out. choice: of metrics.
    """

    def __init__(
        self,
        data: DataConfig,
        extractor: str,
        device: str,
        n: int | None,
        progress: Progress,
        choice: MetricChoice | None = None,
    ) -> None:
        self.choice = choice or MetricChoice()
        self.data, self.device, self.progress = data, torch.device(device), progress
        self.train_split, self.test_split = data.open("train"), data.open("test")
        progress.notes(self.train_split, self.test_split)
        self.test_images, self.test_labels = read_into_memory(self.test_split, data.size)
        self.train_images, self.train_labels = read_into_memory(self.train_split, data.size)
        self.n = min(n or len(self.test_images), largest(self.train_labels, self.test_labels))
        progress.say(f"measuring with {extractor} features on {self.n:,} images")
        known = (self.train_images, self.train_labels)
        self.extractor: Extractor = build_extractor(
            parse(extractor), self.train_split, data.size, device, known, progress
        )
        predicts = extract(self.extractor, self.test_images[:1])[1] is not None
        self.modes = find_modes(self.train_split, data.size) if predicts else None
        self._floor: dict[str, float] | None = None
        self._others: dict[int, Evaluator] = {}

    @cached_property
    def held_out(self) -> EvalBatch:
        """All held-out images with their features, which are the same whatever is measured."""
        features, logits = extract(self.extractor, self.test_images)
        predicted = None if logits is None else logits.argmax(1)
        return EvalBatch(
            images=self.test_images, labels=self.test_labels, real_features=features, real_predicted=predicted
        )

    def of(self, n: int | None) -> Evaluator:
        """The same evaluator for another number of images; for all of its own when None."""
        count = self.n if n is None else min(n, largest(self.train_labels, self.test_labels))
        if count == self.n:
            return self
        if count not in self._others:
            other = copy(self)
            other.n, other._floor, other._others, other.held_out = count, None, {}, self.held_out
            self._others[count] = other
        return self._others[count]

    def tokenizer(self, tokenizer: Tokenizer, name: str) -> Results:
        """Reconstructions of the held-out images, and the use of the codebook."""
        layout = tokenizer.layout
        fields = SETS | {"reconstructions"} | ({"codes"} if layout.discrete else set())
        evaluation = self.evaluation(self.select(fields, layout), layout)
        with torch.no_grad(), self.progress.over(0, self.n):
            for done, rows in enumerate(choose_rows(len(self.test_images), self.n).split(BATCH)):
                images = self.test_images[rows]
                tokens = tokenizer.encode(from_uint8(images).to(self.device))
                decoded = to_uint8(tokenizer.decode(tokens)).cpu()
                codes = tokens.values.cpu() if layout.discrete else None
                labels = self.test_labels[rows]
                evaluation.update(EvalBatch(images=images, labels=labels, reconstructions=decoded, codes=codes))
                self.progress.advance(done * BATCH + len(rows))
        results = evaluation.results(name, seed=0, floor=self.floor(layout))
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
        fields = SAMPLES | self.predicted | {"train_images"}
        wanted = self.select(fields | {"log_likelihood"}, layout)
        wants_nats = any("log_likelihood" in config.build(self.subject(layout)).needs for config in wanted)
        nats = list(self.likelihoods(pipeline)) if wants_nats else []
        evaluation = self.evaluation(wanted if nats else self.select(fields, layout), layout)
        for seen in nats:
            evaluation.update(seen)
        evaluation.update(replace(self.held_out, train_images=self.train_images))
        for seen in self.samples(pipeline, sampling):
            evaluation.update(seen)
        results = evaluation.results(name, seed=sampling.seed, floor=self.floor(layout))
        costs = generation_work(pipeline, sampling) | (generation_times(pipeline, sampling) if timed else {})
        return replace(results, cost=costs, sampling=sampling.model_dump(mode="json"))

    def samples_alone(self, pipeline: Pipeline, name: str, sampling: Sampling) -> Results:
        """What can be said from the samples and the held-out images: no likelihood, no search for copies, no cost."""
        layout = pipeline.tokenizer.layout
        sampling = pipeline.settings({}, sampling)
        evaluation = self.evaluation(self.select(SAMPLES | self.predicted, layout), layout)
        evaluation.update(self.held_out)
        for seen in self.samples(pipeline, sampling):
            evaluation.update(seen)
        results = evaluation.results(name, seed=sampling.seed, floor=self.floor(layout))
        return replace(results, sampling=sampling.model_dump(mode="json"))

    # ------------------------------------------------------------------------------------------ parts

    @property
    def predicted(self) -> frozenset[str]:
        return PREDICTED if self.held_out.real_predicted is not None else frozenset()

    def subject(self, layout: TokenLayout) -> MetricContext:
        return MetricContext(layout=layout, extractor=self.extractor.name, modes=self.modes)

    def select(self, fields: Set[str], layout: TokenLayout) -> list[MetricConfig]:
        return self.choice.select(self.subject(layout), fields)

    def evaluation(self, configs: Sequence[MetricConfig], layout: TokenLayout) -> Evaluation:
        return Evaluation([config.build(self.subject(layout)) for config in configs], self.extractor)

    def floor(self, layout: TokenLayout) -> dict[str, float]:
        """The distances of as many training images to the held-out ones."""
        if self._floor is None:
            metrics = self.evaluation(
                self.select(frozenset({"real_features", "fake_features"}), layout), layout
            ).metrics
            rows = stratified(self.train_labels, self.test_labels, self.n)  # the features of no others are wanted
            train, _ = extract(self.extractor, self.train_images[rows])
            test = self.held_out.real_features
            assert test is not None
            self._floor = floor(metrics, train, self.train_labels[rows], test, self.test_labels, self.n)
        return self._floor

    def samples(self, pipeline: Pipeline, sampling: Sampling) -> Iterator[EvalBatch]:
        """Generated images, their classes shared out as those of the held-out images."""
        counts = class_counts(self.test_labels, self.n)
        labels = torch.arange(len(counts)).repeat_interleave(counts)
        with self.progress.over(0, self.n):
            for start in range(0, self.n, BATCH):
                part = labels[start : start + BATCH]
                tokens = last(pipeline.steps(Condition(part.to(self.device)), sampling, first=start))
                yield EvalBatch(samples=to_uint8(pipeline.decode(tokens)).cpu(), conditions=part)
                self.progress.advance(start + len(part))

    @torch.no_grad()
    def likelihoods(self, pipeline: Pipeline) -> Iterator[EvalBatch]:
        """Log-likelihoods of held-out and of training images, as many of each."""
        mark = fingerprint(pipeline.tokenizer)
        for held_out in (True, False):
            name: SplitName = "test" if held_out else "train"
            cache = open_or_encode(pipeline.tokenizer, mark, self.data, name, 1, None, self.device, self.progress)
            for batch in evaluation_tokens(cache, BATCH, self.n):
                batch = batch.to(self.device)
                nats = pipeline.generator.log_likelihood(batch.tokens, Condition(batch.labels), pipeline.tokenizer)
                if nats is None:
                    return
                yield EvalBatch(log_likelihood=nats.cpu()) if held_out else EvalBatch(train_log_likelihood=nats.cpu())


def generation_work(pipeline: Pipeline, sampling: Sampling) -> dict[str, float]:
    """Parameters, passes, FLOPs and memory of generating: all that does not depend on the machine."""
    plain = sampling.model_copy(update={"dtype": "float32"})

    @torch.inference_mode()
    def work(count: int) -> None:  # on the model as it was trained: prepared weights hide what they multiply
        noise = Noise(0, torch.arange(count, device=pipeline.device))
        steps = pipeline.generator.steps(pipeline.condition([0], count), plain, noise, pipeline.tokenizer)
        pipeline.decode(last(steps))

    with Trace() as trace:
        work(TRACED)
    return {
        "parameters": cost.parameters(pipeline.generator),
        "network_passes": pipeline.generator.passes(sampling),
        "flops_per_image": cost.flops(lambda: work(1)),
        "peak_memory_bytes_per_image": trace.peak / TRACED,
    }


def generation_times(pipeline: Pipeline, sampling: Sampling) -> dict[str, float]:
    """Times of generating; this machine's, as it is now."""
    device = pipeline.device
    return {
        "latency_s": cost.latency(lambda: make(pipeline, sampling, 1), device).median,
        "throughput_images_per_s": cost.throughput(lambda: make(pipeline, sampling, BATCH), BATCH, device),
        "best_batch": BATCH,
    }


def make(pipeline: Pipeline, sampling: Sampling, count: int) -> Tensor:
    """So many images of the first class."""
    tokens = last(pipeline.steps(pipeline.condition([0], count), sampling))
    return pipeline.decode(tokens)
