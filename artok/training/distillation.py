"""The task of distillation: a diffusion model learns from a frozen teacher, or by itself, to sample in few steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from artok.data.order import Order, choose_rows, rank_positions
from artok.data.tokens import TokenBatch, TokenCache
from artok.distillation.base import AdversarialMethod, DistillConfig, Method, Teacher, student_of
from artok.errors import CheckpointError, ConfigError, LayoutError
from artok.generators.diffusion import LatentDiffusion
from artok.generators.patched import PatchedGenerator
from artok.layout import Condition, Tokens
from artok.noise import Noise, fold
from artok.quantizers.base import Replacement
from artok.saved import Facts, find_saved, fingerprint, load_generator, load_tokenizer
from artok.tokenizers.base import Tokenizer
from artok.training.experiment import Experiment
from artok.training.monitor import Monitor
from artok.training.task import Step, Stream
from artok.training.tasks import GeneratorTask, TokenData

TAUGHT = 64  # samples that a teacher makes at a time


class DistillationTask(GeneratorTask):
    """Train a student by a method of distillation. Only the student is trained and saved."""

    method: Method

    def __init__(
        self, experiment: Experiment, data: TokenData, device: torch.device, watch: Monitor | None = None
    ) -> None:
        super().__init__(experiment, data, device, watch)
        assert experiment.distill is not None and isinstance(self.generator, LatentDiffusion | PatchedGenerator)
        self.section, self.student = experiment.distill, student_of(self.generator)
        self.teacher = load_teacher(self.section, self.tokenizer, self.facts)
        if self.teacher is not None:
            check_student(self.student, self.teacher.to(device), experiment.init == self.section.teacher)

    def prepare(self) -> None:
        teacher = None if self.teacher is None else Teacher(self.teacher, self.section.cfg_scale)
        self.method = self.section.method.build(self.student, teacher)
        self.method.start()
        assert isinstance(self.generator, LatentDiffusion | PatchedGenerator)
        self.generator.attach_objective(self.method)  # type: ignore[arg-type]
        if isinstance(self.method, AdversarialMethod):
            self.join(self.method.critic)

    def losses(self, modules: Mapping[str, nn.Module], player: str, batch: TokenBatch, seen: int) -> Step:
        self.method.progress = seen / self.experiment.training.images
        return super().losses(modules, player, batch, seen)

    def compared(self, batch: TokenBatch, condition: Condition, noise: Noise) -> tuple[Tensor, Tensor]:
        assert isinstance(self.method, AdversarialMethod)
        real = self.student.vectors(batch.tokens, self.tokenizer)
        return real, self.method.generate(real, condition, noise, self.tokenizer)

    def settle(self, mean: Callable[[Tensor], Tensor]) -> list[Replacement]:
        self.method.settle()
        return super().settle(mean)

    def windows(self) -> dict[str, Tensor]:
        return self.method.kept()

    def batches(self, start: int, rank: int, world: int) -> Stream[TokenBatch]:
        pool = self.section.method.pool
        if pool is None:
            yield from super().batches(start, rank, world)
            return
        batch, seed = self.experiment.training.global_batch, self.experiment.seed
        taught, step = self.teach_pool(pool), 0
        order = Order(len(taught), seed)
        while True:
            yield taught[order(rank_positions(step, batch, start, rank, world))]
            step += 1

    def teach_pool(self, size: int) -> TokenBatch:
        """Samples of the teacher under the conditions of so many training images. Their positions are their rows: the
        noise that starts a sample and the hidden parts of its condition belong to it."""
        cache, seed = self.source, self.experiment.seed
        assert isinstance(cache, TokenCache)
        rows = choose_rows(len(cache), size)
        rows = rows.repeat(-(-size // len(rows)))[:size]
        pool, values = cache.batch(rows, torch.arange(size)), list[Tensor]()
        for part in torch.arange(size).split(TAUGHT):
            values.append(self.teach(pool[part], seed, fold("training", seed)).values.cpu())
        pool.tokens = Tokens(torch.cat(values), pool.tokens.layout)
        return pool

    @torch.no_grad()
    def teach(self, batch: TokenBatch, captions: int | None, noise_seed: int) -> Tokens:
        batch = batch.to(self.device)
        condition, noise = self.condition(batch, captions), Noise(noise_seed, batch.positions)
        if captions is not None:
            condition = self.generator.conditioner.drop(condition, self.class_dropout, noise)
        taught = self.method.teach(condition, noise, self.tokenizer)
        return batch.tokens if taught is None else taught

    def measured(self, cache: TokenCache) -> Iterator[TokenBatch]:
        for batch in super().measured(cache):
            batch.tokens = self.teach(batch, None, fold("validation"))
            yield batch


def load_teacher(section: DistillConfig, tokenizer: Tokenizer, facts: Facts) -> LatentDiffusion | None:
    """The frozen teacher, on the CPU. LayoutError, ConfigError: it models other tokens, or is no teacher of such a
    student."""
    if section.teacher is None:
        return None
    folder = find_saved(section.teacher)
    other, _ = load_tokenizer(folder)
    if other.layout != tokenizer.layout:
        raise LayoutError(f"the teacher {section.teacher} models {other.layout}, and its student {tokenizer.layout}")
    teacher, saved = load_generator(folder, tokenizer.layout)
    config = saved.generator
    assert config is not None
    if not isinstance(teacher, LatentDiffusion):
        raise ConfigError(f"the teacher {section.teacher} is of kind {config.kind}; name one of kind diffusion")
    if fingerprint(other) != facts.tokenizer:
        raise ConfigError(
            f"the teacher {section.teacher} was trained on the tokens of another tokenizer ({fingerprint(other)}) than "
            f"its student's ({facts.tokenizer}); name the teacher's tokenizer"
        )
    if len(saved.facts.classes) != len(facts.classes):
        raise ConfigError(
            f"the teacher {section.teacher} knows {len(saved.facts.classes)} classes, and the data have "
            f"{len(facts.classes)}; use the data that it was trained on"
        )
    guided = section.cfg_scale != 1 or section.method.largest_scale is not None
    if guided and not config.guides:
        raise ConfigError(
            f"the teacher {section.teacher} was trained with class_dropout 0, so it has no guidance; "
            "learn from one that was trained with some, or leave distill.cfg_scale at 1"
        )
    return teacher


def check_student(student: LatentDiffusion, teacher: LatentDiffusion, starts_from_teacher: bool) -> None:
    """Raise a ConfigError for a student that cannot learn from this teacher, or cannot start from its weights."""
    if student.conditioner.parts != teacher.conditioner.parts:
        heard, told = (", ".join(sorted(each.conditioner.parts)) for each in (student, teacher))
        raise ConfigError(f"the student hears {heard}, and its teacher {told}; give both the same conditioning")
    own, other = student.config.diffusion, teacher.config.diffusion
    levels = (each.training_levels().signal_squared for each in (own, other))
    if own.schedule != other.schedule or not torch.equal(*levels):
        raise ConfigError(
            f"the student has the noise schedule {own.schedule}, and its teacher {other.schedule}, with other levels; "
            "give the student's generator.diffusion the same schedule"
        )
    if not starts_from_teacher:
        return
    there = set(teacher.state_dict())
    layers = {re.sub(r"\d+", "#", name) for name in there}
    deeper = [name for name in student.state_dict() if name not in there and re.sub(r"\d+", "#", name) in layers]
    if deeper:
        raise CheckpointError(
            f"the student is deeper than the teacher that init starts it from, which has no {deeper[0]}; give it as "
            "many layers, or leave init out"
        )
