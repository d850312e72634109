"""Features of texts on the disk: found again, written by several processes, after a stop and after damage."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.text_models import tiny_t5
from numpy.typing import NDArray

from artok.conditioning.encoders import stored, t5
from artok.conditioning.encoders.stored import StoredTexts, write_texts
from artok.config import validate

TEXTS = [f"text {number}" for number in range(10)]


def entries(texts: Sequence[str]) -> list[NDArray[Any]]:
    """For each text as many entries as its number says, of width 3."""
    numbers = [int(text.split()[1]) for text in texts]
    return [np.full((number, 3), number / 4, np.float16) for number in numbers]


def check(folder: Path) -> None:
    store = StoredTexts.open(folder)
    assert store is not None and len(store) == len(TEXTS)
    wanted = [TEXTS[7], "another", TEXTS[0], TEXTS[3], TEXTS[7]]
    found = store.find(wanted)
    assert found[1] is None
    for each, expected in zip([0, 2, 3, 4], entries([TEXTS[7], TEXTS[0], TEXTS[3], TEXTS[7]]), strict=True):
        assert found[each] is not None and np.array_equal(found[each], expected)


@pytest.fixture(autouse=True, params=[3, 100])
def small_shards(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SHARD_TEXTS", request.param)


def test_what_is_stored_is_found(tmp_path: Path) -> None:
    assert StoredTexts.open(tmp_path / "store") is None
    told: list[int] = []
    write_texts(tmp_path / "store", TEXTS, entries, 100, told.append)
    check(tmp_path / "store")
    assert told[-1] == len(TEXTS)
    write_texts(tmp_path / "store", TEXTS, lambda texts: [], 100, told.append)  # nothing is encoded again
    check(tmp_path / "store")


def test_a_stopped_writing_keeps_its_shards_and_damaged_ones_are_written_again(tmp_path: Path) -> None:
    stored.SHARD_TEXTS = 3
    encoded: list[str] = []

    def stop(texts: Sequence[str]) -> list[NDArray[Any]]:
        if len(encoded) == 6:
            raise KeyboardInterrupt
        encoded.extend(texts)
        return entries(texts)

    def note(texts: Sequence[str]) -> list[NDArray[Any]]:
        encoded.extend(texts)
        return entries(texts)

    with pytest.raises(KeyboardInterrupt):
        write_texts(tmp_path, TEXTS, stop, 100, lambda done: None)
    assert StoredTexts.open(tmp_path) is None
    write_texts(tmp_path, TEXTS, note, 100, lambda done: None)
    assert encoded == TEXTS
    shard = sorted(tmp_path.glob("texts-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-8])
    assert StoredTexts.open(tmp_path) is None
    write_texts(tmp_path, TEXTS, note, 100, lambda done: None)
    assert encoded == TEXTS + TEXTS[3:6]
    check(tmp_path)


def test_two_writers_share_the_work(tmp_path: Path) -> None:
    encoded: list[str] = []

    def slow(texts: Sequence[str]) -> list[NDArray[Any]]:
        time.sleep(0.05)
        encoded.extend(texts)
        return entries(texts)

    writers = [
        threading.Thread(target=write_texts, args=(tmp_path, TEXTS, slow, 100, lambda done: None)) for _ in range(2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(encoded) == sorted(TEXTS)
    check(tmp_path)


def test_an_encoder_reads_its_store_and_encodes_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a red circle", "a blue square at the top left", "a star"]
    config = validate(t5.Config, {"name": str(tiny_t5(tmp_path / "model")), "length": 10}, "test")
    first, second = config.build(12), config.build(12)
    write_texts(tmp_path / "store", texts, first.entries, 2 * 10 * 16, lambda done: None)
    store = StoredTexts.open(tmp_path / "store")
    assert store is not None
    second.stored = (store,)
    asked: list[str] = []
    plain = second.entries
    monkeypatch.setattr(second, "entries", lambda new: asked.extend(new) or plain(new))
    both = [*texts, "a green circle"]
    expected, found = first.encode(both), second.encode(both)
    assert asked == ["a green circle"]
    assert torch.equal(found.mask, expected.mask)
    # the last bit of float16, as the texts of a batch decide its padding
    torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=1e-3)
