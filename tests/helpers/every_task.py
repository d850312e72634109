"""A tiny experiment of every task that artok trains, found by the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from artok.config import find, kinds, merge, validate
from artok.training.experiment import Experiment
from artok.training.run import train
from helpers.generators import ONE_EACH, config_of
from helpers.models import TOKENIZER, VIDEO_TOKENIZERS
from helpers.students import KINDS as METHODS
from helpers.students import TEACHER as PATH
from helpers.students import method_of, student_of

# Sums in another order differ by float32 roundings, and Adam divides a gradient by its own size. With an `eps` well
# above the roundings a step is proportional to the gradient, so what differs stays as small as the roundings are.
STEADY = {"lr": 1e-3, "eps": 1e-3, "schedule": "constant"}
SHORT = {
    "images": 32,
    "global_batch": 8,
    "precision": "fp32",
    "ema": 0.9,
    "validate_images": 150,
    "monitor_images": 0,
    "optimizer": STEADY,
    "critic": STEADY,
} | dict.fromkeys(("log_every", "validate_every", "preview_every", "checkpoint_every"), 16)
NETWORK = {"kind": "dit", "depth": 1, "width": 16, "heads": 2, "patch_size": 1}
BASE = merge(TOKENIZER, {"data": {"channels": 3, "caption_templates": ["a {}"]}, "training": SHORT})


def dumped(config: Any, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = config.model_dump(mode="json")
    return found | changes


def tokenizers() -> dict[str, dict[str, Any]]:
    """A section of every trained tokenizer: each kind, and each quantizer in a convolutional one."""
    found = {kind: dumped(find("tokenizers", kind).tiny()) for kind in kinds("tokenizers") if kind != "pixels"}
    for kind in kinds("quantizers"):
        found[f"conv-{kind}"] = BASE["tokenizer"] | {"quantizer": dumped(find("quantizers", kind).tiny())}
    return found


def experiments(runs: Path) -> dict[str, Experiment]:
    """By name. runs: the folder that `train_first` has filled."""
    sections: dict[str, dict[str, Any]] = {name: {"tokenizer": each} for name, each in tokenizers().items()}
    for name in sections.keys() & VIDEO_TOKENIZERS.keys():
        channels, frames, *sides = VIDEO_TOKENIZERS[name]().tiny_image
        sections[name]["data"] = {"kind": "moving_digits", "channels": channels, "frames": frames, "size": sides[0]}
    starting = {"kind": "vq", "codebook_size": 64, "code_dim": 4, "kmeans_init": True, "dead_code_threshold": 0.5}
    restarts = BASE["tokenizer"] | {"quantizer": starting | {"decay": 0.5}}
    sections["conv-vq-restarts"] = {"tokenizer": restarts}
    for kind in kinds("adversarial.discriminators"):
        tiny = find("adversarial.discriminators", kind).tiny()
        norms = ("group", "batch") if kind == "patch" else (None,)
        for norm in norms:
            suffix = "" if norm is None else f"-{norm}"
            critic = {"discriminator": dumped(tiny, **({} if norm is None else {"norm": norm})), "r1": 0.1}
            critic |= {"lecam": 0.01} if kind != "backbone" else {}
            losses = [{"kind": "reconstruction"}, {"kind": "adversarial", "weight": 0.5, "critic": critic}]
            # without codes: a rounding may choose another code of two that are as near, and codes are trained above
            sections[f"klgan-{kind}{suffix}"] = {"tokenizer": tokenizers()["conv-gaussian"], "losses": losses}
    for kind, tokenizer in ONE_EACH:
        tiny = config_of(kind)
        dropout = {"dropout": 0.2} if "dropout" in type(tiny).model_fields else {}
        sections[kind] = {"tokenizer": place(runs, tokenizer), "generator": dumped(tiny, **dropout)}
    dcgan = find("generators.gan_networks", "dcgan").tiny()
    gan = dumped(config_of("gan"), network=dumped(dcgan))
    sections["gan-dcgan"] = {"tokenizer": {"kind": "pixels"}, "generator": gan}
    section = {"kind": "diffusion", "network": NETWORK, "diffusion": dumped(PATH)}
    sections["teacher"] = {"tokenizer": str(runs / "conv-gaussian"), "generator": section}
    for kind in METHODS:
        method = method_of(kind)
        generator = section | {"diffusion": dumped(student_of(method))}
        distill = {"teacher": str(runs / "teacher"), "method": dumped(method)}
        sections[f"distillation-{kind}"] = {"tokenizer": str(runs / "conv-gaussian"), "generator": generator}
        sections[f"distillation-{kind}"]["distill"] = distill
    for codes in ("vq", "gaussian"):
        init = {"init": str(runs / f"conv-{codes}"), "post_training": {"share": 0.5, "neighbours": 4, "noise": 0.1}}
        sections[f"post-training-{codes}"] = {"tokenizer": tokenizers()[f"conv-{codes}"]} | init
    return {name: experiment(name, section) for name, section in sections.items()}


def place(runs: Path, tokenizer: str) -> Any:
    return {"kind": "pixels"} if tokenizer == "pixels" else str(runs / tokenizer)


def experiment(name: str, section: dict[str, Any]) -> Experiment:
    """The base with other sections; a tokenizer is another one as a whole."""
    base = {key: value for key, value in BASE.items() if key != "tokenizer" or key not in section}
    return validate(Experiment, base | section | {"name": name}, name)


def train_first(runs: Path) -> None:
    """Train what other experiments start from, for one step."""
    needed = {name for _, name in ONE_EACH if name != "pixels"} | {"conv-gaussian", "conv-vq"}
    for name in [*sorted(needed), "teacher"]:
        section = {"tokenizer": tokenizers()[name]} if name != "teacher" else None
        made = experiments(runs)["teacher"] if section is None else experiment(name, section)
        short = made.training.model_copy(update={"images": 8})
        train(made.model_copy(update={"training": short}), runs / name)
