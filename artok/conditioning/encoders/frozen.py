"""Text encoders of the transformers library: frozen, with a trained projection to the generator's width.

The projection is LlamaGen's (Sun et al. 2024, language/t5.py and CaptionEmbedder): two linear layers without biases and
a GELU between them.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.conditioning.encoders.base import Entries, TextEncoder, TextEncoderConfig
from artok.config import FREE
from artok.errors import ConfigError, shorten
from artok.layout import Text

WIDTHS = ("hidden_size", "d_model", "dim", "n_embd")  # keys of a model's config.json that hold the features' width
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # what is fetched from the hub
WEIGHTS, OLD_WEIGHTS = "*.safetensors", "*.bin"
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model")
PIECES, PIECE = 2048, 2**16  # of a file of weights, so many pieces of so many bytes are digested
AT_ONCE = 64  # texts


class FrozenConfig(TextEncoderConfig):
    """A text encoder that is not trained.

    name, revision: a folder, or a model on the hub. features: width of its features; by default the model's config.json
    says it. dtype: of its weights. lowercase: texts are lowered first, as LlamaGen does.
    """

    name: Annotated[str, FREE] = Field(description="a folder, or a model on the Hugging Face hub")
    revision: Annotated[str | None, FREE] = None
    features: Annotated[int | None, FREE] = Field(None, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lowercase: bool = False

    @model_validator(mode="before")
    @classmethod
    def _read_width(cls, section: object) -> object:
        """Take the width from a local model, so that a run's config holds it and is read without the model."""
        if not isinstance(section, dict) or section.get("features") is not None:
            return section
        name = section.get("name", cls.model_fields["name"].default)
        path = Path(name).expanduser() / "config.json" if isinstance(name, str) and name else None
        width = _width_of(path) if path is not None and os.path.isfile(path) else None
        return section if width is None else section | {"features": width}


