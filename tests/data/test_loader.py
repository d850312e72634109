"""Batches and cached tokens: exact under resuming, processes and workers."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from artok.data import digits, folder, hub, tokens
from artok.data.base import Augment, DataConfig
from artok.data.loader import Batch, Loader, evaluation_batches
from artok.data.order import Order, choose_rows
from artok.data.tokens import TokenCache, TokenLoader, evaluation_tokens, write_tokens
from artok.errors import DataError, RunError
from artok.images import from_uint8
from artok.layout import TokenLayout

CHANGES = Augment(flip=True, rotate=10, shift=0.1)


def take(loader: Iterator[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(loader, count))


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.positions, other.positions)


@pytest.fixture(params=["digits", "folder", "stream"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> DataConfig:
    """One source of each way of reading: in memory, decoded, streamed."""
    if request.param == "digits":
        return digits.Config(size=8, augment=CHANGES)
    if request.param == "folder":
        return folder.Config(**{**folder.Config.tiny(tmp_path).model_dump(), "augment": CHANGES, "resize": 10})
    made = hub.Config.tiny(tmp_path).model_dump()
    names = ["a", "b", "c"]
    return hub.Config(**{**made, "augment": CHANGES, "streaming": True, "classes": names, "shuffle_buffer": 5})


# ---------------------------------------------------------------------------------------------- images


def test_resume_is_exact(source: DataConfig) -> None:
    with Loader(source.open("train"), source, 8, seed=1) as loader:
        whole = take(loader, 6)
    with Loader(source.open("train"), source, 8, seed=1, start=16) as loader:
        assert_same(take(loader, 4), whole[2:])
    assert whole[2].positions.tolist() == list(range(16, 24))
    assert whole[0].images.shape == (8, source.channels, 8, 8) and whole[0].images.dtype == torch.float32


def test_two_processes_draw_what_one_would(source: DataConfig) -> None:
    with Loader(source.open("train"), source, 8, seed=1, start=4) as loader:
        whole = take(loader, 4)
    parts = []
    for rank in range(2):
        with Loader(source.open("train"), source, 8, seed=1, start=4, rank=rank, world=2) as loader:
            parts.append(take(loader, 4))
    joined = [
        Batch(*(torch.cat([getattr(part, name) for part in pair]) for name in ("images", "labels", "positions")))
        for pair in zip(*parts, strict=True)
    ]
    for one, other in zip(joined, whole, strict=True):
        assert torch.equal(one.labels, other.labels) and torch.equal(one.positions, other.positions)
        assert torch.allclose(one.images, other.images, atol=1e-4)  # a hundredth of a grey level: float32 coordinates


def test_workers_change_nothing(source: DataConfig) -> None:
    with Loader(source.open("train"), source, 8, seed=1, start=4) as loader:
        alone = take(loader, 5)
    helped = source.model_copy(update={"workers": 2})
    with Loader(helped.open("train"), helped, 8, seed=1, start=4) as loader:
        assert_same(take(loader, 5), alone)


def test_workers_leave_the_global_random_numbers_alone() -> None:
    settings = digits.Config(size=8, workers=1)
    state = torch.get_rng_state()
    with Loader(settings.open("train"), settings, 4, seed=0) as loader:
        next(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pass_shows_every_image_once_in_another_order_each_time() -> None:
    order = Order(10, seed=0)
    passes = order(torch.arange(30)).view(3, 10)
    assert [sorted(row.tolist()) for row in passes] == [list(range(10))] * 3
    assert len({tuple(row.tolist()) for row in passes}) == 3
    assert not torch.equal(Order(10, seed=1)(torch.arange(10)), passes[0])


def test_seed_changes_order_and_augmentation() -> None:
    settings = digits.Config(size=8)
    split = settings.open("train")
    first, second = next(Loader(split, settings, 32, seed=0)), next(Loader(split, settings, 32, seed=1))
    assert not torch.equal(first.images, second.images)
    plain = next(Loader(split, settings, 32, seed=0, train=False))
    assert torch.equal(plain.images, from_uint8(split.images[:32]))


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    settings = digits.Config(size=8)
    with pytest.raises(DataError, match="batch of 7 cannot be shared equally by 2"):
        Loader(settings.open("train"), settings, 7, seed=0, world=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_reads_everything_once_in_order(workers: int, tmp_path: Path) -> None:
    settings = folder.Config(**{**folder.Config.tiny(tmp_path).model_dump(), "augment": CHANGES, "workers": workers})
    split = settings.open("train")
    batches = list(evaluation_batches(split, settings, 4))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 2]
    assert torch.equal(torch.cat([batch.positions for batch in batches]), torch.arange(18))
    assert torch.equal(torch.cat([batch.images for batch in batches]), from_uint8(split.read(range(18)).images))
    assert [len(batch) for batch in evaluation_batches(split, settings, 4, limit=6)] == [4, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_counted_wherever_they_are_decoded(workers: int, tmp_path: Path) -> None:
    made = folder.Config.tiny(tmp_path)
    picture = next(made.root.rglob("*.png")).read_bytes()
    for index in range(190):
        (made.root / "dark" / f"x{index:03}.png").write_bytes(picture)
    (made.root / "dark" / "x050.png").write_bytes(picture[:30])
    settings = made.model_copy(update={"holdout": 0, "workers": workers})
    split = settings.open("train")
    assert sum(len(batch) for batch in evaluation_batches(split, settings, 10)) == 214
    assert [reason.split()[0] for reason in split.skipped.values()] == ["dark/x050.png"]
    for index in range(60, 63):
        (made.root / "dark" / f"x{index:03}.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"^4 of 214 images cannot be read, more than 1%, such as dark/x050.png \(it is no picture"
    ):
        for _ in evaluation_batches(settings.open("train"), settings, 10):
            pass


def test_closing_ends_thread_and_processes(tmp_path: Path) -> None:
    import multiprocessing

    settings = folder.Config.tiny(tmp_path)
    with Loader(settings.open("train"), settings, 4, seed=0) as loader:
        next(loader)
        assert [thread for thread in threading.enumerate() if thread.name == "artok-reader"]
    assert not [thread for thread in threading.enumerate() if thread.name == "artok-reader"]
    helped = settings.model_copy(update={"workers": 2})
    with Loader(helped.open("train"), helped, 4, seed=0) as loader:
        next(loader)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_program_that_forgets_to_close_still_ends(workers: int, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from artok.data import folder\nfrom artok.data.loader import Loader\n"
        f"made = folder.Config.tiny(Path({str(tmp_path)!r})).model_copy(update={{'workers': {workers}}})\n"
        "loader = Loader(made.open('train'), made, 4, seed=0)\nnext(loader)\nprint('done')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


# ---------------------------------------------------------------------------------------------- tokens

LAYOUT = TokenLayout(grids=((2, 2),), width=3, vocab=300, image=(1, 8, 8))
CONTINUOUS = TokenLayout(grids=((2, 2),), width=3, vocab=None, image=(1, 8, 8))
CLASSES = ("a", "b")


def value_of(index: int, copy: int) -> int:
    return (index * 7 + copy * 100) % 300


def parts(first: int, images: int = 23, layout: TokenLayout = LAYOUT) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of 4 images with 2 copies, whose values tell image and copy."""
    for start in range(first, images, 4):
        rows = range(start, min(start + 4, images))
        values = torch.tensor([[[[value_of(row, copy)]] for copy in range(2)] for row in rows])
        shape = (len(rows), 2, *layout.value_shape())
        values = values.expand(shape) if layout.discrete else values.expand(shape) / 64
        yield values, torch.tensor([row % 2 for row in rows])


