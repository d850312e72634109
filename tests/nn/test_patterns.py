"""The contract of every attention pattern: exactly masked full attention, from fewer products."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from artok.config import find, kinds
from artok.nn.attention import plain_attention
from artok.nn.patterns import local, tiles
from artok.nn.patterns.base import AttentionPattern, PatternConfig
from artok.nn.windows import TileWindows

GRID = (5, 4, 4)
WIDTH = 8


def patterns() -> dict[str, AttentionPattern]:
    found = {}
    for kind in kinds("nn.patterns"):
        tiny = find("nn.patterns", kind).tiny()
        assert isinstance(tiny, PatternConfig)
        assert tiny.refuse(GRID) is None
        for layer in range(2):
            built = tiny.build(GRID, layer)
            if built is not None:
                found[f"{kind}-{layer}"] = built
    found["local-one"] = local.Config(window=4, neighbours=0, key_frames=0).build(GRID, 0)
    found["local-wide"] = local.Config(window=2, neighbours=4, key_frames=5).build(GRID, 0)
    found["tiles-time"] = tiles.Config(tile=(5, 2, 4), window=(1, 2, 1)).build(GRID, 0)
    return found


PATTERNS = patterns()


def qkv(grid: tuple[int, ...] = GRID) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    length = torch.Size(grid).numel()
    return [torch.randn(2, 3, length, WIDTH, generator=random, dtype=torch.float64, requires_grad=True) for _ in "qkv"]


@pytest.mark.parametrize("name", PATTERNS)
def test_it_equals_masked_full_attention_and_so_do_its_gradients(name: str) -> None:
    pattern, given = PATTERNS[name], qkv()
    mask = pattern.mask()
    assert mask.any(1).all()
    made, wanted = pattern(*given), plain_attention(*given, mask)
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-6)  # the softmax of both is in float32
    weight = torch.randn(made.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), given) for x in (made, wanted))
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PATTERNS)
def test_on_long_grids_the_fused_kernels_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artok.nn.windows.PLAIN_LENGTH", 8)
    test_it_equals_masked_full_attention_and_so_do_its_gradients(name)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_token_that_is_not_seen_changes_nothing_to_the_bit(name: str) -> None:
    pattern, (q, k, v) = PATTERNS[name], qkv()
    mask, token = pattern.mask(), 17
    with torch.no_grad():
        before, k[:, :, token], v[:, :, token] = pattern(q, k, v), 9.0, 9.0
        moved = (pattern(q, k, v) != before).any(-1).any(0).any(0)
    assert torch.equal(moved, mask[:, token])


@pytest.mark.parametrize("name", PATTERNS)
def test_its_pairs_are_the_products_that_it_takes(name: str) -> None:
    pattern, (q, k, v) = PATTERNS[name], qkv()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pattern(q, k, v)
    assert counter.get_total_flops() == 2 * 3 * 4 * WIDTH * pattern.pairs
    assert pattern.pairs >= int(pattern.mask().sum())


@pytest.mark.parametrize("name", [name for name, pattern in PATTERNS.items() if isinstance(pattern, TileWindows)])
def test_flex_attention_gives_the_same(name: str) -> None:
    pattern = PATTERNS[name]
    assert isinstance(pattern, TileWindows)
    with torch.no_grad():
        q, k, v = (x.float() for x in qkv())
        torch.testing.assert_close(pattern.flex(q, k, v), pattern.gathered(q, k, v), rtol=0, atol=1e-5)


def test_windows_stay_inside_the_video_and_key_frames_are_spread() -> None:
    pattern = local.Config(window=2, neighbours=1, key_frames=2).build(GRID, 0)
    frames = pattern.mask()[:, torch.arange(5) * 16 + 5].view(5, 16, 5)  # keys at one place of all frames
    same_square = frames[:, 0].long().tolist()
    assert same_square == [[1, 1, 1, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 1, 1], [1, 0, 1, 1, 1], [1, 0, 1, 1, 1]]
    elsewhere = frames[:, 15].long().tolist()
    assert elsewhere == [[1, 0, 0, 0, 1]] * 5
    assert local.spread(3, 9) == (0, 4, 8)


@pytest.mark.parametrize(
    ("config", "grid", "reason"),
    [
        (local.Config(window=3), GRID, "multiples of it"),
        (local.Config(window=2), (4, 4), "frames, rows and columns"),
        (local.Config(window=2, key_frames=6), GRID, "as many frames"),
        (tiles.Config(tile=(2, 2, 2)), GRID, "multiples of the tile"),
        (find("nn.patterns", "factorised").tiny(), (4, 4), "frames, rows and columns"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(config: PatternConfig, grid: tuple[int, ...], reason: str) -> None:
    refused = config.refuse(grid)
    assert refused is not None
    assert reason in refused
