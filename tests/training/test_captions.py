"""Training on captions: the task reads them, prompts make images, and a stopped run goes on with its vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import artok
from helpers.images import paint
from helpers.models import TOKENIZER
from helpers.text_models import FEATURES, tiny_clip, tiny_t5
from helpers.training import assert_same_run, train_in_two
from PIL import Image
from safetensors.torch import load_file

from artok.conditioning.encoders import frozen, learned
from artok.config import merge, read_yaml, validate
from artok.data import shapes
from artok.errors import ConfigError
from artok.evaluation.evaluate import evaluate
from artok.images import to_pil
from artok.pipeline import Pipeline
from artok.training.experiment import Experiment
from artok.training.progress import Progress
from artok.training.run import train

CAPTION = "a red circle at the top left"
DATA = {"kind": "shapes", "size": 16, "train": 64, "test": 24}
TEXT = {"kind": "text", "encoder": {"kind": "learned", "length": 12, "vocab_size": 320, "depth": 1, "heads": 2}}
SPED = {
    "training": {"images": 64, "global_batch": 16, "checkpoint_every": 32, "validate_every": 32, "preview_every": 32}
}


def experiment(tokenizer: Path | None = None, **changes: Any) -> Experiment:
    base = merge(TOKENIZER | {"data": DATA}, SPED)
    base = merge(base, {"tokenizer": {"quantizer": {"kind": "gaussian"}}})
    if tokenizer is not None:
        network = {"kind": "dit", "depth": 1, "width": 16, "heads": 2, "patch_size": 1}
        diffusion = {"schedule": "straight", "prediction_type": "velocity", "steps": 2}
        part = {"kind": "diffusion", "network": network, "diffusion": diffusion, "conditioning": [TEXT]}
        base |= {"name": "tiny-text", "tokenizer": str(tokenizer), "generator": part}
    return validate(Experiment, merge(base, changes), "test")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "kl"
    assert train(experiment(), folder)
    return folder


@pytest.fixture(scope="module")
def run(tokenizer: Path) -> Path:
    folder = tokenizer.parent / "dit"
    assert train(experiment(tokenizer), folder)
    return folder


def test_prompts_make_images(run: Path) -> None:
    pipeline = Pipeline.from_pretrained(run)
    images = pipeline([CAPTION, "a blue square in the centre"], n=2, seed=3)
    assert images.shape == (4, 3, 16, 16)
    assert torch.equal(pipeline(prompts=CAPTION, n=2, seed=3), images[:2])
    guided = pipeline(CAPTION, seed=3, cfg_scale=3)
    assert not torch.equal(guided, images[:1])
    for asked, message in (({"labels": 1}, "give it prompts"), ({"prompts": "  "}, "empty"), ({}, "say what")):
        with pytest.raises(ConfigError, match=message):
            pipeline(**asked)
    with pytest.raises(ConfigError, match="through guidance"):
        pipeline(CAPTION, negative="a red circle")


def test_captions_teach(run: Path, tokenizer: Path) -> None:
    """The vocabulary is of the captions, and the text's weights have moved."""
    pipeline = Pipeline.from_pretrained(run)
    encoder = pipeline.generator.conditioner.encoder
    assert encoder is not None and max(encoder.count(["circle", "square"])) < len("circle")
    assert (run / "samples").is_dir()
    texts = next(iter(sorted((run / "samples").glob("*.txt")))).read_text().splitlines()
    held_out = shapes.Config(**{key: value for key, value in DATA.items() if key != "kind"}).open("test")
    assert texts == [captions[0] for captions in held_out.read(range(10)).captions or []]


