"""A tokenizer as two ONNX graphs: `encode.onnx`, images to tokens, and `decode.onnx`, tokens to images."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from artok.errors import ArtokError
from artok.files import new_folder
from artok.layout import Tokens
from artok.saved import load_tokenizer
from artok.tokenizers.base import Tokenizer

OPSET = 18


class Encode(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to token values (B, N, K) int64 or (B, N, D) float32."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images).values


class Decode(nn.Module):
    """Token values to images (B, C, H, W), not clamped."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, values: Tensor) -> Tensor:
        return self.tokenizer.decode(Tokens(values, self.tokenizer.layout))


def to_onnx(run: str | Path, out: Path) -> list[Path]:
    """Write both graphs of the tokenizer of a run with a dynamic batch size. Returns their paths.

    ArtokError: the onnx packages are not installed.
    """
    tokenizer, _ = load_tokenizer(run)
    layout = tokenizer.layout
    images = torch.zeros(2, *layout.image)
    values = torch.zeros(2, *layout.value_shape(), dtype=torch.int64 if layout.discrete else torch.float32)
    with new_folder(out, "decode.onnx") as aside:
        write(Encode(tokenizer), images, "images", "tokens", aside / "encode.onnx")
        write(Decode(tokenizer), values, "tokens", "images", aside / "decode.onnx")
    return [out / "encode.onnx", out / "decode.onnx"]


def write(module: nn.Module, example: Tensor, given: str, found: str, path: Path) -> None:
    """Write one graph with a dynamic first axis."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                module.eval(),
                (example,),
                str(path),
                input_names=[given],
                output_names=[found],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except ModuleNotFoundError as error:
            raise ArtokError(f"exporting to ONNX needs {error.name} installed: pip install onnx onnxscript") from None
