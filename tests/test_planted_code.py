"""Code that is planted in the files of a run, a token cache or a data set is never executed.

Each file in turn is replaced by pickles that leave a mark when pickle or torch reads them without care.
"""

from __future__ import annotations

import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import generator_experiment, tokenizer_experiment
from helpers.training import stop_at
from PIL import Image

from artok.config import validate
from artok.data.tokens import TokenCache
from artok.errors import ArtokError
from artok.evaluation.evaluate import evaluate
from artok.interop.exporting import export
from artok.interop.importing import ImportOptions, import_file
from artok.pipeline import Pipeline
from artok.training.encode import encode_command
from artok.training.experiment import Experiment
from artok.training.progress import Progress
from artok.training.run import build_task, make_accelerator, train

SHORT = {"images": 64, "checkpoint_every": 16, "keep_last": 1, "monitor_images": 0, "ema": 0.9}
CPU = torch.device("cpu")


class Planted:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def payloads(mark: Path) -> dict[str, bytes]:
    """The planted object as a bare pickle, and as the pickle in a file of torch."""
    bare = pickle.dumps(Planted(mark), protocol=2)
    stream = BytesIO()
    torch.save({"0": torch.zeros(1)}, stream)
    changed = BytesIO()
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, bare if name.endswith("data.pkl") else old.read(name))
    return {"bare": bare, "torch": changed.getvalue()}


