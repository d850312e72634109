"""Measures the code entropy per position, and the robustness of reconstructions to replaced codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from artok.data.loader import choose_of
from artok.evaluation.evaluator import BATCH, Evaluator
from artok.images import from_uint8, to_uint8
from artok.layout import Tokens
from artok.metrics import frechet
from artok.metrics.base import EvalBatch, MetricContext
from artok.metrics.codebook import CodebookUsage
from artok.metrics.codebook import Config as CodebookConfig
from artok.metrics.features import extract
from artok.metrics.results import Measurement
from artok.noise import Noise
from artok.tokenizers.base import Tokenizer
from artok.tokenizers.neighbours import near_codes, replace_codes

SEED = 0


@dataclass(frozen=True)
class CodeStudy:
    """positions: entropy of the codes at each position over held-out images, (N, K) float64 in bits, at most log2 of
    the number of images. perturbed: Fréchet distances of reconstructions with shares of their codes replaced."""

    positions: Tensor
    perturbed: tuple[Measurement, ...]


def perturbed_name(share: float) -> str:
    """The identifier of the distance with this share of the codes replaced."""
    return f"fd/replaced_{share:g}"


@torch.no_grad()
def examine(evaluator: Evaluator, tokenizer: Tokenizer, shares: Sequence[float], neighbours: int) -> CodeStudy:
    """Encodes the evaluator's held-out images once, and decodes them once for each share of replaced codes.

    Each code is replaced with that probability by one of its so many nearest neighbours in the codebook; which ones
    depends on the image's number alone. A share of 0 gives the Fréchet distance of plain reconstructions.
    """
    layout, device = tokenizer.layout, evaluator.device
    rows = choose_of(evaluator.test_split, evaluator.n)
    usage = CodebookConfig().build(MetricContext(layout=layout))
    assert isinstance(usage, CodebookUsage)
    encoded, features = [], []
    for images, _ in evaluator.read(evaluator.test_split, rows, BATCH):
        encoded.append(tokenizer.encode(from_uint8(images).to(device)))
        usage.update(EvalBatch(codes=encoded[-1].values.cpu()))
        features.append(extract(evaluator.extractor, images)[0])
    real = torch.cat(features)
    near = near_codes(tokenizer, neighbours, device)
    found = []
    for share in shares:
        evaluation = evaluator.evaluation([frechet.Config()], layout)
        evaluation.update(EvalBatch(real_features=real))
        for tokens, part in zip(encoded, rows.split(BATCH), strict=True):
            evaluation.update(EvalBatch(reconstructions=_decoded(tokenizer, tokens, near, share, part.to(device))))
        (entry,) = evaluation.results("", SEED).measurements
        found.append(replace(entry, name=perturbed_name(share)))
    return CodeStudy(usage.by_position(), tuple(found))


def _decoded(tokenizer: Tokenizer, tokens: Tokens, near: Tensor, share: float, images: Tensor) -> Tensor:
    changed = replace_codes(tokens, near, share, Noise(SEED, images))
    return to_uint8(tokenizer.decode(changed)).cpu()
