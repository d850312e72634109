"""Trains a tokenizer's decoder on perturbed tokens; encoder and quantizer stay, and with them the tokens of images.

A generator's tokens are not those of any image. A decoder that has seen tokens with errors makes better images of them
(RobusTok, Qiu et al. 2025, arXiv 2503.08354 and 2509.12474; noise on continuous tokens as in l-DeTok, Yang et al. 2025,
arXiv 2507.15856).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from artok.data.base import Split
from artok.data.loader import Batch
from artok.errors import ConfigError
from artok.layout import Tokens
from artok.noise import Noise, fold
from artok.quantizers.base import Replacement
from artok.saved import fingerprint, load_tokenizer
from artok.tokenizers.neighbours import near_codes, replace_codes
from artok.training.experiment import Experiment
from artok.training.task import Step
from artok.training.tasks import TokenizerTask


class DecoderTask(TokenizerTask):
    """Reconstruct images from perturbed tokens of a trained tokenizer, the run in `init`."""

    def __init__(self, experiment: Experiment, train: Split, test: Split, device: torch.device) -> None:
        super().__init__(experiment, train, test, device)
        assert experiment.init is not None and experiment.post_training is not None
        self.settings = experiment.post_training
        self.facts = experiment.facts(train, fingerprint(load_tokenizer(experiment.init)[0]))
        trained = self.tokenizer.decoder_parts()
        if not trained:
            raise ConfigError(f"tokenizer {type(self.tokenizer).__name__} has no decoder that is trained alone")
        self.tokenizer.requires_grad_(False)
        for part in trained:
            part.requires_grad_(True)
        self.near: Tensor | None = None

    def begin(self) -> list[Replacement]:
        return []

    def settle(self, mean: Callable[[Tensor], Tensor]) -> list[Replacement]:
        if self.adversary is not None:
            self.adversary.settle(mean)
        return []

    def figures(self) -> dict[str, float]:
        return {}

    def windows(self) -> dict[str, Tensor]:
        return {}

    def measure(self) -> dict[str, float]:
        return {}

    def perturb(self, tokens: Tokens, noise: Noise) -> Tokens:
        """Tokens with errors, of which each image draws its own amount between none and the settings' most."""
        amount_B11 = noise.uniform(1, 1)
        if not tokens.layout.discrete:
            deviation = self.settings.noise * amount_B11
            return replace(tokens, values=tokens.values + deviation * noise.normal(*tokens.layout.value_shape()))
        if self.near is None:
            self.near = near_codes(self.tokenizer, self.settings.neighbours, self.device)
        return replace_codes(tokens, self.near, self.settings.share * amount_B11, noise)

    def losses(self, modules: Mapping[str, nn.Module], player: str, batch: Batch, seen: int) -> Step:
        noise = Noise(fold("perturb", self.experiment.seed), batch.positions.to(self.device))
        self.tokenizer.perturb = partial(self.perturb, noise=noise)
        try:
            return super().losses(modules, player, batch, seen)
        finally:
            self.tokenizer.perturb = None
