"""The typed config of an experiment: what is trained, on which data, for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from artok import __version__
from artok.conditioning.control import Config as ControlCondition
from artok.config import FREE, OPEN, Config, of_kind
from artok.data.base import DataConfig, Split
from artok.distillation.base import DistillConfig
from artok.errors import ConfigError
from artok.generators.base import GeneratorConfig
from artok.generators.diffusion import Config as DiffusionGenerator
from artok.generators.patched import PatchedConfig
from artok.layout import TokenLayout
from artok.losses.base import LossConfig
from artok.losses.reconstruction import Config as PixelLossConfig
from artok.metrics.selection import MetricChoice
from artok.noise import Seed
from artok.sampling.settings import Sampling
from artok.saved import Facts
from artok.tokenizers.base import TokenizerConfig
from artok.training.settings import Training

WRITTEN = ("facts", "source")  # sections that artok adds to a run's config.yaml


class CachedTokens(Config):
    """The `tokens:` section: where a generator's training tokens come from.

    copies: encodings per image, the first plain, the others with `data.augment`; more copies reduce memorisation.
    online: encode at every step instead of caching.
    cache: folder written by `artok encode`; by default tokens are kept in the user's cache.
    """

    copies: int = Field(1, ge=1)
    online: bool = False
    cache: Annotated[str | None, FREE] = None


class PostTraining(Config):
    """The `post_training:` section: a tokenizer's decoder is trained on perturbed tokens, and nothing else.

    share: most of an image's codes that are replaced, each by one of its `neighbours` nearest in the codebook; 0 for
    none, where the tokenizer has another decoder than the one in `init`.
    noise: for continuous tokens, which have a deviation of 1, the largest deviation of Gaussian noise, or 0.
    """

    share: float = Field(0.5, ge=0, le=1)
    neighbours: int = Field(10, ge=1)
    noise: float = Field(0.5, ge=0)


class Experiment(Config):
    """A config file. With a `generator` section it trains a generator on a trained tokenizer, else a tokenizer."""

    name: Annotated[str, FREE] = Field(pattern=r"^\w[\w.-]*$", description="names the run directory, runs/<name>")
    data: Annotated[DataConfig, of_kind("data"), OPEN]
    tokenizer: Annotated[TokenizerConfig | str, of_kind("tokenizers"), OPEN] = Field(
        description="a section, or the run directory or hub name of a trained one"
    )
    generator: Annotated[GeneratorConfig | None, of_kind("generators"), OPEN] = None
    init: str | None = Field(
        None, description="a run or checkpoint whose weights a new training starts from, as far as they fit"
    )
    distill: DistillConfig | None = Field(None, description="trains a diffusion model for few sampling steps")
    post_training: PostTraining | None = Field(None, description="trains only the decoder of the tokenizer in init")
    losses: tuple[Annotated[LossConfig, of_kind("losses"), OPEN], ...] = (PixelLossConfig(),)
    tokens: CachedTokens = CachedTokens()
    sampling: Annotated[Sampling, FREE] = Sampling()
    training: Training
    evaluation: Annotated[MetricChoice, FREE] = MetricChoice()
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _drop_facts(cls, section: object) -> object:
        """Drop the facts in a run's config.yaml, so that it can be used as a config."""
        return {k: v for k, v in section.items() if k not in WRITTEN} if isinstance(section, dict) else section

    @model_validator(mode="after")
    def _check_tokenizer(self) -> Experiment:
        if self.generator is None and isinstance(self.tokenizer, str):
            raise ValueError(
                "'tokenizer' names a trained one and there is no 'generator': nothing is left to train; "
                "describe the tokenizer in a section, or add a generator"
            )
        return self

    @model_validator(mode="after")
    def _check_losses(self) -> Experiment:
        if sum(loss.has_critic for loss in self.losses) > 1:
            raise ValueError("'losses' has more than one loss with a critic; a tokenizer is trained against one")
        if self.generator is None and not any(loss.start == 0 for loss in self.losses if not loss.has_critic):
            raise ValueError(
                "'losses' has none that compares images from the start on; give one without a critic the start 0"
            )
        return self

    @model_validator(mode="after")
    def _check_guidance(self) -> Experiment:
        if self.generator is not None and self.sampling.guides and not self.generator.guides:
            raise ValueError(
                f"sampling.cfg_scale {self.sampling.cfg_scale:g} needs a generator trained with class_dropout above 0, "
                "which has an unconditional half; give it one, or leave cfg_scale at 1"
            )
        return self

    @model_validator(mode="after")
    def _check_distillation(self) -> Experiment:
        head = isinstance(self.generator, PatchedConfig)
        student = self.generator.diffusion if isinstance(self.generator, DiffusionGenerator | PatchedConfig) else None
        if self.distill is None:
            if student is not None and (student.averages or student.reads_scale):
                what, kind = ("prediction_type average_velocity", "meanflow")
                if student.reads_scale:
                    what, kind = "reads_scale", "latent_consistency"
                raise ValueError(
                    f"{what} is learned by a method of distillation, such as distill.method={{kind: {kind}}}; add it, "
                    f"or leave generator.diffusion.{what.split()[0]} out"
                )
            return self
        method = self.distill.method
        if student is None:
            raise ValueError(
                "'distill' trains a generator of kind diffusion, or the diffusion head of mar and causal_mar; "
                "use one of these, or leave 'distill' out"
            )
        if head and (method.needs_teacher or self.distill.teacher is not None):
            raise ValueError(
                f"a diffusion head learns few steps without a teacher, and not by {method.kind} from one: use "
                "consistency, meanflow or shortcut, and name the trained run as init in the place of distill.teacher"
            )
        if reason := method.refuse(student):
            raise ValueError(f"distillation method {method.kind} {reason} in generator.diffusion")
        teaches_scales = method.largest_scale is not None
        if student.reads_scale != teaches_scales:
            switch = "on" if teaches_scales else "off"
            raise ValueError(f"distillation method {method.kind} needs generator.diffusion.reads_scale {switch}")
        if teaches_scales and self.distill.cfg_scale != 1:
            raise ValueError(f"method {method.kind} teaches many guidance scales; leave distill.cfg_scale at 1")
        if self.distill.teacher is None and method.needs_teacher:
            raise ValueError(f"distillation method {method.kind} needs a teacher; name its run as distill.teacher")
        if self.distill.teacher is None and self.distill.cfg_scale != 1:
            raise ValueError("distill.cfg_scale guides a teacher, and there is none; name one, or leave it at 1")
        if self.distill.cfg_scale != 1 and not method.folds_guidance:
            raise ValueError(
                f"distillation method {method.kind} learns its teacher's guidance from samples or by distribution "
                "matching; set its pool or its distribution_matching, or leave distill.cfg_scale at 1"
            )
        if method.pool is not None and self.tokens.online:
            raise ValueError(
                f"method {method.kind} keeps its samples, so it has no use for tokens.online; leave it off"
            )
        self.distill.check(self.sampling, student, self.sampling.head_steps if head else self.sampling.steps)
        return self

    @model_validator(mode="after")
    def _check_control(self) -> Experiment:
        entries = self.generator.conditioning if self.generator is not None else ()
        entry = next((entry for entry in entries if isinstance(entry, ControlCondition)), None)
        made = self.data.map
        if entry is not None and made is None:
            raise ValueError(
                "the generator hears control, and the data give none; say what its maps are, such as "
                "data.control={kind: edges}"
            )
        if entry is None and made is not None:
            raise ValueError(
                "data.control makes maps that nothing hears; add {kind: control} to generator.conditioning, or leave "
                "data.control out"
            )
        if entry is not None and made is not None and entry.channels != made[0]:
            raise ValueError(
                f"the maps of data.control have {made[0]} channel{'s' if made[0] > 1 else ''}, and the generator's "
                f"control has {entry.channels}; set its channels to {made[0]}"
            )
        return self

    @model_validator(mode="after")
    def _check_post_training(self) -> Experiment:
        if self.post_training is not None and (self.generator is not None or self.init is None):
            raise ValueError("'post_training' trains a tokenizer's decoder: name its run in 'init', and no 'generator'")
        return self

    @model_validator(mode="after")
    def _check_init(self) -> Experiment:
        if self.generator is not None and self.generator.needs_init and self.init is None:
            raise ValueError("the generator's controlnet steers a trained model: name its run in 'init'")
        return self

    @property
    def image(self) -> tuple[int, ...]:
        """(channels, *size) of the model's samples."""
        return self.data.image

    def facts(self, split: Split, tokenizer: str | None) -> Facts:
        control = self.data.control
        return Facts(
            image=self.image,
            classes=split.classes,
            data=split.fingerprint,
            tokenizer=tokenizer,
            version=__version__,
            control=None if control is None else control.model_dump(mode="json"),
        )


def check_codebook(layout: TokenLayout, images: int) -> None:
    """Raise a ConfigError for a codebook with more codes than the training images have tokens."""
    tokens = images * layout.length * layout.codes
    if layout.vocab is not None and layout.vocab > tokens:
        raise ConfigError(
            f"a codebook of {layout.vocab} codes is larger than the data can fill: {images} training images give "
            f"{tokens} tokens; use a smaller codebook, a smaller downsampling, or more images"
        )


def default_folder(experiment: Experiment) -> Path:
    return Path("runs") / experiment.name