def write(path: Path, layout: TokenLayout = LAYOUT, made: tokens.Parts = parts, **settings: str) -> None:
    stamps = {"tokenizer": "tok", "data": "dat", **settings}
    write_tokens(path, layout, stamps["tokenizer"], stamps["data"], CLASSES, 23, 2, made, shard_images=5)


def test_tokens_come_back_as_written(tmp_path: Path) -> None:
    write(tmp_path / "cache")
    cache = TokenCache.open(tmp_path / "cache", "tok", LAYOUT)
    assert cache.index.dtype == "int16" and cache.index.classes == CLASSES and len(cache) == 23
    indices, copies = torch.tensor([22, 0, 7, 7]), torch.tensor([1, 0, 0, 1])
    read, labels = cache.read(indices, copies)
    assert read.values.dtype == torch.int64 and read.layout == LAYOUT and labels.tolist() == [0, 0, 1, 1]
    expected = [value_of(int(i), int(c)) for i, c in zip(indices, copies, strict=True)]
    assert read.values[:, 0, 0].tolist() == expected and bool((read.values == read.values[:, :1]).all())
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_large_cache_stays_on_disk_and_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "cache")
    loaded = TokenCache.open(tmp_path / "cache")
    monkeypatch.setattr(tokens, "IN_MEMORY", 0)
    mapped = TokenCache.open(tmp_path / "cache")
    indices, copies = torch.randint(0, 23, (40,)), torch.randint(0, 2, (40,))
    assert torch.equal(mapped.read(indices, copies)[0].values, loaded.read(indices, copies)[0].values)
    assert torch.equal(mapped.read(indices)[1], loaded.read(indices)[1])