class FrozenEncoder(TextEncoder):
    """`encode` is by a model of the transformers library, which is loaded when a text is encoded first. mark: changes
    when the entries do.

    The model is no submodule, so it is neither trained, averaged nor saved. The digest of its weights is saved: another
    model in its place is refused.
    """

    def __init__(self, config: FrozenConfig, width: int) -> None:
        super().__init__(config.length)
        self.config = config
        self.features = config.features or self._find_width()
        self.project = nn.Sequential(
            nn.Linear(self.features, width, bias=False),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, width, bias=False),
        )
        self._trained_with = ""

    @staticmethod
    @abstractmethod
    def load(folder: str, **options: Any) -> nn.Module:
        """The model of texts in a folder, which gives `last_hidden_state`."""

    def forward(self, text: Text) -> Tensor:
        vectors: Tensor = self.project(text.values.float())
        return vectors

    def example(self, rows: int, device: torch.device) -> Text:
        values = torch.zeros(rows, self.length, self.features, device=device)
        return Text(values, torch.ones(rows, self.length, dtype=torch.bool, device=device))

    def initialise(self, fill: Callable[[Tensor], object]) -> None:
        return

    # ------------------------------------------------------------------------------------------ the model

    @property
    def fitted(self) -> bool:
        return self._trained_with != ""

    def fit(self, texts: Iterable[str]) -> None:
        self._trained_with = digest_model(self._folder())

    @property
    def mark(self) -> str:
        folder, config = self._folder(), self.config
        vocabularies = [digest_file(path) for name in VOCABULARIES if (path := folder / name).is_file()]
        settings = (config.kind, config.length, config.dtype, config.lowercase, self.features)
        return _digest(digest_model(folder), *vocabularies, *settings)

    def _folder(self) -> Path:
        return find_model(self.config.name, self.config.revision)

    def _find_width(self) -> int:
        path = find_model(self.config.name, self.config.revision, ("config.json",)) / "config.json"
        width = _width_of(path)
        if width is None:
            raise ConfigError(f"{path} does not say how wide the features are: set the text encoder's 'features'")
        return width

    def _model(self) -> tuple[Any, Any]:
        """The tokenizer and the model, on the device of the projection."""
        folder = self._folder()
        digest = digest_model(folder)
        if self._trained_with not in ("", digest):
            raise ConfigError(
                f"the text encoder in {folder} is not the one that the generator was trained with (fingerprint "
                f"{self._trained_with}, and this one has {digest}); put the right one back"
            )
        tokenizer, model = _load(type(self), folder, digest, self.config.dtype)
        most = getattr(model.config, "max_position_embeddings", None)
        if isinstance(most, int) and self.length > most:
            raise ConfigError(f"the text encoder in {folder} reads at most {most} tokens: set its length to that")
        return tokenizer, model.to(next(self.parameters()).device)

    def _read(self, texts: Sequence[str]) -> list[str]:
        return [text.strip().lower() if self.config.lowercase else text.strip() for text in texts]

    @torch.no_grad()
    def entries(self, texts: Sequence[str]) -> list[Entries]:
        found = dict.fromkeys(range(len(texts)), np.zeros((0, self.features), np.float16))
        read = self._read(texts)
        order = sorted((row for row, text in enumerate(read) if text), key=lambda row: len(read[row]))
        for start in range(0, len(order), AT_ONCE):
            rows = order[start : start + AT_ONCE]
            found |= zip(rows, self._encode([read[row] for row in rows]), strict=True)
        return list(found.values())

    def _encode(self, texts: list[str]) -> list[Entries]:
        (tokenizer, model), device = self._model(), next(self.parameters()).device
        inputs = tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.length,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(device)
        with torch.autocast(device.type, enabled=False):
            features = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
        if features.shape[-1] != self.features:
            raise ConfigError(
                f"the text encoder {self.config.name} gives features of width {features.shape[-1]}, and its section "
                f"says {self.features}"
            )
        values, mask = features.to(torch.float16).cpu(), inputs.attention_mask.bool().cpu()
        if not bool(values[mask].isfinite().all()):
            raise ConfigError(
                f"the text encoder {self.config.name} overflows in {self.config.dtype}; set its dtype to bfloat16 or "
                "float32"
            )
        return [row[kept].numpy() for row, kept in zip(values, mask, strict=True)]

    def count(self, texts: Sequence[str]) -> list[int]:
        tokenizer, _ = self._model()
        found = tokenizer(self._read(texts), truncation=False, verbose=False).input_ids
        return [len(ids) for ids in found]

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(self._trained_with.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self._trained_with = bytes(state.cpu().tolist()).decode()


@lru_cache(maxsize=2)
def _load(kind: type[FrozenEncoder], folder: Path, digest: str, dtype: str) -> tuple[Any, Any]:
    """The tokenizer and the model of a folder. digest: of its weights, so that a changed model is loaded again."""
    try:
        import transformers
    except ImportError:
        raise ConfigError("this text encoder needs the transformers library: pip install 'artok[text]'") from None
    transformers.logging.set_verbosity_error()  # it lists the parts of a checkpoint that are not of the text encoder
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
        model = kind.load(str(folder), torch_dtype=getattr(torch, dtype)).eval().requires_grad_(False)
    except Exception as error:  # the library raises many kinds of errors on what it does not know
        reason = shorten(" ".join(str(error).split()))
        raise ConfigError(f"{folder} holds no text encoder that transformers loads as such ({reason})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer, model


def find_model(name: str, revision: str | None = None, files: tuple[str, ...] = FILES) -> Path:
    """The folder of a model, fetched from the hub at its first use. ConfigError: there is none."""
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{name} holds no text encoder: it has no config.json")
        return folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ConfigError(f"there is no text encoder in {shorten(repr(name))}: name a folder, or a model on the hub")
    return _fetch(name, revision, files)


@cache
def _fetch(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
        if files == FILES and not any(folder.glob(WEIGHTS)):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*files, OLD_WEIGHTS]))
    except Exception as error:  # the hub client raises many kinds of errors
        reason = shorten(" ".join(str(error).split())) or type(error).__name__
        raise ConfigError(
            f"the text encoder {name} is neither a folder here nor a model on the hub ({reason})"
        ) from None
    return folder


def _width_of(path: Path) -> int | None:
    """The width of a model's features, from its config.json; of a model with a text part, of that part."""
    try:
        config = json.loads(path.read_text())
        config = config.get("text_config") or config
        return next((config[key] for key in WIDTHS if isinstance(config.get(key), int)), None)
    except (OSError, ValueError, AttributeError):
        return None


def digest_model(folder: Path) -> str:
    """Digest of a model's weights. ConfigError: it has none."""
    files = sorted(folder.glob(WEIGHTS)) or sorted(folder.glob(OLD_WEIGHTS))
    if not files:
        raise ConfigError(f"{folder} holds no text encoder: it has no weights (*.safetensors)")
    return _digest(*map(digest_file, files))


def digest_file(path: Path) -> str:
    """Digest of a file, or of pieces all over a large one. An unchanged file is read once."""
    found = path.stat()
    return _digest_file(path.resolve(), found.st_mtime_ns, found.st_size)


@cache
def _digest_file(path: Path, changed: int, size: int) -> str:
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    step = max(PIECE, size // PIECES)
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            digest.update(file.read(PIECE))
    return digest.hexdigest()


def _digest(*parts: object) -> str:
    return hashlib.blake2b("\n".join(map(str, parts)).encode(), digest_size=8).hexdigest()
