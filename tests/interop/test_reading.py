"""Foreign files: every wrapper is taken off, every damage is one sentence, and nothing in them is executed."""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from artok.errors import CheckpointError
from artok.interop.reading import read

WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2, dtype=torch.bfloat16)}


def same(tensors: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == WEIGHTS.keys() and all(torch.equal(tensors[key], WEIGHTS[key]) for key in WEIGHTS)


class Stranger:
    """A class that a file may hold and an import must not need."""

    def __init__(self) -> None:
        self.inside = {"a": [1, 2]}


class Dictionary(dict):
    """Pickled by its items."""


class Attack:
    """Runs a command as it is unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (WEIGHTS, ""),
        ({"state_dict": WEIGHTS, "epoch": 3}, "state_dict"),
        ({"model": WEIGHTS}, "model"),
        ({"module": WEIGHTS}, "module"),
        ({"model": {"x": torch.zeros(1)}, "model_ema": WEIGHTS, "args": argparse.Namespace(a=1)}, "model_ema"),
        ({"model": {"x": torch.zeros(1)}, "ema": WEIGHTS, "opt": {}}, "ema"),
        ({"trainer": {"var_wo_ddp": WEIGHTS, "vae_local": {"x": torch.zeros(1)}}, "args": "{}"}, "trainer.var_wo_ddp"),
        ({"model": {f"module.{key}": value for key, value in WEIGHTS.items()}}, "model.module"),
        ({"state_dict": WEIGHTS, "callbacks": {Stranger: Stranger()}, "more": Dictionary(a=1)}, "state_dict"),
        ({"first_stage_model." + key: value for key, value in WEIGHTS.items()} | {"unet.w": torch.zeros(1)}, "first"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers_are_taken_off(content: dict[str, Any], place: str, legacy: bool, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt", _use_new_zipfile_serialization=not legacy)
    found = read(tmp_path / "file.pt")
    assert same(found.tensors)
    assert found.wrapper.startswith(place)
    assert bool(place) == bool(found.wrapper)


def test_a_part_can_be_asked_for(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "model_ema": {"x": torch.zeros(1)}}, tmp_path / "file.pt")
    assert same(read(tmp_path / "file.pt", "model").tensors)
    with pytest.raises(CheckpointError, match="no part 'raw'; its keys are model, model_ema"):
        read(tmp_path / "file.pt", "raw")
    with pytest.raises(CheckpointError, match="no part 'rawraw") as error:
        read(tmp_path / "file.pt", "raw" * 1000)
    assert len(str(error.value)) < 1000


def test_safetensors_and_folders_of_diffusers(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "diffusion_pytorch_model.safetensors")
    assert same(read(tmp_path / "diffusion_pytorch_model.safetensors").tensors)
    assert same(read(tmp_path).tensors)
    os.rename(tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "weights")  # told by content, not by name
    assert same(read(tmp_path / "weights").tensors)


def attacks(target: Path) -> dict[str, Any]:
    command = f"touch {target}"
    return {
        "beside the weights": {"model": WEIGHTS, "args": Attack(os.system, command)},
        "as the whole": Attack(os.system, command),
        "by exec": {"model": WEIGHTS, "x": Attack(exec, f"open({str(target)!r}, 'w')")},
        "by open": {"model": WEIGHTS, "x": Attack(open, str(target), "w")},
        "nested": {"model": WEIGHTS, "x": [Attack(getattr, Attack(__import__, "os"), "system"), Attack(eval, "1")]},
        "as a state": {"model": WEIGHTS, "x": Attack(torch.load, str(target))},
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", attacks(Path()))
def test_nothing_in_a_file_is_executed(name: str, legacy: bool, tmp_path: Path) -> None:
    target = tmp_path / "created"
    torch.save(attacks(target)[name], tmp_path / "file.pt", _use_new_zipfile_serialization=not legacy)
    try:
        found = read(tmp_path / "file.pt")
    except CheckpointError:
        assert name == "as the whole"
    else:
        assert same(found.tensors)
        assert any(
            "builtin" in name or "posix" in name or "torch" in name or "io" in name for name in found.skipped_classes
        )
    assert not target.exists()


def test_a_bare_pickle_is_not_executed(tmp_path: Path) -> None:
    target = tmp_path / "created"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "file.pkl").write_bytes(pickle.dumps(Attack(os.system, f"touch {target}"), protocol))
        with warnings.catch_warnings(), pytest.raises(CheckpointError, match="no checkpoint"):
            warnings.simplefilter("error")  # one sentence, without torch's own
            read(tmp_path / "file.pkl")
    assert not target.exists()
    pickle.loads((tmp_path / "file.pkl").read_bytes())
    assert target.exists()  # so the file would have, had it been unpickled


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused(kind: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / ("file.safetensors" if kind == "safetensors" else "file.pt")
    weights = {"a": torch.randn(100, 100)}
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"model": weights}, path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"truncated|no checkpoint") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file"):
        read(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="folder without weights"):
        read(tmp_path)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(CheckpointError, match="zip file but no checkpoint"):
        read(tmp_path / "photos.zip")
    with zipfile.ZipFile(tmp_path / "names.zip", "w") as archive:
        archive.writestr("é.txt", "hello")
    data = (tmp_path / "names.zip").read_bytes()
    (tmp_path / "names.zip").write_bytes(data.replace("é".encode(), b"\xff\xff"))  # a name that is not UTF-8
    with pytest.raises(CheckpointError, match="no checkpoint, or it is damaged"):
        read(tmp_path / "names.zip")
    (tmp_path / "text.pt").write_text("hello " * 100)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read(tmp_path / "text.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(CheckpointError, match="TorchScript"):
        read(tmp_path / "script.pt")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "empty.pt")
    with pytest.raises(CheckpointError, match=r"holds no tensors by name \(its keys: epoch, lr\)"):
        read(tmp_path / "empty.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match=r"whole object \(.*Linear.*where tensors by name \(a state_dict\)"):
        read(tmp_path / "whole.pt")
    for name, tensor in (("sparse", torch.eye(3).to_sparse()), ("meta", torch.zeros(3, device="meta"))):
        torch.save({"layer.weight": tensor}, tmp_path / f"{name}.pt")
        with pytest.raises(CheckpointError, match="sparse, quantized or empty tensors, such as layer"):
            read(tmp_path / f"{name}.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read(tmp_path / "list.pt")
