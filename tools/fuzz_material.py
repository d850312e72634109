"""The runs, tokens, study and pictures that `tools/fuzz.py` feeds to the commands."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import artok
from artok import cli
from artok.config import dump, find, merge, validate
from artok.quantizers import multiscale
from artok.training.experiment import Experiment
from artok.training.run import train

BASE: dict[str, Any] = {
    "data": {"kind": "digits", "size": 16},
    "tokenizer": {
        "kind": "conv", "downsample": 4, "base_channels": 8, "channel_multipliers": [1, 1, 1], "num_res_blocks": 1,
        "z_channels": 8, "groups": 4, "quantizer": {"kind": "vq", "codebook_size": 16, "code_dim": 4},
    },
    "training": {
        "images": 64, "global_batch": 16, "precision": "fp32", "validate_images": 16, "log_every": 32,
        "validate_every": 64, "preview_every": 64, "checkpoint_every": 32, "monitor_images": 0,
    },
}  # fmt: skip
GAN = {
    "kind": "gan",
    "network": {"kind": "dcgan", "channels": [8, 4], "embedding_dim": 4},
    "critic": {"discriminator": {"kind": "dcgan", "base_channels": 4, "norm": "none"}, "gan_loss": "relativistic"},
}
FAMILIES = {
    "raster": "vq",
    "var": "msvq",
    "maskgit": "vq",
    "mar": "kl",
    "causal_mar": "kl",
    "diffusion": "kl",
    "gan": "",
}
TOKENIZERS = ("vq", "msvq", "kl")
RUNS = (*TOKENIZERS, *FAMILIES)
STUDY: dict[str, Any] = {
    "name": "tiny", "seeds": [0], "evaluation": {"extractor": "pixels", "n": 16}, "curve": {"points": 1},
    "sampling_grid": {"steps": [], "cfg_scale": []}, "timing": {"batches": [4], "rounds": 1, "repeats": 1},
}  # fmt: skip


def make_material(folder: Path) -> None:
    """A tiny run of every family, evaluated, with the tokens of one tokenizer, a study and pictures."""
    os.environ["ARTOK_CACHE"] = str(folder / "cache")

    def make(name: str, data: dict[str, Any]) -> None:
        experiment = validate(Experiment, data | {"name": name}, name)
        (folder / f"{name}.yaml").write_text(dump(experiment))
        if not (folder / name / "results.json").exists():
            train(experiment, folder / name)
            artok.evaluate(folder / name, n=16, extractor="pixels")

    quantizers = {"vq": {}, "msvq": multiscale.Config.tiny().model_dump(mode="json"), "kl": {}}
    quantizers["msvq"]["scales"] = [1, 2, 4]
    quantizers["kl"] = {"kind": "gaussian", "latent_channels": 4}
    for name in TOKENIZERS:
        width = {"z_channels": 4} if name == "kl" else {}  # as diffusers has it
        make(name, merge(BASE, {"tokenizer": width | {"quantizer": quantizers[name]}}))
    for kind, tokenizer in FAMILIES.items():
        own: Any = str(folder / tokenizer) if tokenizer else {"kind": "pixels"}
        config = GAN if kind == "gan" else tiny(kind)
        data = merge({**BASE, "tokenizer": own, "generator": config}, {"training": {"ema": 0.9}})
        make(kind, data)
    if not (folder / "tokens").exists():
        run_quietly("encode", str(folder / "vq"), "--out", str(folder / "tokens"))
    for name in ("kl", "diffusion"):
        if not (folder / f"{name}-diffusers").exists():
            run_quietly(
                "export", str(folder / name), "--format", "diffusers", "--out", str(folder / f"{name}-diffusers")
            )
    weights = load_file(folder / "kl" / "model.safetensors")
    save_file(weights, folder / "kl.safetensors")
    torch.save({"model": weights, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, folder / "kl.pt")
    torch.save({"model": weights, "hook": Touch(str(folder / "touched"))}, folder / "evil.pt")
    (folder / "study.yaml").write_text(json.dumps(STUDY | {"entries": {"a": {"run": str(folder / "raster")}}}))
    if not (folder / "study").exists():
        run_quietly("compare", str(folder / "study.yaml"), "--out", str(folder / "study"))
    Image.effect_noise((40, 30), 60).save(folder / "picture.png")
    Image.effect_noise((40, 30), 60).convert("RGB").save(folder / "picture.jpg")


class Touch:
    """What unpickling would write a file for, if anything were executed."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def tiny(kind: str) -> dict[str, Any]:
    """The smallest config of a family."""
    config: Any = find("generators", kind)
    section: dict[str, Any] = config.tiny().model_dump(mode="json")
    return section


def run_quietly(*arguments: str) -> None:
    pid = os.fork()
    if not pid:
        sys.argv = ["artok", *arguments]
        with contextlib.suppress(SystemExit):
            cli.main()
        os._exit(0)
    os.waitpid(pid, 0)
