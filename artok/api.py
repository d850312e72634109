"""What `import artok` gives: a tokenizer by name, training and evaluation in one call each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from artok import saved
from artok.config import load
from artok.device import resolve_device
from artok.evaluation import evaluate as evaluation
from artok.files import read_place
from artok.metrics.results import Results
from artok.tokenizers.base import Tokenizer
from artok.training import run
from artok.training.experiment import Experiment, default_folder
from artok.training.progress import Progress


def load_tokenizer(name: str | Path, device: str | torch.device = "cpu") -> Tokenizer:
    """Load a trained tokenizer in eval mode from a run directory, a published checkpoint or a hub repository.

    A generator's run gives the tokenizer that it was trained on. CheckpointError: there is none.
    """
    return saved.load_tokenizer(name)[0].to(device)


def train(
    config: str | Experiment,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    fresh: bool = False,
    extend: bool = False,
) -> Path:
    """Train a tokenizer or a generator, or resume a stopped training. Returns the run directory.

    config: a YAML file, a shipped name such as "digits/vq", or an experiment. overrides: `key.sub=value` on top.
    out: the run directory, runs/<name> unless given. fresh: discard the run that it holds. extend: resume with another
    `training.images` where the learning rate depends on it.
    ArtokError: the input is wrong, or training failed. KeyboardInterrupt: it was stopped after saving a checkpoint.
    """
    experiment = load(Experiment, config, overrides) if isinstance(config, str) else config
    folder = read_place(str(out)) if out is not None else default_folder(experiment)
    if not run.train(experiment, folder, fresh, resolve_device(device), extend):
        raise KeyboardInterrupt
    return folder


def evaluate(
    name: str | Path,
    overrides: Sequence[str] = (),
    n: int | None = None,
    extractor: str = "classifier",
    device: str | torch.device | None = None,
    reference: str | Path | None = None,
) -> Results:
    """Measure a tokenizer or a generator on held-out images. Returns the results and writes the run's results.json.

    overrides: sampling settings as key=value, data settings as data.key=value. n: images, all held-out ones unless
    given. extractor: classifier, pixels, inception, or timm:NAME. reference: an .npz in ADM's format to compare
    with too.
    """
    where, known = str(resolve_device(device)), None if reference is None else Path(reference)
    return evaluation.evaluate(str(name), n, extractor, overrides, where, Progress("evaluate"), known)
