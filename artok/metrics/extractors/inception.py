"""The published Inception of FID: TensorFlow's 2015 graph as converted by torch-fidelity, 2048 features a picture."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from artok.cache import cache_directory
from artok.errors import ArtokError, CheckpointError
from artok.metrics.features import (
    Extractor,
    ExtractorConfig,
    TrainingImages,
    three_channels,
    weights_fingerprint,
)

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
DIGEST = "6726825d"  # how the SHA-256 of the published file begins, as its name says


class Config(ExtractorConfig):
    """weights: the published file; without it, it is looked for in artok's cache and in torch's."""

    kind: Literal["inception"] = "inception"
    weights: Path | None = None

    def build(self, training: TrainingImages | None, device: torch.device | str, cache: Path | None) -> Inception:
        directory = cache or cache_directory()
        places = (
            [self.weights] if self.weights else [directory / FILE, Path(torch.hub.get_dir()) / "checkpoints" / FILE]
        )
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            missing = f"there is no file {self.weights}" if self.weights else "the published Inception is not here"
            raise CheckpointError(f"{missing}: download {URL} to {directory / FILE}, or name it as inception@FILE")
        return Inception(found, torch.device(device))


class Inception(Extractor):
    """Grey images are repeated to three channels; all are resized to 299 as TensorFlow 1 did."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """path: the published weights; a CheckpointError for any other file, whose distance would be no FID."""
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise ArtokError("the extractor 'inception' needs torch-fidelity: pip install 'artok[inception]'") from None
        content = path.read_bytes()
        if not hashlib.sha256(content).hexdigest().startswith(DIGEST):
            raise CheckpointError(f"{path} is not the published Inception ({URL}): its SHA-256 does not match")
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(f"{path} cannot be read as weights: {error}") from None
        # torch-fidelity unpickles whatever file it is given, so it is given bytes written here.
        written = io.BytesIO()
        torch.save(state, written)
        written.seek(0)
        self._network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], written).to(device)
        self.name, self.dim, self.device = "inception", 2048, device
        self.fingerprint = weights_fingerprint(self._network.state_dict())

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._network(three_channels(images).contiguous())[0], None
