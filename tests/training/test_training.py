"""Training: resuming to the bit, several processes, stopping, refusing, failing without loss."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from helpers.models import TOKENIZER, generator_experiment, tokenizer_experiment
from helpers.training import assert_same_run, stop_at, train_in_two, weights
from PIL import Image
from safetensors.torch import load_file

from artok.config import dump, merge, validate
from artok.errors import ArtokError, CheckpointError, ConfigError, DataError, LayoutError, RunError
from artok.locks import hold_lock
from artok.nn import gradient_checkpointing
from artok.pipeline import Pipeline
from artok.training.experiment import Experiment
from artok.training.log import read_log
from artok.training.loop import Trainer
from artok.training.optimizers import make_optimizer
from artok.training.run import LOCK, describe_launch, train
from artok.training.same_run import check_same_run
from artok.training.settings import Optimizer


@pytest.fixture(scope="module")
def tokenizer_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "vq"
    assert train(tokenizer_experiment(), folder)
    return folder


# ---------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, MemoryError])
def test_a_stopped_tokenizer_goes_on_to_the_bit(
    tokenizer_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 96, how)
        if isinstance(how, int):
            assert train(tokenizer_experiment(), tmp_path) is False  # saved where it was
            assert (tmp_path / "checkpoints" / f"{96:012d}").exists()
        else:
            with pytest.raises(how):  # a crash: what is left is the checkpoint at 64
                train(tokenizer_experiment(), tmp_path)
            assert not (tmp_path / "checkpoints" / f"{96:012d}").exists()
    assert train(tokenizer_experiment(), tmp_path)
    assert_same_run(tokenizer_run, tmp_path)


def test_a_stopped_generator_goes_on_to_the_bit(
    tokenizer_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"generator": {"dropout": 0.1}, "data": {"augment": {"shift": 0.1}}, "tokens": {"copies": 2}}
    experiment = generator_experiment(str(tokenizer_run), **changes)
    assert train(experiment, tmp_path / "whole")
    train_in_two(experiment, tmp_path / "stopped", monkeypatch)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_last_whole_checkpoint(tokenizer_run: Path, tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(dump(tokenizer_experiment()))
    command = [
        sys.executable,
        "-m",
        "artok",
        "train",
        str(tmp_path / "experiment.yaml"),
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("0*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    (checkpoints / f".{112:012d}.tmp").mkdir(exist_ok=True)  # what a kill while saving leaves
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert_same_run(tokenizer_run, tmp_path / "run")


def test_a_finished_run_is_left_as_it_is(tokenizer_run: Path) -> None:
    before = (tokenizer_run / "model.safetensors").stat().st_mtime_ns
    assert train(tokenizer_experiment(), tokenizer_run)
    assert (tokenizer_run / "model.safetensors").stat().st_mtime_ns == before


# ---------------------------------------------------------------------------------------------- several processes

# Sums in another order differ by float32 roundings, and Adam divides a gradient by its own size: one that is zero but
# for rounding would move its weight by the whole rate, either way. An `eps` well above the roundings makes a step
# proportional to the gradient, so that what differs stays as small as the roundings are.
STEADY = {"optimizer": {"eps": 1e-3}, "critic": {"eps": 1e-3}}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["tokenizer", "generator"])
def test_two_processes_equal_one(tokenizer_run: Path, tmp_path: Path, family: str) -> None:
    if family == "tokenizer":
        experiment = tokenizer_experiment(training=STEADY)
    else:
        accumulated = STEADY | {"gradient_accumulation_steps": 2}
        experiment = generator_experiment(str(tokenizer_run), training=accumulated)
    (tmp_path / "experiment.yaml").write_text(dump(experiment))
    assert train(experiment, tmp_path / "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    command = [*launch, "-m", "artok", "train", str(tmp_path / "experiment.yaml"), "--out", str(tmp_path / "two")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 processes" in done.stderr
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], tensor, rtol=1e-4, atol=1e-5)
    losses = [
        [event["model_loss"] for event in read_log(tmp_path / run / "log.jsonl") if event["event"] == "train"]
        for run in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_equal_the_whole_batch(tokenizer_run: Path, tmp_path: Path, parts: int) -> None:
    assert train(generator_experiment(str(tokenizer_run), training=STEADY), tmp_path / "whole")
    accumulated = STEADY | {"gradient_accumulation_steps": parts}
    assert train(generator_experiment(str(tokenizer_run), training=accumulated), tmp_path / "parts")
    for name, tensor in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "parts")[name], tensor, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------- what is written


def test_a_run_directory_holds_what_was_promised(tokenizer_run: Path) -> None:
    names = {path.name for path in tokenizer_run.iterdir()}
    assert names >= {"config.yaml", "model.safetensors", "checkpoints", "log.jsonl", "samples"}
    events = read_log(tokenizer_run / "log.jsonl")
    assert {event["event"] for event in events} >= {"start", "train", "validation", "checkpoint", "end"}
    trained = [event for event in events if event["event"] == "train"]
    assert [event["images"] for event in trained] == [32, 64, 96, 128]
    assert trained[-1]["l1"] < trained[0]["l1"]
    assert all(event["images_per_second"] > 0 for event in trained)
    assert len(list((tokenizer_run / "samples").glob("*.png"))) == 2
    assert len(list((tokenizer_run / "checkpoints").iterdir())) == 2


def test_unreadable_images_are_skipped_counted_and_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for index in range(120):
        path = tmp_path / "images" / f"{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), index).save(path)
    (tmp_path / "images" / "0" / "4.png").write_bytes(b"no image")
    data = {"kind": "folder", "root": str(tmp_path / "images"), "size": 16, "channels": 1}
    experiment = tokenizer_experiment().model_dump(mode="json") | {"data": data}
    assert train(validate(Experiment, experiment, "test"), tmp_path / "run")
    events = [event for event in read_log(tmp_path / "run" / "log.jsonl") if event["event"] == "train"]
    assert events[-1]["skipped"] == 1
    assert "skipped 1 unreadable" in capfd.readouterr().err
    for index in range(0, 40, 2):
        (tmp_path / "images" / "0" / f"{index}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="more than 1%"):
        train(validate(Experiment, experiment, "test"), tmp_path / "other")


def test_averaged_weights_are_what_is_saved(
    tokenizer_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, stepped = Trainer.step, list[torch.Tensor]()

    def watched(self: Trainer, batch: Any, meter: Any) -> None:
        if not stepped:
            stepped.append(self.modules["model"].head.weight.detach().clone())
        step(self, batch, meter)
        stepped.append(self.modules["model"].head.weight.detach().clone())

    monkeypatch.setattr(Trainer, "step", watched)
    assert train(generator_experiment(str(tokenizer_run)), tmp_path)
    average = stepped[0]
    for index, head in enumerate(stepped[1:]):
        decay = min(0.9, (1 + index) / (10 + index))
        average = decay * average + (1 - decay) * head
    torch.testing.assert_close(weights(tmp_path)["head.weight"], average, rtol=1e-5, atol=1e-6)  # 8 float32 roundings
    checkpoint = load_file(tmp_path / "checkpoints" / f"{128:012d}" / "model.safetensors")
    assert torch.equal(checkpoint["head.weight"], stepped[-1])


def test_gradient_checkpointing_gives_the_same_weights(
    tokenizer_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, once = list[Any](), gradient_checkpointing.run_checkpointed

    def counted(block: Any, *inputs: Any, **settings: Any) -> torch.Tensor:
        blocks.append(block)
        return once(block, *inputs, **settings)

    monkeypatch.setattr(gradient_checkpointing, "run_checkpointed", counted)
    assert train(generator_experiment(str(tokenizer_run)), tmp_path / "plain")
    assert not blocks
    changes = {"training": {"gradient_checkpointing": True}}
    assert train(generator_experiment(str(tokenizer_run), **changes), tmp_path / "checkpointed")
    assert len(blocks) == 2 * 8  # the depth, at each step
    for name, tensor in weights(tmp_path / "plain").items():
        assert torch.equal(weights(tmp_path / "checkpointed")[name], tensor), name


def test_bfloat16_trains_near_float32_and_not_in_it(tokenizer_run: Path, tmp_path: Path) -> None:
    assert train(generator_experiment(str(tokenizer_run)), tmp_path / "fp32")
    assert train(generator_experiment(str(tokenizer_run), training={"precision": "bf16"}), tmp_path / "bf16")
    (exact,), (rounded,) = figures(tmp_path / "fp32", "nll"), figures(tmp_path / "bf16", "nll")
    assert rounded != exact and rounded[-1] < rounded[0]
    # 8 bits at each of about 16 products in a row
    assert rounded == pytest.approx(exact, rel=16 * 2**-8)


def test_tokens_may_be_encoded_at_every_step(tokenizer_run: Path, tmp_path: Path) -> None:
    assert train(generator_experiment(str(tokenizer_run)), tmp_path / "cached")
    assert train(generator_experiment(str(tokenizer_run), tokens={"online": True}), tmp_path / "online")
    assert torch.equal(weights(tmp_path / "cached")["head.weight"], weights(tmp_path / "online")["head.weight"])


def test_tensorboard_gets_the_same_figures(tokenizer_run: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(generator_experiment(str(tokenizer_run), training={"trackers": ["tensorboard"]}), tmp_path)
    (file,) = tmp_path.rglob("events.out.tfevents*")
    board = EventAccumulator(str(file))
    board.Reload()
    for event in ("train", "validation"):
        logged = [line for line in read_log(tmp_path / "log.jsonl") if line["event"] == event]
        numbers = {name for name, value in logged[0].items() if isinstance(value, float)} - {"time"}
        assert numbers
        for name in numbers:
            shown = [(scalar.step, scalar.value) for scalar in board.Scalars(f"{event}/{name}")]
            # TensorBoard keeps float32
            assert shown == [(line["images"], pytest.approx(line[name], rel=1e-6)) for line in logged], name


def test_the_rate_warms_up_and_falls() -> None:
    settings = Optimizer(lr=1.0, warmup=100, min_lr_ratio=0.1)
    rates = [settings.rate_at(seen, 1100) for seen in (0, 50, 100, 600, 1100)]
    assert rates == pytest.approx([0.01, 0.51, 1.0, 0.55, 0.1])
    assert Optimizer(lr=1.0, schedule="constant").rate_at(900, 1000) == 1.0
    line = Optimizer(lr=1.0, warmup=100, schedule="linear", hold=0.2, min_lr_ratio=0.1)
    assert [line.rate_at(seen, 1100) for seen in (50, 300, 700, 1100)] == pytest.approx([0.51, 1.0, 0.55, 0.1])


def test_weights_decay_but_for_vectors_and_what_a_module_spares() -> None:
    class Module(torch.nn.Linear):
        undecayed = ("position", "head")

        def __init__(self) -> None:
            super().__init__(2, 2)
            self.position = torch.nn.Parameter(torch.zeros(2, 2))
            self.head = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))

    module = torch.nn.Sequential(Module(), torch.nn.Linear(2, 2))
    decayed, spared = make_optimizer(module, Optimizer(weight_decay=0.5)).param_groups
    assert [len(decayed["params"]), decayed["weight_decay"]] == [2, 0.5]
    assert [len(spared["params"]), spared["weight_decay"]] == [4, 0.0]
    for matrix in (module[0].position, module[0].head[0].weight):
        assert any(parameter is matrix for parameter in spared["params"])


# ---------------------------------------------------------------------------------------------- refusals and failures


def test_other_settings_are_not_resumed(tokenizer_run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.base_channels: 8, now 16.*--fresh"):
        train(tokenizer_experiment(tokenizer={"base_channels": 16}), tokenizer_run)
    assert (tokenizer_run / "model.safetensors").exists()


def test_a_tokenizer_may_be_called_by_another_path_or_be_moved(
    tokenizer_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(generator_experiment(str(tokenizer_run)), tmp_path / "raster")
    shutil.copytree(tokenizer_run, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for name in ("moved", str(tmp_path / "moved"), "raster"):
        check_same_run(generator_experiment(name), tmp_path / "raster")
    assert train(tokenizer_experiment(seed=5, training={"images": 32}), tmp_path / "other")
    for name in ("other", "nowhere"):
        with pytest.raises(CheckpointError, match=f"tokenizer: .*, now {name}"):
            check_same_run(generator_experiment(name), tmp_path / "raster")


def test_a_folder_is_trained_in_by_one_process_at_a_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A study whose conductor was killed leaves a training behind, which the next one must not meddle with."""
    folder, held, let_go = tmp_path / "run", Event(), list[float]()
    experiment = tokenizer_experiment(training={"images": 32})

    def other() -> None:
        with hold_lock(folder / LOCK):
            held.set()
            time.sleep(1)
            let_go.append(time.time())

    with ThreadPoolExecutor(1) as pool:
        pool.submit(other)
        assert held.wait(10)
        assert train(experiment, folder)
    assert "another process trains in" in capfd.readouterr().err
    assert read_log(folder / "log.jsonl")[0]["time"] >= let_go[0]
    lock = (folder / f"{LOCK}.lock").stat().st_ino
    assert train(experiment, folder, fresh=True)
    assert (folder / f"{LOCK}.lock").stat().st_ino == lock


