"""A published reference set in ADM's format: an .npz of statistics of features, of images, or of both.

`mu` (D,) and `sigma` (D, D) are the mean and covariance of the features of some set, usually of all training images;
`arr_0` (N, H, W, 3) uint8 are images, which precision and recall are measured against (Dhariwal and Nichol 2021,
`evaluations/` of guided-diffusion).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from artok.errors import ArtokError, DataError
from artok.metrics import frechet
from artok.metrics.base import EvalBatch, Metric
from artok.metrics.evaluate import Evaluation
from artok.metrics.features import Extractor, extract
from artok.metrics.floor import SETS
from artok.metrics.results import Measurement

BATCH = 256


@dataclass(frozen=True)
class Reference:
    """path: of the file. gaussian: mean (D,) and covariance (D, D), float64, where it holds them. count: of images."""

    path: Path
    gaussian: tuple[Tensor, Tensor] | None
    count: int

    @classmethod
    def open(cls, path: Path) -> Reference:
        """A DataError when the file is missing, damaged, or holds neither statistics nor images."""
        if not path.is_file():
            raise DataError(f"there is no reference file {path}")
        try:
            with np.load(path, allow_pickle=False) as file:
                names = set(file.files)
                gaussian = None
                if {"mu", "sigma"} <= names:
                    gaussian = (torch.from_numpy(file["mu"]).double(), torch.from_numpy(file["sigma"]).double())
            count = _images(path)[0] if "arr_0" in names else 0
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be read as a reference .npz: {error}") from None
        if gaussian is None and not count:
            raise DataError(f"{path} holds neither mu and sigma nor images as arr_0, but {', '.join(sorted(names))}")
        if gaussian is not None and gaussian[1].shape != (len(gaussian[0]),) * 2:
            shapes = tuple(gaussian[0].shape), tuple(gaussian[1].shape)
            raise DataError(f"mu and sigma of {path} do not fit each other: {shapes[0]} and {shapes[1]}")
        return cls(path, gaussian, count)

    def images(self) -> Iterator[Tensor]:
        """Its images in batches (B, 3, H, W) uint8; they are never all held."""
        count, shape = _images(self.path)
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
            _header(file)
            for start in range(0, count, BATCH):
                part = (min(BATCH, count - start), *shape)
                content = file.read(int(np.prod(part)))
                if len(content) != np.prod(part):
                    raise DataError(f"the images of {self.path} end after {start:,} of {count:,}")
                pixels = np.frombuffer(content, np.uint8).reshape(part).transpose(0, 3, 1, 2)
                yield torch.from_numpy(pixels.copy())


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of an array; leaves the file at its values."""
    read = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
    return read[np.lib.format.read_magic(file)[0] - 1](file)


def _images(path: Path) -> tuple[int, tuple[int, ...]]:
    """Number and shape (H, W, 3) of the images of a file; a ValueError when they are none."""
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        shape, transposed, dtype = _header(file)
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or transposed:
        raise ValueError(f"arr_0 must be images (N, H, W, 3) uint8, not {shape} {dtype}")
    return shape[0], shape[1:]


class AgainstReference:
    """Metrics of two sets of features, of generated images against a reference.

    The Fréchet distance takes its statistics, others its images; a metric that the file has nothing for is left out.
    """

    def __init__(self, reference: Reference, extractor: Extractor, metrics: Sequence[Metric]) -> None:
        """metrics: fresh ones. An ArtokError when the statistics are of features of another width."""
        self._reference, self._extractor = reference, extractor
        gaussian = reference.gaussian
        if gaussian is not None and len(gaussian[0]) != extractor.dim:
            raise ArtokError(
                f"{reference.path} holds statistics of {len(gaussian[0])} features, and the extractor {extractor.name} "
                f"gives {extractor.dim}; name the one they are of, as --extractor inception is for ADM's files"
            )
        given = [metric for metric in metrics if isinstance(metric, frechet.FrechetDistance) and gaussian is not None]
        self._made = frechet.Moments() if given else None
        others = [metric for metric in metrics if metric.needs <= SETS and metric not in given]
        self._others = Evaluation(others if reference.count else [], extractor)

    def update(self, seen: EvalBatch) -> None:
        """The samples or reconstructions of a batch, by their features where these are known."""
        features, made = seen.fake_features, seen.samples if seen.samples is not None else seen.reconstructions
        if features is None and made is not None:
            features = extract(self._extractor, made)[0]
        if features is None:
            return
        if self._made is not None:
            self._made.update(features)
        self._others.update(EvalBatch(fake_features=features))

    def measurements(self, seed: int) -> list[Measurement]:
        """Values under names that carry the file's; they have no floor, as the file is usually of training images."""
        reference, found = self._reference, list[Measurement]()
        if self._made is not None:
            assert reference.gaussian is not None
            value = frechet.frechet_distance(*reference.gaussian, self._made.mean, self._made.covariance)
            found.append(Measurement(frechet.NAME, value, self._made.count, seed, dim=self._extractor.dim))
        if self._others.metrics:
            for images in reference.images():
                self._others.update(EvalBatch(real_features=extract(self._extractor, images)[0]))
            found += self._others.results("", seed).measurements
        return [
            replace(
                each,
                name=f"{each.name}/against_{reference.path.stem}",
                extractor=self._extractor.name,
                fingerprint=self._extractor.fingerprint,
                reference=reference.path.name,
            )
            for each in found
        ]
