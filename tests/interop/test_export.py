"""`artok export`: what other libraries load computes the same, and what is shared says what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.published import DIT, KL, RASTER, VQ, generator_run, tokenizer_run
from safetensors.torch import load_file, save_file
from torch import Tensor

from artok.errors import ArtokError, ConfigError, RunError
from artok.images import to_uint8
from artok.interop.exporting import export, to_folder, to_hub
from artok.interop.importing import ImportOptions, import_file
from artok.interop.to_diffusers import to_diffusers
from artok.interop.to_npz import to_npz
from artok.interop.to_onnx import to_onnx
from artok.layout import Condition
from artok.metrics.results import Measurement, Results
from artok.pipeline import Pipeline
from artok.saved import CONFIG, WEIGHTS, digest_weights, load_generator, load_tokenizer, write_weights
from artok.tokenizers.conv import ConvTokenizer

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
PLAIN: dict[str, Any] = {"attention_resolutions": []}


def latent_images(tokens: Tensor, side: int) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, (side, side))


# ---------------------------------------------------------------------------------------------- diffusers


def autoencoder_run(folder: Path, statistics: str, **changes: Any) -> Path:
    run = tokenizer_run(folder, KL, **changes)
    tokenizer, _ = load_tokenizer(run)
    assert isinstance(tokenizer, ConvTokenizer)
    if statistics == "published":
        tokenizer.latent_deviation.fill_(1 / 0.18215)
    else:
        tokenizer.latent_mean.copy_(torch.tensor([0.3, -1.0, 0.0, 2.0]))
        tokenizer.latent_deviation.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    write_weights({name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}, run / WEIGHTS)
    return run


@pytest.mark.parametrize("statistics", ["published", "measured"])
@pytest.mark.parametrize(
    "changes",
    [
        PLAIN,
        {"attention_resolutions": "coarsest"},
        {"decoder_attention_resolutions": [], "num_res_blocks": 2},
        {"middle_attention": False},
    ],
)
@torch.no_grad()
def test_an_autoencoder_in_diffusers_computes_the_same(
    statistics: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    from diffusers import AutoencoderKL

    run = autoencoder_run(tmp_path / "run", statistics, groups=4, **changes)
    export(str(run), "diffusers", tmp_path / "out")
    ours, _ = load_tokenizer(run)
    theirs = AutoencoderKL.from_pretrained(tmp_path / "out")
    posterior = theirs.encode(IMAGES).latent_dist
    tokens = ours.encode(IMAGES)
    scaled = posterior.mean * theirs.config.scaling_factor
    torch.testing.assert_close(scaled, latent_images(tokens.values, 8), rtol=1e-4, atol=1e-4)
    decoded = theirs.decode(scaled / theirs.config.scaling_factor).sample
    torch.testing.assert_close(decoded, ours.decode(tokens), rtol=1e-4, atol=1e-4)
    moments = ours.to_quantizer(ours.encoder(IMAGES))  # type: ignore[operator]
    deviation = (0.5 * moments.chunk(2, 1)[1].clamp(-30, 20)).exp() / ours.latent_deviation[:, None, None]  # type: ignore[operator]
    ratio = posterior.std * theirs.config.scaling_factor / deviation
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-3, atol=0)
    back = ImportOptions(size=16, overrides=("tokenizer.groups=4",), scale=theirs.config.scaling_factor)
    import_file(tmp_path / "out", tmp_path / "back", back)
    again, _ = load_tokenizer(tmp_path / "back")
    torch.testing.assert_close(again.encode(IMAGES).values, tokens.values, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_dit_in_diffusers_computes_the_same(tmp_path: Path) -> None:
    from diffusers import DiTPipeline, DiTTransformer2DModel

    run = generator_run(tmp_path / "run", DIT, KL, groups=4)
    written = to_diffusers(run, tmp_path / "out")
    assert [path.name for path in written] == ["transformer", "vae", "scheduler", "model_index.json"]
    own, _ = load_tokenizer(run)
    ours = load_generator(run, own.layout)[0]
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path / "out" / "transformer")
    x, labels = torch.randn(2, 4, 8, 8), torch.tensor([1, 3])  # the last is no label

    def compare(times: Tensor) -> None:
        wanted = ours.network(x.flatten(2).transpose(1, 2), times, ours.context(Condition(labels)))  # type: ignore[operator]
        found = theirs(x, timestep=times, class_labels=labels).sample
        torch.testing.assert_close(found, latent_images(wanted, 8), rtol=1e-4, atol=1e-4)

    compare(torch.zeros(2, dtype=torch.int64))
    for (
        block
    ) in theirs.transformer_blocks:  # its frequencies are not the published ones; see `to_diffusers.transformer`
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    compare(torch.tensor([7, 999]))
    pipeline = DiTPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline([1], guidance_scale=1.0, num_inference_steps=2, output_type="np")  # it takes 1000 for no label
    assert made.images.shape == (1, 16, 16, 3)
    back = ImportOptions(tokenizer=str(run), overrides=("generator.network.heads=2", "generator.guided_channels=null"))
    import_file(tmp_path / "out" / "transformer", tmp_path / "back", back)
    again = load_generator(tmp_path / "back", own.layout)[0]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize(
    ("quantizer", "changes", "words"),
    [
        (VQ, PLAIN, "a quantizer other than gaussian"),
        (KL, PLAIN | {"quantizer_kernel": 3}, "quantizer_kernel 3"),
        (KL, PLAIN | {"z_channels": 8}, "a latent width other than the quantizer's"),
        (
            KL,
            PLAIN | {"decoder_num_res_blocks": 4, "decoder_channel_multipliers": [1, 1]},
            "other widths; another number of decoder",
        ),
    ],
)
def test_what_diffusers_has_no_place_for_is_refused(
    quantizer: dict[str, Any], changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    run = tokenizer_run(tmp_path / "run", quantizer, **changes)
    with pytest.raises(ConfigError, match=words):
        to_diffusers(run, tmp_path / "out")


def test_another_generator_is_refused(tmp_path: Path) -> None:
    run = generator_run(tmp_path / "run", RASTER, VQ)
    with pytest.raises(ConfigError, match="only for the generator kind diffusion"):
        to_diffusers(run, tmp_path / "out")
    for changes, words in (
        ({"conditioning": [{"kind": "labels"}, {"kind": "control"}]}, "and this model control"),
        ({"inpaint": True}, "and this model masks"),
    ):
        run = generator_run(tmp_path / words, DIT | changes, KL, groups=4)
        with pytest.raises(ConfigError, match=f"hears labels alone, {words}"):
            to_diffusers(run, tmp_path / "out")
    said: list[str] = []
    run = generator_run(tmp_path / "dit", DIT, KL, groups=4, quantizer_kernel=3)
    assert [path.name for path in to_diffusers(run, tmp_path / "out", said.append)] == ["transformer"]
    assert said == ["the transformer alone: diffusers' AutoencoderKL does not support quantizer_kernel 3"]


# ---------------------------------------------------------------------------------------------- ONNX


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", "multiscale"])
@torch.no_grad()
def test_onnx_graphs_compute_the_same_at_any_batch_size(kind: str, tmp_path: Path) -> None:
    import onnxruntime

    section = {"gaussian": KL, "multiscale": {"kind": kind, "codebook_size": 32, "code_dim": 4, "scales": [1, 2, 8]}}
    run = tokenizer_run(tmp_path / "run", section[kind], middle_attention=False)
    ours, _ = load_tokenizer(run)
    encode, decode = (onnxruntime.InferenceSession(str(path)) for path in to_onnx(run, tmp_path / "out"))
    for images in (IMAGES, IMAGES[:1]):
        tokens = ours.encode(images)
        (found,) = encode.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), tokens.values, rtol=1e-4, atol=1e-4)
        (decoded,) = decode.run(None, {"tokens": tokens.values.numpy()})
        torch.testing.assert_close(torch.from_numpy(decoded), ours.decode(tokens), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------- samples


def test_samples_for_adms_evaluator(tmp_path: Path) -> None:
    run = generator_run(tmp_path / "run", RASTER, VQ)
    pipeline = Pipeline.from_pretrained(run)
    path = to_npz(pipeline, tmp_path / "samples.npz", 7, pipeline.settings({"seed": 3}), batch=3)
    with np.load(path) as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert images.shape == (7, 16, 16, 3)
    assert images.dtype == np.uint8
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    whole = pipeline([0, 1, 2, 0, 1, 2, 0], seed=3)
    assert np.array_equal(images, to_uint8(whole).permute(0, 2, 3, 1).numpy())
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["samples.npz"]


# ---------------------------------------------------------------------------------------------- a folder, the hub


def with_results(run: Path) -> Path:
    measured = Measurement("fd", 12.5, n=500, seed=4, extractor="classifier", floor=1.25)
    Results("run", (measured,), weights=digest_weights(run), notes=("a note",)).save(run / "results.json")
    return run


def test_a_folder_to_share_holds_the_model_and_its_card(tmp_path: Path) -> None:
    run = with_results(generator_run(tmp_path / "run", RASTER, VQ))
    to_folder(run, tmp_path / "out", "someone/model", "apache-2.0")
    first, second = (Pipeline.from_pretrained(folder)([0, 1]) for folder in (run, tmp_path / "out"))
    assert torch.equal(first, second)
    card = (tmp_path / "out" / "README.md").read_text()
    for words in (
        "license: apache-2.0",
        "library_name: artok",
        "| FD[classifier] | 12.5 | 500 | classifier | held-out | 1.25 | 4 |",
        'Pipeline.from_pretrained("someone/model")',
        "3 classes",
        "## Licence\n\napache-2.0",
        "64 tokens",
    ):
        assert words in card
    to_folder(run, tmp_path / "out")  # again, with newer results
    with pytest.raises(ConfigError, match="is the run itself"):
        to_folder(run, run)
    other = tokenizer_run(tmp_path / "other", VQ)
    before = (other / WEIGHTS).read_bytes()
    with pytest.raises(ConfigError, match="holds another run"):
        to_folder(run, other)
    assert (other / WEIGHTS).read_bytes() == before


PLANTED = "x<script>alert(1)</script> [y](http://z) `|` \n# *h*"


def test_nothing_in_a_run_becomes_markup_of_its_card(tmp_path: Path) -> None:
    run = tokenizer_run(tmp_path / "run", VQ)
    source = {"from": PLANTED, "file": PLANTED, "sha256": PLANTED, "licence": PLANTED}
    data = {"kind": "folder", "root": PLANTED, "path": PLANTED}
    text = f"data: {json.dumps(data)}\nsource: {json.dumps(source)}\n"
    (run / CONFIG).write_text((run / CONFIG).read_text() + text)
    measured = Measurement(PLANTED, 12.5, n=500, seed=4, extractor=PLANTED, reference=PLANTED)
    Results("run", (measured,), weights=digest_weights(run)).save(run / "results.json")
    to_folder(run, tmp_path / "out", PLANTED)
    card = (tmp_path / "out" / "README.md").read_text()
    head, text = card.split("\n---\n", 1)
    before, code, after = text.split("```")
    assert head.count("\n") == 6 and json.loads(code[code.index("(") + 1 : code.rindex(")\ntokens")]) == PLANTED
    for markup in ("<script", "](http", "`|`", "\n# *h*"):
        assert markup not in before + after
    assert before.startswith("\n# x&lt;script&gt;")


def test_results_of_other_weights_are_not_exported(tmp_path: Path) -> None:
    run = with_results(generator_run(tmp_path / "run", RASTER, VQ))
    to_folder(run, tmp_path / "first")
    assert "Note: a note." in (tmp_path / "first" / "README.md").read_text()
    assert (tmp_path / "first" / "results.json").exists()
    weights = load_file(run / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, run / WEIGHTS)
    to_folder(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "12.5" not in card and f"The results of {run} are of other weights than it has now" in card
    assert not (tmp_path / "out" / "results.json").exists()
    to_folder(run, tmp_path / "first")  # over an export that had results
    assert not (tmp_path / "first" / "results.json").exists()
    assert "unfinished" not in card
    (run / "checkpoints" / "000000000064").mkdir(parents=True)
    (run / "checkpoints" / "000000000064" / "state.json").write_text("{}")
    (run / CONFIG).write_text((run / CONFIG).read_text() + "training: {images: 1000}\n")
    to_folder(run, tmp_path / "out")
    words = "is unfinished: its weights have seen 64 of 1,000 training images"
    assert words in (tmp_path / "out" / "README.md").read_text()


def test_the_card_of_an_import_says_where_it_comes_from(tmp_path: Path) -> None:
    run = tokenizer_run(tmp_path / "run", VQ)
    source = {"from": "elsewhere", "file": "last.ckpt", "sha256": "ab", "licence": "CC-BY-NC-4.0"}
    text = "data: {kind: hub, path: ILSVRC/imagenet-1k}\nsource: " + json.dumps(source) + "\n"
    (run / CONFIG).write_text((run / CONFIG).read_text() + text)
    to_folder(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("license: cc-by-nc-4.0", "last.ckpt, sha256 `ab`", "is not measured yet"):
        assert words in card
    assert "- ILSVRC/imagenet-1k" not in card  # what it is measured on here is not what its makers trained it on
    assert "Measured here on kind hub, path ILSVRC/imagenet-1k" in card
    parameters = sum(parameter.numel() for parameter in load_tokenizer(run)[0].parameters())
    assert f"of {parameters:,} parameters" in card


def test_what_is_pushed_can_be_loaded_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = with_results(generator_run(tmp_path / "run", RASTER, VQ))
    hub = tmp_path / "hub"

    class Api:
        def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
            assert (name, private, exist_ok) == ("someone/model", True, True)

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> None:
            shutil.copytree(folder_path, hub)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(hub))
    assert to_hub(run, "someone/model", private=True) == "https://huggingface.co/someone/model"
    assert torch.equal(Pipeline.from_pretrained("someone/model")([0]), Pipeline.from_pretrained(run)([0]))
    assert sorted(path.name for path in hub.iterdir()) == [
        "README.md", "config.yaml", "model.safetensors", "results.json", "tokenizer",
    ]  # fmt: skip


def test_a_push_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Api:
        def create_repo(self, *_: object, **__: object) -> None:
            raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    run = tokenizer_run(tmp_path / "run", VQ)
    with pytest.raises(RunError, match=r"could not push to someone/model \(no route\)") as error:
        to_hub(run, "someone/model")
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="called user/name"):
        to_hub(run, "model")


def test_mistakes(tmp_path: Path) -> None:
    run = str(tokenizer_run(tmp_path / "run", VQ))
    with pytest.raises(ConfigError, match="no format 'gguf'; there are safetensors, hub"):
        export(run, "gguf", tmp_path / "out")
    with pytest.raises(ConfigError, match="--repo user/name"):
        export(run, "hub", tmp_path / "out")


# ---------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("form", ["safetensors", "diffusers", "onnx"])
@pytest.mark.parametrize("before", [False, True])
def test_a_failed_export_leaves_what_was_there(tmp_path: Path, form: str, before: bool) -> None:
    run = generator_run(tmp_path / "run", RASTER, VQ)
    weights = run / ("tokenizer/model.safetensors" if form == "onnx" else WEIGHTS)
    weights.write_bytes(weights.read_bytes()[:2000])
    if before:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "README.md").write_text("an earlier export")
    with pytest.raises(ArtokError):
        export(str(run), form, tmp_path / "out" if before else tmp_path / "new" / "out")
    assert {path.name for path in tmp_path.iterdir()} == ({"run", "out"} if before else {"run"})
    assert not before or [path.name for path in (tmp_path / "out").iterdir()] == ["README.md"]


def test_samples_that_fail_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.from_pretrained(generator_run(tmp_path / "run", RASTER, VQ))
    (tmp_path / "samples.npz").write_bytes(b"earlier samples")

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_npz(pipeline, tmp_path / "samples.npz", 4, pipeline.sampling, 2, stop)
    assert (tmp_path / "samples.npz").read_bytes() == b"earlier samples"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "samples.npz"}