DEEP = {"downsample": 16, "channel_multipliers": [1] * 5}
UNGUIDED = {"generator": {"class_dropout": 0.0}, "sampling": {"cfg_scale": 2.0}}
ODD = {"global_batch": 16, "gradient_accumulation_steps": 3}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda run: generator_experiment("runs/nowhere"), CheckpointError, "no run"),
        (lambda run: generator_experiment(str(run), **UNGUIDED), ConfigError, "cfg_scale 2 needs a generator trained"),
        (lambda run: generator_experiment(str(run), data={"size": 32}), ConfigError, "was trained on images of"),
        (lambda run: tokenizer_experiment(tokenizer=DEEP, data={"size": 8}), ConfigError, "smaller than the down"),
        (lambda run: tokenizer_experiment(tokenizer={"quantizer": {"codebook_size": 65536}}), ConfigError, "can fill"),
        (lambda run: tokenizer_experiment(training=ODD), ConfigError, "must be a multiple"),
        (lambda run: tokenizer_experiment(training={"precision": "fp16"}), ConfigError, "needs a GPU"),
        (lambda run: generator_experiment(str(run), tokens={"cache": "nowhere"}), ArtokError, "no tokens in nowhere"),
        (lambda run: tokenizer_experiment(training={"trackers": ["abacus"]}), ConfigError, r"trackers \['abacus'\]"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_written(
    tokenizer_run: Path, tmp_path: Path, make: Any, error: type[ArtokError], words: str
) -> None:
    with pytest.raises(error, match=words):
        train(make(tokenizer_run), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_generator_is_refused_tokens_that_it_does_not_model(tokenizer_run: Path, tmp_path: Path) -> None:
    from artok.generators import raster
    from artok.layout import TokenLayout
    from artok.saved import check_layout

    with pytest.raises(LayoutError, match=r"raster needs codes.*continuous"):
        check_layout(raster.Config.tiny(), TokenLayout(((4, 4),), 4, None, (1, 16, 16)))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tokenizer_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def poisoned(self: Trainer, batch: Any, meter: Any) -> None:
        if self.seen == 80:
            next(iter(self.modules["model"].parameters())).data.fill_(float("nan"))
        step(self, batch, meter)

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(RunError, match=r"after 96 images.*000000000064"):
        train(tokenizer_experiment(), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"{64:012d}"]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values() if tensor.is_floating_point())


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(dump(tokenizer_experiment()))
    code = (
        "import resource, sys; from artok.cli import main; "
        "from artok.training import checkpoints; save = checkpoints.save; calls = []\n"
        "def limited(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "    return save(*arguments)\n"
        "checkpoints.save = limited\n"
        "main()"
    )
    arguments = ["train", str(tmp_path / "experiment.yaml"), "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{64:012d}" in done.stderr.splitlines()[-1]
    assert (tmp_path / "run" / "checkpoints" / f"{64:012d}" / "state.json").exists()
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])["event"] == "start"
    again = subprocess.run([sys.executable, "-m", "artok", *arguments], check=False, capture_output=True)
    assert again.returncode == 0


