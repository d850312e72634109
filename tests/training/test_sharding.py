"""Two processes that share out the weights by FSDP2 train, save, resume and export what one process does.

accelerate shards on GPUs only. Here its state is set as on two GPUs, so that its code calls `fully_shard` over gloo.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from helpers.every_task import experiment, experiments, train_first
from helpers.processes import in_processes
from helpers.training import stop_at, weights

from artok.errors import ConfigError
from artok.pipeline import Pipeline
from artok.training import loop, run
from artok.training.experiment import Experiment
from artok.training.log import read_log
from artok.training.sharding import local

IMAGES = 160  # 20 steps
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
STOPPED, ALONE = ("raster", "gan"), "raster"  # stopped half-way; resumed by one process that shards nothing
CASES = ("raster", "diffusion", "gan", "conv-vq-restarts", "klgan-patch-group")


def cases(runs: Path) -> dict[str, Experiment]:
    """Two generators, a GAN, a tokenizer and one with a critic, with every part of a training that samples."""
    changes: dict[str, Any] = {"images": IMAGES, "checkpoint_every": 48, "validate_every": 80, "log_every": 80}
    changes |= {"preview_every": 80, "monitor_images": 32}
    everything = experiments(runs)
    return {
        name: everything[name].model_copy(update={"training": everything[name].training.model_copy(update=changes)})
        for name in CASES
    }


def shard() -> None:
    """Let accelerate act as it does on GPUs under `fsdp_version: 2`."""
    plain = run.make_accelerator

    def made(*given: Any) -> Accelerator:
        accelerator = plain(*given)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
        )
        accelerator.state._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
        accelerator.state.__dict__ |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
        assert accelerator.is_fsdp2
        return accelerator

    run.make_accelerator = made


def train_sharded(rank: int, count: int, folder: Path) -> dict[str, int]:
    """Train every case whole, and some once more with a stop. Returns how many weights are here."""
    shard()
    sizes = {}
    for name, each in cases(folder).items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop.Trainer, "save", counted(loop.Trainer.save, sizes, name))
            assert run.train(each, folder / "sharded" / name)
    for name in STOPPED:
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, 80, signal.SIGTERM)
            assert not run.train(cases(folder)[name], folder / "stopped" / name)
        if name != ALONE:
            assert run.train(cases(folder)[name], folder / "stopped" / name)
    with pytest.raises(ConfigError, match="cannot be sharded"):
        tokenizer = experiments(folder)["conv-vq"].tokenizer.model_dump(mode="json")  # type: ignore[union-attr]
        tokenizer["quantizer"] |= {"update": "gradient"}
        run.train(experiment("tables", {"tokenizer": tokenizer}), folder / "tables")
    return sizes


def counted(save: Any, sizes: dict[str, int], name: str) -> Any:
    def saved(self: loop.Trainer) -> None:
        sizes[name] = sum(local(weight).numel() for weight in self.modules["model"].parameters())
        save(self)

    return saved


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train_first(folder)
    sizes = in_processes(train_sharded, 2, folder)
    torch.save(sizes, folder / "sizes.pt")
    for name, each in cases(folder).items():
        assert run.train(each, folder / "one" / name)
    assert run.train(cases(folder)[ALONE], folder / "stopped" / ALONE)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_sharded_weights_are_those_of_one_process(runs: Path, name: str) -> None:
    wanted = weights(runs / "one" / name)
    for made in ("sharded", *(("stopped",) if name in STOPPED else ())):
        found = weights(runs / made / name)
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            torch.testing.assert_close(found[key], tensor, **CLOSE, msg=lambda text, at=key: at + text)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_process_holds_a_half_and_the_log_is_whole(runs: Path, name: str) -> None:
    first, second = (sizes[name] for sizes in torch.load(runs / "sizes.pt"))
    total = sum(t.numel() for key, t in weights(runs / "one" / name).items())
    assert max(first, second) < 0.75 * total
    events = [[event["event"] for event in read_log(runs / run / name / "log.jsonl")] for run in ("one", "sharded")]
    assert events[0] == events[1] and "validation" in events[1]
    assert ("monitor" in events[1]) == (name in ("raster", "diffusion", "gan"))
    assert len(list((runs / "sharded" / name / "samples").glob("*.png"))) == 2
    kept = sorted(path.name for path in (runs / "sharded" / name / "checkpoints").iterdir())
    assert kept == [f"{144:012d}", f"{160:012d}"]


@pytest.mark.slow
def test_a_sharded_run_is_an_ordinary_one(runs: Path) -> None:
    images = [Pipeline.from_pretrained(runs / made / "gan")([1, 2], seed=3) for made in ("sharded", "one")]
    assert (images[0].int() - images[1].int()).abs().max() <= 1
