"""Every shipped config is valid, builds, and says in its header what it is."""

from __future__ import annotations

import inspect
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from helpers.paths import DATA, REPOSITORY, needs_cifar10
from PIL import Image

from artok.config import load, validate
from artok.data import hub
from artok.losses import adversarial
from artok.planning.meta_model import count_classes
from artok.planning.training_cost import parameters
from artok.studies.config import load_study
from artok.studies.resolve import settle
from artok.training.experiment import Experiment

ROOT = REPOSITORY / "configs"
STUDIES = "studies"  # these are configs of another kind, with tests of their own
LAUNCHES = sorted((ROOT / "accelerate").glob("*.yaml"))  # and these are accelerate's
CONFIGS = sorted(
    str(path.relative_to(ROOT).with_suffix(""))
    for path in ROOT.rglob("*.yaml")
    if path.parent.name not in (STUDIES, "accelerate")
)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_config_is_valid_and_says_what_it_is(name: str) -> None:
    experiment = load(Experiment, name)
    lines = (ROOT / f"{name}.yaml").read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert len(header) >= 3, "what it trains, what it costs, how it is launched"
    assert any(f"artok train {name}" in line for line in header)
    assert experiment.name == name.replace("/", "-")


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_accelerate_reads_its_configs_and_the_launch_line_names_them(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    launch = next(line for line in header if "accelerate launch" in line)
    assert f"--config_file configs/accelerate/{path.name} " in launch and launch.rpartition(" ")[2] in CONFIGS
    read = load_config_from_file(str(path))
    assert read.num_processes == 8 * read.num_machines and not read.use_cpu
    if read.distributed_type == "FSDP":
        known = inspect.signature(FullyShardedDataParallelPlugin).parameters
        assert {key.removeprefix("fsdp_") for key in read.fsdp_config} - {"offload_params", "version"} <= set(known)
        assert read.fsdp_config["fsdp_version"] == 2


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_tokenizer_builds(name: str) -> None:
    experiment = load(Experiment, name)
    if isinstance(experiment.tokenizer, str):
        pytest.skip("trains a generator on another config's tokenizer")
    with torch.device("meta"):
        tokenizer = experiment.tokenizer.build(experiment.image)
    assert tokenizer.layout.image == experiment.image


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_generator_builds_on_its_tokenizers_tokens(name: str) -> None:
    experiment = load(Experiment, name)
    if experiment.generator is None:
        pytest.skip("trains a tokenizer")
    if isinstance(experiment.tokenizer, str):
        other = load(Experiment, experiment.tokenizer.removeprefix("runs/").replace("-", "/", 1))
        assert not isinstance(other.tokenizer, str)
        section, image = other.tokenizer, other.image
        assert image == experiment.image
    else:
        section, image = experiment.tokenizer, experiment.image
    with torch.device("meta"):
        layout = section.build(image).layout
        assert experiment.generator.refuse(layout) is None
        experiment.generator.build(layout, 10)


COMPARISONS = sorted(
    path.stem for path in (ROOT / STUDIES).glob("*.yaml") if "sweep" not in path.stem and "cifar10" not in path.stem
)


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_shipped_comparison_says_what_it_is_and_its_entries_share_their_data(name: str, tmp_path: Path) -> None:
    header = [line for line in (ROOT / STUDIES / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert len(header) >= 3 and any(f"artok compare {name}" in line for line in header)
    study = load_study(name, [])
    assert [entry.name for entry in settle(study, tmp_path).entries] == list(study.entries)


PASS = {"imagenet": 1_281_167, "cifar10": 50_000}  # training images


def claims(name: str) -> list[tuple[str, str, float]]:
    """(words, the number in them, what is loaded) of what the header of a shipped config claims in known words."""
    lines = (ROOT / f"{name}.yaml").read_text().splitlines()
    header = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    experiment = load(Experiment, name)
    training, size = experiment.training, parameters(experiment)
    rate = training.optimizer.lr / training.global_batch
    loaded: dict[str, float] = {
        r"(\d+) px": experiment.data.size,
        r"at batch ([\d,]*\d)": training.global_batch,
        r"rate ([\d.e-]+) for each image": rate,
        r"rate ([\d.e-]+) for each 256 images": rate * 256,
        r"and rate ([\d.e-]*\d)\.? ": training.optimizer.lr,
        r"([\d,]+) passes over the data": training.images / PASS.get(name.split("/")[0], 1),
        r"([\d.]+)M steps": training.steps() / 1e6,
        r"([\d.]+)M parameters": size / 1e6,
        r"([\d.]+)B parameters": size / 1e9,
    }
    for loss in experiment.losses:
        if isinstance(loss, adversarial.Config):
            loaded[r"from step ([\d,]+) on"] = loss.start / training.global_batch
            loaded[rf"at the {'adaptive' if loss.adaptive else 'fixed'} weight ([\d.]*\d)"] = loss.weight
            assert f"{'fixed' if loss.adaptive else 'adaptive'} weight" not in header
    if not isinstance(experiment.tokenizer, str):
        with torch.device("meta"):
            layout = experiment.tokenizer.build(experiment.image).layout
        tokens = {r"to ([\d,]+) tokens": layout.length, r"tokens of (\d+) channels": layout.width}
        loaded |= tokens | {r"of ([\d,]+) codes": layout.vocab or 0}
    return [
        (match[0], match[1].replace(",", ""), value)
        for pattern, value in loaded.items()
        for match in re.finditer(pattern, header)
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_header_claims_is_what_is_loaded(name: str) -> None:
    found = claims(name)
    assert len(found) >= 2 or not name.startswith("imagenet/")
    for words, said, loaded in found:
        if "parameters" in words:  # rounded to what is said
            assert f"{loaded:.{len(said.partition('.')[2])}f}" == said, words
        else:  # 40 passes are 51.2M images
            rel = 0.01 if "passes" in words or "steps" in words else 1e-6
            assert loaded == pytest.approx(float(said), rel=rel), words


ADAM = {"optimizer.weight_decay": 0.0, "critic.weight_decay": 0.0}
LDM = ADAM | {"optimizer.betas": (0.5, 0.9), "critic.betas": (0.5, 0.9), "optimizer.grad_clip": None, "ema": None}
LDM |= {"optimizer.schedule": "constant", "critic.schedule": "constant", "critic.grad_clip": None}
LLAMAGEN = ADAM | {"optimizer.betas": (0.9, 0.95), "optimizer.lr": 1e-4, "optimizer.grad_clip": 1.0}
LLAMAGEN |= {"optimizer.schedule": "constant", "optimizer.warmup": 0, "global_batch": 128}
PATCH = {"discriminator.kind": "patch", "discriminator.base_channels": 64, "discriminator.norm": "batch"}
PATCH |= {"gan_loss": "hinge", "augment": (), "lecam": 0.0, "r1": 0.0}
PIXELS = {"l1": {"l1": 1.0, "l2": 0.0}, "l2": {"l1": 0.0, "l2": 1.0}}
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    # taming-transformers: the released config of 16,384 codes, main.py, vqgan.py, quantize.py, vqperceptual.py
    "vqgan-f16": {
        "training": LDM | {"optimizer.lr": 96 * 4.5e-6, "critic.lr": 96 * 4.5e-6},
        "quantizer": {
            "codebook_size": 16_384,
            "code_dim": 256,
            "similarity": "euclidean",
            "update": "gradient",
            "dead_code_threshold": 0.0,
            "commitment_weight": 1.0,
        },
        "tokenizer": {"base_channels": 128, "channel_multipliers": (1, 1, 2, 2, 4), "attention_resolutions": (16,)},
        "reconstruction": PIXELS["l1"],
        "adversarial": {"weight": 0.75, "adaptive": True, "start": 0, "warmup": 0, "ramp": 0},
        "critic": PATCH | {"discriminator.layers": 2},
    },
    # LlamaGen: tokenizer/tokenizer_image, vq_train.py, vq_loss.py, vq_model.py
    "vq-f16": {
        "training": LLAMAGEN,
        "quantizer": {
            "codebook_size": 16_384,
            "code_dim": 8,
            "similarity": "cosine",
            "update": "gradient",
            "dead_code_threshold": 0.0,
            "commitment_weight": 0.25,
        },
        "tokenizer": {"base_channels": 128, "channel_multipliers": (1, 1, 2, 2, 4), "z_channels": 256},
        "reconstruction": PIXELS["l2"],
    },
    "vqgan-f8": {
        "training": LLAMAGEN | {"critic.lr": 1e-4, "critic.betas": (0.9, 0.95), "critic.grad_clip": 1.0, "ema": None},
        "quantizer": {"codebook_size": 16_384, "code_dim": 8, "commitment_weight": 0.25, "dead_code_threshold": 0.0},
        "tokenizer": {"base_channels": 128, "channel_multipliers": (1, 2, 2, 4)},
        "reconstruction": PIXELS["l2"],
        "adversarial": {"weight": 0.5, "adaptive": False, "start": 20_000 * 128, "warmup": 0, "ramp": 0},
        "critic": PATCH | {"discriminator.layers": 3},
    },
    # latent-diffusion: configs of kl-f16 and kl-f8, contperceptual.py; MAR's changes by its author in its issue 3
    "klgan-f16": {
        "training": LDM | {"optimizer.lr": 1e-4, "critic.lr": 1e-4, "global_batch": 256},
        "quantizer": {"latent_channels": 16, "kl_weight": 1e-6},
        "tokenizer": {"channel_multipliers": (1, 1, 2, 2, 4), "decoder_attention_resolutions": ()},
        "reconstruction": PIXELS["l1"],
        "adversarial": {"weight": 0.5, "adaptive": True, "start": 50_001 * 256},
        "critic": PATCH | {"discriminator.layers": 3},
    },
    "klgan-f8": {
        "training": LDM | {"optimizer.lr": 96 * 4.5e-6, "critic.lr": 96 * 4.5e-6, "global_batch": 96},
        "quantizer": {"latent_channels": 4, "kl_weight": 1e-6},
        "tokenizer": {"channel_multipliers": (1, 2, 4, 4), "attention_resolutions": ()},
        "reconstruction": PIXELS["l1"],
        "adversarial": {"weight": 0.5, "adaptive": True, "start": 50_001 * 96},
        "critic": PATCH | {"discriminator.layers": 3},
    },
    # VAR: its paper, equation 5 and appendix; the discriminator is that of StyleGAN-T on DINO
    "msvqgan-f16": {
        "quantizer": {"codebook_size": 4096, "code_dim": 32, "scales": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)},
        "tokenizer": {"base_channels": 160, "z_channels": 32, "quantizer_kernel": 3},
        "reconstruction": PIXELS["l2"],
        "critic": {
            "discriminator.kind": "backbone",
            "discriminator.model": "vit_small_patch16_224.dino",
            "discriminator.layers": (2, 5, 8, 11),
            "discriminator.kernel": 9,
            "gan_loss": "hinge",
        },
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_is_shipped_as_published(name: str) -> None:
    experiment = load(Experiment, f"imagenet/{name}")
    losses = {loss.kind: loss for loss in experiment.losses}
    assert len(losses) == len(experiment.losses)
    places = losses | {"training": experiment.training, "tokenizer": experiment.tokenizer}
    places["quantizer"] = experiment.tokenizer.quantizer  # type: ignore[union-attr]
    if "adversarial" in losses:
        assert losses["perceptual"].features == "lpips" and losses["perceptual"].weight == 1.0  # type: ignore[attr-defined]
        places["critic"] = losses["adversarial"].critic  # type: ignore[attr-defined]
    for place, settings in PUBLISHED[name].items():
        for key, value in settings.items():
            found = reduce(getattr, key.split("."), places[place])
            assert found == (pytest.approx(value) if isinstance(value, float) else value), (place, key)


@needs_cifar10
def test_the_cifar_configs_read_local_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTOK_DATA", str(DATA))
    data = load(Experiment, "cifar10/vq").data
    train, test = data.open("train"), data.open("test")
    assert (len(train), len(test)) == (50_000, 10_000)
    assert train.classes[3] == "cat"
    assert test.read([0]).images.shape == (1, 3, 32, 32)
    assert count_classes(data) == 10  # as planned for without the local copies


def test_local_copies_go_before_the_hub_and_their_absence_does_not(tmp_path: Path) -> None:
    section = {"kind": "hub", "path": "someone/pictures", "size": 8, "local": str(tmp_path)}
    assert validate(hub.Config, section, "test").files is None
    (tmp_path / "train.parquet").touch()
    found = validate(hub.Config, section, "test")
    assert found.files == {"train": str(tmp_path / "train.parquet")}
    assert validate(hub.Config, found.model_dump(), "test") == found


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few rows of the data sets that shipped configs name, with their splits, columns, classes and kinds of labels."""
    import datasets

    root = tmp_path_factory.mktemp("published")
    described = {
        "imagenet-1k": ("image", 1000, {"train": [0, 1, 999] * 4, "validation": [1, 999, 0], "test": [-1] * 4}),
        "cifar10": ("img", 10, {"train": [0, 9, 3] * 4, "test": [1, 2, 9]}),
    }
    for name, (column, classes, splits) in described.items():
        names = datasets.ClassLabel(names=[f"class {index}" for index in range(classes)])
        features = datasets.Features({column: datasets.Image(), "label": names})
        for split, labels in splits.items():
            images = [Image.new("RGB", (300, 280), (row, 0, 0)) for row in range(len(labels))]
            (root / name).mkdir(exist_ok=True)
            table = datasets.Dataset.from_dict({column: images, "label": labels}, features)
            table.to_parquet(root / name / f"{split}.parquet")
    return root


@pytest.mark.parametrize("name", [name for name in CONFIGS if isinstance(load(Experiment, name).data, hub.Config)])
def test_a_shipped_config_opens_its_data(name: str, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", published / "cache")
    monkeypatch.setenv("ARTOK_DATA", str(published))
    data = load(Experiment, name).data
    train, test = data.open("train"), data.open("test")
    assert len(train) == 12 and len(test) == 3
    assert train.classes == test.classes and len(train.classes) in (10, 1000)
    assert sorted(test.read(range(3)).labels.tolist()) in ([0, 1, 999], [1, 2, 9])
    assert train.read([0]).images.shape == (1, *train.shape)
