"""A tokenizer and a generator together: labels or prompts in, images out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from artok.conditioning.control import Control
from artok.config import merge, validate
from artok.device import has_bfloat16
from artok.errors import ArtokError, CheckpointError, ConfigError, shorten
from artok.generators.base import Generator
from artok.layout import NO_LABEL, Condition, Tokens, last
from artok.masks import check_mask, paste
from artok.nn.packed import CastLinear, PackedLinear, can_pack, with_linears
from artok.noise import Noise, fold
from artok.sampling.settings import LONG, Precision, Sampling
from artok.saved import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    Saved,
    find_saved,
    fingerprint,
    load_draft,
    load_generator,
    load_tokenizer,
    whole_state,
    write_config,
    write_weights,
)
from artok.tokenizers.base import Tokenizer


@dataclass
class Pipeline:
    """images = pipeline(labels, seed=0), or pipeline("a red circle").

    classes: names of the labels. sampling: the default settings. saved, saved_tokenizer: the configs and facts of the
    generator's and the tokenizer's training.
    """

    tokenizer: Tokenizer
    generator: Generator
    classes: tuple[str, ...]
    sampling: Sampling
    saved: Saved
    saved_tokenizer: Saved
    _draft: tuple[str, Pipeline] | None = field(default=None, init=False, repr=False, compare=False)
    _prepared: tuple[object, Generator] | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str | torch.device = "cpu", decoder: str = "") -> Pipeline:
        """Load a generator's run directory, a saved pipeline, or a hub repository. decoder: a run of `post_training`.

        CheckpointError: there is none, it holds a tokenizer only, or its tokenizer is not the one it was trained on.
        """
        folder = find_saved(name)
        tokenizer, saved_tokenizer = load_tokenizer(decoder or folder)
        generator, saved = load_generator(folder, tokenizer.layout)
        if saved.facts.tokenizer not in (None, fingerprint(tokenizer), saved_tokenizer.facts.tokenizer):
            raise CheckpointError(
                f"the tokenizer in {decoder or folder / TOKENIZER} is not the one that the generator was trained on "
                f"(fingerprint {saved.facts.tokenizer}); put the right one back"
            )
        return cls(tokenizer, generator, saved.facts.classes, saved.sampling, saved, saved_tokenizer).to(device)

    def to(self, device: str | torch.device) -> Pipeline:
        self.tokenizer.to(device)
        self.generator.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the generator and its tokenizer to a folder for `from_pretrained`."""
        folder = Path(folder)
        write_weights(whole_state(self.tokenizer), folder / TOKENIZER / WEIGHTS)
        write_config(folder / TOKENIZER / CONFIG, self.saved_tokenizer)
        write_weights(whole_state(self.generator), folder / WEIGHTS)
        write_config(folder / CONFIG, self.saved.model_copy(update={"sampling": self.sampling}))

    def __call__(
        self,
        labels: Sequence[int] | Tensor | int | Sequence[str] | str | None = None,
        n: int = 1,
        *,
        prompts: Sequence[str] | str | None = None,
        negative: Sequence[str] | str | None = None,
        control: Tensor | None = None,
        cfg_scale: float | None = None,
        seed: int | None = None,
        sampling: Sampling | None = None,
        batch: int = 64,
    ) -> Tensor:
        """Generate `n` images per label or prompt: (n * labels, C, H, W) float in [-1, 1] on the CPU, in order.

        labels, prompts, negative, control: as in `condition`; strings in the place of labels are prompts.
        Image i depends on the seed and on i, not on `batch`. ConfigError: a label is no whole number of a class, or the
        model does not hear what is given.
        """
        if isinstance(labels, str) or (isinstance(labels, Sequence) and labels and isinstance(labels[0], str)):
            labels, prompts = None, cast("Sequence[str] | str", labels)
        given = {"cfg_scale": cfg_scale, "seed": seed}
        settings = self.settings({name: value for name, value in given.items() if value is not None}, sampling)
        condition = self.condition(cast("Sequence[int] | None", labels), n, prompts, negative, control)
        images = []
        for start in range(0, len(condition), batch):
            tokens = last(self.steps(condition[start : start + batch], settings, first=start))
            images.append(self.decode(tokens, settings.dtype).cpu())
        return torch.cat(images)

    @torch.inference_mode()
    def write(self, n: int, sampling: Sampling | None = None) -> list[str]:
        """`n` captions, drawn by a generator of text and images. ConfigError: it generates no text."""
        settings = sampling or self.sampling
        generator, dtype = self.prepare(settings.dtype)
        noise = Noise(fold("captions", settings.seed), torch.arange(n, device=self.device))
        nothing = self.generator.condition(torch.full((n,), NO_LABEL), [""] * n)
        with autocast(self.device, dtype):
            return generator.write(nothing, settings.model_copy(update={"dtype": dtype}), noise)

    def edit(
        self,
        images: Tensor,
        mask: Tensor,
        labels: Sequence[int] | Tensor | int | None = None,
        n: int = 1,
        *,
        prompts: Sequence[str] | str | None = None,
        negative: Sequence[str] | str | None = None,
        control: Tensor | None = None,
        feather: float = 0.0,
        cfg_scale: float | None = None,
        seed: int | None = None,
        sampling: Sampling | None = None,
        batch: int = 64,
    ) -> Tensor:
        """Make the hidden pixels of images anew, `n` times each: (n * B, C, H, W) in [-1, 1] on the CPU, in order.

        images: (B, C, H, W) in [-1, 1]. mask: (H, W) or (B, H, W) bool, True where hidden; what is there is never read.
        labels, prompts, negative, control: as in `condition`, one for all images or one for each, or nothing. feather:
        pixels around the mask over which the result fades into the known ones; 0 gives these back to the bit.
        ConfigError: the images, the mask or the condition do not fit, or the model keeps no known tokens.
        """
        images, mask = self.check_edit(images, mask)
        given = {"cfg_scale": cfg_scale, "seed": seed}
        settings = self.settings({name: value for name, value in given.items() if value is not None}, sampling)
        nothing = labels is None and prompts is None and control is None
        asked = self._nothing() if nothing else self.condition(labels, 1, prompts, negative, control)
        if len(asked) not in (1, len(images)):
            raise ConfigError(f"{len(asked)} conditions do not go with {len(images)} images; give one for each")
        rows, made = torch.arange(n * len(images)) // n, list[Tensor]()
        for part in rows.split(batch):
            condition = asked[(part if len(asked) > 1 else part * 0).to(self.device)]
            made.append(self.fill(images[part], mask[part], condition, settings, len(made) * batch, feather))
        return torch.cat(made)

    @torch.inference_mode()
    def fill(
        self, images: Tensor, mask: Tensor, condition: Condition, sampling: Sampling, first: int = 0, feather: float = 0
    ) -> Tensor:
        """One batch of an edit: (B, C, H, W) in [-1, 1] on the CPU.

        images, mask: (B, C, H, W) and (B, H, W), as `check_edit` gives them. first: number of the first sample. After
        each round the known tokens are encoded anew with the result in the hole: those of the blanked images decode to
        something else beside it, and lead a generator astray.
        """
        shown, hidden = images.to(self.device), mask.to(self.device)
        known = self.tokenizer.encode_known(shown, hidden)
        for turn in range(sampling.edit_rounds):
            settings = sampling.model_copy(update={"seed": fold("edit", sampling.seed, turn)}) if turn else sampling
            tokens = last(self.steps(replace(condition, known=known), settings, first))
            whole = self.tokenizer.encode(paste(self.decode(tokens, sampling.dtype), shown, hidden))
            known = replace(known, values=whole.values)
        made = replace(tokens, values=torch.where(known.flags[..., None], known.values, tokens.values))
        return paste(self.decode(made, sampling.dtype).cpu(), images, mask, feather)

    def check_edit(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The images and masks (B, H, W) of an edit, on the CPU. ConfigError: as in `edit`."""
        if not self.generator.keeps_known:
            kind = type(self.generator).__module__.rpartition(".")[2]
            raise ConfigError(f"a {kind} keeps no part of an image; edit with another kind of generator")
        return check_mask(images.cpu(), mask.cpu(), self.tokenizer.layout)

    def _nothing(self) -> Condition:
        """One row without label and text. ConfigError: the model was never trained without."""
        if self.saved.generator is not None and self.saved.generator.class_dropout == 0:
            raise ConfigError("this model was trained with class_dropout 0, so it needs a label or a prompt to edit")
        self._read_control(None)
        texts = None if "labels" in self.generator.hears else [""]
        return self.generator.condition(torch.full((1,), NO_LABEL), texts)

    def settings(self, changes: Mapping[str, object], sampling: Sampling | None = None) -> Sampling:
        """Apply changes to `sampling`, by default the pipeline's own, and check the result against the model.

        ConfigError: an impossible value, or a changed setting that this kind of generator does not read.
        """
        before = sampling or self.sampling
        settings, plain = validate(Sampling, merge(before.model_dump(), changes), "sampling"), Sampling()
        own = {"seed", "dtype", *(LONG | {"edit_rounds"} if self.generator.keeps_known else ())}  # read by the pipeline
        for name in set(Sampling.model_fields) - self.generator.reads - own:
            if getattr(settings, name) not in (getattr(before, name), getattr(plain, name)):
                kind, reads = type(self.generator).__name__, ", ".join(sorted(self.generator.reads))
                raise ConfigError(f"{name} changes nothing that {kind} generates; its sampling settings are {reads}")
        if settings.guides and self.saved.generator and not self.saved.generator.guides:
            raise ConfigError(
                "guidance needs a generator trained with class_dropout above 0, and this one has no unconditional "
                "half; use cfg_scale=1"
            )
        self.generator.check(settings)
        self.saved.check(settings)
        return settings

    def condition(
        self,
        labels: Sequence[int] | Tensor | int | None = None,
        n: int = 1,
        prompts: Sequence[str] | str | None = None,
        negative: Sequence[str] | str | None = None,
        control: Tensor | None = None,
    ) -> Condition:
        """The condition of `n` samples for each label, prompt, map, or group of them; one of any goes with all others.

        negative: what guidance leads away from, one for all prompts or one for each. control: maps (R, C, *size), uint8
        or float in [-1, 1] (`artok.evaluation.controls` makes those of pictures). ConfigError: the model does not
        hear what is given, or it cannot be read.
        """
        hears = self.generator.hears
        if not isinstance(n, int) or n < 1:
            raise ConfigError("ask for at least one label or prompt and one image")
        if labels is None and prompts is None and control is None:
            raise ConfigError(f"this model is conditioned on {' and '.join(sorted(hears))}: say what it is to generate")
        asked = None if labels is None else self._read_labels(labels)
        texts = None if prompts is None else self._read_texts(prompts, "prompts")
        if texts is None and "labels" not in hears:
            raise ConfigError("this model is conditioned on text and knows no classes; give it prompts")
        maps = self._read_control(control)
        rows = max(1 if asked is None else len(asked), len(texts or [0]), 1 if maps is None else len(maps))
        against = None if negative is None else self._read_texts(negative, "negative prompts", empty=True)
        for name, given in (("labels", asked), ("prompts", texts), ("negative prompts", against), ("maps", maps)):
            if given is not None and len(given) not in (1, rows):
                raise ConfigError(
                    f"{len(given)} {name} do not go with {rows} others; give one for all, or one for each"
                )
        if asked is None and "labels" in hears:
            asked = torch.full((rows,), NO_LABEL)
        spread = None if asked is None else asked.expand(rows).repeat_interleave(n)
        told, off = (
            None if each is None else [text for text in each * (rows // len(each)) for _ in range(n)]
            for each in (texts, against)
        )
        if maps is not None:
            maps = maps.expand(rows, *maps.shape[1:]).repeat_interleave(n, 0)
        return self.generator.condition(spread, told, off, maps)

    def _read_control(self, control: Tensor | None) -> Tensor | None:
        hears = self.generator.hears
        if control is None:
            if self.generator.needs_control:
                raise ConfigError("this model was given a control for every image in training; give it one too")
            return None
        if "control" not in hears:
            raise ConfigError(f"this model hears {' and '.join(sorted(hears))}, so it takes no control")
        conditioner = self.generator.conditioner["control"]
        assert isinstance(conditioner, Control)
        if tuple(control.shape[1:]) != conditioner.map:
            given, wanted = ("x".join(map(str, shape)) for shape in (control.shape[1:], conditioner.map))
            raise ConfigError(f"the control is {given} (channels, size), and this model hears {wanted}")
        return control

    def _read_labels(self, labels: Sequence[int] | Tensor | int) -> Tensor:
        wanted = f"labels must be whole numbers from 0 to {len(self.classes) - 1}"
        try:
            asked = torch.as_tensor(labels).reshape(-1)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ConfigError(f"{wanted}, got {shorten(repr(labels))}") from None
        if not len(asked):
            raise ConfigError("ask for at least one label and one image")
        if asked.dtype.is_floating_point or asked.dtype.is_complex or asked.dtype == torch.bool:
            raise ConfigError(f"{wanted}, got {shorten(repr(labels))}")
        outside = [int(label) for label in asked if not 0 <= label < len(self.classes)]
        if outside:
            raise ConfigError(f"label {outside[0]} is outside the classes 0 to {len(self.classes) - 1}")
        return asked.to(torch.int64)

    def _read_texts(self, texts: Sequence[str] | str, what: str, empty: bool = False) -> list[str]:
        if "text" not in self.generator.hears:
            raise ConfigError(f"this model knows classes and no text, so it takes labels and no {what}")
        read = [texts] if isinstance(texts, str) else list(texts)
        if not read or not all(isinstance(text, str) for text in read):
            raise ConfigError(f"{what} must be texts, got {shorten(repr(texts))}")
        if not empty and not all(text.strip() for text in read):
            raise ConfigError(f"one of the {what} is empty; say what the image is to show")
        return read

    def describe_cut(self, texts: Sequence[str]) -> list[str]:
        """A sentence about each text that is longer than the model reads."""
        encoder = self.generator.conditioner.encoder
        if encoder is None:
            return []
        pairs = zip(texts, encoder.count(texts), strict=True)
        return [
            f"{shorten(repr(text))} has {count} tokens, and the model reads the first {encoder.length}"
            for text, count in pairs
            if count > encoder.length
        ]

    @torch.inference_mode()
    def steps(
        self, condition: Condition, sampling: Sampling, first: int = 0, samples: Tensor | None = None
    ) -> Iterator[Tokens]:
        """Tokens as they are decided.

        Each sample's randomness depends on the seed and its number: first, first + 1, ..., or those in `samples` (B,).
        """
        if condition.negative is not None and not sampling.guides:
            raise ConfigError("negative prompts act through guidance; give a cfg_scale above 1, or leave them out")
        if samples is None:
            samples = torch.arange(first, first + len(condition), device=self.device)
        generator, dtype = self.prepare(sampling.dtype)
        if sampling.draft_model is not None:
            generator.attach_draft(self._draft_model(sampling.draft_model, sampling.dtype))
        inside = sampling.model_copy(update={"dtype": dtype})
        steps = generator.steps(condition, inside, Noise(sampling.seed, samples), self.tokenizer)
        while True:
            with autocast(self.device, dtype):  # left before each yield, so the caller's code is unaffected
                tokens = next(steps, None)
            if tokens is None:
                return
            yield tokens

    def _draft_model(self, name: str, dtype: Precision | None) -> Generator:
        if self._draft is None or self._draft[0] != name:
            with torch.inference_mode(False):  # weights that are loaded inside it have no version
                self._draft = name, replace(self, generator=load_draft(name, self.tokenizer).to(self.device))
        return self._draft[1].prepare(dtype)[0]

    def prepare(self, dtype: Precision | None) -> tuple[Generator, Precision]:
        """The generator with its weights ready for sampling under a precision, and the type of its activations.

        It is kept until a weight changes. It shares all but the linear layers' weights with `generator`.
        """
        device = self.device
        dtype = settle_dtype(dtype, device)
        packs = device.type == "cpu" and can_pack()
        if not packs and dtype in ("auto", "float32"):
            return self.generator, "float32"

        def make(linear: nn.Linear) -> nn.Module:
            return PackedLinear(linear, dtype) if packs else CastLinear(linear, getattr(torch, dtype))

        weights = [(weight.data_ptr(), weight._version) for weight in self.generator.parameters()]
        state = (dtype, device, weights)
        if self._prepared is None or self._prepared[0] != state:
            self._prepared = None  # frees the one before
            self._prepared = state, cast(Generator, with_linears(self.generator, make))
        return self._prepared[1], "float32" if packs else dtype

    @torch.inference_mode()
    def decode(self, tokens: Tokens, dtype: Precision | None = "float32") -> Tensor:
        """Images (B, C, *size) in [-1, 1] of finished or unfinished tokens.

        dtype: as of sampling. With bfloat16 or auto the decoder computes in bfloat16, where the device does so
        natively, which in 8-bit images is seen in a sixth of the numbers, mostly by one level; else in float32.
        Undecided tokens give grey where positions are places in the image (`TokenLayout.spatial`).
        """
        short = settle_dtype(dtype, self.device) in ("auto", "bfloat16") and has_bfloat16(self.device)
        with autocast(self.device, "bfloat16" if short else "float32"):
            images = self.tokenizer.decode(tokens).float().clamp(-1, 1)
        if tokens.known is None or not tokens.layout.spatial:
            return images
        known = tokens.known.unflatten(1, tokens.layout.grid)[:, None].float()
        return images * nn.functional.interpolate(known, size=images.shape[2:], mode="nearest")


def settle_dtype(dtype: Precision | None, device: torch.device) -> Precision:
    """What `sampling.dtype` means on a device. Only a CPU has auto: it chooses layer by layer."""
    if dtype not in (None, "auto"):
        return dtype
    if device.type == "cpu":
        return dtype or "float32"
    return "bfloat16" if has_bfloat16(device) else "float32"


def autocast(device: torch.device, dtype: Precision) -> AbstractContextManager[object]:
    """Mixed precision for sampling on a device."""
    if dtype == "float32":
        return nullcontext()
    if dtype == "float16" and device.type == "cpu":
        raise ArtokError("this build of torch samples in float16 on a GPU only; use bfloat16 or float32 on a CPU")
    return torch.autocast(device.type, getattr(torch, dtype))