def test_a_careless_reader_leaves_the_mark(tmp_path: Path) -> None:
    for number, payload in enumerate(payloads(tmp_path / "mark").values()):
        (tmp_path / "mark").unlink(missing_ok=True)
        torch.load(BytesIO(payload), weights_only=False) if number else pickle.loads(payload)
        assert (tmp_path / "mark").exists()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tokenizer and generator, an unfinished generator, and tokens."""
    folder = tmp_path_factory.mktemp("runs")
    assert train(tokenizer_experiment(training=SHORT), folder / "vq")
    assert train(generator_experiment(str(folder / "vq"), training=SHORT), folder / "raster")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        stop_at(patch, 32, MemoryError)
        train(generator_experiment(str(folder / "vq"), training=SHORT), folder / "half")
    encode_command(str(folder / "vq"), [], "train", 1, folder / "tokens", CPU)
    return folder


def use_run(folder: Path, runs: Path, out: Path, only_resumed: bool) -> None:
    """Everything that reads a run; of these only training reads its checkpoints."""
    quiet, own = Progress("test", quiet=True), tokenizer_experiment(training=SHORT)
    if folder.name != "vq":
        own = generator_experiment(str(runs / "vq"), training=SHORT)
    uses: list[Callable[[], object]] = [
        lambda: train(own, folder),
        lambda: Pipeline.from_pretrained(folder)([1], n=1),
        lambda: evaluate(str(folder), 8, "pixels", [], "cpu", quiet),
        lambda: export(str(folder), "safetensors", out / "exported"),
        lambda: build_task(
            generator_experiment(str(folder), training=SHORT),
            out / "other",
            make_accelerator(own, out / "other", CPU),
            quiet,
        ),
        lambda: import_file(folder / "model.safetensors", out / "imported", ImportOptions(), lambda _: None),
    ]
    for use in uses[:1] if only_resumed else uses:
        with suppress(ArtokError):
            use()


EXTRA = ("custom_checkpoint_0.pkl", "pytorch_model.bin", "scaler.pt", "scheduler.bin", "random_states_0.pkl")


@pytest.mark.parametrize("kind", ["bare", "torch"])
@pytest.mark.parametrize("name", ["vq", "raster", "half"])
def test_no_file_of_a_run_is_executed(runs: Path, tmp_path: Path, name: str, kind: str) -> None:
    payload = payloads(tmp_path / "mark")[kind]
    files = [path.relative_to(runs / name) for path in sorted((runs / name).rglob("*")) if path.is_file()]
    (last,) = {path.parent for path in files if path.name == "state.json"}
    assert len(files) > 8
    for number, file in enumerate([*files, *(last / extra for extra in EXTRA)]):
        folder = shutil.copytree(runs / name, tmp_path / str(number) / name)
        (folder / file).write_bytes(payload)
        if file.name == EXTRA[0]:
            (folder / last / "ema.safetensors").unlink()
        if file.name == EXTRA[1]:
            (folder / last / "model.safetensors").unlink()
        use_run(folder, runs, tmp_path / str(number), only_resumed="checkpoints" in file.parts)
        assert not (tmp_path / "mark").exists(), file
        shutil.rmtree(tmp_path / str(number))


@pytest.mark.parametrize("kind", ["bare", "torch"])
def test_no_file_of_a_token_cache_is_executed(runs: Path, tmp_path: Path, kind: str) -> None:
    payload = payloads(tmp_path / "mark")[kind]
    for file in sorted((runs / "tokens").iterdir()):
        folder = shutil.copytree(runs / "tokens", tmp_path / file.name / "tokens")
        (folder / file.name).write_bytes(payload)
        for use in (
            lambda folder=folder: TokenCache.open(folder),
            lambda folder=folder: train(
                generator_experiment(str(runs / "vq"), training=SHORT, tokens={"cache": str(folder)}), folder / "run"
            ),
            lambda folder=folder: encode_command(str(runs / "vq"), [], "train", 1, folder, CPU),
        ):
            with suppress(ArtokError):
                use()
        assert not (tmp_path / "mark").exists(), file


DATA: dict[str, dict[str, Any]] = {
    "0/0.png": {"kind": "folder", "root": "{}"},
    "0/0.webp": {"kind": "folder", "root": "{}"},
    "train.parquet": {"kind": "hub", "files": "{}/train.parquet"},
    "data.py": {"kind": "hub", "path": "{}"},
    "train.pickle": {"kind": "hub", "path": "{}"},
    "dataset_infos.json": {"kind": "hub", "path": "{}"},
    "train.tar": {"kind": "hub", "path": "{}"},
    "state.json": {"kind": "hub", "path": "{}"},
}


@pytest.mark.parametrize("kind", ["bare", "torch", "source"])
@pytest.mark.parametrize("file", DATA)
def test_no_file_of_a_data_set_is_executed(tmp_path: Path, file: str, kind: str) -> None:
    data = tmp_path / "data"
    (data / "0").mkdir(parents=True)
    if DATA[file]["kind"] == "folder":
        for index in range(1, 20):
            Image.new("L", (16, 16), index).save(data / "0" / f"{index}.png")
    source = f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\n".encode()
    content = {**payloads(tmp_path / "mark"), "source": source}[kind]
    if file.endswith(".tar"):
        import tarfile

        with tarfile.open(data / file, "w") as archive:
            for member in ("0.pickle", "0.pyd", "0.pth", "0.npy"):
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                archive.addfile(entry, BytesIO(content))
    else:
        (data / file).write_bytes(content)
    section = {key: value.format(data) for key, value in DATA[file].items()} | {"size": 16, "channels": 1}
    experiment = tokenizer_experiment(training=SHORT).model_dump(mode="json") | {"data": section}
    with suppress(ArtokError):
        train(validate(Experiment, experiment, "test"), tmp_path / "run")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", ["bare", "torch"])
@pytest.mark.parametrize("suffix", ["pth", "pt", "ckpt", "bin", "pkl", "safetensors", "zip", "tar"])
def test_no_published_file_is_executed(tmp_path: Path, suffix: str, kind: str) -> None:
    (tmp_path / f"model.{suffix}").write_bytes(payloads(tmp_path / "mark")[kind])
    for family in (None, "taming_vqgan"):
        with suppress(ArtokError):
            options = ImportOptions(family)
            import_file(tmp_path / f"model.{suffix}", tmp_path / "imported", options, lambda _: None)
    assert not (tmp_path / "mark").exists()
