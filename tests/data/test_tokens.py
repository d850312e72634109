"""Cached tokens: written by several processes, resumed, and refused where others are asked for."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from artok.data import token_writing, tokens
from artok.data.order import Order, choose_rows
from artok.data.token_writing import EncodedImages, write_tokens
from artok.data.tokens import TokenCache, TokenIndex, TokenLoader, evaluation_tokens
from artok.errors import DataError, RunError
from artok.layout import TokenLayout
from artok.locks import try_lock

LAYOUT = TokenLayout(grids=((2, 2),), width=3, vocab=300, image=(1, 8, 8))
CONTINUOUS = TokenLayout(grids=((2, 2),), width=3, vocab=None, image=(1, 8, 8))
CLASSES = ("a", "b")
Encoded = Iterator[EncodedImages]


def value_of(index: int, copy: int) -> int:
    return (index * 7 + copy * 100) % 300


def encode(first: int, last: int, done: int = 0, layout: TokenLayout = LAYOUT) -> Encoded:
    """Batches of 2 images with 2 copies, whose values tell image and copy."""
    for start in range(first, last, 2):
        rows = range(start, min(start + 2, last))
        values = torch.tensor([[[[value_of(row, copy)]] for copy in range(2)] for row in rows])
        shape = (len(rows), 2, *layout.value_shape())
        values = values.expand(shape) if layout.discrete else values.expand(shape) / 64
        yield EncodedImages(values, torch.tensor([row % 2 for row in rows]))


def index_of(layout: TokenLayout = LAYOUT, **changes: Any) -> TokenIndex:
    made = TokenIndex.of(layout, "tok", "dat", CLASSES, 23, 2, "flip")
    return replace(made, **changes)


def write(
    path: Path,
    index: TokenIndex | None = None,
    made: token_writing.Encode = encode,
    skipped: dict[int, str] | None = None,
    check: Callable[[dict[int, str]], None] = lambda met: None,
) -> None:
    write_tokens(path, index or index_of(), made, {} if skipped is None else skipped, check, shard_images=5)


def counting(asked: list[int]) -> token_writing.Encode:
    def made(first: int, last: int, done: int) -> Encoded:
        asked.append(first)
        return encode(first, last)

    return made


def test_tokens_come_back_as_written(tmp_path: Path) -> None:
    write(tmp_path / "cache")
    cache = TokenCache.open(tmp_path / "cache", index_of())
    assert cache.index.dtype == "int16" and cache.index.classes == CLASSES and len(cache) == 23
    indices, copies = torch.tensor([22, 0, 7, 7]), torch.tensor([1, 0, 0, 1])
    read, labels = cache.read(indices, copies)
    assert read.values.dtype == torch.int64 and read.layout == LAYOUT and labels.tolist() == [0, 0, 1, 1]
    expected = [value_of(int(i), int(c)) for i, c in zip(indices, copies, strict=True)]
    assert read.values[:, 0, 0].tolist() == expected and bool((read.values == read.values[:, :1]).all())
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    shards = [f"tokens-{number:05}.safetensors" for number in range(5)]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["index.json", *shards]


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
    write(tmp_path / "cache", index_of(CONTINUOUS), lambda *rows: encode(*rows, layout=CONTINUOUS))
    read, _ = TokenCache.open(tmp_path / "cache").read(torch.tensor([3]))
    assert read.values.dtype == torch.float32 and read.values[0, 0, 0] == value_of(3, 0) / 64


def test_captions_are_stored_with_the_tokens(tmp_path: Path) -> None:
    texts = [(f"image {row}", "Größe, 大きさ")[: row % 3] for row in range(23)]

    def captioned(first: int, last: int, done: int) -> Encoded:
        for start, (values, labels, *_) in zip(range(first, last, 2), encode(first, last), strict=True):
            yield EncodedImages(values, labels, texts[start : min(start + 2, last)])

    write(tmp_path / "cache", index_of(captions=True), captioned)
    cache = TokenCache.open(tmp_path / "cache")
    batch = cache.batch(torch.tensor([22, 0, 5, 13]), torch.arange(4))
    assert batch.captions == [texts[22], texts[0], texts[5], texts[13]]
    assert batch[1:3].captions == [texts[0], texts[5]]
    parts = [TokenLoader(cache, 8, 0, rank=rank, world=2) for rank in (0, 1)]
    both = [row for part in parts for row in next(part).captions or []]
    assert both == next(TokenLoader(cache, 8, 0)).captions
    with pytest.raises(DataError, match="with the captions"):
        TokenCache.open(tmp_path / "cache", index_of())


def test_a_killed_writing_goes_on_after_its_last_whole_shard(tmp_path: Path) -> None:
    def killed(first: int, last: int, done: int) -> Encoded:
        for number, part in enumerate(encode(first, last)):
            if first == 10 and number == 1:
                raise KeyboardInterrupt
            yield part

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cache", made=killed)
    with pytest.raises(DataError, match="there are no tokens"):
        TokenCache.open(tmp_path / "cache")
    (aside,) = tmp_path.iterdir()
    (aside / "tokens-00002.safetensors.1.new").write_bytes(b"half a shard")
    (aside / "tokens-00001.safetensors").write_bytes(b"a damaged shard")
    asked: list[int] = []
    write(tmp_path / "cache", made=counting(asked))
    assert asked == [5, 10, 15, 20]
    read, labels = TokenCache.open(tmp_path / "cache").read(torch.arange(23), 1)
    assert read.values[:, 0, 0].tolist() == [value_of(row, 1) for row in range(23)]
    assert labels.tolist() == [row % 2 for row in range(23)]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_writing_that_fails_at_once_leaves_nothing(tmp_path: Path) -> None:
    def wrong(first: int, last: int, done: int) -> Encoded:
        raise DataError("2 copies of an image would be the same")

    with pytest.raises(DataError, match="would be the same"):
        write(tmp_path / "tokens" / "cache", made=wrong)
    assert not list(tmp_path.iterdir())


def test_a_shard_that_cannot_be_read_again_ends_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_writing, "is_shard", lambda *_: False)
    with pytest.raises(RunError, match=r"tokens-00000\.safetensors' cannot be read after it was written"):
        write(tmp_path / "cache")


OTHERS = {
    "tokenizer": "other",
    "data": "other",
    "classes": ("a", "c"),
    "augment": "rotate",
    "revision": 0,
    "dtype": "int32",
}


@pytest.mark.parametrize("field", OTHERS)
def test_a_killed_writing_of_other_tokens_starts_afresh(tmp_path: Path, field: str) -> None:
    def killed(first: int, last: int, done: int) -> Encoded:
        if first:
            raise KeyboardInterrupt
        return encode(first, last)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cache", index_of(**{field: OTHERS[field]}), killed)
    asked: list[int] = []
    write(tmp_path / "cache", made=counting(asked))
    assert asked == [0, 5, 10, 15, 20]


def test_what_is_there_is_not_written_again_unless_it_is_damaged(tmp_path: Path) -> None:
    asked: list[int] = []
    for expected in ([0, 5, 10, 15, 20], []):
        asked.clear()
        write(tmp_path / "cache", made=counting(asked))
        assert asked == expected
    (tmp_path / "cache" / "tokens-00003.safetensors").unlink()
    write(tmp_path / "cache", made=counting(asked))
    assert asked and len(TokenCache.open(tmp_path / "cache", index_of())) == 23


# ---------------------------------------------------------------------------------------------- several processes


def _work(folder: Path, log: Path, wait: float) -> None:
    def made(first: int, last: int, done: int) -> Encoded:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {first}\n")
        time.sleep(wait)
        met[first] = f"image {first}"
        return encode(first, last)

    met: dict[int, str] = {}
    write_tokens(folder, index_of(), made, met, lambda found: log.with_name("met").write_text(str(sorted(found))), 5)


def test_processes_share_the_shards_and_count_for_all(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(tmp_path / "cache", tmp_path / "log", 0.3)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(int(first) for _, first in lines) == [0, 5, 10, 15, 20]
    assert len({process for process, _ in lines}) == 3
    assert (tmp_path / "met").read_text() == "[0, 5, 10, 15, 20]"
    read, _ = TokenCache.open(tmp_path / "cache", index_of()).read(torch.arange(23), 1)
    assert read.values[:, 0, 0].tolist() == [value_of(row, 1) for row in range(23)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "log", "met"]


def test_the_shard_of_a_process_that_dies_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(token_writing.time, "sleep", lambda seconds: held.__exit__(None, None, None))
    aside = token_writing.aside_of(tmp_path / "cache", index_of())
    aside.mkdir()
    held = try_lock(aside / "00001")
    assert held.__enter__()
    write(tmp_path / "cache", made=counting(asked))
    assert asked == [0, 10, 15, 20, 5]


def test_too_many_unreadable_images_over_all_processes_end_the_writing(tmp_path: Path) -> None:
    def refuse(met: dict[int, str]) -> None:
        raise DataError(f"{len(met)} cannot be read")

    met: dict[int, str] = {}

    def made(first: int, last: int, done: int) -> Encoded:
        met[first] = "broken"
        if first == 10:
            raise KeyboardInterrupt
        return encode(first, last)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cache", made=made, skipped=met)
    with pytest.raises(DataError, match="2 cannot be read"):  # what the stopped writing met counts
        write(tmp_path / "cache", check=refuse)
    assert not (tmp_path / "cache").exists()


# ---------------------------------------------------------------------------------------------- what is refused


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "cache", index_of(tokenizer="old"))
    save, calls = token_writing.save_file, itertools.count()

    def full(values: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        if next(calls) == 2:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(values, path, metadata)

    monkeypatch.setattr(token_writing, "save_file", full)
    with pytest.raises(RunError, match=r"could not be written .*No space left on device"):
        write(tmp_path / "cache")
    assert TokenCache.open(tmp_path / "cache").index.tokenizer == "old"
    asked: list[int] = []
    write(tmp_path / "cache", made=counting(asked))
    assert asked == [10, 15, 20] and TokenCache.open(tmp_path / "cache").index.tokenizer == "tok"


def test_wrong_caches_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    write(path)
    refused = {
        r"another tokenizer \(tok\) than the one given \(other\)": index_of(tokenizer="other"),
        r"300 codes.* but .*200 codes.* are expected": index_of(replace(LAYOUT, vocab=200)),
        r"of other images than data names": index_of(data="other"),
        r"have the classes a, b, but the data a, c": index_of(classes=("a", "c")),
        r"hold 2 of each image, but tokens.copies asks for 16: set tokens.copies=2, or encode": index_of(copies=16),
        r"were augmented by flip, but data.augment is rotate": index_of(augment="rotate"),
        r"decoded or augmented images in another way": index_of(revision=0),
        r"stored as int16 instead of int32": index_of(dtype="int32"),
    }
    for reason, wanted in refused.items():
        with pytest.raises(DataError, match=reason):
            TokenCache.open(path, wanted)
    shard = path / "tokens-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"damaged \(tokens-00001.safetensors has \d+ bytes instead of \d+\)"):
        TokenCache.open(path)
    shard.write_bytes(b"\xff" * len(whole))
    with pytest.raises(DataError, match=r"tokens-00001.safetensors is damaged or does not fit"):
        TokenCache.open(path)
    stored = load(whole)
    shard.write_bytes(whole)
    with safe_open(shard, "pt") as file:
        kept = file.metadata()
    for name, number in (("values", 300), ("labels", len(CLASSES))):
        save_file({**stored, name: torch.full_like(stored[name], number)}, shard, kept)
        with pytest.raises(DataError, match="a code or label is out of range"):
            TokenCache.open(path)
    shard.unlink()
    with pytest.raises(DataError, match=r"damaged \(tokens-00001.safetensors is missing\)"):
        TokenCache.open(path)
    shard.write_bytes(whole)
    index = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps({**index, "shards": index["shards"][:-1]}))
    with pytest.raises(DataError, match="shards are missing from its index"):
        TokenCache.open(path)
    for text in ("{", json.dumps({**index, "version": 1}), json.dumps({k: index[k] for k in index if k != "augment"})):
        (path / "index.json").write_text(text)
        with pytest.raises(DataError, match=r"index.json is damaged or of another version"):
            TokenCache.open(path)
    (path / "index.json").write_text(json.dumps({**index, "classes": [1, None]}))
    with pytest.raises(DataError, match="have the classes 1, None, but the data a, b"):
        TokenCache.open(path, index_of())


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"precious")
    with pytest.raises(DataError, match="is no token cache"):
        write(tmp_path / "photos")
    assert (tmp_path / "photos" / "a.png").read_bytes() == b"precious"


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def bad(values: Tensor, labels: Tensor) -> token_writing.Encode:
        return lambda first, last, done: iter([EncodedImages(values, labels)])

    good, path = torch.zeros(5, 2, 4, 1, dtype=torch.int64), tmp_path / "a"
    labels = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match="outside the vocabulary of 300"):
        write(path, made=bad(good + 300, labels))
    with pytest.raises(DataError, match=r"outside the 2 classes"):
        write(path, made=bad(good, labels + 2))
    with pytest.raises(ValueError, match=r"expected .5, 2, 4, 1."):
        write(path, made=bad(good[:, :1], labels))
    with pytest.raises(ValueError, match="1 images were encoded instead of 5"):
        write(path, made=bad(good[:1], labels[:1]))
    with pytest.raises(DataError, match="not finite as float16"):
        write(path, index_of(CONTINUOUS), bad(torch.full((5, 2, 4, 3), 1e6), labels))


# ---------------------------------------------------------------------------------------------- batches


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
