"""Pipelines: loading, sampling, saving, and pictures of their work."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import generator_experiment, tokenizer_experiment
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from artok.errors import CheckpointError, ConfigError
from artok.evaluation.reconstruct import reconstruct
from artok.evaluation.sample import FRAMES, Asked, generation_frames, parse_labels, sample
from artok.generators import raster
from artok.layout import TokenLayout, Tokens, last
from artok.pipeline import Pipeline
from artok.sampling.settings import Precision, Sampling
from artok.saved import load_tokenizer
from artok.training.run import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert train(tokenizer_experiment(), folder / "vq")
    assert train(generator_experiment(str(folder / "vq"), training={"images": 1024}), folder / "raster")
    shutil.rmtree(folder / "vq")  # a generator's run is whole without its tokenizer's
    return folder / "raster"


@pytest.fixture
def pipeline(run: Path) -> Pipeline:
    return Pipeline.from_pretrained(run)


def test_labels_in_images_out(pipeline: Pipeline) -> None:
    images = pipeline([3, 7], n=2)
    assert images.shape == (4, 1, 16, 16)
    assert -1 <= float(images.min()) < float(images.max()) <= 1
    assert pipeline(5).shape == (1, 1, 16, 16)


def test_an_image_depends_on_its_seed_and_number_not_on_the_batch(pipeline: Pipeline) -> None:
    whole = pipeline([1, 2, 3], n=3, seed=4)
    torch.testing.assert_close(pipeline([1, 2, 3], n=3, seed=4, batch=2), whole, rtol=0, atol=1e-4)
    assert not torch.equal(pipeline([1, 2, 3], n=3, seed=5), whole)


def test_unfinished_tokens_do_not_pile_up(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    made, alive = list[weakref.ref[Tokens]](), list[int]()
    honest = pipeline.generator.steps

    def watched(*inputs: Any) -> Iterator[Tokens]:
        for tokens in honest(*inputs):
            made.append(weakref.ref(tokens))
            yield tokens
            del tokens
            alive.append(sum(reference() is not None for reference in made))

    monkeypatch.setattr(pipeline.generator, "steps", watched)
    pipeline([1])
    assert len(made) == 16
    assert max(alive) <= 2  # one in hand, and the one before it until it is there


def test_guidance_changes_images_and_one_does_not(pipeline: Pipeline) -> None:
    plain = pipeline([0, 1], n=4, cfg_scale=1.0)
    assert torch.equal(pipeline([0, 1], n=4), plain)
    assert not torch.equal(pipeline([0, 1], n=4, cfg_scale=8.0), plain)


def test_saved_and_loaded_it_makes_the_same_images(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.sampling = Sampling(top_k=3, seed=9)
    pipeline.save_pretrained(tmp_path / "saved")
    again = Pipeline.from_pretrained(tmp_path / "saved")
    assert again.sampling == pipeline.sampling
    assert torch.equal(again([1, 2], n=3), pipeline([1, 2], n=3))


def test_bfloat16_sampling_stays_inside_the_step(pipeline: Pipeline) -> None:
    for _ in pipeline.steps(pipeline.condition([1]), Sampling(dtype="bfloat16")):
        assert not torch.is_autocast_enabled("cpu")


def test_undecided_patches_are_grey(pipeline: Pipeline) -> None:
    steps = list(pipeline.steps(pipeline.condition([1]), Sampling()))
    first = pipeline.decode(steps[0])
    assert not first[0, 0, 4:].any()
    assert not first[0, 0, :4, 4:].any()
    assert first[0, 0, :4, :4].any()
    whole = Tokens(steps[-1].values, steps[-1].layout)
    assert torch.equal(pipeline.decode(steps[-1]), pipeline.decode(whole))


def test_unfinished_tokens_without_places_are_decoded_as_they_are(pipeline: Pipeline) -> None:
    layout = TokenLayout(((5,),), 2, None, (1, 4, 4))

    class Latents(nn.Module):
        def decode(self, tokens: Tokens) -> torch.Tensor:
            return torch.full((len(tokens), 1, 4, 4), 0.5)

    first = Tokens(torch.zeros(2, 5, 2), layout, torch.arange(5).expand(2, -1) < 1)
    assert (replace(pipeline, tokenizer=Latents()).decode(first) == 0.5).all()


@pytest.mark.parametrize(
    ("grid", "image", "spatial"),
    [((5,), (1, 6, 6), False), ((2, 2, 3), (1, 4, 4, 6), True), ((2, 3), (1, 4, 6), True)],
    ids=["one axis", "video", "two axes"],
)
def test_tokens_of_any_number_of_axes_become_samples(
    pipeline: Pipeline, grid: tuple[int, ...], image: tuple[int, ...], spatial: bool
) -> None:
    layout = TokenLayout((grid,), 2, 16, image)

    class Codes(nn.Module):
        def decode(self, tokens: Tokens) -> torch.Tensor:
            codes = tokens.values[..., 0].float() / 8 - 0.9  # in [-.9, .975], never 0
            if not spatial:
                return codes.mean(1)[:, None, None, None].expand(-1, *image)
            size = image[1:]
            return nn.functional.interpolate(codes.unflatten(1, grid)[:, None], size=size, mode="nearest")

    generator = raster.Config.tiny().build(layout, len(pipeline.classes)).eval()
    made = replace(pipeline, tokenizer=Codes(), generator=generator)
    samples = made([1, 2], n=2, seed=3)
    assert samples.shape == (4, *image)
    torch.testing.assert_close(made([1, 2], n=2, seed=3, batch=3), samples)
    first, *_, finished = made.steps(made.condition([1, 1, 2, 2]), Sampling(seed=3))
    torch.testing.assert_close(made.decode(finished), samples)
    grey = made.decode(first) == 0
    assert float(grey.float().mean()) == pytest.approx(1 - 1 / layout.length if spatial else 0)


@pytest.mark.parametrize(
    ("labels", "n", "words"), [([10], 1, "outside the classes 0 to 9"), ([-1], 1, "outside"), ([], 1, "at least one")]
)
def test_impossible_labels_are_refused(pipeline: Pipeline, labels: list[int], n: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pipeline(labels, n=n)


def test_impossible_settings_are_refused(pipeline: Pipeline) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        pipeline.settings({"temperature": -1})
    pipeline.saved.generator.__dict__["class_dropout"] = 0.0
    with pytest.raises(ConfigError, match="class_dropout above 0"):
        pipeline([1], cfg_scale=2.0)


def test_a_draft_model_is_loaded_and_one_of_another_tokenizer_refused(
    pipeline: Pipeline, run: Path, tmp_path: Path
) -> None:
    settings = {"decoding": "speculative", "draft_model": str(run), "draft_length": 3}
    made = pipeline([0, 1], 2, seed=3, sampling=pipeline.settings(settings))
    torch.testing.assert_close(made, pipeline([0, 1], 2, seed=3))  # it drafts for itself, so each draft is right
    with torch.no_grad():
        next(pipeline.tokenizer.parameters()).add_(1)
    facts = pipeline.saved.facts.model_copy(update={"tokenizer": None})
    pipeline.saved = pipeline.saved.model_copy(update={"facts": facts})
    pipeline.save_pretrained(tmp_path / "other")
    fresh = Pipeline.from_pretrained(run)
    with pytest.raises(ConfigError, match="trained on another tokenizer"):
        fresh([0], sampling=fresh.settings(settings | {"draft_model": str(tmp_path / "other")}))


def test_what_is_no_pipeline_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run"):
        Pipeline.from_pretrained("runs/nowhere")
    with pytest.raises(CheckpointError, match="no run directory"):
        Pipeline.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds a tokenizer"):
        Pipeline.from_pretrained(run / "tokenizer")
    shutil.copytree(run, tmp_path / "broken")
    weights = tmp_path / "broken" / "tokenizer" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # another tokenizer, by one bit
    weights.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="not the one"):
        Pipeline.from_pretrained(tmp_path / "broken")


def test_weights_under_the_keys_of_earlier_versions_are_read(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "old")
    weights = load_file(tmp_path / "old" / "model.safetensors")
    weights["class_embedding.weight"] = weights.pop("conditioner.labels.embedding.weight")
    save_file(weights, tmp_path / "old" / "model.safetensors")
    assert torch.equal(Pipeline.from_pretrained(tmp_path / "old")([1, 2]), Pipeline.from_pretrained(run)([1, 2]))


def test_a_hub_name_that_cannot_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="neither a run directory here nor a model on the hub") as error:
        Pipeline.from_pretrained("someone/nothing")
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------- pictures


def test_sampling_writes_images_a_sheet_and_their_making(pipeline: Pipeline, tmp_path: Path) -> None:
    images = sample(pipeline, Asked(("2", "4"), [2, 4]), 3, Sampling(seed=1), tmp_path)
    assert torch.equal(images, pipeline([2, 4], n=3, seed=1))
    names = sorted(path.name for path in tmp_path.glob("0*.png"))
    assert names == [f"{i:05d}-{label}.png" for i, label in enumerate([2, 2, 2, 4, 4, 4])]
    with Image.open(tmp_path / names[0]) as single:
        assert single.size == (16, 16)
    with Image.open(tmp_path / "generation.gif") as animation:
        assert animation.n_frames == min(FRAMES, 16)


def test_the_last_frame_of_the_making_is_the_image(pipeline: Pipeline, tmp_path: Path) -> None:
    from artok.images import grid

    images = pipeline([2, 4], n=3, seed=1)
    frames = generation_frames(pipeline, pipeline.condition([2, 4]), pipeline.settings({"seed": 1}), stride=3)
    assert frames[-1].tobytes() == grid(images[[0, 3]]).tobytes()
    assert frames[0].tobytes() != frames[-1].tobytes()


def test_labels_by_number_and_name() -> None:
    classes = ("cat", "dog", "1")
    assert parse_labels("dog, 0", classes) == [1, 0]
    assert parse_labels("", classes) == [0, 1, 2]
    with pytest.raises(ConfigError, match="label bird is none of the 3 classes: cat, dog, 1"):
        parse_labels("bird", classes)


def test_own_pictures_are_reconstructed_side_by_side(run: Path, tmp_path: Path) -> None:
    tokenizer, _ = load_tokenizer(run)
    Image.new("RGB", (40, 30), "white").save(tmp_path / "white.png")
    (result,) = reconstruct(tokenizer, [tmp_path / "white.png"], tmp_path / "out")
    assert result.bits == 16 * 4
    assert 0 < result.psnr < 100
    with Image.open(tmp_path / "out" / "white.png") as sheet:
        assert sheet.width > 4 * 256


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "auto"])
def test_every_precision_samples_and_follows_the_weights(pipeline: Pipeline, dtype: Precision) -> None:
    before = pipeline.generator.state_dict()["head.weight"].clone()
    sampling = Sampling(dtype=dtype, temperature=0.0)
    condition = pipeline.condition([1, 2])
    first = last(pipeline.steps(condition, sampling))
    prepared, _ = pipeline.prepare(dtype)
    assert pipeline.prepare(dtype)[0] is prepared  # made once
    with torch.no_grad():
        pipeline.generator.head.weight.neg_()  # type: ignore[union-attr,operator]
    assert not torch.equal(last(pipeline.steps(condition, sampling)).values, first.values)
    with torch.no_grad():
        pipeline.generator.head.weight.neg_()  # type: ignore[union-attr,operator]
    assert torch.equal(last(pipeline.steps(condition, sampling)).values, first.values)
    assert torch.equal(pipeline.generator.state_dict()["head.weight"], before)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16", "auto"])
def test_the_decoder_computes_in_bfloat16_where_that_is_asked_for_and_native(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, dtype: Precision | None, native: bool
) -> None:
    monkeypatch.setattr("artok.pipeline.has_bfloat16", lambda device: native)
    seen = set[torch.dtype]()
    pipeline.tokenizer.decoder.conv_in.register_forward_hook(lambda *args: seen.add(args[-1].dtype))  # type: ignore
    tokens = last(pipeline.steps(pipeline.condition([1, 2]), Sampling()))
    wanted, made = pipeline.decode(tokens), pipeline.decode(tokens, dtype)
    short = native and dtype in ("bfloat16", "auto")
    assert seen == ({torch.float32, torch.bfloat16} if short else {torch.float32})
    assert made.dtype == torch.float32
    assert 0 < float((made - wanted).abs().mean()) < 2**-6 if short else torch.equal(made, wanted)


def test_prepared_weights_have_the_logits_of_the_model(pipeline: Pipeline) -> None:
    condition = pipeline.condition([1, 2, 3])
    codes = torch.arange(3 * 15).reshape(3, 15) % pipeline.tokenizer.layout.vocab  # type: ignore[operator]
    with torch.inference_mode():
        plain = pipeline.generator
        wanted = plain.logits(codes, plain.context(condition)).log_softmax(-1)  # type: ignore[operator]
        bounds: dict[Precision, float] = {"float32": 1e-9, "float16": 1e-6, "bfloat16": 1e-3, "auto": 1e-3}
        for dtype, most in bounds.items():
            made, _ = pipeline.prepare(dtype)
            got = made.logits(codes, made.context(condition)).log_softmax(-1)  # type: ignore[operator]
            divergence = (wanted.double().exp() * (wanted.double() - got.double())).sum(-1).mean()
            assert abs(float(divergence)) < most, dtype
