"""What a run may be resumed with, from which checkpoint, and what is refused by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import generator_experiment, tokenizer_experiment
from helpers.training import assert_same_run, stop_at, weights
from PIL import Image
from safetensors.torch import load_file, save_file

from artok import files
from artok.config import merge, validate
from artok.errors import ArtokError, CheckpointError, DataError, RunError
from artok.evaluation.run_directory import diverged
from artok.training import checkpoints, run
from artok.training.experiment import Experiment
from artok.training.health import diagnose
from artok.training.log import read_log
from artok.training.loop import Trainer
from artok.training.run import train

CONSTANT = {"optimizer": {"schedule": "constant"}, "ema": 0.9}


def constant(**changes: Any) -> Experiment:
    return tokenizer_experiment(**merge({"training": CONSTANT}, changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train(constant(), folder)
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, which ended in a crash after 80 images, with checkpoints at 32 and 64."""
    folder = tmp_path_factory.mktemp("runs") / "half"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        stop_at(patch, 80, MemoryError)
        train(constant(training={"checkpoint_every": 32}), folder)
    assert [path.name for path in checkpoints.list_checkpoints(folder / "checkpoints")] == [f"{64:012d}", f"{32:012d}"]
    return folder


@pytest.fixture
def stopped(half: Path, tmp_path: Path) -> Path:
    return shutil.copytree(half, tmp_path / "stopped")


def test_what_kills_left_is_deleted_at_the_next_start(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    saved = run / "checkpoints"
    shutil.copytree(checkpoints.list_checkpoints(saved)[0], saved / "000000000008")
    left = [run / ".model.safetensors.12.tmp", run / ".log.jsonl.12.tmp", run / "tokenizer" / ".config.yaml.12.tmp"]
    left += [run / "snapshots" / ".000000000032.safetensors.12.tmp", saved / ".000000000096.tmp" / "ema.safetensors"]
    left += [run / ".tmpU6fuqQ", run / "best" / "tokenizer" / ".model.safetensors.12.tmp"]
    kept = [run / ".report.html.12.tmp", run / ".own.tmp"]  # of a report that is being written, and of the user
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert train(constant(training={"keep_last": 1}), run)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
    assert [path.name for path in saved.iterdir()] == [checkpoints.list_checkpoints(finished / "checkpoints")[0].name]


# ---------------------------------------------------------------------------------------------- settings

FREE: list[dict[str, Any]] = [
    {"data": {"workers": 1}},
    {"training": {"log_every": 16, "validate_every": 32, "preview_every": 128, "checkpoint_every": 128}},
    {"training": {"validate_images": 8, "monitor_images": 0, "keep_last": 1, "trackers": ["tensorboard"]}},
    {"training": {"snapshot_every": 32}, "name": "other"},
    {"sampling": {"temperature": 0.5}, "evaluation": {"metrics": ["prdc"]}},
]


@pytest.mark.parametrize("changes", FREE)
def test_a_run_resumes_with_settings_that_do_not_change_it(
    finished: Path, stopped: Path, changes: dict[str, Any]
) -> None:
    assert train(constant(**changes), stopped)
    for name, tensor in weights(finished).items():
        assert torch.equal(weights(stopped)[name], tensor), name
    assert [event["event"] for event in read_log(stopped / "log.jsonl")].count("resume") == 1


def test_a_run_resumes_in_other_parts(finished: Path, stopped: Path) -> None:
    plain = {"quantizer": {"dead_code_threshold": 0.0, "update": "gradient"}}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        stop_at(patch, 80, MemoryError)
        train(constant(tokenizer=plain), stopped / "own")
    shutil.copytree(stopped / "own", stopped / "whole")
    assert train(constant(tokenizer=plain), stopped / "whole")
    assert train(constant(tokenizer=plain, training={"gradient_accumulation_steps": 4}), stopped / "own")
    for name, tensor in weights(stopped / "whole").items():
        torch.testing.assert_close(weights(stopped / "own")[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_generator_resumes_with_gradient_checkpointing_and_compiled(finished: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        stop_at(patch, 80, MemoryError)
        train(generator_experiment(str(finished)), tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    assert train(generator_experiment(str(finished)), tmp_path / "whole")
    compiled = list[torch.nn.Module]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))  # takes a minute
        changed = {"gradient_checkpointing": True, "compile": True}
        assert train(generator_experiment(str(finished), training=changed), tmp_path / "run")
    assert len(compiled) == 1
    assert_same_run(tmp_path / "whole", tmp_path / "run")


FIXED = {
    "seed: 0, now 1": {"seed": 1},
    "tokenizer.base_channels: 8, now 16": {"tokenizer": {"base_channels": 16}},
    "tokenizer.quantizer.codebook_size: 16, now 32": {"tokenizer": {"quantizer": {"codebook_size": 32}}},
    "losses: ": {"losses": [{"kind": "reconstruction", "l1": 2.0}]},
    "data.augment.flip: False, now True": {"data": {"augment": {"flip": True}}},
    "training.global_batch: 16, now 32": {"training": {"global_batch": 32}},
    "training.optimizer.lr: 0.001, now 0.01": {"training": {"optimizer": {"lr": 0.01}}},
    "training.precision: fp32, now bf16": {"training": {"precision": "bf16"}},
    "training.ema: 0.9, now 0.5": {"training": {"ema": 0.5}},
    "training.images: 128, now 48": {"training": {"images": 48}},
}


@pytest.mark.parametrize("words", FIXED)
def test_a_setting_that_changes_results_is_refused_by_name(stopped: Path, words: str) -> None:
    before = (stopped / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match=words):
        train(constant(**FIXED[words]), stopped)
    assert (stopped / "config.yaml").read_text() == before


def test_a_config_of_an_earlier_version_lacks_settings(finished: Path, stopped: Path) -> None:
    lines = (stopped / "config.yaml").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.strip().startswith(("compile:", "grad_clip:", "workers:", "ema_decay:"))]
    assert len(kept) < len(lines) - 2
    (stopped / "config.yaml").write_text("".join(kept))
    assert train(constant(), stopped)
    assert torch.equal(weights(stopped)["to_quantizer.weight"], weights(finished)["to_quantizer.weight"])


def test_a_longer_run_at_a_constant_rate_equals_one_of_that_length(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "longer")
    assert train(constant(training={"images": 192}), tmp_path / "longer")
    assert train(constant(training={"images": 192}), tmp_path / "whole")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "longer")[name], tensor), name


