"""Runs that `artok import` wrote, used from the command line as any other run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.commands import artok
from helpers.published import RASTER, generator_config, published_state, randomised, vqgan
from PIL import Image

from artok.pipeline import Pipeline

DIGITS = ("data.kind=digits",)  # in colour and of the model's own size


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vq.ckpt and gpt.pt as published, and a picture."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer, state = vqgan()
    torch.save({"state_dict": state}, folder / "vq.ckpt")
    generator = randomised(generator_config(RASTER).build(tokenizer.layout, 10))  # type: ignore[arg-type]
    torch.save({"model": published_state("llamagen_gpt", generator)}, folder / "gpt.pt")
    Image.new("RGB", (20, 30), (200, 100, 0)).save(folder / "orange.png")
    return folder


@pytest.mark.slow
def test_an_imported_run_is_used_as_any_other(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vq, gpt = tmp_path / "vq", tmp_path / "gpt"

    def ok(*arguments: object) -> str:
        code = artok(monkeypatch, *arguments)
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    ok("import", files / "vq.ckpt", "--size", 16, "--out", vq)
    ok("import", files / "gpt.pt", "--tokenizer", vq, "--out", gpt, "generator.heads=2", *DIGITS)
    assert "PSNR" in ok("reconstruct", vq, files / "orange.png", "--out", tmp_path / "r")
    assert "PSNR" in ok("evaluate", vq, "-n", 40, *DIGITS)  # other data than the run names
    assert "bits/dim" in ok("evaluate", gpt, "-n", 40, "cfg_scale=1.5")
    assert "40" in (gpt / "results.json").read_text()
    assert "540 images, 1 row" in ok("encode", vq, "kind=digits", "--split", "test", "--out", tmp_path / "tokens")
    ok("sample", gpt, "--labels", "3", "-n", 2, "--out", tmp_path / "s")
    ok("export", gpt, "--out", tmp_path / "shared")
    assert torch.equal(Pipeline.from_pretrained(tmp_path / "shared")([3]), Pipeline.from_pretrained(gpt)([3]))
    ok("export", gpt, "--format", "npz", "-n", 3, "--out", tmp_path / "samples.npz")
    short = ("training.images=64", "training.global_batch=32")
    ok("train", vq / "config.yaml", *short, *DIGITS, "--out", tmp_path / "afresh")
    ok(
        "train",
        "digits/raster",
        f"tokenizer={vq}",
        "data.channels=3",
        "tokens.copies=1",
        *short,
        "--out",
        tmp_path / "g",
    )
    before = (vq / "model.safetensors").read_bytes()
    assert artok(monkeypatch, "train", vq / "config.yaml", *short, *DIGITS, "--out", vq) == 2
    assert "holds imported weights" in capsys.readouterr().err
    assert (vq / "model.safetensors").read_bytes() == before
