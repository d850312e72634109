"""Unreadable images in training: counted over all processes, and before anything is begun where they can be seen."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.images import paint
from helpers.models import tokenizer_experiment

from artok.config import dump
from artok.data.order import Order
from artok.training.log import read_log

IMAGES, BATCH = 200, 20


@pytest.mark.slow
@pytest.mark.parametrize("broken", [[3, 33], [3, 33, 45]])  # positions; process 0 reads 0-9, 20-29, ..., 1 the others
def test_unreadable_images_are_counted_over_all_processes(tmp_path: Path, broken: list[int]) -> None:
    for index in range(IMAGES):
        paint(tmp_path / "data" / "train" / "a" / f"{index:03}.png", index)
    for index in range(8):
        paint(tmp_path / "data" / "test" / "a" / f"{index}.png", 255 - index)
    for index in Order(IMAGES, seed=0)(torch.tensor(broken)).tolist():
        (tmp_path / "data" / "train" / "a" / f"{index:03}.png").write_bytes(b"broken")
    data = {"kind": "folder", "root": str(tmp_path / "data"), "size": 16}
    training = {"images": IMAGES, "global_batch": BATCH, "log_every": IMAGES, "validate_every": IMAGES}
    experiment = tokenizer_experiment(data=data, training=training | dict.fromkeys(("preview_every",), IMAGES))
    (tmp_path / "experiment.yaml").write_text(dump(experiment))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    command = [*launch, "-m", "artok", "train", str(tmp_path / "experiment.yaml"), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if len(broken) == 2:
        assert done.returncode == 0, done.stderr[-2000:]
        assert "skipped 2 unreadable" in done.stderr
        reports = [event for event in read_log(tmp_path / "run" / "log.jsonl") if event["event"] == "train"]
        assert reports[-1]["skipped"] == 2
    else:
        assert done.returncode != 0
        assert "3 of 200 images cannot be read, more than 1%" in done.stderr
