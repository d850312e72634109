"""CLIP score: how well images fit their captions, as read by a CLIP (Hessel et al. 2021, arXiv 2104.08718, eq. 1).

2.5 max(cos(image, text), 0) with "A photo depicts " before each text. Values of two CLIPs are not comparable. Libraries
that report 100 cos without these words, as torchmetrics does, give another number. `shuffled` is the mean over captions
of other images: what a generator that ignores its captions would reach. The floor is of the held-out images themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from artok.config import FREE
from artok.errors import ArtokError, ConfigError, shorten
from artok.metrics.base import HELD_OUT, EvalBatch, Metric, MetricConfig, MetricContext, enough
from artok.metrics.features import three_channels, weights_fingerprint
from artok.metrics.quantity import Quantity

NAME = "clip_score"
WEIGHT, PREFIX = 2.5, "A photo depicts "
AT_ONCE = 256


class Config(MetricConfig):
    """CLIP score of images made for captions. It needs transformers, and is computed where an evaluation names it.

    name: a folder, or a model on the Hugging Face hub; the default is the published one.
    """

    by_name: ClassVar[bool] = True

    kind: Literal["clip_score"] = "clip_score"
    name: Annotated[str, FREE] = "openai/clip-vit-base-patch32"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            NAME,
            "CLIP score",
            "",
            "higher",
            "Fidelity to the condition",
            "Similarity of images and their captions to a CLIP; shuffled is that to captions of other images.",
        ),
    )

    def build(self, subject: MetricContext) -> ClipScore:
        return ClipScore(self.name, subject.device)

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class ClipScore(Metric):
    needs: ClassVar[frozenset[str]] = frozenset({"prompted", "prompts"})
    optional: ClassVar[frozenset[str]] = frozenset({"images", "unseen"})

    def __init__(self, name: str, device: str) -> None:
        self._name, self._device = name, device
        self._found: dict[str, list[tuple[Tensor, Tensor]]] = {}

    @property
    def reference(self) -> str:
        return f"{self._name}, {open_clip(self._name, self._device).fingerprint}"

    @property
    def count(self) -> int:
        return sum(len(images) for images, _ in self._found.get("", []))

    def update(self, seen: EvalBatch) -> None:
        if seen.prompts is None:
            return
        if seen.images is not None:
            self._add(HELD_OUT, seen.images, seen.prompts)
        if seen.prompted is not None:
            self._add("", seen.prompted, seen.prompts, None if seen.unseen is None else ~seen.unseen)
            if seen.unseen is not None:
                self._add("/unseen", seen.prompted, seen.prompts, seen.unseen)

    def _add(self, part: str, images: Tensor, prompts: Sequence[str], chosen: Tensor | None = None) -> None:
        """chosen: (B,) bool, of which rows; all unless given. An image without a caption has an empty text."""
        if len(images) != len(prompts):
            raise ArtokError(f"there are {len(images)} images for {len(prompts)} prompts")
        rows = [row for row, text in enumerate(prompts) if text.strip() and (chosen is None or bool(chosen[row]))]
        if rows:
            clip = open_clip(self._name, self._device)
            self._found.setdefault(part, []).append(clip(images[rows], [prompts[row] for row in rows]))

    def compute(self) -> dict[str, float]:
        enough("CLIP score", {"images with prompts": self.count}, 1)
        found = {part: tuple(map(torch.cat, zip(*pairs, strict=True))) for part, pairs in self._found.items()}
        values = {
            f"{NAME}{part}": float(score((images * texts).sum(1)).mean()) for part, (images, texts) in found.items()
        }
        images, texts = found[""]
        every = sum(float(score(some @ texts.T).sum()) for some in images.split(AT_ONCE))
        if self.count > 1:
            values[f"{NAME}/shuffled"] = (every / self.count - values[NAME]) / (self.count - 1)
        return values


def score(cosine: Tensor) -> Tensor:
    return WEIGHT * cosine.double().clamp(min=0)


class Clip:
    """A CLIP of transformers, which gives the directions (B, D) of images and of their captions, on the CPU.

    fingerprint: of its weights. ConfigError: `name` is no CLIP that can be loaded.
    """

    def __init__(self, name: str, device: str) -> None:
        try:
            import transformers
        except ImportError:
            raise ConfigError("the CLIP score needs the transformers library: pip install 'artok[text]'") from None
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        try:
            loaded: Any = transformers.CLIPModel.from_pretrained(name, output_loading_info=True)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(name)
            self._processor = transformers.CLIPImageProcessor.from_pretrained(name)
        except Exception as error:  # the library raises many kinds of errors on what it does not know
            reason = shorten(" ".join(str(error).split()))
            raise ConfigError(
                f"there is no CLIP in {name}, which the CLIP score needs: name a folder or a model on the hub as "
                f"{{kind: clip_score, name: ...}} ({reason})"
            ) from None
        self._model, found = loaded
        if found["missing_keys"]:
            raise ConfigError(f"{name} holds no whole CLIP, which the CLIP score needs: its weights lack a part")
        self._model.eval().requires_grad_(False).to(device)
        self._device = device
        self.fingerprint = weights_fingerprint(self._model.state_dict())

    @torch.no_grad()
    def __call__(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Unit vectors of images (B, C, H, W) uint8 and of as many texts."""
        most = self._model.config.text_config.max_position_embeddings
        read = self._tokenizer(
            [PREFIX + text for text in texts], padding=True, truncation=True, max_length=most, return_tensors="pt"
        )
        pixels = self._processor(
            [image.numpy() for image in three_channels(images)], input_data_format="channels_first", return_tensors="pt"
        ).pixel_values
        found = self._model(
            input_ids=read.input_ids.to(self._device),
            attention_mask=read.attention_mask.to(self._device),
            pixel_values=pixels.to(self._device),
        )
        return found.image_embeds.float().cpu(), found.text_embeds.float().cpu()


@lru_cache(maxsize=1)
def open_clip(name: str, device: str) -> Clip:
    """The CLIP of a name, loaded once."""
    return Clip(name, device)
