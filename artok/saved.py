"""A trained model on disk: `config.yaml` with the facts of its training, and `model.safetensors`.

A run directory, an exported folder and a hub repository all hold these two files. A generator's also hold those of its
tokenizer, in the folder `tokenizer`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

import torch
from pydantic import ConfigDict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from artok.config import OPEN, Config, dump, of_kind, read_yaml, validate
from artok.distillation.base import DistillConfig
from artok.errors import CheckpointError, ConfigError, LayoutError, RunError, shorten
from artok.files import move, retry
from artok.generators.base import Generator, GeneratorConfig
from artok.generators.diffusion import Config as DiffusionGenerator
from artok.generators.patched import PatchedConfig
from artok.layout import TokenLayout
from artok.renamed import earlier_name
from artok.sampling.settings import Sampling
from artok.tokenizers.base import Tokenizer, TokenizerConfig
from artok.weights import empty_parameters, read_weights

CONFIG, WEIGHTS, TOKENIZER, RESULTS = "config.yaml", "model.safetensors", "tokenizer", "results.json"
CHECKPOINTS, STATE = "checkpoints", "state.json"  # a run's folder to resume from; what each checkpoint has when whole
PIECE = 2**24  # bytes of a file that are digested at once


class Facts(Config):
    """What a model was trained on.

    image: (channels, *size) of its samples. classes: names of the labels. data, tokenizer: fingerprints; of a tokenizer
    whose decoder alone was trained, that of the one before. control: how the maps were made that a generator was given,
    the data's `control` section.
    """

    image: tuple[int, ...]
    classes: tuple[str, ...]
    data: str
    tokenizer: str | None = None
    version: str
    control: dict[str, Any] | None = None


class Saved(Config):
    """The part of a run's `config.yaml` that rebuilds its model."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    tokenizer: Annotated[TokenizerConfig | str, of_kind("tokenizers"), OPEN]
    generator: Annotated[GeneratorConfig | None, of_kind("generators"), OPEN] = None
    distill: DistillConfig | None = None
    sampling: Sampling = Sampling()
    facts: Facts

    def check(self, sampling: Sampling) -> None:
        """Raise a ConfigError for sampling settings that a distilled model was not made for."""
        if self.distill is not None and isinstance(self.generator, DiffusionGenerator):
            self.distill.check(sampling, self.generator.diffusion, sampling.steps)
        elif self.distill is not None and isinstance(self.generator, PatchedConfig):
            self.distill.check(sampling, self.generator.diffusion, sampling.head_steps)


def find_saved(name: str | Path) -> Path:
    """The folder of a path, a published checkpoint such as "var-d16", or a hub name such as `user/name`.

    A published checkpoint is fetched and imported into the user's cache at its first use.
    CheckpointError: there is none; the message says what to do. RunError: it could not be fetched.
    """
    folder = Path(name)
    if os.path.exists(folder / CONFIG):  # unlike `Path.exists`, it takes names that no file can have
        if not (folder / WEIGHTS).exists():
            raise CheckpointError(f"the run {folder} has no {WEIGHTS} yet: its training has not finished; run it again")
        return folder
    if os.path.exists(folder):
        raise CheckpointError(f"{folder} is no run directory: it has no {CONFIG}")
    # Imported by name, since artok.interop imports this file.
    imported: Path | None = resolve_name("artok.interop.hub:imported_run")(str(name))
    if imported is not None:
        return imported
    if str(name).count("/") != 1 or str(name).startswith((".", "/", "runs/")):
        raise CheckpointError(f"there is no run {shorten(str(folder))}; train it first with 'artok train'")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.yaml", "*.safetensors"]))
    except Exception as error:  # the hub client raises many kinds of errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        said = f"{shorten(str(name))} is neither a run directory here nor a model on the hub"
        raise CheckpointError(f"{said} ({reason})") from None


def read_saved(folder: Path) -> Saved:
    try:
        return validate(Saved, read_yaml(folder / CONFIG), str(folder / CONFIG))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def load_tokenizer(name: str | Path) -> tuple[Tokenizer, Saved]:
    """The tokenizer of a tokenizer's folder, or the one inside a generator's; in eval mode, on the CPU."""
    folder = find_saved(name)
    saved = read_saved(folder)
    if saved.generator is not None:
        folder = find_saved(folder / TOKENIZER)
        saved = read_saved(folder)
    if isinstance(saved.tokenizer, str):
        raise CheckpointError(f"{folder / CONFIG} names another tokenizer where its own should be described")
    with empty_parameters():
        tokenizer = saved.tokenizer.build(saved.facts.image)
    read_weights(tokenizer, folder / WEIGHTS)
    return tokenizer.eval().requires_grad_(False), saved