def test_a_longer_run_on_a_schedule_is_another_run_unless_asked_for(tmp_path: Path) -> None:
    assert train(tokenizer_experiment(), tmp_path)
    longer = tokenizer_experiment(training={"images": 192})
    with pytest.raises(CheckpointError, match=r"training.images: 128, now 192.*--extend"):
        train(longer, tmp_path)
    assert train(longer, tmp_path, extend=True)
    log = read_log(tmp_path / "log.jsonl")
    assert [event["wanted"] for event in log if event["event"] in ("start", "resume")] == [128, 192]
    rates = {event["images"]: event["lr"] for event in log if event["event"] == "train"}
    assert rates[160] == pytest.approx(longer.training.optimizer.rate_at(160, 192))
    with pytest.raises(CheckpointError, match=r"seed: 0, now 1"):
        train(tokenizer_experiment(training={"images": 256}, seed=1), tmp_path, extend=True)


def folder_experiment(root: Path) -> Experiment:
    data = {"kind": "folder", "root": str(root), "size": 16, "channels": 1}
    return validate(Experiment, constant().model_dump(mode="json") | {"data": data}, "test")


def write_images(root: Path) -> None:
    for index in range(40):
        path = root / f"{index % 2}" / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 6 * index).save(path)


def test_data_may_move_but_not_change(tmp_path: Path) -> None:
    write_images(tmp_path / "here")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        stop_at(patch, 80, MemoryError)
        train(folder_experiment(tmp_path / "here"), tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    shutil.copytree(tmp_path / "there", tmp_path / "changed")
    Image.new("L", (16, 16), 255).save(tmp_path / "changed" / "0" / "00.png")
    with pytest.raises(CheckpointError, match="the data changed"):
        train(folder_experiment(tmp_path / "changed"), tmp_path / "run")
    assert train(folder_experiment(tmp_path / "there"), tmp_path / "run")


# ---------------------------------------------------------------------------------------------- the folder


def test_a_folder_is_begun_when_data_can_be_read_and_may_be_started_again(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    for path in (tmp_path / "images").rglob("*.png"):
        if int(path.stem) < 8:
            path.write_bytes(b"no image")
    with pytest.raises(DataError, match="repair or remove such files and start again"):
        train(folder_experiment(tmp_path / "images"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    write_images(tmp_path / "images")
    assert train(folder_experiment(tmp_path / "images"), tmp_path / "run")


def test_a_run_without_a_checkpoint_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(DataError):
        stop_at(patch, 32, DataError)
        train(constant(), tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").exists()
    assert train(constant(seed=1, training={"images": 32}), tmp_path / "run")
    assert "seed: 1" in (tmp_path / "run" / "config.yaml").read_text()


def beside(patch: pytest.MonkeyPatch, other: Callable[[], object]) -> None:
    """Let another training run when this one has checked the folder and not yet locked it."""
    build = run.build_task

    def later(*arguments: Any) -> Any:
        patch.setattr(run, "build_task", build)
        other()
        return build(*arguments)

    patch.setattr(run, "build_task", later)


def test_the_second_of_two_trainings_is_refused_with_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(monkeypatch, lambda: train(constant(seed=1), tmp_path))
    with pytest.raises(CheckpointError, match="seed: 1, now 0"):
        train(constant(), tmp_path)
    assert "seed: 1" in (tmp_path / "config.yaml").read_text()


def test_the_second_of_two_trainings_goes_on_with_the_same_settings(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def other() -> None:
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            stop_at(patch, 80, MemoryError)
            train(constant(), tmp_path)

    beside(monkeypatch, other)
    assert train(constant(), tmp_path)
    assert "resumes at 64 of 128" in capfd.readouterr().err
    assert_same_run(finished, tmp_path)


def test_unreadable_data_leave_what_fresh_would_discard(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "images" / "0").mkdir(parents=True)
    for index in range(4):
        (tmp_path / "images" / "0" / f"{index}.png").write_bytes(b"no image")
    with pytest.raises(DataError):
        train(folder_experiment(tmp_path / "images"), tmp_path / "run", fresh=True)
    assert torch.equal(weights(tmp_path / "run")["to_quantizer.weight"], weights(finished)["to_quantizer.weight"])


# ---------------------------------------------------------------------------------------------- damaged checkpoints


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def poison(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel())
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, path)


DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    *((name, harm) for name in ("model.safetensors", "optimizer.bin", "ema.safetensors", "state.json")
      for harm in (cut, Path.unlink)),
    ("model.safetensors", poison),
    ("ema.safetensors", poison),
]  # fmt: skip


@pytest.mark.parametrize(("name", "harm"), DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    finished: Path, stopped: Path, name: str, harm: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    harm(stopped / "checkpoints" / f"{64:012d}" / name)
    assert train(constant(training={"keep_last": 1}), stopped)
    said = capfd.readouterr().err
    assert f"{64:012d} is damaged" in said and "resumes at 32 of 128" in said
    assert_same_run(finished, stopped)
    kept = {path.name for path in (stopped / "checkpoints").iterdir()}
    assert kept == {f"{128:012d}", f"damaged-{64:012d}"}


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(stopped: Path) -> None:
    for path in checkpoints.list_checkpoints(stopped / "checkpoints"):
        (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"and no earlier one can be used; start anew with --fresh"):
        train(constant(), stopped)
    assert len(checkpoints.list_checkpoints(stopped / "checkpoints")) == 2


def test_averages_of_an_earlier_version_are_resumed(finished: Path, stopped: Path) -> None:
    folder = stopped / "checkpoints" / f"{64:012d}"
    torch.save(load_file(folder / "ema.safetensors"), folder / "custom_checkpoint_0.pkl")
    (folder / "ema.safetensors").unlink()
    assert train(constant(), stopped)
    assert_same_run(finished, stopped)


# ---------------------------------------------------------------------------------------------- numbers, kills, sync


def test_a_gradient_that_is_not_finite_at_the_step_before_a_checkpoint_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def poisoned(self: Trainer, batch: Any, meter: Any) -> None:
        handle = None
        if self.seen == 112:  # the loss is finite, its gradient is not
            weight = next(iter(self.modules["model"].parameters()))
            handle = weight.register_hook(lambda gradient: gradient * float("nan"))
        step(self, batch, meter)
        if handle:
            handle.remove()

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(RunError, match=r"model_gradient_norm is no finite number.*last good checkpoint is.*0064"):
        train(constant(), tmp_path)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "checkpoints")] == [f"{64:012d}"]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())
    log = read_log(tmp_path / "log.jsonl")
    assert diverged(log) and [finding.kind for finding in diagnose(log)] == ["diverged"]
    monkeypatch.setattr(Trainer, "step", step)
    assert train(constant(), tmp_path)


def buffers(model: torch.nn.Module) -> list[str]:
    return [name for name, buffer in model.named_buffers() if buffer.is_floating_point()]


@pytest.mark.parametrize("part", ["weight", "buffer", "average"])
def test_tensors_that_are_not_finite_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    step = Trainer.step

    def poisoned(self: Trainer, batch: Any, meter: Any) -> None:
        step(self, batch, meter)
        if self.seen == 112:
            model = self.modules["model"]
            assert self.ema
            tensor = {
                "weight": next(iter(model.parameters())),
                "buffer": next(tensor for name, tensor in model.state_dict().items() if name in buffers(model)),
                "average": self.ema.shadow[0],
            }[part]
            tensor.detach().view(-1)[0] = float("inf")

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(RunError, match=r"is no finite number after 128 images.*0064"):
        train(constant(training={"snapshot_every": 128}), tmp_path)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "checkpoints")] == [f"{64:012d}"]


