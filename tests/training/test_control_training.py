"""Control from data to pages: maps of a column and of edges are trained on, sampled from, evaluated and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import artok
from helpers.models import TOKENIZER
from PIL import Image

from artok.config import merge, validate
from artok.data.controls import edges
from artok.errors import ConfigError
from artok.evaluation.evaluate import evaluate
from artok.images import from_uint8, to_uint8
from artok.interop.to_npz import to_npz
from artok.pipeline import Pipeline
from artok.training.experiment import Experiment
from artok.training.progress import Progress
from artok.training.run import train

SHORT = {"images": 32, "checkpoint_every": 32, "validate_every": 32, "preview_every": 32, "monitor_images": 0}
RASTER = {"kind": "raster", "depth": 1, "width": 16, "heads": 2, "multiple_of": 8}
HEARD = {"conditioning": [{"kind": "labels"}, {"kind": "control"}]}
COLUMN = {"kind": "column", "column": "depth"}


def experiment(data: dict[str, Any], tokenizer: Path | None = None) -> Experiment:
    section = merge(TOKENIZER | {"data": data}, {"training": SHORT})
    if tokenizer is not None:
        section |= {"name": "tiny-control", "tokenizer": str(tokenizer), "generator": RASTER | HEARD}
    return validate(Experiment, section, "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with a bright square, and maps of where it is."""
    root = tmp_path_factory.mktemp("data")
    for number in range(24):
        image = np.full((16, 16, 3), 30, dtype=np.uint8)
        image[number % 8 : number % 8 + 6, 4:10] = 40 * (number % 5) + 60
        place = root / ("even" if number % 2 == 0 else "odd")
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{number:02}.png")
        Image.fromarray((image[..., 0] > 30).astype(np.uint8) * 200).save(place / f"{number:02}.depth.png")
    return root


@pytest.fixture(scope="module", params=["column", "edges"])
def run(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator that was given a map for every image."""
    if request.param == "edges":
        pytest.importorskip("skimage")
    data = {"kind": "folder", "root": str(root), "size": 16, "holdout": 0.5}
    runs = tmp_path_factory.mktemp(request.param)
    assert train(experiment(data), runs / "vq")
    control = COLUMN if request.param == "column" else {"kind": "edges"}
    assert train(experiment(data | {"control": control}, runs / "vq"), runs / request.param)
    return runs / request.param


def test_the_preview_shows_each_map_before_its_samples(run: Path) -> None:
    (sheet,) = (run / "samples").glob("*.png")
    with Image.open(sheet) as picture:
        assert picture.width > 9 * 16 and picture.height > 10 * 16


def test_the_page_shows_samples_for_the_maps_of_held_out_images(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(str(run), 10, "pixels", [], "cpu", Progress("test", quiet=True))
    assert artok(monkeypatch, "report", run, "--out", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert f"even: 8 samples by {run.name}, after their control" in page


def test_a_ready_map_makes_images(run: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = root / "even" / "02.depth.png"
    command = ("sample", run, "--control-map", given, "--labels", "odd", "-n", 2, "seed=5", "--out", tmp_path / "out")
    assert artok(monkeypatch, *command) == 0
    made = sorted((tmp_path / "out").glob("0*.png"))
    assert [path.name for path in made] == ["00000-02-depth.png", "00001-02-depth.png"]
    with Image.open(given) as picture:
        maps = torch.from_numpy(np.asarray(picture).copy())[None, None]
    wanted = to_uint8(Pipeline.from_pretrained(run)([1], n=2, control=maps, seed=5))
    for path, image in zip(made, wanted, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), image.permute(1, 2, 0).numpy())
    with Image.open(tmp_path / "out" / "grid.png") as sheet:  # the map first, enlarged four times
        corner = np.asarray(sheet)[:64:4, :64:4, 0]
    assert np.array_equal(corner, maps[0, 0].numpy())


def test_a_picture_becomes_the_map_of_training(
    run: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where maps are made of pictures; a column of them is not."""
    given, out = root / "odd" / "03.png", tmp_path / "out"
    code = artok(monkeypatch, "sample", run, "--control", given, "-n", 1, "--out", out)
    if run.name == "column":
        assert code == 2 and not out.exists()
        assert "maps of the column 'depth' come with the images" in " ".join(capsys.readouterr().err.split())
        return
    assert code == 0
    with Image.open(given) as picture:
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]
    with Image.open(out / "grid.png") as sheet:
        shown = torch.from_numpy(np.asarray(sheet)[:64:4, :64:4, 0].copy())
    assert shown.any() and torch.equal(shown, edges.Config().compute(pixels)[0, 0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "was given a control for every image in training; give it one too"),
        (("--control-map", "nowhere.png"), "there is no picture nowhere.png"),
        (("--control-map", __file__), "cannot be read as a picture"),
    ],
    ids=["none", "missing", "text"],
)
def test_mistakes_are_one_sentence(
    run: Path,
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert artok(monkeypatch, "sample", run, *arguments, "--out", tmp_path / "out") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said and "Traceback" not in said


def test_an_edit_takes_a_control(run: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's result is the pipeline's with the map of the file, and another map gives another result."""
    shown, given, out = root / "even" / "04.png", root / "even" / "02.depth.png", tmp_path / "out"
    assert artok(monkeypatch, "edit", run, shown, "--control-map", given, "-n", 1, "--out", out) == 0
    pipeline, hidden = Pipeline.from_pretrained(run), torch.arange(16).expand(16, 16) < 8
    with Image.open(shown) as picture, Image.open(given) as drawn, Image.open(out / "00000.png") as result:
        image, maps, made = (torch.from_numpy(np.asarray(each).copy()) for each in (picture, drawn, result))
    image, maps = from_uint8(image.permute(2, 0, 1)[None]), maps[None, None]
    assert torch.equal(made, to_uint8(pipeline.edit(image, hidden, control=maps))[0].permute(1, 2, 0))
    with torch.no_grad():
        pipeline.generator.head.weight.mul_(1000)  # trained for one step, it leaves every code as likely as others
    told, other = (pipeline.edit(image, hidden, control=each) for each in (maps, 255 - maps))
    assert not torch.equal(told, other)


def test_what_gives_no_control_refuses_a_model_that_needs_it(run: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.from_pretrained(run)
    with pytest.raises(ConfigError, match="a control for every image in training; give it one too"):
        pipeline.edit(torch.zeros(1, 3, 16, 16), torch.arange(16).expand(16, 16) < 8)
    with pytest.raises(ConfigError, match="a control for every image in training, and a reference has classes alone"):
        to_npz(pipeline, tmp_path / "samples.npz", 2, pipeline.sampling)
    assert not list(tmp_path.iterdir())
