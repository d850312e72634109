"""Whether a run directory holds the run that is asked for, so that it may be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artok.adversarial.critic import CriticConfig
from artok.config import dump_fixed, read_yaml, validate
from artok.distillation.adversarial import Config as AdversarialConfig
from artok.errors import ArtokError, CheckpointError, shorten
from artok.saved import CONFIG, WEIGHTS, Facts, fingerprint, load_tokenizer
from artok.training import checkpoints
from artok.training.experiment import Experiment


def check_same_run(experiment: Experiment, folder: Path, extend: bool = False) -> None:
    """Raise a CheckpointError when a run would be resumed with other settings than it was started with.

    A folder without checkpoints and weights holds no run yet. extend: see `train`.
    """
    saved = checkpoints.list_checkpoints(folder / "checkpoints")
    if not (folder / CONFIG).exists():
        if saved:
            raise CheckpointError(f"{folder} has checkpoints but no {CONFIG}; start anew with --fresh")
        return
    written = read_yaml(folder / CONFIG)
    if "source" in written:
        raise CheckpointError(f"{folder} holds imported weights, which cannot be resumed; choose another folder")
    if not saved and not (folder / WEIGHTS).exists():
        return
    # Validated, so that a config of an earlier version gets the new key names and defaults.
    before = validate(Experiment, written, str(folder / CONFIG))
    old, new = dump_fixed(before), dump_fixed(experiment)
    if names_same_tokenizer(written, experiment.tokenizer):
        old["tokenizer"] = new["tokenizer"]
    changed = list_differences(old, new)
    longer = next((line for line in changed if line.startswith("training.images: ")), None)
    if longer and saved and int(saved[0].name) <= experiment.training.images:
        if not extend and follows_length(experiment):
            raise CheckpointError(
                f"the run {folder} was started with another length ({longer}), which its schedules depend on: a run of "
                "the new length from its start would have had other rates; resume with the old length, add --extend to "
                "go on with the rates of the new one, or start anew with --fresh"
            )
        changed.remove(longer)
    if changed:
        raise CheckpointError(
            f"the run {folder} was started with other settings ({'; '.join(map(shorten, changed[:5]))}); "
            "resume with those, choose another folder with --out, or start anew with --fresh"
        )


def follows_length(experiment: Experiment) -> bool:
    """Whether what a step does depends on the length of the training."""
    training = experiment.training
    parts = experiment.losses if experiment.generator is None else [experiment.generator]
    critics = [critic for part in parts if isinstance(critic := getattr(part, "critic", None), CriticConfig)]
    distilled = experiment.distill is not None and isinstance(experiment.distill.method, AdversarialConfig)
    optimizers = [training.optimizer, *([training.critic] if critics or distilled else [])]
    changes = [optimizer.schedule != "constant" for optimizer in optimizers]
    return any(changes) or any(critic.penalty_final != 1 for critic in critics)


def names_same_tokenizer(before: Mapping[str, Any], new: object) -> bool:
    """Whether a run's config.yaml names the tokenizer `new` of a generator, possibly under another path."""
    old = before.get("tokenizer")
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    if Path(old).resolve() == Path(new).resolve():
        return True
    try:
        return fingerprint(load_tokenizer(new)[0]) == before.get("facts", {}).get("tokenizer")
    except ArtokError:
        return False


def list_differences(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> list[str]:
    """Lines such as "training.global_batch: 64, now 128" for the differences of two nested mappings."""
    lines = []
    for key in [*now, *(key for key in before if key not in now)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += list_differences(old, new, f"{place}{key}.")
        elif old != new:
            lines.append(f"{place}{key}: {old}, now {new}")
    return lines


def check_same_facts(facts: Facts, folder: Path) -> None:
    """Raise a CheckpointError when a run would be resumed on other data or with another tokenizer."""
    if not checkpoints.list_checkpoints(folder / "checkpoints") and not (folder / WEIGHTS).exists():
        return
    before = read_yaml(folder / CONFIG).get("facts", {})
    for name in ("data", "tokenizer"):
        if before.get(name) != getattr(facts, name):
            raise CheckpointError(
                f"the {name} changed since the run {folder} was started; bring it back, choose another folder "
                "with --out, or start anew with --fresh"
            )
