"""What extractors share that artok trains itself: cached weights, reproducible training, normalised features."""

from __future__ import annotations

import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from artok.locks import hold_lock
from artok.metrics.features import TrainingImages

VARIANCE = 4.0  # of a feature on the training split, on average

N = TypeVar("N", bound=nn.Module)


class Featured(Protocol):
    """A network that gives features (B, D) first, with buffers `centre` (D,) and `scale` ()."""

    centre: Tensor
    scale: Tensor

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]: ...


def load_or_train(name: str, empty: N, path: Path, key: str, train: Callable[[], N]) -> N:
    """The network with the weights in `path`, or trained and written there. empty: on the meta device, to be filled.

    name: of the kind, for messages. key: what the file notes of the settings. Of several processes that want it at
    once, one trains it and the others read it.
    """
    network = _load(name, empty, path)
    if network is None:
        with hold_lock(path):
            network = _load(name, empty, path)
            if network is None:
                network = train()
                _save(name, network, path, key)
    return network


def _load(name: str, network: N, path: Path) -> N | None:
    """The network with the cached weights; None when there is no such file or it is damaged, to be trained again."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        network.load_state_dict(weights, assign=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        warnings.warn(f"the cached {name} {path} is damaged and is trained again: {error}", stacklevel=3)
        return None
    return network


def _save(name: str, network: nn.Module, path: Path, key: str) -> None:
    """Written aside, then renamed; a cache that cannot be written costs a warning, not the evaluation."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            written = Path(aside) / path.name
            save_file(network.state_dict(), written, {name: json.dumps(key)})
            os.replace(written, path)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"the trained {name} could not be cached at {path}: {error}", stacklevel=3)


def cycle(progress: float) -> float:
    """Share of the highest learning rate at progress in [0, 1]: a linear rise for a fifth, then half a cosine to 0."""
    rise = 0.2
    if progress < rise:
        return 0.05 + 0.95 * progress / rise
    return 0.5 * (1 + math.cos(math.pi * (progress - rise) / (1 - rise)))


@torch.no_grad()
def normalise(network: Featured, batches: Iterator[Tensor]) -> None:
    """Sets `centre` and `scale` from the features of training images, so that their variances sum to 4 D."""
    features = torch.cat([network(part)[0].double() for part in batches])
    spread = features.var(0, correction=0).sum()
    network.centre.copy_(features.mean(0))
    network.scale.copy_((VARIANCE * features.shape[1] / spread.clamp(min=1e-12)).sqrt())


@contextmanager
def watched(training: TrainingImages, total: int, name: str) -> Iterator[None]:
    """Shows whoever waits how long the training on `total` images takes. name: of what is trained."""
    if training.watch is None:
        yield
        return
    what = "images" if training.images.ndim == 4 else "clips"
    training.watch.say(f"training the {name} on {total:,} {what}, once for this data set")
    with training.watch.over(0, total):
        yield


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seeds the initial weights and fixes the order of sums; the caller's random state and threads are put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        ):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
