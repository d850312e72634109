"""What quantizers share among processes, in two that are forked from the test; test_contracts.py has whole steps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.quantizers import built
from torch import Tensor, distributed, multiprocessing

from artok.noise import Noise
from artok.quantizers import lfq, multiscale, residual, vq
from artok.quantizers.candidates import Candidates
from artok.quantizers.codebook import Codebook, CodebookQuantizer
from artok.quantizers.distributed import (
    copy_from_first_process,
    count_processes,
    gather_over_processes,
    sum_all_over_processes,
    sum_over_processes,
)
from artok.quantizers.multiscale import MultiScaleQuantizer
from artok.quantizers.usage import Usage

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")


def forked(work: Callable[[int, int], dict[str, Any]], folder: Path, count: int = 2) -> list[dict[str, Any]]:
    """What `work(rank, count)` returns in each of several gloo processes."""
    arguments = (count, work, str(folder / "meeting"), str(folder))
    multiprocessing.start_processes(_worker, arguments, nprocs=count, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _worker(rank: int, count: int, work: Callable[[int, int], object], meeting: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    with torch.no_grad():  # autograd cannot run in a fork of a process that has used a GPU
        torch.save(work(rank, count), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def test_sums_rows_and_copies(tmp_path: Path) -> None:
    given = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 20.0], [30.0, 40.0]])]

    def work(rank: int, count: int) -> dict[str, Any]:
        first, in_place = given[rank].clone(), given[rank].clone()
        copy_from_first_process(first)
        assert sum_over_processes(in_place) is in_place
        sums = sum_all_over_processes([given[rank].clone(), torch.full((3,), 1.0 + rank)])
        rows, columns = (gather_over_processes(given[rank], dim) for dim in (0, 1))
        return {"count": count_processes(), "first": first, "sum": in_place, "sums": sums, "r": rows, "c": columns}

    assert count_processes() == 1
    for found in forked(work, tmp_path):
        assert found["count"] == 2
        assert torch.equal(found["first"], given[0]) and torch.equal(found["sum"], given[0] + given[1])
        assert torch.equal(found["sums"][0], given[0] + given[1]) and found["sums"][1].tolist() == [3.0] * 3
        assert torch.equal(found["r"], torch.cat(given)) and torch.equal(found["c"], torch.cat(given, dim=1))


def steps(rank: int, count: int) -> dict[str, Tensor]:
    """State after two steps of 8 images, of which a process has its share; a quarter of the codes are dead."""
    found = dict[str, Tensor]()
    table = {"codebook_size": 16, "code_dim": 4}
    several = {"standardise": True, "usage_balancing": 0.5}
    kinds = {
        "cosine": vq.Config.model_validate(table),
        "gradient": residual.Config.model_validate(table | {"update": "gradient", "num_quantizers": 2}),
        "scales": multiscale.Config.model_validate(table | several),
    }
    for name, config in kinds.items():
        quantizer = built(config).train()
        assert isinstance(quantizer, CodebookQuantizer | MultiScaleQuantizer) and quantizer.usage is not None
        books = quantizer.books() if isinstance(quantizer, CodebookQuantizer) else [quantizer.book]
        for book in books:
            book.counts[:, 1::4] = 0.0
            book.table[:, 1::4] = book.table[:, ::4]  # of two equal codes the first is taken
        for step in range(2):
            rng, share = torch.Generator().manual_seed(step), slice(8 // count * rank, 8 // count * (rank + 1))
            quantizer.noise = Noise(3, torch.arange(8)[share] + 8 * step)
            quantizer(torch.randn(8, 4, 4, 4, generator=rng)[share])
            replaced = quantizer.settle()
            assert step > 0 or all(each.rows[1::4].any() for each in replaced)
        found |= {f"{name} {key}": tensor for key, tensor in quantizer.state_dict().items()}
        found |= {f"{name} {key}": value for key, value in quantizer.usage.monitors().items()}
    loss = lfq.Config(codebook_size=16, temperature=1.0).build((4, 4)).train()
    losses = loss(torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(5)).chunk(count)[rank]).losses
    return found | {"entropy": sum_over_processes(losses["entropy"]) / count}


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    with torch.no_grad():
        wanted = steps(0, 1)
    first, second = forked(steps, tmp_path)
    assert first.keys() == second.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, atol=1e-5, rtol=1e-4, msg=lambda text, at=name: at + text)


def test_samples_usage_and_a_start_are_those_of_all(tmp_path: Path) -> None:
    points = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))

    def work(rank: int, count: int) -> dict[str, Any]:
        share = slice(4 // count * rank, 4 // count * (rank + 1))
        candidates, usage = Candidates(2, 5, 2), Usage([(2,)], 1, 4)
        candidates.collect(1, points[share], Noise(1, torch.arange(4)[share]))
        usage.collect(torch.tensor([[0, 1], [0, 0], [0, 3], [2, 1]])[share, :, None])
        usage.settle()
        usage.share()
        taken, real = candidates.take()
        book = Codebook(vq.Config(codebook_size=4, code_dim=2, kmeans_init=True), cosine=False)
        book.start_from_kmeans(points.flatten(0, 1) + rank * 1e-4, 3, 1.0)  # rounded otherwise in each
        state = {"counts": book.counts, "sums": book.sums, "table": book.table.detach()}
        return {"taken": taken[1], "real": real, "frequencies": usage.frequencies, "least": usage.least} | state

    wanted = work(0, 1)
    for found in forked(work, tmp_path):
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, msg=lambda text, at=name: at + text)
