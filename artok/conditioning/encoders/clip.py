"""The text part of a CLIP (Radford et al. 2021, arXiv 2103.00020), as in Stable Diffusion: its last hidden states."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from artok.conditioning.encoders.frozen import FrozenConfig, FrozenEncoder
from artok.config import FREE


class Config(FrozenConfig):
    """encoder kind: clip. The defaults are Stable Diffusion 1's."""

    kind: Literal["clip"] = "clip"
    name: Annotated[str, FREE] = "openai/clip-vit-large-patch14"
    length: int = Field(77, ge=1, le=4096)

    def build(self, width: int) -> ClipEncoder:
        return ClipEncoder(self, width)

    @classmethod
    def tiny(cls) -> Config:
        return cls(name="none", features=8, length=6)


class ClipEncoder(FrozenEncoder):
    @staticmethod
    def load(folder: str, **options: Any) -> nn.Module:
        from transformers import CLIPTextModel

        model: nn.Module = CLIPTextModel.from_pretrained(folder, **options)
        return model
