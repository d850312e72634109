"""The command line: every mistake is one sentence on stderr and exit code 2, without a traceback."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.models import GENERATOR, generator_experiment, tokenizer_experiment
from omegaconf import OmegaConf
from PIL import Image

from artok import __version__, cli, renamed
from artok.config import dump, merge, validate
from artok.errors import DataError, describe_failure
from artok.interop.hub import CATALOGUE
from artok.training.experiment import Experiment
from artok.training.run import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert train(tokenizer_experiment(), folder / "vq")
    assert train(generator_experiment(str(folder / "vq")), folder / "raster")
    (folder / "vq.yaml").write_text(dump(tokenizer_experiment()))
    return folder


GAN = {
    "kind": "gan",
    "network": {"kind": "dcgan", "channels": [8, 4], "embedding_dim": 4},
    "critic": {"discriminator": {"kind": "dcgan", "base_channels": 4, "norm": "none"}, "gan_loss": "relativistic"},
}


def artok(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["artok", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_the_module_and_its_help_work() -> None:
    done = subprocess.run([sys.executable, "-m", "artok", "--help"], capture_output=True, text=True, check=True)
    for command in ("train", "encode", "sample", "reconstruct", "evaluate", "demo", "configs"):
        assert command in done.stdout


MISTAKES = {
    "missing config": ("train nowhere.yaml", "no config 'nowhere.yaml'"),
    "unknown key": ("train {runs}/vq.yaml trainning.images=3", "'trainning'"),
    "wrong type": ("train {runs}/vq.yaml training.images=many", "a whole number"),
    "no equals": ("train {runs}/vq.yaml images", "key.sub=value"),
    "missing run": ("sample runs/nowhere", "no run runs/nowhere"),
    "a tokenizer to sample from": ("sample {runs}/vq", "holds a tokenizer"),
    "a label outside": ("sample {runs}/raster --labels 11", "label 11 is none of the 10 classes"),
    "a missing picture": ("reconstruct {runs}/vq {runs}/nothing.png", "no picture"),
    "a picture that is none": ("reconstruct {runs}/vq {runs}/vq.yaml", "cannot be read as a picture"),
    "a missing folder of images": (
        "train {runs}/vq.yaml data.kind=folder data.root={runs}/none data.size=16 data.channels=1 --out {runs}/x",
        "none",
    ),
    "an empty folder of images": (
        "train {runs}/vq.yaml data.kind=folder data.root={runs}/empty data.size=16 data.channels=1 --out {runs}/x",
        "empty",
    ),
    "another architecture": ("train {runs}/vq.yaml tokenizer.base_channels=16 --out {runs}/vq", "other settings"),
    "images smaller than the downsampling": ("train {runs}/vq.yaml data.size=2 --out {runs}/x", "smaller than"),
    "a codebook too large": (
        "train {runs}/vq.yaml tokenizer.quantizer.codebook_size=99999 --out {runs}/x",
        "larger than the data can fill",
    ),
    "unknown extractor": ("evaluate {runs}/vq --extractor eyes", "eyes"),
    "unknown split": ("encode {runs}/vq --split validation", "train or test"),
    "data of another size": ("evaluate {runs}/vq data.size=8", "was trained on images of (1, 16, 16)"),
    "data of other classes": (
        "evaluate {runs}/raster data.kind=folder data.root={runs}/few",
        "makes images of 10 classes and the data have 2",
    ),
    "sampling a tokenizer": ("evaluate {runs}/vq cfg_scale=2", "cfg_scale=2 do not apply"),
    "an export over another run": ("export {runs}/vq --out {runs}/raster", "holds another run"),
    "an export onto a file": ("export {runs}/vq --format onnx --out {runs}/vq.yaml", "file exists; choose another"),
    "an import over other files": ("import {runs}/nothing.pt --out {runs}", "holds other files already"),
    "an option that the family does not read": (
        "sample {runs}/raster --truncation 3",
        "truncation changes nothing that Raster",
    ),
    "steps for a decoding without steps": (
        "sample {runs}/raster --steps 3",
        "has no choice of steps",
    ),
    "a setting that the family does not read": ("evaluate {runs}/raster truncation=1", "truncation changes nothing"),
    "a sampling setting that is none": ("sample {runs}/raster temprature=1", "did you mean 'temperature'"),
    "no device": ("sample {runs}/raster --device gpu", "give cpu, cuda, cuda:1 or mps"),
    "a device that is not here": ("train {runs}/vq.yaml --device cuda:99 --out {runs}/x", "not on this machine"),
    "an entry that the list lacks": ("train {runs}/vq.yaml losses.4.l1=1", "there is no 'losses.4'"),
    "an import of nothing": ("import", "artok import --list"),
    "unknown data key": ("encode {runs}/vq sizes=3", "'data.sizes'"),
    "labels of commas": ("sample {runs}/raster --labels ,,,", "name no class"),
    "a label that only looks like a number": ("sample {runs}/raster --labels ²", "label ² is none of the 10 classes"),
    "a label of many digits": (f"sample {{runs}}/raster --labels {'9' * 5000}", "is none of the 10 classes"),
    "a negative seed": ("sample {runs}/raster --seed -1", "'seed' should be greater than or equal to 0"),
    "a seed of 33 bits": ("sample {runs}/raster --seed 4294967296", "'seed' should be less than 4294967296"),
    "a negative seed of the data": ("train {runs}/vq.yaml data.kind=shapes data.size=16 data.seed=-1", "'data.seed'"),
    "a class named twice": ("train {runs}/vq.yaml data.kind=hub data.size=16 data.classes=[a,a]", "named twice"),
    "a number that float32 lacks": ("sample {runs}/raster --temperature 1e-320", "numbers go from 1e-37"),
    "a number of 64 bits": ("train {runs}/vq.yaml tokenizer.z_channels=99999999999999999999", "go up to 2^53"),
    "a stack too deep": ("train {runs}/vq.yaml tokenizer.num_res_blocks=257", "less than or equal to 256"),
    "a name longer than files have": (f"sample {'x' * 300}/y", "is neither a run directory here nor"),
    "a config of such a name": (f"train {'x' * 300}/y", "there is no config"),
    "an argument that is not UTF-8": ("sample {runs}/\udcff", "not UTF-8"),
    "a path too deep": (f"sample {{runs}}/raster --out {'d/' * 2000}", "more than 200 folders"),
    "a value that YAML cannot read": ("train {runs}/vq.yaml training.images=[", "cannot be read"),
    "an override of two kinds": ("encode {runs}/vq augment.shear=0 augment=[1]", "cannot be read"),
    "a page that is a folder": ("report {runs}/vq --out {runs}", "is a folder; name the page to write"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    runs: Path, mistake: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "empty").mkdir(exist_ok=True)
    for number in range(40):
        (runs / "few" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 5 * number).save(runs / "few" / str(number % 2) / f"{number}.png")
    command, words = MISTAKES[mistake]
    code, _, err = artok(monkeypatch, capsys, *command.format(runs=runs).split())
    assert code == (1 if mistake == "an export onto a file" else 2), err
    assert words in err
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("artok: ")
    assert not (runs / "x").exists()


def test_plan_refuses_a_depth_that_would_take_hours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = artok(monkeypatch, capsys, "plan", "--depth", "100000")
    assert code == 2 and "256" in err


def test_pictures_are_reconstructed_without_a_trained_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = merge(GENERATOR | {"tokenizer": {"kind": "pixels"}, "generator": GAN}, {"training": {"monitor_images": 0}})
    assert train(validate(Experiment, data, "test"), tmp_path / "gan")
    Image.new("L", (16, 16), 200).save(tmp_path / "grey.png")
    words = ("reconstruct", str(tmp_path / "gan"), str(tmp_path / "grey.png"), "--out", str(tmp_path / "r"))
    assert artok(monkeypatch, capsys, *words)[0] == 0
    assert (tmp_path / "r" / "grey.png").exists()


def test_a_message_stays_on_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = artok(monkeypatch, capsys, "sample", "no\nrun")
    assert err == "artok: there is no run no run; train it first with 'artok train'\n"


def test_failures_of_the_machine_are_told_and_bugs_are_not() -> None:
    def said(code: int, name: str | None) -> str | None:
        return describe_failure(OSError(code, os.strerror(code), name))

    for code in (errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP):
        assert "choose another place" in (said(code, "there/x") or "") and "there/x" in (said(code, "there/x") or "")
    assert "cannot be made" in (said(errno.ENOENT, "/proc/x") or "")
    assert "no space" in (said(errno.ENOSPC, None) or "")
    for text in ("numel: integer multiplication overflow", "value cannot be converted to type int64 without overflow"):
        assert "too large" in (describe_failure(RuntimeError(text)) or "")
    for bug in (said(errno.EIO, "x"), *map(describe_failure, (KeyError("x"), RuntimeError("x"), TypeError("x")))):
        assert bug is None


def test_damaged_weights_are_refused(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.yaml", "model.safetensors"):
        (tmp_path / name).write_bytes((runs / "vq" / name).read_bytes()[:5000])
    Image.new("L", (16, 16)).save(tmp_path / "black.png")
    code, _, err = artok(monkeypatch, capsys, "reconstruct", str(tmp_path), str(tmp_path / "black.png"))
    assert code == 2
    assert "may be truncated" in err


def test_the_commands_work_on_a_run(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ok(*arguments: str) -> str:
        code, out, err = artok(monkeypatch, capsys, *arguments)
        assert code == 0, err
        return out

    ok("sample", str(runs / "raster"), "--labels", "1,2", "-n", "2", "--top-k", "4", "--out", str(tmp_path / "s"))
    assert len(list((tmp_path / "s").iterdir())) == 6
    Image.new("L", (20, 30), 200).save(tmp_path / "grey.png")
    assert "64 bits (0.250 per pixel)" in ok(
        "reconstruct", str(runs / "vq"), str(tmp_path / "grey.png"), "--out", str(tmp_path / "r")
    )
    out = ok("encode", str(runs / "vq"), "augment.shift=0.1", "--copies", "2", "--out", str(tmp_path / "tokens"))
    assert "1,257 images, 2 rows per image" in out
    given = {"cache": str(tmp_path / "tokens"), "copies": 2}
    with pytest.raises(DataError, match=r"were augmented by .*0\.1.*, but data.augment is"):
        train(generator_experiment(str(runs / "vq"), tokens=given), tmp_path / "generator")
    assert not (tmp_path / "generator").exists()
    experiment = generator_experiment(str(runs / "vq"), tokens=given, data={"augment": {"shift": 0.1}})
    assert train(experiment, tmp_path / "generator")
    assert "digits/vq" in ok("configs")


def test_version_config_and_catalogue_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert artok(monkeypatch, capsys, "--version")[1] == f"artok {__version__}\n"
    _, out, _ = artok(monkeypatch, capsys, "train", "digits/vq", "training.images=64", "--print-config")
    assert validate(Experiment, OmegaConf.to_container(OmegaConf.create(out)), "out").training.images == 64
    _, out, _ = artok(monkeypatch, capsys, "import", "--list")
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(CATALOGUE)


def test_sample_takes_overrides_flags_and_the_old_name_of_guidance(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def grid_of(*arguments: str) -> bytes:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        line = ("sample", str(runs / "raster"), *arguments, "--labels", "3", "-n", "2", "--out", str(out))
        assert artok(monkeypatch, capsys, *line)[0] == 0
        return (out / "grid.png").read_bytes()

    renamed._say_once.cache_clear()
    wanted = grid_of("temperature=0", "cfg_interval.0=0.5", "--device", "cpu")
    assert grid_of("cfg_interval=[0.5,1]", "--temperature", "0") == wanted != grid_of()
    monkeypatch.setattr(sys, "argv", ["artok", "sample", str(runs / "raster"), "--guidance", "3", "-n", "1"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main()
    assert "guidance is now cfg_scale" in capsys.readouterr().err


def test_tokens_of_another_tokenizer_are_refused(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tokenizer_experiment(seed=1), tmp_path / "other")
    assert artok(monkeypatch, capsys, "encode", str(tmp_path / "other"), "--out", str(tmp_path / "tokens"))[0] == 0
    experiment = generator_experiment(str(runs / "vq"), tokens={"cache": str(tmp_path / "tokens")})
    (tmp_path / "generator.yaml").write_text(dump(experiment))
    code, _, err = artok(
        monkeypatch, capsys, "train", str(tmp_path / "generator.yaml"), "--out", str(tmp_path / "generator")
    )
    assert code == 2
    assert "another tokenizer" in err


def test_evaluation_measures_and_keeps_its_results(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, names in (
        ("vq", ["PSNR", "SSIM", "FD[classifier]", "codebook usage", "perplexity", "bits per pixel"]),
        ("raster", ["FD[classifier]", "KID[classifier]", "recall", "coverage", "class consistency", "nats per token"]),
    ):
        code, out, err = artok(monkeypatch, capsys, "evaluate", str(runs / run), "-n", "120")
        assert code == 0, err
        for name in names:
            assert name in out
        assert not re.search(r"\bFID\b", out)
        assert (runs / run / "results.json").exists()


@pytest.mark.parametrize(
    "command",
    ["train digits/vq", "encode x", "sample x", "reconstruct x y.png", "report x", "import x", "export x", "demo",
     "compare digits-quick", "sweep digits-quick"],
)  # fmt: skip
def test_an_empty_place_to_write_to_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = artok(monkeypatch, capsys, *command.split(), "--out", "")
    assert code == 2 and "is empty" in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