class Kill(BaseException):
    """A kill of the process, as far as files are concerned."""


@pytest.mark.parametrize("at", [64, 128])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_around_the_renaming_loses_no_line_of_the_log(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, when: str
) -> None:
    def killed(aside: Path, final: Path) -> None:
        if final.name == f"{at:012d}" and when == "before":
            raise Kill
        files.move(aside, final)
        if final.name == f"{at:012d}":
            raise Kill

    with monkeypatch.context() as patch, pytest.raises(Kill):
        patch.setattr(checkpoints, "move", killed)
        train(constant(), tmp_path)
    assert train(constant(), tmp_path)
    assert_same_run(finished, tmp_path)
    lines = [
        [(event["event"], event["images"]) for event in read_log(folder / "log.jsonl") if event["event"] != "resume"]
        for folder in (finished, tmp_path)
    ]
    assert lines[0] == lines[1]


def test_files_are_on_the_disk_before_they_get_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync, replace = list[str](), os.fsync, os.replace

    def note_sync(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        sync(handle)

    def note_replace(source: Path, target: Path) -> None:
        below = [source, *(Path(source).rglob("*") if Path(source).is_dir() else ())]
        assert {str(path) for path in below} <= set(synced), target
        replaced.append(Path(target))
        replace(source, target)

    replaced = list[Path]()
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    assert train(constant(training={"images": 64}), tmp_path / "run")
    assert tmp_path / "run" / "checkpoints" / f"{64:012d}" in replaced
    assert tmp_path / "run" / "model.safetensors" in replaced
    assert str(tmp_path / "run" / "checkpoints") in synced and str(tmp_path / "run" / "log.jsonl") in synced


def test_a_process_that_reads_no_checkpoint_where_another_does_is_named(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "gather_object", lambda problems: [*problems, "no such file"])
    with pytest.raises(ArtokError, match="all processes need the same folder"):
        train(constant(), stopped)
