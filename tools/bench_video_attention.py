"""Times the attention patterns of videos against full attention, in turns, and their memory against the law on paper.

    python tools/bench_video_attention.py [--rounds 5] [--frames 17,30]

Each line is one layer's attention over frames of 16 x 16 tokens, on one thread: the median of processor time forward,
and forward with backward, of rounds in which every pattern runs once; and the bytes kept for the backward pass.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from artok.nn.patterns import factorised, local, tiles
from artok.nn.patterns.base import AttentionPattern
from artok.nn.windows import TileWindows
from artok.planning.sparse_attention import saved_bytes

HEADS, WIDTH = 4, 128
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def patterns(grid: tuple[int, ...]) -> dict[str, Attention]:
    """What is timed, full attention first."""
    found: dict[str, Attention] = {"full": F.scaled_dot_product_attention}
    found["local 4x4, 1 before and after, 1 key frame"] = local.Config(window=4).build(grid, 0)
    found["tiles 1x4x4, window 3x3x3"] = tiles.Config().build(grid, 0)
    found["factorised, space"] = factorised.Config().build(grid, 0)
    found["factorised, time"] = factorised.Config().build(grid, 1)
    return found


def tokens(grid: tuple[int, ...]) -> list[Tensor]:
    """Queries, keys and values as a layer makes them, views of one product."""
    length = torch.Size(grid).numel()
    random = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, length, 3, HEADS, WIDTH // HEADS, generator=random, requires_grad=True)
    return list(qkv.permute(2, 0, 3, 1, 4).unbind())


def seconds(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def kept_bytes(attention: Attention, qkv: list[Tensor]) -> int:
    """Bytes of the storages that the backward pass keeps."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        attention(*qkv)
    return sum(storages.values())


def measure(grid: tuple[int, ...], rounds: int) -> None:
    qkv, found = tokens(grid), patterns(grid)
    forward: dict[str, list[float]] = {name: [] for name in found}
    both: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds + 1):  # the first one warms up
        for name, attention in found.items():
            with torch.no_grad():
                forward[name].append(seconds(lambda attention=attention: attention(*qkv)))  # type: ignore[misc]
            both[name].append(seconds(lambda attention=attention: attention(*qkv).sum().backward()))  # type: ignore[misc]
    print(f"{torch.Size(grid).numel():,} tokens, {'x'.join(map(str, grid))}")
    whole = [statistics.median(times["full"][1:]) for times in (forward, both)]
    for name, attention in found.items():
        ahead, trained = (statistics.median(times[name][1:]) for times in (forward, both))
        kept = kept_bytes(attention, qkv)
        law = f", law {saved_bytes(attention, WIDTH, HEADS) / 1e6:.1f}" if isinstance(attention, TileWindows) else ""
        seen = attention.pairs // torch.Size(grid).numel() if isinstance(attention, AttentionPattern) else grid[0] * 256
        print(
            f"  {name:44} {seen:5} keys a query  forward {1e3 * ahead:7.1f} ms ({whole[0] / ahead:5.1f} x as fast)  "
            f"with backward {1e3 * trained:7.1f} ms ({whole[1] / trained:5.1f})  keeps {kept / 1e6:6.1f} MB{law}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", default="17,30", help="frames of 16 x 16 tokens; several, separated by commas")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for frames in asked.frames.split(","):
        measure((int(frames), 16, 16), asked.rounds)


if __name__ == "__main__":
    main()
