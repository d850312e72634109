"""The training tasks: the losses, validation and data of a tokenizer and of a generator."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor, nn

from artok.adversarial.critic import Opponent
from artok.data.base import Split
from artok.data.captions import first_captions, pick_captions
from artok.data.loader import Batch, Loader, choose_of, evaluation_batches, read_rows
from artok.data.order import choose_rows
from artok.data.tokens import TokenBatch, TokenCache, TokenLoader
from artok.errors import ConfigError
from artok.generators.base import AdversarialGenerator, Generator
from artok.images import put_first, save_grid, to_uint8
from artok.layout import Condition
from artok.losses.base import AdversarialLoss, BatchContext, Comparisons, Setting
from artok.masks import draw_masks
from artok.metrics.base import EvalBatch, MetricContext
from artok.metrics.codebook import Config as CodebookConfig
from artok.metrics.features import Extractor, ExtractorConfig
from artok.metrics.reconstruction import psnr
from artok.nn.dropout import draw_dropout
from artok.noise import Noise, fold
from artok.pipeline import Pipeline
from artok.quantizers.base import Replacement
from artok.saved import Facts, Saved, write_text
from artok.tokenizers.base import Tokenizer
from artok.training.experiment import Experiment
from artok.training.extractor import build_extractor, build_frame_extractor
from artok.training.monitor import Monitor
from artok.training.quantizers import Quantizers
from artok.training.settings import settle_precision
from artok.training.shares import merge, own_batches
from artok.training.task import Step, Stream, Task

BATCH = 64  # held-out images at a time
MEASURED = 2_000  # training images for the statistics of latents, and for a vocabulary where reading them takes time
FITTED = 100_000  # training images whose stored captions a vocabulary is learned from


class TokenizerTask(Task):
    """Reconstruct images through their tokens."""

    model = "tokenizer"
    calls_past_forward = True  # k-means starts from what `encode` gives

    def __init__(self, experiment: Experiment, train: Split, test: Split, device: torch.device) -> None:
        assert not isinstance(experiment.tokenizer, str)
        self.experiment, self.device = experiment, device
        self.train_split, self.test_split = train, test
        self.images = train
        self.tokenizer: Tokenizer = experiment.tokenizer.build(experiment.image).to(device)
        setting = Setting(experiment.image, device, self._extractor, experiment.data.channels_apart)
        built = [config.build(setting).to(device) for config in experiment.losses]
        self.comparisons = Comparisons(experiment.losses, built)
        self.adversary = next((loss for loss in built if isinstance(loss, AdversarialLoss)), None)
        self.players = {"model": self.tokenizer}
        if self.adversary is not None:
            self.players["critic"] = self.adversary.critic
        self.made: deque[Tensor] = deque()  # reconstructions of the model's turn, for the critic's turn
        self.quantizers = Quantizers(self.tokenizer)
        self.facts = experiment.facts(train, None)

    def begin(self) -> list[Replacement]:
        batch, seed = self.experiment.training.global_batch, self.experiment.seed
        count = math.ceil(self.quantizers.first_images() / batch)
        if not count:
            return []
        with Loader(self.train_split, self.experiment.data, batch, seed) as loader:  # the same in all processes
            batches = [each.images.to(self.device) for each in islice(loader, count)]
        return self.quantizers.start(batches, seed)

    def _extractor(self, config: ExtractorConfig) -> Extractor:
        build = build_frame_extractor if len(self.train_split.shape) == 4 else build_extractor
        return build(config, self.train_split, self.experiment.data.size, self.device)

    def plays(self, player: str, step: int) -> bool:
        return step * self.experiment.training.global_batch >= self.joins_after(player)

    def joins_after(self, player: str) -> int:
        return self.adversary.start if self.adversary is not None and player == "critic" else 0

    def settle(self, mean: Callable[[Tensor], Tensor]) -> list[Replacement]:
        if self.adversary is not None:
            self.adversary.settle(mean)
        return self.quantizers.settle()

    def forget(self) -> None:
        self.made.clear()
        if self.adversary is not None:
            self.adversary.critic.forget()

    def figures(self) -> dict[str, float]:
        return self.quantizers.figures()

    def windows(self) -> dict[str, Tensor]:
        return self.quantizers.windows()

    def batches(self, start: int, rank: int, world: int) -> Stream[Batch]:
        batch, seed = self.experiment.training.global_batch, self.experiment.seed
        with Loader(self.train_split, self.experiment.data, batch, seed, start, rank, world) as loader:
            yield from loader

    def split(self, batch: Batch, parts: int) -> list[Batch]:
        return batch.split(parts)

    def losses(self, modules: Mapping[str, nn.Module], player: str, batch: Batch, seen: int) -> Step:
        images = batch.images_on(self.device)
        if player == "critic":
            return self._critic_losses(modules["critic"], images, batch.positions, seen)
        self.quantizers.draw_by(Noise(fold("quantizer", self.experiment.seed), batch.positions.to(self.device)))
        result = modules["model"](images)
        reconstructions = result.images.float()
        losses, monitors = dict(result.losses), dict(result.monitors)
        compared = self.comparisons(reconstructions, images, seen)
        if self.adversary is not None:
            noise = Noise(fold("adversary", self.experiment.seed), batch.positions.to(self.device))
            others = torch.stack(list(compared.values())).sum()
            context = BatchContext(seen, noise, others, self.tokenizer.last_layer())
            against, told = self.adversary(reconstructions, images, context)
            losses |= against
            monitors |= told
            if self.plays("critic", seen // self.experiment.training.global_batch):
                self.made.append(reconstructions.detach())
        with torch.no_grad():
            errors = ((reconstructions.clamp(-1, 1) - images) / 2).square().flatten(1).mean(1)
            monitors["psnr"] = -10 * errors.clamp(min=1e-10).log10().mean()
        return Step(losses | compared, monitors)

    def _critic_losses(self, critic: nn.Module, images: Tensor, positions: Tensor, seen: int) -> Step:
        noise = Noise(fold("critic", self.experiment.seed), positions.to(self.device))
        step = seen // self.experiment.training.global_batch
        verdict = critic(images, self.made.popleft(), None, noise, step, seen / self.experiment.training.images)
        return Step(verdict.losses, verdict.monitors)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        layout = self.tokenizer.layout
        usage = CodebookConfig().build(MetricContext(layout=layout)) if layout.discrete else None
        names = ["psnr", *(f"psnr, {scale}" for scale in layout.scale_names()[:-1])]
        rows = choose_of(self.test_split, self.experiment.training.validate_images)
        found: list[tuple[list[Tensor], Tensor]] = []
        for batch in read_rows(self.test_split, self.experiment.data, own_batches(rows, BATCH)):
            tokens = self.tokenizer.encode(batch.images_on(self.device))
            parts = [tokens, *(tokens.first_scales(scales) for scales in range(1, len(layout.grids)))]
            images = to_uint8(batch.images)
            decibels = [psnr(images, to_uint8(self.tokenizer.decode(part)).cpu()) for part in parts]
            found.append((decibels, tokens.values.cpu()))
        figures, values = zip(*merge(found), strict=True)
        result = {
            name: float(torch.cat(each).mean()) for name, each in zip(names, zip(*figures, strict=True), strict=True)
        }
        if usage is not None:
            for codes in values:
                usage.update(EvalBatch(codes=codes))
        return result | (usage.compute() if usage is not None else {})

    def measure(self) -> dict[str, float]:
        if self.tokenizer.layout.discrete:
            return {}
        data, split = self.experiment.data, self.train_split
        if split.sequential:  # the loader's thread reads it at this time
            split = data.open("train")
        batches = evaluation_batches(split, data, batch=64, limit=MEASURED)
        return self.tokenizer.measure(batch.images_on(self.device) for batch in batches)

    def _held_out(self, limit: int) -> Iterator[Batch]:
        return evaluation_batches(self.test_split, self.experiment.data, BATCH, limit)

    @torch.no_grad()
    def preview(self, path: Path) -> None:
        """Originals above their reconstructions."""
        images = next(self._held_out(8)).images
        decoded = self.tokenizer.decode(self.tokenizer.encode(images.to(self.device))).cpu()
        scale = max(1, 64 // images.shape[-1])
        save_grid(torch.cat([images, decoded.clamp(-1, 1)]), path, columns=len(images), scale=scale)


@dataclass(frozen=True)
class TokenData:
    """What a generator is trained on: a tokenizer with its config and facts, and tokens, or images to be encoded.

    facts: of the generator's training.
    """

    tokenizer: Tokenizer
    saved_tokenizer: Saved
    facts: Facts
    source: TokenCache | Split
    held_out: TokenCache


class GeneratorTask(Task):
    """Model the tokens of images under a frozen tokenizer."""

    model = "generator"

    def __init__(
        self, experiment: Experiment, data: TokenData, device: torch.device, watch: Monitor | None = None
    ) -> None:
        assert experiment.generator is not None
        self.experiment, self.device, self.facts, self.watch = experiment, device, data.facts, watch
        self.source, self.held_out, self.saved_tokenizer = data.source, data.held_out, data.saved_tokenizer
        self.images = None if isinstance(data.source, TokenCache) else data.source
        self.tokenizer, facts = data.tokenizer.to(device).eval().requires_grad_(False), data.facts
        self.generator: Generator = experiment.generator.build(self.tokenizer.layout, len(facts.classes)).to(device)
        self.generator.check(experiment.sampling)
        if self.generator.trains_known and not experiment.tokens.online:
            raise ConfigError(
                "this generator is trained with masks: its known tokens come from images with hidden pixels, which no "
                "cache of tokens holds; set tokens.online=true"
            )
        self.class_dropout = experiment.generator.class_dropout
        self.players = {"model": self.generator}
        self.critic: Opponent | None = None
        critic = experiment.generator.build_critic(self.tokenizer.layout, len(facts.classes))
        if critic is not None:
            assert isinstance(self.generator, AdversarialGenerator)
            self.generator.attach_critic(critic)
            self.join(critic)

    def join(self, critic: Opponent) -> None:
        """Let a critic play."""
        self.critic = self.players["critic"] = critic.to(self.device)

    def begin(self) -> list[Replacement]:
        encoder = self.generator.conditioner.encoder
        if encoder is not None and not encoder.fitted:  # a run that it starts from has given its vocabulary
            encoder.fit(self._captions())
        return []

    def plays(self, player: str, step: int) -> bool:
        if self.critic is None or player == "critic":
            return True
        turns = self.critic.n_critic
        return step % turns == turns - 1

    def settle(self, mean: Callable[[Tensor], Tensor]) -> list[Replacement]:
        if self.critic is not None:
            self.critic.settle(mean)
        return []

    def forget(self) -> None:
        if self.critic is not None:
            self.critic.forget()

    def batches(self, start: int, rank: int, world: int) -> Stream[TokenBatch]:
        batch, seed = self.experiment.training.global_batch, self.experiment.seed
        if isinstance(self.source, TokenCache):
            yield from TokenLoader(self.source, batch, seed, start, rank, world)
            return
        low = settle_precision(self.experiment.training.precision, self.device) == "bf16"
        with Loader(self.source, self.experiment.data, batch, seed, start, rank, world) as loader:
            for images in loader:
                pixels, known = images.images_on(self.device), None
                with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                    tokens = self.tokenizer.encode(pixels)
                    if self.generator.trains_known:
                        noise = Noise(fold("masks", seed), images.positions.to(self.device))
                        known = self.tokenizer.encode_known(pixels, draw_masks(noise, tokens.layout))
                yield TokenBatch(tokens, images.labels, images.positions, images.captions, images.control, known)

    def _captions(self) -> Iterator[str]:
        """Captions of training images, to learn a vocabulary from."""
        if isinstance(self.source, TokenCache):
            assert self.source.captions is not None
            for rows in choose_rows(len(self.source), FITTED).split(1000):
                yield from chain.from_iterable(self.source.captions[rows])
            return
        data = self.experiment.data
        split = data.open("train") if self.source.sequential else self.source  # a stream has one reader
        for batch in evaluation_batches(split, data, batch=64, limit=MEASURED):
            yield from chain.from_iterable(batch.captions or [])

    def condition(self, batch: TokenBatch, seed: int | None = None) -> Condition:
        """What the data say of a batch. seed: chooses one of each image's captions; by default the first is taken."""
        texts = batch.texts
        if batch.captions is not None and seed is not None:
            numbers = Noise(fold("caption", seed), batch.positions.cpu()).integers(2**31).tolist()
            texts = pick_captions(batch.captions, numbers)
        return self.generator.condition(batch.labels, texts, control=batch.control)

    def split(self, batch: TokenBatch, parts: int) -> list[TokenBatch]:
        size = len(batch) // parts
        return [batch[first : first + size] for first in range(0, len(batch), size)]

    def losses(self, modules: Mapping[str, nn.Module], player: str, batch: TokenBatch, seen: int) -> Step:
        batch = batch.to(self.device)
        if player == "critic":
            return self._critic_losses(modules["critic"], batch, seen)
        noise = Noise(fold("training", self.experiment.seed), batch.positions)
        condition = self.condition(batch, self.experiment.seed)
        condition = self.generator.conditioner.drop(condition, self.class_dropout, noise)
        condition = replace(condition, known=batch.known)
        draw_dropout(self.generator, noise)
        return Step(modules["model"](batch.tokens, condition, noise, self.tokenizer))

    def _critic_losses(self, critic: nn.Module, batch: TokenBatch, seen: int) -> Step:
        noise = Noise(fold("critic", self.experiment.seed), batch.positions)
        condition = self.condition(batch, self.experiment.seed)
        if self.class_dropout:
            condition = self.generator.conditioner.drop(condition, self.class_dropout, noise)
        with torch.no_grad():
            real, fake = self.compared(batch, condition, noise)
        step, share = seen // self.experiment.training.global_batch, seen / self.experiment.training.images
        verdict = critic(real, fake, condition, noise, step, share)
        return Step(verdict.losses, verdict.monitors)

    def compared(self, batch: TokenBatch, condition: Condition, noise: Noise) -> tuple[Tensor, Tensor]:
        """Real and generated samples for the critic."""
        assert isinstance(self.generator, AdversarialGenerator)
        return self.generator.to_grid(batch.tokens), self.generator.generate(condition, noise)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Nats per token on held-out and on as many training tokens, or the training loss without a likelihood.

        A gap between the two indicates memorisation.
        """
        figures = {"held_out": self._mean_loss(self.held_out)}
        if isinstance(self.source, TokenCache):
            figures["train"] = self._mean_loss(self.source)
        return {f"{unit}_{name}": value for name, (unit, value) in figures.items()}

    def measured(self, cache: TokenCache) -> Iterator[TokenBatch]:
        """This process's share of what validation measures."""
        rows = choose_rows(len(cache), self.experiment.training.validate_images)
        for positions in own_batches(rows, BATCH):
            yield cache.batch(positions, positions)

    def _mean_loss(self, cache: TokenCache) -> tuple[str, float]:
        """("nll", nats per token), or ("loss", the training loss at fixed noise)."""
        per_image = cache.index.layout.length * cache.index.layout.codes
        found: list[tuple[str, float, int]] = []
        for batch in self.measured(cache):
            batch = batch.to(self.device)
            condition = self.condition(batch)
            nats = self.generator.log_likelihood(batch.tokens, condition, self.tokenizer)
            if nats is not None:
                found.append(("nll", -float(nats.sum()) / per_image, len(batch)))
            else:
                noise = Noise(fold("validation"), batch.positions)
                losses = self.generator(batch.tokens, condition, noise, self.tokenizer)
                found.append(("loss", len(batch) * float(torch.stack(list(losses.values())).sum()), len(batch)))
        units, totals, counts = zip(*merge(found), strict=True)
        return units[0], sum(totals) / sum(counts)

    def preview(self, path: Path) -> None:
        """Write eight samples for each of up to ten classes, or of ten held-out images with captions, which a text file
        lists, or with control, which comes first in a row."""
        prompts = self.held_out.captions if "text" in self.generator.hears else None
        numbers = range(len(self.held_out))
        shown = numbers if prompts is None else (row for row in numbers if any(prompts[torch.tensor([row])]))
        rows = torch.tensor(list(islice(shown, 10)), dtype=torch.int64)
        control = self.held_out.read_control(rows)
        if prompts is not None:
            told = first_captions(prompts[rows])
            images = self.pipeline()(prompts=told, n=8, control=control)
            write_text(path.with_suffix(".txt"), "".join(f"{text}\n" for text in told))
        elif control is not None:
            images = self.pipeline()(self.held_out.labels[rows], n=8, control=control)
        else:
            images = self.pipeline()(list(range(min(10, len(self.facts.classes)))), n=8)
        columns = 8
        if control is not None:
            images, columns = put_first(control, images), 9
        save_grid(images, path, columns=columns, scale=max(1, 32 // images.shape[-1]))

    def monitor(self) -> dict[str, float]:
        return self.watch(self.pipeline()) if self.watch else {}

    def pipeline(self) -> Pipeline:
        """The current generator with its tokenizer."""
        sections = {name: getattr(self.experiment, name) for name in ("tokenizer", "generator", "distill", "sampling")}
        saved = Saved(**sections, facts=self.facts)
        sampling = self.experiment.sampling
        return Pipeline(self.tokenizer, self.generator, self.facts.classes, sampling, saved, self.saved_tokenizer)
