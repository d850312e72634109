"""Any text encoder that transformers loads with `AutoModel`, such as BERT, MiniLM or a language model."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from artok.conditioning.encoders.frozen import FrozenConfig, FrozenEncoder


class Config(FrozenConfig):
    """encoder kind: auto."""

    kind: Literal["auto"] = "auto"

    def build(self, width: int) -> AutoEncoder:
        return AutoEncoder(self, width)

    @classmethod
    def tiny(cls) -> Config:
        return cls(name="none", features=8, length=6)


class AutoEncoder(FrozenEncoder):
    @staticmethod
    def load(folder: str, **options: Any) -> nn.Module:
        from transformers import AutoModel

        model: Any = AutoModel.from_pretrained(folder, **options)
        if hasattr(model, "decoder"):
            model = model.get_encoder()
        part: nn.Module = getattr(model, "text_model", model)  # of a model of images and texts
        return part
