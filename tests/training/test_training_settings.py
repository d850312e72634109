"""The training section, and with what a run may be resumed, without a training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.models import generator_experiment, tokenizer_experiment

from artok.config import validate
from artok.errors import CheckpointError, ConfigError
from artok.layout import TokenLayout
from artok.saved import Facts, write_config
from artok.training import checkpoints
from artok.training.experiment import Experiment, check_codebook, default_folder
from artok.training.run import make_accelerator
from artok.training.same_run import check_same_facts, check_same_run, follows_length, list_differences
from artok.training.settings import INTERVALS, MOST_IMAGES, Optimizer, Training, settle_precision

CPU = torch.device("cpu")


def test_another_length_takes_warm_ups_and_intervals_along() -> None:
    intervals = {name: 100 * (1 + index) for index, name in enumerate(INTERVALS)}
    training = Training(
        images=1_000, global_batch=32, optimizer=Optimizer(warmup=100), critic=Optimizer(warmup=51), **intervals
    )
    longer = training.lasting(2_500)
    assert (longer.images, longer.optimizer.warmup, longer.critic.warmup) == (2_500, 250, 128)
    assert [getattr(longer, name) for name in INTERVALS] == [250, 500, 750, 1_000, 1_250]
    shorter = training.lasting(100)
    assert [getattr(shorter, name) for name in INTERVALS] == [32, 32, 32, 40, 50]  # at least a step
    assert training.model_copy(update={"monitor_every": None}).lasting(2_000).monitor_every is None
    changed = {"images", "optimizer", "critic", *INTERVALS}
    assert training.model_dump(exclude=changed) == longer.model_dump(exclude=changed)
    assert training.lasting(MOST_IMAGES).images == MOST_IMAGES == 1_000_000_000_000
    with pytest.raises(ConfigError, match="more than the 1,000,000,000,000"):
        training.lasting(MOST_IMAGES + 1)


def test_a_last_step_may_go_beyond_the_images() -> None:
    lengths = ((64, 1), (65, 2), (1, 1), (128, 2))
    assert all(Training(images=images, global_batch=64).steps() == steps for images, steps in lengths)


def test_rates_stay_within_their_schedule() -> None:
    settings = Optimizer(lr=1.0, warmup=100, min_lr_ratio=0.2)
    assert settings.rate_at(99, 1_000) == 1 and settings.rate_at(9, 1_000) == pytest.approx(0.1)
    assert settings.rate_at(2_000, 1_000) == settings.rate_at(500, 100) == pytest.approx(0.2)
    assert Optimizer(lr=1.0, hold=0.5).rate_at(500, 1_000) == 1
    assert Optimizer(lr=1.0, schedule="constant", warmup=4).rate_at(1, 8) == 0.5


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "no"), ("bf16", "bf16")])
def test_a_precision_that_is_named_is_taken(precision: Any, expected: str) -> None:
    assert settle_precision(precision, CPU) == expected
    assert settle_precision("fp16", torch.device("cuda")) == "fp16"
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        settle_precision("fp16", CPU)


def test_a_codebook_may_have_as_many_codes_as_the_images_have_tokens() -> None:
    layout = TokenLayout(((2, 2),), 4, 40, (1, 8, 8))
    check_codebook(layout, 10)
    with pytest.raises(ConfigError, match="9 training images give 36 tokens"):
        check_codebook(layout, 9)
    check_codebook(TokenLayout(((2, 2),), 4, None, (1, 8, 8)), 1)
    check_codebook(TokenLayout(((2, 2),), 4, 40, (1, 8, 8), 2), 5)


def test_one_device_is_not_for_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="names one device for several processes; give its kind, cpu"):
        make_accelerator(tokenizer_experiment(), tmp_path, torch.device("cpu:0"))


# ---------------------------------------------------------------------------------------------- the same run

CONSTANT = {"training": {"optimizer": {"schedule": "constant"}}}
FALLING = {"training": {"optimizer": {"schedule": "linear"}}}
CONSTANT_CRITIC = {"training": {"optimizer": {"schedule": "linear"}, "critic": {"schedule": "constant"}}}


def adversarial(**critic: Any) -> dict[str, Any]:
    section = {"discriminator": {"kind": "dcgan", "base_channels": 8, "norm": "none"}, "r1": 0.1, **critic}
    return {"losses": [{"kind": "reconstruction"}, {"kind": "adversarial", "critic": section}]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (CONSTANT, False),
        (FALLING, True),
        (adversarial() | CONSTANT, False),
        (adversarial() | {"training": {**CONSTANT["training"], "critic": {"schedule": "cosine"}}}, True),
        (adversarial(penalty_final=0.5) | CONSTANT, True),
        ({"training": {**CONSTANT["training"], "critic": {"schedule": "cosine"}}}, False),  # there is no critic
    ],
)
def test_what_a_step_does_depends_on_the_length_where_something_falls(changes: dict[str, Any], expected: bool) -> None:
    assert follows_length(tokenizer_experiment(**changes)) is expected


def test_a_generator_is_asked_for_its_own_critic() -> None:
    raster = generator_experiment("runs/none", **CONSTANT)
    assert not follows_length(raster)  # whatever the losses of its tokenizer
    critic = adversarial(penalty_final=0.5)["losses"][1]["critic"]
    network = {"kind": "residual", "channels": [8, 8, 8], "blocks": 1, "groups": 2, "embedding_dim": 8}
    gan = {"kind": "gan", "z_dim": 8, "network": network, "critic": critic}
    section = raster.model_dump(mode="json") | {"tokenizer": {"kind": "pixels"}, "generator": gan}
    assert follows_length(validate(Experiment, section, "test"))


def test_differences_are_named_by_their_place() -> None:
    before = {"a": {"b": 1, "c": 2, "gone": 3}, "d": [1], "e": {"f": 1}}
    now = {"a": {"b": 1, "c": 4, "new": None}, "d": [2], "e": 5}
    assert list_differences(before, now) == [
        "a.c: 2, now 4", "a.gone: 3, now None", "d: [1], now [2]", "e: {'f': 1}, now 5"
    ]  # fmt: skip
    assert not list_differences(before, before)


def folder_of(root: Path, images: int | None, **changes: Any) -> Path:
    """A folder as a run leaves it, with a checkpoint after so many images."""
    write_config(root / "config.yaml", tokenizer_experiment(**changes), FACTS)
    if images is not None:
        (root / "checkpoints" / f"{images:012d}").mkdir(parents=True)
    return root


FACTS = Facts(image=(1, 16, 16), classes=("a",), data="one", tokenizer="other", version="")


@pytest.mark.parametrize(("images", "refused"), [(128, False), (96, False), (192, False), (80, True)])
def test_another_length_is_one_that_is_not_past_yet(tmp_path: Path, images: int, refused: bool) -> None:
    folder = folder_of(tmp_path, 96, **CONSTANT)
    changed = tokenizer_experiment(training={**CONSTANT["training"], "images": images})
    if refused:
        with pytest.raises(CheckpointError, match="images: 128, now 80"):
            check_same_run(changed, folder)
    else:
        check_same_run(changed, folder)


def test_a_scheduled_run_is_extended_where_it_is_asked_for(tmp_path: Path) -> None:
    folder, longer = folder_of(tmp_path, 96), tokenizer_experiment(training={"images": 256})
    with pytest.raises(CheckpointError, match=r"started with another length \(training.images: 128, now 256"):
        check_same_run(longer, folder)
    check_same_run(longer, folder, extend=True)
    with pytest.raises(CheckpointError, match=r"other settings \(seed: 0, now 1"):
        check_same_run(tokenizer_experiment(training={"images": 256}, seed=1), folder, extend=True)


def test_only_a_folder_with_a_run_in_it_has_settings_to_keep(tmp_path: Path) -> None:
    other = tokenizer_experiment(seed=1)
    check_same_run(other, tmp_path / "nowhere")
    check_same_run(other, folder_of(tmp_path / "begun", None))
    check_same_facts(FACTS.model_copy(update={"data": "two"}), folder_of(tmp_path / "begun", None))
    finished = folder_of(tmp_path / "finished", None)
    (finished / "model.safetensors").touch()
    for folder in (finished, folder_of(tmp_path / "stopped", 32)):
        with pytest.raises(CheckpointError, match="seed: 0, now 1"):
            check_same_run(other, folder)
        check_same_facts(FACTS, folder)
        for name in ("data", "tokenizer"):
            with pytest.raises(CheckpointError, match=f"the {name} changed"):
                check_same_facts(FACTS.model_copy(update={name: "two"}), folder)
    (tmp_path / "stopped" / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"has checkpoints but no config.yaml"):
        check_same_run(other, tmp_path / "stopped")
    (tmp_path / "begun" / "config.yaml").write_text("source: elsewhere\n")
    with pytest.raises(CheckpointError, match="imported weights"):
        check_same_run(other, tmp_path / "begun")


def test_a_run_is_named_after_its_experiment() -> None:
    assert default_folder(tokenizer_experiment()) == Path("runs/tiny-vq")


# ---------------------------------------------------------------------------------------------- checkpoints


def test_a_machine_at_fault_is_no_damaged_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / f"{32:012d}"
    folder.mkdir()
    (folder / "state.json").write_text('{"images": 32}')

    for error in (PermissionError("denied"), MemoryError(), RuntimeError("CUDA out of memory")):

        def load_state(path: str, error: Exception = error) -> None:
            raise error

        trained: Any = SimpleNamespace(
            accelerator=SimpleNamespace(load_state=load_state), ema=None, shards=None, sharded=False
        )
        with pytest.raises(type(error)):
            checkpoints.restore(trained, tmp_path, print)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_snapshots_are_in_the_order_of_training_also_under_their_earlier_name(tmp_path: Path) -> None:
    for name in ("moments/000000000016", "moments/000000000032", "snapshots/000000000064"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.safetensors").touch()
    assert [int(path.stem) for path in checkpoints.list_snapshots(tmp_path)] == [16, 32, 64]


def test_checkpoints_are_listed_newest_first_and_only_whole_ones_are_found(tmp_path: Path) -> None:
    for name in ("9", "000000000016", "000000000128", "16.old", ".000000000256.tmp"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["000000000128", "000000000016", "9"]
    assert checkpoints.find_latest(tmp_path) is None
    (tmp_path / "000000000016" / "state.json").touch()
    assert checkpoints.find_latest(tmp_path) == tmp_path / "000000000016"