def test_types_are_the_smallest_that_hold_the_values(tmp_path: Path) -> None:
    names = {vocab: str(tokens.storage(replace(LAYOUT, vocab=vocab))) for vocab in (256, 257, 2**15, 2**15 + 1)}
    assert list(names.values()) == ["torch.uint8", "torch.int16", "torch.int16", "torch.int32"]
    assert tokens.storage(CONTINUOUS, "float32") == torch.float32
    write(tmp_path / "cache", CONTINUOUS, lambda first: parts(first, layout=CONTINUOUS))
    read, _ = TokenCache.open(tmp_path / "cache").read(torch.tensor([3]))
    assert read.values.dtype == torch.float32 and read.values[0, 0, 0] == value_of(3, 0) / 64


def test_a_killed_writing_goes_on_after_its_last_whole_shard(tmp_path: Path) -> None:
    asked: list[int] = []

    def killed(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        asked.append(first)
        for number, part in enumerate(parts(first)):
            if number == 3:
                raise KeyboardInterrupt
            yield part

    def resumed(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        asked.append(first)
        return parts(first)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cache", made=killed)
    with pytest.raises(DataError, match="there are no tokens"):
        TokenCache.open(tmp_path / "cache")
    (tmp_path / "cache.partial" / "tokens-00002.safetensors.new").write_bytes(b"half a shard")
    write(tmp_path / "cache", made=resumed)
    assert asked == [0, 10]  # 12 images were given, two shards of 5 were whole
    read, labels = TokenCache.open(tmp_path / "cache").read(torch.arange(23), 1)
    assert read.values[:, 0, 0].tolist() == [value_of(row, 1) for row in range(23)]
    assert labels.tolist() == [row % 2 for row in range(23)]


def test_a_killed_writing_of_other_tokens_starts_afresh(tmp_path: Path) -> None:
    def killed(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from itertools.islice(parts(first), 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cache", made=killed, tokenizer="old")
    asked: list[int] = []
    write(tmp_path / "cache", made=lambda first: asked.append(first) or parts(first))
    assert asked == [0]


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "cache", tokenizer="old")
    save, calls = tokens.save_file, itertools.count()

    def full(values: dict[str, Tensor], path: str) -> None:
        if next(calls) == 2:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(values, path)

    monkeypatch.setattr(tokens, "save_file", full)
    with pytest.raises(RunError, match=r"could not be written .*No space left on device"):
        write(tmp_path / "cache")
    assert TokenCache.open(tmp_path / "cache").index.tokenizer == "old"
    asked: list[int] = []
    write(tmp_path / "cache", made=lambda first: asked.append(first) or parts(first))
    assert asked == [10] and TokenCache.open(tmp_path / "cache").index.tokenizer == "tok"


def test_wrong_caches_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    write(path)
    with pytest.raises(DataError, match=r"another tokenizer \(tok\) than the one given \(other\)"):
        TokenCache.open(path, "other")
    with pytest.raises(DataError, match=r"300 codes.* but .*200 codes.* are expected"):
        TokenCache.open(path, "tok", replace(LAYOUT, vocab=200))
    shard = path / "tokens-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"damaged \(tokens-00001.safetensors has \d+ bytes instead of \d+\)"):
        TokenCache.open(path)
    shard.write_bytes(b"\xff" * len(whole))
    with pytest.raises(DataError, match=r"tokens-00001.safetensors is damaged"):
        TokenCache.open(path)
    shard.unlink()
    with pytest.raises(DataError, match=r"damaged \(tokens-00001.safetensors is missing\)"):
        TokenCache.open(path)
    shard.write_bytes(whole)
    index = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps({**index, "shards": index["shards"][:-1]}))
    with pytest.raises(DataError, match="shards are missing from its index"):
        TokenCache.open(path)
    (path / "index.json").write_text("{")
    with pytest.raises(DataError, match=r"index.json is damaged"):
        TokenCache.open(path)


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"precious")
    with pytest.raises(DataError, match="is no token cache"):
        write(tmp_path / "photos")
    assert (tmp_path / "photos" / "a.png").read_bytes() == b"precious"


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def bad(values: Tensor, labels: Tensor) -> tokens.Parts:
        return lambda first: iter([(values, labels)])

    good = torch.zeros(1, 2, 4, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="outside the vocabulary of 300"):
        write(tmp_path / "a", made=bad(good + 300, torch.tensor([0])))
    with pytest.raises(DataError, match=r"outside the 2 classes"):
        write(tmp_path / "a", made=bad(good, torch.tensor([2])))
    with pytest.raises(ValueError, match=r"expected .1, 2, 4, 1."):
        write(tmp_path / "a", made=bad(good[:, :1], torch.tensor([0])))
    with pytest.raises(ValueError, match="1 images were written, 23 were announced"):
        write(tmp_path / "a", made=bad(good, torch.tensor([0])))
    with pytest.raises(DataError, match="not finite as float16"):
        write(tmp_path / "b", CONTINUOUS, bad(torch.full((1, 2, 4, 3), 1e6), torch.tensor([0])))


def test_token_batches_are_keyed_like_images(tmp_path: Path) -> None:
    write(tmp_path / "cache")
    cache = TokenCache.open(tmp_path / "cache")
    whole = list(itertools.islice(TokenLoader(cache, 6, seed=2), 40))
    for one, other in zip(itertools.islice(TokenLoader(cache, 6, seed=2, start=18), 5), whole[3:8], strict=True):
        assert torch.equal(one.tokens.values, other.tokens.values) and torch.equal(one.positions, other.positions)
    ranks = [list(itertools.islice(TokenLoader(cache, 6, seed=2, rank=rank, world=2), 3)) for rank in range(2)]
    for left, right, other in zip(*ranks, whole[:3], strict=True):
        assert torch.equal(torch.cat([left.tokens.values, right.tokens.values]), other.tokens.values)
        assert torch.equal(torch.cat([left.labels, right.labels]), other.labels)
    seen = torch.cat([batch.tokens.values[:, 0, 0] for batch in whole])
    index_of = {value_of(index, copy): (index, copy) for index in range(23) for copy in range(2)}
    shown = [index_of[value] for value in seen.tolist()]
    assert [index for index, _ in shown] == Order(23, 2)(torch.arange(240)).tolist()
    assert 90 < sum(copy for _, copy in shown) < 150


def test_evaluation_of_tokens_is_plain_and_in_order(tmp_path: Path) -> None:
    write(tmp_path / "cache")
    batches = list(evaluation_tokens(TokenCache.open(tmp_path / "cache"), 8, limit=20))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    shown = torch.cat([batch.tokens.values[:, 0, 0] for batch in batches])
    positions = torch.cat([batch.positions for batch in batches])
    assert torch.equal(positions, choose_rows(23, 20)) and positions.diff().min() > 0
    assert shown.tolist() == [value_of(index, 0) for index in positions.tolist()]