# ---------------------------------------------------------------------------------------------- two players

CRITIC = {"discriminator": {"kind": "dcgan", "base_channels": 8, "norm": "none"}, "r1": 0.1}


def vqgan_experiment(**changes: Any) -> Experiment:
    adversarial = {"kind": "adversarial", "weight": 0.5, "warmup": 32, "ramp": 32, "critic": CRITIC}
    losses = [{"kind": "reconstruction"}, adversarial]
    return tokenizer_experiment(**merge({"losses": losses, "training": {"ema": 0.9}}, changes))


def gan_experiment(**changes: Any) -> Experiment:
    network = {"kind": "residual", "channels": [16, 16, 16], "blocks": 1, "groups": 2, "embedding_dim": 8}
    generator = {
        "kind": "gan",
        "z_dim": 8,
        "network": network,
        "critic": CRITIC | {"gan_loss": "relativistic", "r2": 0.1},
    }
    section = {"tokenizer": {"kind": "pixels"}, "generator": generator, "training": {"ema": 0.9}}
    return validate(Experiment, merge(merge(TOKENIZER, {"name": "tiny-gan"}), merge(section, changes)), "test")


PLAYERS = {"vqgan": vqgan_experiment, "gan": gan_experiment}


def figures(run: Path, *names: str) -> list[list[float]]:
    events = [event for event in read_log(run / "log.jsonl") if event["event"] == "train"]
    return [[event.get(name, 0.0) for event in events] for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("family", PLAYERS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_players_lose_alike_in_parts_and_in_two_processes(tmp_path: Path, family: str, precision: str) -> None:
    """Two optimizers, accumulation, averaged weights, and both precisions, at the same global batch.

    float32 holds the arithmetic. bfloat16 shows that the precision changes nothing in how parts and processes add up.
    """
    settings: dict[str, Any] = merge({"precision": precision}, STEADY)
    changes: dict[str, Any] = {}
    tolerance = 1e-4
    if precision == "bf16":
        # A kernel may sum another batch in another order, and each rounding to 8 bits can fall the other way: 2**-8 for
        # each of about 16 layers in a row. A loss that is added where it is averaged, or the reverse, is off by 1/2.
        tolerance = 16 * 2**-8
        settings |= {"optimizer": {"lr": 1e-5}, "critic": {"lr": 1e-5}}  # lest the differences grow from step to step
        if family == "vqgan":  # no ratio of gradients as a weight, and a bottleneck with no nearest code to flip
            losses = [loss.model_dump() for loss in vqgan_experiment().losses]
            losses[1]["adaptive"] = False
            continuous = {"quantizer": {"kind": "gaussian", "latent_channels": 4, "sample": False}}
            changes = {"losses": losses, "tokenizer": continuous}
    whole = PLAYERS[family](training=settings, **changes)
    parts = PLAYERS[family](training=settings | {"gradient_accumulation_steps": 2}, **changes)
    assert train(whole, tmp_path / "whole")
    assert train(parts, tmp_path / "parts")
    (tmp_path / "experiment.yaml").write_text(dump(parts))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    command = [*launch, "-m", "artok", "train", str(tmp_path / "experiment.yaml"), "--out", str(tmp_path / "two")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    names = ("model_loss", "critic_loss", "adversarial", "critic", "r1")
    expected = figures(tmp_path / "whole", *names)
    assert all(any(values) for values in expected)
    for run in ("parts", "two"):
        for name, found, wanted in zip(names, figures(tmp_path / run, *names), expected, strict=True):
            size = max(abs(value) for value in wanted)
            assert found == pytest.approx(wanted, rel=0, abs=tolerance * size), (run, name)


@pytest.mark.parametrize("family", PLAYERS)
def test_two_players_go_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    experiment = PLAYERS[family]()
    assert train(experiment, tmp_path / "whole")
    train_in_two(experiment, tmp_path / "stopped", monkeypatch)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_critic_is_no_part_of_what_is_saved(tmp_path: Path) -> None:
    assert train(gan_experiment(), tmp_path / "gan")
    assert train(vqgan_experiment(), tmp_path / "vqgan")
    for run, first in (("gan", "network."), ("vqgan", ("encoder.", "decoder.", "quantizer.", "to_", "from_"))):
        assert all(name.startswith(first) for name in weights(tmp_path / run)), run
    assert Pipeline.from_pretrained(tmp_path / "gan")([1, 2], n=2).shape == (4, 1, 16, 16)


def test_a_critic_that_waits_and_turns_that_are_skipped(tmp_path: Path) -> None:
    late = vqgan_experiment()
    losses = [losses.model_dump() for losses in late.losses]
    losses[1] |= {"start": 64}
    assert train(vqgan_experiment(losses=losses), tmp_path / "late")
    assert [value > 0 for value in figures(tmp_path / "late", "critic")[0]] == [False, False, True, True]
    assert train(gan_experiment(generator={"critic": {"n_critic": 4}}), tmp_path / "turns")
    assert train(gan_experiment(generator={"critic": {"n_critic": 100}}), tmp_path / "never")
    assert any(figures(tmp_path / "turns", "adversarial")[0])
    assert not any(figures(tmp_path / "never", "adversarial")[0])


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_launch_that_asks_for_shards_and_makes_none_is_told(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_launch(DistributedType.MULTI_CPU) is None
    monkeypatch.setenv(variable, "true")
    assert "on GPUs only" in (describe_launch(DistributedType.MULTI_CPU) or "")
    assert describe_launch(DistributedType(variable.rpartition("_")[2])) is None


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tokenizer_experiment(), tmp_path / "vq")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARTOK_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match="set ARTOK_CACHE to a folder that can be written"):
        train(generator_experiment(str(tmp_path / "vq")), tmp_path / "raster")
    assert not (tmp_path / "raster").exists()
    monkeypatch.delenv("ARTOK_CACHE")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="set ARTOK_CACHE"):
        train(generator_experiment(str(tmp_path / "vq")), tmp_path / "raster")


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")
