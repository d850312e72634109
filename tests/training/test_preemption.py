"""A job of two processes that its scheduler ends by a signal saves, and goes on to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import TOKENIZER
from helpers.training import weights
from PIL import Image

from artok.config import dump, merge, validate
from artok.training.checkpoints import list_checkpoints
from artok.training.experiment import Experiment
from artok.training.log import read_log

LENGTH = {"images": 2048, "checkpoint_every": 512, "validate_every": 1024, "preview_every": 2048, "log_every": 256}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What torchrun runs, up to the folder. A worker process reads the images, which the signals reach as well."""
    folder = tmp_path_factory.mktemp("job")
    for index in range(40):
        path = folder / "images" / f"{index % 2}" / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 40 + index).save(path)
    data = {"kind": "folder", "root": str(folder / "images"), "size": 16, "channels": 1, "workers": 1}
    experiment = validate(Experiment, merge(TOKENIZER | {"data": data}, {"training": LENGTH}), "test")
    (folder / "job.yaml").write_text(dump(experiment))
    handled = ["--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *handled]
    return [*launch, "--standalone", "-m", "artok", "train", str(folder / "job.yaml"), "--out"]


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it sends signals to a job")
@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGTERM, False), (signal.SIGUSR1, True)])
def test_a_job_that_is_told_to_end_saves_and_goes_on_to_the_bit(
    command: list[str], whole: Path, tmp_path: Path, number: signal.Signals, to_all: bool
) -> None:
    """to_all: the signal reaches every process of the job, as Slurm sends it, and torchrun repeats it."""
    run = tmp_path / "run"
    job: subprocess.Popen[Any] = subprocess.Popen([*command, str(run)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list_checkpoints(run / "checkpoints"):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    for process in [*descendants(job.pid), job.pid] if to_all else [job.pid]:
        os.kill(process, number)
    _, said = job.communicate(timeout=120)
    assert "stopped and saved" in said, said[-3000:]
    stop = read_log(run / "log.jsonl")[-1]
    assert stop["event"] == "stop" and 0 < stop["images"] < LENGTH["images"]
    assert int(list_checkpoints(run / "checkpoints")[0].name) == stop["images"]
    done = subprocess.run([*command, str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(run)[name], tensor), name
    held_out = [
        [event["psnr"] for event in read_log(folder / "log.jsonl") if event["event"] == "validation"]
        for folder in (whole, run)
    ]
    assert len(held_out[0]) == 2 and held_out[0] == held_out[1]


def descendants(pid: int) -> list[int]:
    """All processes below one, the youngest first."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [each for child in children for each in (*descendants(child), child)]