def load_generator(name: str | Path, layout: TokenLayout) -> tuple[Generator, Saved]:
    """The generator of a folder, built for a tokenizer's layout; in eval mode, on the CPU."""
    folder = find_saved(name)
    saved = read_saved(folder)
    if saved.generator is None:
        raise CheckpointError(f"{folder} holds a tokenizer, not a generator")
    check_layout(saved.generator, layout)
    with empty_parameters():
        generator = saved.generator.build(layout, len(saved.facts.classes))
    read_weights(generator, folder / WEIGHTS)
    return generator.eval().requires_grad_(False), saved


def load_draft(name: str, tokenizer: Tokenizer) -> Generator:
    """The generator of a folder, to draft codes of a tokenizer. ConfigError: it was trained on another one."""
    if fingerprint(load_tokenizer(name)[0]) != fingerprint(tokenizer):
        raise ConfigError(f"draft_model {name} was trained on another tokenizer; name a run on this model's")
    return load_generator(name, tokenizer.layout)[0]


def check_layout(generator: GeneratorConfig, layout: TokenLayout) -> None:
    """Raise a LayoutError that names both sides when the generator cannot model such tokens."""
    reason = generator.refuse(layout)
    if reason:
        raise LayoutError(f"generator {generator.kind} {reason}, but the tokenizer gives {layout}")


# ---------------------------------------------------------------------------------------------- files


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU; shared tensors appear under their first name only."""
    seen: set[tuple[int, int, tuple[int, ...]]] = set()
    state = {}
    for name, tensor in module.state_dict().items():
        identity = (tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if tensor.numel() and identity in seen:
            continue
        seen.add(identity)
        state[name] = tensor.detach().cpu().contiguous()
    return state


def write_aside(path: Path, write: Any) -> None:
    """Call write(temporary path), then rename, so that readers and power cuts never meet a partial file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def attempt() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        aside.chmod(path.parent.stat().st_mode & 0o666)  # safetensors writes files that only the owner can read
        move(aside, path)

    try:
        retry(attempt)
    except (OSError, SafetensorError, RuntimeError) as error:
        with suppress(OSError):
            aside.unlink()
        raise RunError(f"could not write {path}: {_reason(error)}; what was saved before is whole") from None


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
    return f"{text} (free some space and run the same command again)" if "space" in text.lower() else text


def write_text(path: Path, text: str) -> None:
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: object) -> None:
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """A state dict as safetensors."""
    write_aside(path, lambda aside: save_file(dict(state), aside, metadata={"format": "pt"}))


def write_config(path: Path, config: Config, facts: Facts | None = None) -> None:
    """Write a config as YAML; facts, if given, are added as a section."""
    beside = "" if facts is None else "facts:\n" + "".join(f"  {line}\n" for line in dump(facts).splitlines())
    write_text(path, dump(config) + beside)


def fingerprint(module: nn.Module) -> str:
    """16 hexadecimal digits that change whenever a weight does."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted((earlier_name(name), tensor) for name, tensor in whole_state(module).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_file(path: Path) -> str:
    """Digest of a file's content; an unchanged file is read once."""
    found = path.stat()
    return _digest_file(path.resolve(), found.st_mtime_ns, found.st_size)


@cache
def _digest_file(path: Path, changed: int, size: int) -> str:
    found = hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
    return found.hexdigest()


def digest_weights(folder: Path) -> str:
    """Digest of a model's weights, a generator's with those of its tokenizer; results carry it."""
    files = (folder / WEIGHTS, folder / TOKENIZER / WEIGHTS)
    return "-".join(digest_file(path) for path in files if path.is_file())


def read_training(folder: Path) -> dict[str, Any]:
    """The `training` section of a run's config as it stands there; empty where there is none."""
    section = read_yaml(folder / CONFIG).get("training")
    return section if isinstance(section, dict) else {}


def count_training_images(folder: Path) -> tuple[int, int] | None:
    """Images that a run's weights have seen, and those that its training is to see; None without checkpoints."""
    wanted = read_training(folder).get("images")
    seen = [int(path.parent.name) for path in (folder / CHECKPOINTS).glob(f"[0-9]*/{STATE}")]
    return (max(seen), wanted) if seen and isinstance(wanted, int) else None


def describe_unfinished(folder: Path) -> str | None:
    """A sentence about a run whose training has not ended; None of others, and where that is not known."""
    progress = count_training_images(folder)
    if progress is None or progress[0] >= progress[1]:
        return None
    return f"{folder} is unfinished: its weights have seen {progress[0]:,} of {progress[1]:,} training images"


def copy_model(source: Path, target: Path) -> None:
    """Copy a model's two files into another folder."""
    for name in (CONFIG, WEIGHTS):
        copy_file(source / name, target / name)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically: the target is the old file or the whole new one."""

    def bring(aside: Path) -> None:
        shutil.copyfile(source, aside)

    write_aside(target, bring)
