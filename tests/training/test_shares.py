"""What processes share out: held-out batches; and a frozen tokenizer in the precision of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import generator_experiment, tokenizer_experiment
from helpers.processes import in_processes
from torch import Tensor, distributed, nn

from artok.training import tasks
from artok.training.progress import Progress
from artok.training.run import build_task, make_accelerator, train
from artok.training.shares import merge, own_batches

ROWS, BATCH = torch.arange(3, 40), 5


def sums(rank: int, count: int, folder: Path) -> dict[str, Any]:
    """Both the batches of this process and the results of all."""
    if count > 1:
        distributed.init_process_group("gloo")
    own = own_batches(ROWS, BATCH)
    few = merge([int(batch.sum()) for batch in own_batches(ROWS[:4], BATCH)])
    return {"own": own, "all": merge([(int(batch.sum()), batch) for batch in own]), "few": few}


def test_each_batch_is_read_once_and_results_keep_their_order(tmp_path: Path) -> None:
    alone = sums(0, 1, tmp_path)
    assert [total for total, _ in alone["all"]] == [int(batch.sum()) for batch in ROWS.split(BATCH)]
    found: list[Any] = in_processes(sums, 2, tmp_path)
    assert torch.cat([batch for each in found for batch in each["own"]]).sort().values.equal(ROWS)
    for each in found:
        assert len(each["own"]) == 4 and each["few"] == alone["few"] == [int(ROWS[:4].sum())]
        assert [total for total, _ in each["all"]] == [total for total, _ in alone["all"]]
        assert all(torch.equal(one[1], other[1]) for one, other in zip(each["all"], alone["all"], strict=True))


def test_a_task_validates_on_its_share_only(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tokenizer_experiment(training={"validate_images": 200})
    data = experiment.data
    task = tasks.TokenizerTask(experiment, data.open("train"), data.open("test"), torch.device("cpu"))
    task.tokenizer.eval()
    whole, seen = task.validate(), list[int]()
    monkeypatch.setattr(tasks, "own_batches", lambda rows, batch: list(rows.split(batch))[1::2])
    encode = task.tokenizer.encode

    def counted(images: Tensor) -> Any:
        seen.append(len(images))
        return encode(images)

    monkeypatch.setattr(task.tokenizer, "encode", counted)
    assert seen == [] and task.validate()["psnr"] != whole["psnr"] and seen == [64, 8]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_tokenizer_encodes_in_the_precision_of_the_training(tmp_path: Path, precision: str) -> None:
    assert train(tokenizer_experiment(training={"images": 16}), tmp_path / "vq")
    online = generator_experiment(str(tmp_path / "vq"), tokens={"online": True}, training={"precision": precision})
    accelerator = make_accelerator(online, tmp_path, "cpu")
    task = build_task(online, tmp_path, accelerator, Progress("test", quiet=True))
    assert isinstance(task, tasks.GeneratorTask)
    dtypes = set[torch.dtype]()
    for part in task.tokenizer.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda _, given, made: dtypes.add(made.dtype))
    batches = task.batches(0, 0, 1)
    assert next(batches).tokens.values.dtype == torch.int64
    assert dtypes == {torch.float32 if precision == "fp32" else torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")
    batches.close()