def test_a_stopped_run_goes_on_to_the_same_weights(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the vocabulary that it began with: it is learned once, and not at all from another run's weights."""
    fit, fitted = learned.LearnedEncoder.fit, list[int]()

    def counted(self: learned.LearnedEncoder, texts: Iterable[str]) -> None:
        fitted.append(1)
        fit(self, texts)

    monkeypatch.setattr(learned.LearnedEncoder, "fit", counted)
    half = experiment(tokenizer, training={"images": 32, "optimizer": {"schedule": "constant"}})
    whole = experiment(tokenizer, training={"optimizer": {"schedule": "constant"}})
    assert train(half, tmp_path / "run") and train(whole, tmp_path / "run")
    assert len(fitted) == 1
    started = experiment(tokenizer, init=str(tmp_path / "run"), data={"caption_templates": ["the {}"]})
    assert train(started, tmp_path / "started")
    assert len(fitted) == 1
    pipelines = [Pipeline.from_pretrained(tmp_path / name) for name in ("run", "started")]
    encoders = [each.generator.conditioner.encoder for each in pipelines]
    assert encoders[0] is not None and encoders[1] is not None
    assert encoders[0].count([CAPTION]) == encoders[1].count([CAPTION])
    assert train(whole, tmp_path / "other")
    states = [load_file(tmp_path / name / "model.safetensors") for name in ("run", "other")]
    assert any(name.endswith("_extra_state") for name in states[0])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_a_gan_whose_critic_reads_captions_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    critic = {"discriminator": {"kind": "dcgan", "base_channels": 8, "norm": "none"}, "gan_loss": "relativistic"}
    network = {"kind": "dcgan", "channels": [8], "embedding_dim": 16}
    gan = {"kind": "gan", "network": network, "critic": critic | {"r1": 1.0, "r2": 1.0}, "conditioning": [TEXT]}
    section = merge(SPED, {"training": {"global_batch": 8, "checkpoint_every": 16, "ema": None}})
    setting = section | {"name": "gan", "data": DATA, "tokenizer": {"kind": "pixels"}, "generator": gan}
    config = validate(Experiment, setting, "test")
    assert train(config, tmp_path / "whole")
    train_in_two(config, tmp_path / "parts", monkeypatch, stop=48)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_both_conditions_and_each_alone(tokenizer: Path, tmp_path: Path) -> None:
    parts = [{"kind": "labels", "dropout": 0.2}, TEXT | {"dropout": 0.2}]
    assert train(experiment(tokenizer, generator={"conditioning": parts}), tmp_path / "both")
    pipeline = Pipeline.from_pretrained(tmp_path / "both")
    both = pipeline(labels=[0], prompts=CAPTION)
    assert not torch.equal(pipeline(labels=[0]), both) and not torch.equal(pipeline(CAPTION), both)
    with pytest.raises(ConfigError, match="do not go with"):
        pipeline(labels=[0, 1], prompts=[CAPTION] * 3)


def test_a_text_run_is_evaluated_on_held_out_captions_and_its_page_shows_them(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = evaluate(str(run), 20, "pixels", [], "cpu", Progress("test", quiet=True))
    assert any(each.name.startswith("fd") or "fd" in each.name for each in results.measurements)
    assert artok(monkeypatch, "report", run, "--out", tmp_path / "page.html") == 0
    caption = (shapes.Config(size=16, train=64, test=24).open("test").read([0]).captions or [])[0][0]
    assert caption in (tmp_path / "page.html").read_text()


def test_data_without_captions_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    digits = {"kind": "digits", "size": 16, "channels": 3}
    with pytest.raises(ConfigError, match="no captions"):
        train(experiment(tokenizer, data=digits), tmp_path / "run")


def write_pictures(root: Path, captions: list[list[str]]) -> dict[str, Any]:
    """A folder of pictures with captions, half of it to test on."""
    for value, texts in enumerate(captions):
        path = root / ("test" if value % 2 else "train") / f"{value:02}.png"
        paint(path, 5 * value, (16, 16))
        if texts:
            path.with_suffix(".txt").write_text("\n".join(texts))
    return {"kind": "folder", "root": str(root), "size": 16}


@pytest.mark.parametrize("online", [False, True])
def test_images_without_a_caption_hear_the_empty_text(
    tokenizer: Path, tmp_path: Path, online: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = [["a red circle", "a circle"], ["a star"], [], [], *[[f"picture {value}"] for value in range(44)]]
    changes = {"data": write_pictures(tmp_path / "data", captions), "tokens": {"online": online}}
    wanted = experiment(tokenizer, **changes)
    assert train(wanted, tmp_path / "run")
    assert capsys.readouterr().err.count(f"1 of 24 images of {tmp_path / 'data' / 'train'} have no caption") == 1
    previews = [path.read_text().splitlines() for path in sorted((tmp_path / "run" / "samples").glob("*.txt"))]
    assert previews and all(each == ["a star", *[f"picture {value}" for value in range(1, 19, 2)]] for each in previews)
    results = evaluate(str(tmp_path / "run"), 20, "pixels", [], "cpu", Progress("test", quiet=True))
    assert results.measurements


@pytest.mark.parametrize(("place", "missing"), [("train", 24), ("train", 13), ("test", 13)])
def test_too_few_captions_are_refused(tokenizer: Path, tmp_path: Path, place: str, missing: int) -> None:
    captions: list[list[str]] = [["a star"] for _ in range(48)]
    captions[place == "test" : 2 * missing : 2] = [[]] * missing
    data = write_pictures(tmp_path / "data", captions)
    few = "has no captions" if missing == 24 else "has captions for 11 images only"
    with pytest.raises(ConfigError, match=f"the {place} split of data kind folder, of 24 images, {few}"):
        train(experiment(tokenizer, data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_class_names_become_captions(tokenizer: Path, tmp_path: Path) -> None:
    digits = {"kind": "digits", "size": 16, "channels": 3, "caption_templates": ["the digit {}", "a {}"]}
    assert train(experiment(tokenizer, data=digits), tmp_path / "run")
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    assert pipeline("the digit 3").shape == (1, 3, 16, 16)
    encoder = pipeline.generator.conditioner.encoder
    assert encoder is not None and encoder.count(["the digit 3"]) == [3]


# ---------------------------------------------------------------------------------------------- frozen encoders


def test_a_frozen_encoder_reads_its_stored_features(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = {"kind": "t5", "name": str(tiny_t5(tmp_path / "t5")), "length": 12}
    changes = {"generator": {"conditioning": [{"kind": "text", "encoder": encoder}]}}
    whole = experiment(tokenizer, training={"optimizer": {"schedule": "constant"}}, **changes)
    half = experiment(tokenizer, training={"images": 32, "optimizer": {"schedule": "constant"}}, **changes)
    monkeypatch.setenv("ARTOK_CACHE", str(tmp_path / "cache"))
    assert train(whole, tmp_path / "other")
    assert capsys.readouterr().err.count(" captions by ") == 2  # of train and test
    monkeypatch.setattr(frozen, "_load", None)  # all is stored, so the model is not needed
    assert train(half, tmp_path / "run") and train(whole, tmp_path / "run")
    states = [load_file(tmp_path / name / "model.safetensors") for name in ("run", "other")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    own = {name.partition("encoder.")[2] for name in states[0] if "encoder." in name}
    assert own == {"project.0.weight", "project.2.weight", "_extra_state"}
    assert (
        read_yaml(tmp_path / "run" / "config.yaml")["generator"]["conditioning"][0]["encoder"]["features"] == FEATURES
    )
    monkeypatch.undo()
    (tmp_path / "t5").rename(tmp_path / "moved")
    pipeline = Pipeline.from_pretrained(tmp_path / "run")  # without the encoder, until a text is read
    with pytest.raises(ConfigError, match="there is no text encoder in"):
        pipeline("a red circle")
    (tmp_path / "moved").rename(tmp_path / "t5")
    assert not torch.equal(pipeline("a red circle", seed=1), pipeline("a blue star", seed=1))


def test_a_frozen_encoder_goes_with_images_that_are_encoded_at_every_step(tokenizer: Path, tmp_path: Path) -> None:
    encoder = {"kind": "clip", "name": str(tiny_clip(tmp_path / "clip")), "length": 12}
    conditioning = [{"kind": "labels"}, {"kind": "text", "encoder": encoder}]
    changes = {"generator": {"conditioning": conditioning}, "tokens": {"online": True}}
    assert train(experiment(tokenizer, **changes), tmp_path / "run")
    assert Pipeline.from_pretrained(tmp_path / "run")("a red circle", n=2).shape == (2, 3, 16, 16)


def test_the_command_samples_prompts(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> str:
        captured = capsys.readouterr()
        return " ".join(f"{captured.out} {captured.err}".split())

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n\na blue star\n")
    command = ["sample", run, "-n", 1, "--out", tmp_path / "out"]
    assert artok(monkeypatch, *command, "--prompt", "a green ring " * 9, "--prompts", prompts) == 0
    assert len(list((tmp_path / "out").glob("0*.png"))) == 3
    assert (tmp_path / "out" / "prompts.txt").read_text().splitlines()[1:] == ["a red circle", "a blue star"]
    assert "the model reads the first 12" in said()
    missing = tmp_path / "none.txt"
    for more, message in (([], "--prompt"), (["--prompts", missing], "cannot be read"), (["--prompt", ""], "empty")):
        assert artok(monkeypatch, *command, *more) == 2
        assert message in said()


def test_a_model_of_text_and_images_writes_captions_with_the_images_of_its_samples(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = merge(TOKENIZER | {"data": DATA}, SPED)
    assert train(validate(Experiment, codes, "test"), tmp_path / "vq")
    part = {"kind": "dalle", "depth": 1, "width": 16, "heads": 2, "multiple_of": 8}
    stream = {"name": "stream", "tokenizer": str(tmp_path / "vq"), "generator": part}
    assert train(validate(Experiment, codes | stream, "test"), tmp_path / "run")
    command = ["sample", tmp_path / "run", "-n", 3, "--out", tmp_path / "out", "--seed", 2]
    assert artok(monkeypatch, *command) == 0
    captions = (tmp_path / "out" / "prompts.txt").read_text().splitlines()
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    sampling = pipeline.settings({"seed": 2})
    assert captions == pipeline.write(3, sampling)
    assert pipeline.write(2, sampling) == captions[:2]
    assert len(set(captions)) == 3 and all(captions)
    made = pipeline(captions, seed=2)
    pictures = [Image.open(path) for path in sorted((tmp_path / "out").glob("0*.png"))]
    assert [each.tobytes() for each in pictures] == [to_pil(image).tobytes() for image in made]
    assert artok(monkeypatch, *command, "--prompt", "a red circle") == 0
    assert (tmp_path / "out" / "prompts.txt").read_text() == "a red circle\n"
    assert artok(monkeypatch, "plan", tmp_path / "run" / "config.yaml") == 0


def test_an_evaluation_checks_the_prompts_of_held_out_images_and_of_unseen_combinations(
    run: Path, tokenizer: Path, tmp_path: Path
) -> None:
    metrics = f"[prompt_match,{{kind: clip_score, name: {tiny_clip(tmp_path)}}}]"
    changes = ["data.hold_out=4", "data.objects=[1,2]", f"evaluation.metrics={metrics}"]
    quiet = Progress("evaluate", quiet=True)
    found = evaluate(str(run), 16, "pixels", changes, "cpu", quiet)
    scored = {each.name: each for each in found.measurements if each.name.startswith("clip_score")}
    assert scored.keys() == {"clip_score", "clip_score/shuffled", "clip_score/unseen"}
    assert scored["clip_score"].floor is not None and scored["clip_score"].floor != scored["clip_score"].value
    names = {entry.name.partition("/")[2] for entry in found.measurements if entry.name not in scored}
    assert names >= {"", "shape", "colour", "place", "count", "one_object", "two_objects", "shuffled", "unseen"}
    assert all(entry.n == 16 and 0 <= entry.value <= 1 for entry in found.measurements)
    rebuilt = evaluate(str(tokenizer), 16, "pixels", changes, "cpu", quiet)
    assert rebuilt.find("clip_score") is not None
    assert rebuilt.find("prompt_match") is not None and rebuilt.find("prompt_match/unseen") is None
