"""Builds the modules of an experiment on the meta device: shapes without values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from artok.adversarial.critic import Opponent
from artok.config import SHIPPED, load
from artok.data.base import DataConfig
from artok.data.hub import Config as HubConfig
from artok.distillation.base import AdversarialMethod, DistillConfig, Method, Teacher, student_of
from artok.errors import ConfigError
from artok.generators.base import AdversarialGenerator, Generator
from artok.generators.diffusion import Config as DiffusionGenerator
from artok.generators.diffusion import LatentDiffusion
from artok.generators.patched import PatchedGenerator
from artok.layout import TokenLayout
from artok.losses.base import AdversarialLoss, Loss, Setting
from artok.saved import CONFIG, TOKENIZER, check_layout, read_saved
from artok.tokenizers.base import Tokenizer, TokenizerConfig
from artok.training.experiment import Experiment

PUBLISHED = {"ilsvrc/imagenet-1k": 1000, "uoft-cs/cifar10": 10, "uoft-cs/cifar100": 100}  # classes, by hub name
UNKNOWN = 1000


@dataclass(frozen=True)
class Design:
    """An experiment's modules on the meta device.

    tokenizer: None where only its layout is known (a video described by a few numbers). classes: number of
    labels, on which embeddings depend. comparisons: a tokenizer's losses on reconstructions. method: of distillation.
    """

    experiment: Experiment
    layout: TokenLayout
    tokenizer: Tokenizer | None
    generator: Generator | None
    classes: int
    comparisons: tuple[Loss | AdversarialLoss, ...] = ()
    method: Method | None = None

    @property
    def critic(self) -> Opponent | None:
        """The discriminator of adversarial training, or None."""
        if isinstance(self.generator, AdversarialGenerator):
            return self.generator.critic
        if isinstance(self.method, AdversarialMethod):
            return self.method.critic
        return next((loss.critic for loss in self.comparisons if isinstance(loss, AdversarialLoss)), None)

    @property
    def trained(self) -> nn.Module:
        model = self.generator or self.tokenizer
        assert model is not None
        return model


def build(experiment: Experiment, classes: int | None = None) -> Design:
    """The design of an experiment. Neither data nor tokenizer need to exist yet.

    classes: default as many as the data have. Raises ConfigError and LayoutError as training would.
    """
    section = tokenizer_section(experiment)
    if classes is None:
        classes = 0 if experiment.generator is None else count_classes(experiment.data)
    with torch.device("meta"):
        tokenizer = section.build(experiment.image)
        generator, critic = None, None
        if experiment.generator is not None:
            check_layout(experiment.generator, tokenizer.layout)
            generator = experiment.generator.build(tokenizer.layout, classes)
            critic = experiment.generator.build_critic(tokenizer.layout, classes)
    tokenizer.to("meta")  # tables that are computed on the CPU whatever the device
    if generator is not None:
        generator.to("meta")
        generator.check(experiment.sampling)
        tokenizer.eval().requires_grad_(False)
    if isinstance(generator, AdversarialGenerator) and critic is not None:
        generator.attach_critic(critic.to("meta"))
    method = None
    if experiment.distill is not None and isinstance(generator, LatentDiffusion | PatchedGenerator):
        method = attach_method(generator, experiment.distill, classes)
    compared = () if generator else comparisons(experiment)
    return Design(experiment, tokenizer.layout, tokenizer, generator, classes, compared, method)


def comparisons(experiment: Experiment) -> tuple[Loss | AdversarialLoss, ...]:
    """A tokenizer's losses on reconstructions, on the meta device."""
    setting = Setting(experiment.image, torch.device("meta"), None, experiment.data.channels_apart)
    with torch.device("meta"):
        return tuple(loss.build(setting).to("meta") for loss in experiment.losses)


def on_layout(experiment: Experiment, layout: TokenLayout, classes: int) -> Design:
    """The design of a generator on tokens of a layout, without a tokenizer."""
    assert experiment.generator is not None
    check_layout(experiment.generator, layout)
    with torch.device("meta"):
        generator = experiment.generator.build(layout, classes)
    return Design(experiment, layout, None, generator.to("meta"), classes)


def attach_method(generator: LatentDiffusion | PatchedGenerator, section: DistillConfig, classes: int) -> Method:
    """Give a generator its method of distillation, with its teacher; and return it."""
    teacher = None
    if section.teacher is not None:
        with torch.device("meta"):
            model = generator_section(section.teacher).build(generator.layout, classes)
        assert isinstance(model, LatentDiffusion)
        teacher = Teacher(model.to("meta").eval().requires_grad_(False), section.cfg_scale)
    method = section.method.build(student_of(generator), teacher)
    if isinstance(method, AdversarialMethod):
        method.critic.to("meta")
    generator.attach_objective(method)  # type: ignore[arg-type]
    return method


def generator_section(name: str) -> DiffusionGenerator:
    """The config of a diffusion model: from the run of this name, or the shipped config. ConfigError: it is neither."""
    saved = read_saved(Path(name)) if (Path(name) / CONFIG).exists() else shipped(Path(name).name)
    if saved is None or not isinstance(saved.generator, DiffusionGenerator):
        raise ConfigError(
            f"the teacher {name} is neither a run of kind diffusion nor the shipped config of one; train it first"
        )
    return saved.generator


def shipped(run: str) -> Experiment | None:
    """The shipped config whose run has this name."""
    for root in SHIPPED:
        for path in sorted(root.rglob("*.yaml")):
            if "-".join(path.relative_to(root).with_suffix("").parts) == run:
                return load(Experiment, str(path))
    return None


def tokenizer_section(experiment: Experiment) -> TokenizerConfig:
    """The tokenizer's config: from the experiment, from the run that it names, or the shipped config of that name."""
    if not isinstance(experiment.tokenizer, str):
        return experiment.tokenizer
    folder = Path(experiment.tokenizer)
    for place in (folder / TOKENIZER, folder):
        if (place / CONFIG).exists():
            saved = read_saved(place)
            if saved.generator is None and not isinstance(saved.tokenizer, str):
                return saved.tokenizer
    other = shipped(folder.name)
    if other is not None and not isinstance(other.tokenizer, str):
        return other.tokenizer
    raise ConfigError(
        f"the tokenizer {experiment.tokenizer} is neither a run nor a shipped config; train it first, "
        "or give its config in the section 'tokenizer'"
    )


def count_classes(data: DataConfig) -> int:
    """The number of classes of the data, without downloading them; 1,000 where it is not known."""
    if isinstance(data, HubConfig) and (data.classes or data.files is None):
        known = PUBLISHED.get((data.path or "").lower(), UNKNOWN)
        return len(data.classes) if data.classes else known
    return len(data.open("train").classes)
