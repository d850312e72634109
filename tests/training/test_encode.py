"""Tokens of a training: taken from the cache that the config asks for, rebuilt, refused, shared between processes."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import TOKENIZER

from artok.config import validate
from artok.data import digits
from artok.data.base import Augment
from artok.data.tokens import TokenCache
from artok.errors import ConfigError, DataError, RunError
from artok.tokenizers import conv
from artok.tokenizers.base import Tokenizer
from artok.training import encode
from artok.training.encode import describe_tokens, open_or_encode, write_cache
from artok.training.progress import Progress

CPU, MARK, QUIET = torch.device("cpu"), "mark", Progress("test", quiet=True)
FLIPS, TURNS = Augment(flip=True, rotate=5), Augment(flip=True, rotate=90)

Open = Callable[..., TokenCache]


@pytest.fixture
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return validate(conv.Config, TOKENIZER["tokenizer"], "test").build((1, 16, 16)).eval()


@pytest.fixture
def opened(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setenv("ARTOK_CACHE", str(tmp_path / "cache"))

    def opened(copies: int = 1, augment: Augment = FLIPS, folder: Path | None = None) -> TokenCache:
        return open_or_encode(tokenizer, MARK, digits.Config(augment=augment), "test", copies, folder, CPU, QUIET)

    return opened


def encode_into(folder: Path, tokenizer: Tokenizer, copies: int, augment: Augment) -> None:
    data = digits.Config(augment=augment)
    split = data.open("test")
    index = describe_tokens(tokenizer, MARK, data, split, copies)
    write_cache(tokenizer, index, data, split, folder, CPU, QUIET)


def test_a_named_cache_must_have_the_copies_and_augmentation_of_the_config(
    opened: Open, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    encode_into(tmp_path / "tokens", tokenizer, 2, FLIPS)
    assert opened(2, FLIPS, tmp_path / "tokens").index.copies == 2
    with pytest.raises(DataError, match=r"hold 2 of each image, but tokens.copies asks for 16: set tokens.copies=2"):
        opened(16, FLIPS, tmp_path / "tokens")
    with pytest.raises(DataError, match=r"were augmented by .*5.*, but data.augment is .*90"):
        opened(2, TURNS, tmp_path / "tokens")
    encode_into(tmp_path / "plain", tokenizer, 1, FLIPS)
    assert opened(1, TURNS, tmp_path / "plain").index.augment == ""  # one plain copy is not augmented


def _age(folder: Path) -> None:
    """Make a cache one that an earlier version wrote."""
    index = json.loads((folder / "index.json").read_text())
    old = {key: value for key, value in index.items() if key not in ("augment", "revision")} | {"version": 1}
    (folder / "index.json").write_text(json.dumps(old))


def test_caches_of_earlier_versions_are_rebuilt_where_artok_named_them(
    opened: Open, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    first = opened(2).read(torch.arange(540), 1)[0].values
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    _age(folder)
    assert torch.equal(opened(2).read(torch.arange(540), 1)[0].values, first)
    assert [path.name for path in (tmp_path / "cache" / "tokens").iterdir()] == [folder.name]
    encode_into(tmp_path / "tokens", tokenizer, 2, FLIPS)
    _age(tmp_path / "tokens")
    with pytest.raises(DataError, match=r"another version of artok; encode the data again"):
        opened(2, FLIPS, tmp_path / "tokens")


def test_a_new_way_of_decoding_makes_new_tokens(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened()
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"revision": index["revision"] - 1}))
    written: list[Any] = []
    write = encode.write_tokens
    monkeypatch.setattr(encode, "write_tokens", lambda *given: written.append(given) or write(*given))
    opened()
    opened()
    assert len(written) == 1


def test_a_cache_that_cannot_be_written_is_a_sentence(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(RunError, match="set ARTOK_CACHE to a folder that can be written"):
        opened()


def test_the_command_names_its_folder_after_the_tokenizer_and_the_split(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encode, "load_tokenizer", lambda name: (tokenizer, None))
    monkeypatch.setattr(encode, "find_saved", Path)
    Path("runs/vq").mkdir(parents=True)
    Path("runs/vq/config.yaml").write_text("data: {kind: digits, size: 16}\n")
    folder, cache = encode.encode_command("runs/vq", [], "test", 1, None, CPU)
    assert folder == Path("tokens/vq-test") and (folder / "index.json").exists() and len(cache) == 540
    with pytest.raises(ConfigError, match="split must be train or test, not 'validation'"):
        encode.encode_command("runs/vq", [], "validation", 1, None, CPU)
    with pytest.raises(ConfigError, match=r"trained on images of \(1, 16, 16\) .*, but data gives \(1, 8, 8\)"):
        encode.encode_command("runs/vq", ["size=8"], "test", 1, None, CPU)
    Path("runs/vq/config.yaml").write_text("name: a\n")
    with pytest.raises(ConfigError, match="names no data to measure on; add its 'data' section"):
        encode.encode_command("runs/vq", [], "test", 1, None, CPU)


def _open(opened: Open, path: Path) -> None:
    torch.save(opened(2).read(torch.arange(540), 1)[0].values, path)


def test_processes_that_start_at_once_share_one_cache(opened: Open, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    paths = [tmp_path / f"{number}.pt" for number in range(2)]
    workers = [context.Process(target=_open, args=(opened, path)) for path in paths]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    expected = opened(2).read(torch.arange(540), 1)[0].values
    assert all(torch.equal(torch.load(path, weights_only=True), expected) for path in paths)
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1
