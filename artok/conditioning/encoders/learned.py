"""A small transformer over byte-pair codes, trained with the generator. It needs no download.

The vocabulary is trained on the captions of the training data (byte-level BPE; Sennrich et al. 2016, arXiv 1508.07909)
and saved with the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from artok.conditioning.encoders.base import Entries, TextEncoder, TextEncoderConfig
from artok.errors import ConfigError
from artok.layout import Text
from artok.nn.vit import EPS, VitBlock

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and forked data workers do not go together

PAD = 0  # id of padding, as `encode` fills with zeros
BYTES = 256  # ids that any text needs


class Config(TextEncoderConfig):
    """encoder kind: learned.

    vocab_size: most ids; captions of few words give fewer. depth, heads: of the transformer over a text; depth 0 for
    embeddings alone.
    """

    kind: Literal["learned"] = "learned"
    vocab_size: int = Field(1024, gt=BYTES + 1, le=2**17)
    depth: int = Field(2, ge=0)
    heads: int = Field(4, ge=1)
    lowercase: bool = True

    def build(self, width: int) -> LearnedEncoder:
        if self.depth and width % self.heads:
            raise ConfigError(f"the text encoder's heads ({self.heads}) must divide the generator's width {width}")
        return LearnedEncoder(self, width)

    @classmethod
    def tiny(cls) -> Config:
        return cls(length=6, vocab_size=300, depth=1, heads=2)


class LearnedEncoder(TextEncoder):
    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config.length)
        self.config, self.vocab = config, config.vocab_size
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Parameter(0.02 * torch.randn(config.length, width))
        self.blocks = nn.ModuleList(VitBlock(width, config.heads, 4 * width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=EPS) if config.depth else nn.Identity()
        self._tokenizer: Tokenizer | None = None

    def initialise(self, fill: Callable[[Tensor], object]) -> None:
        fill(self.embedding.weight)
        fill(self.positions)

    def forward(self, text: Text) -> Tensor:
        x_BLW = self.embedding(text.values) + self.positions
        empty_B1 = ~text.mask.any(1, keepdim=True)  # attention over nothing is not a number
        mask = (text.mask | empty_B1)[:, None, None]
        for block in self.blocks:
            x_BLW = block(x_BLW, mask)
        return self.norm(x_BLW)

    def example(self, rows: int, device: torch.device) -> Text:
        ids = torch.zeros(rows, self.length, dtype=torch.int64, device=device)
        return Text(ids, torch.ones_like(ids, dtype=torch.bool))

    # ------------------------------------------------------------------------------------------ the vocabulary

    @property
    def fitted(self) -> bool:
        return self._tokenizer is not None

    def fit(self, texts: Iterable[str]) -> None:
        tokenizer = Tokenizer(models.BPE())
        if self.config.lowercase:
            tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.config.vocab_size,
            special_tokens=["<pad>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        self._tokenizer = tokenizer
        self.forget()

    @property
    def tokenizer(self) -> Tokenizer:
        """The trained vocabulary. ConfigError: there is none yet."""
        if self._tokenizer is None:
            raise ConfigError("the text encoder has no vocabulary yet; it is trained on captions with `fit`")
        return self._tokenizer

    def entries(self, texts: Sequence[str]) -> list[Entries]:
        found = self.tokenizer.encode_batch([text.strip() for text in texts])
        return [np.array(entry.ids[: self.length], dtype=np.int64) for entry in found]

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(entry.ids) for entry in self.tokenizer.encode_batch([text.strip() for text in texts])]

    def decode(self, text: Text) -> list[str]:
        """The texts of ids, without padding."""
        rows = zip(text.values.tolist(), text.mask.tolist(), strict=True)
        kept = [[entry for entry, valid in zip(*row, strict=True) if valid and entry != PAD] for row in rows]
        return [string.strip() for string in self.tokenizer.decode_batch(kept)]

    def get_extra_state(self) -> Tensor:
        """The vocabulary as the bytes of its JSON, so that it is saved with the weights."""
        text = "" if self._tokenizer is None else self._tokenizer.to_str()
        return torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy())

    def set_extra_state(self, state: Tensor) -> None:
        text = bytes(state.cpu().numpy()).decode()
        self._tokenizer = Tokenizer.from_str(text) if text else None
        self.forget()
