"""The encoder of a T5 (Raffel et al. 2020, arXiv 1910.10683), as in Imagen, PixArt and LlamaGen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from artok.conditioning.encoders.frozen import FrozenConfig, FrozenEncoder
from artok.config import FREE


class Config(FrozenConfig):
    """encoder kind: t5. The defaults are LlamaGen's."""

    kind: Literal["t5"] = "t5"
    name: Annotated[str, FREE] = "google/flan-t5-xl"
    length: int = Field(120, ge=1, le=4096)

    def build(self, width: int) -> T5Encoder:
        return T5Encoder(self, width)

    @classmethod
    def tiny(cls) -> Config:
        return cls(name="none", features=8, length=6)


class T5Encoder(FrozenEncoder):
    @staticmethod
    def load(folder: str, **options: Any) -> nn.Module:
        from transformers import T5EncoderModel

        model: nn.Module = T5EncoderModel.from_pretrained(folder, **options)
        return model
