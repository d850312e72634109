"""`artok import`: sizes are recognised, keys are accounted for, mistakes refused, and what is written is a run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.published import (
    DIT,
    KL,
    RASTER,
    VQ,
    generator_config,
    on_meta,
    published_state,
    randomised,
    shapes,
    tokenizer_config,
    tokenizer_run,
    vqgan,
)
from torch import Tensor

from artok import weights
from artok.config import read_yaml
from artok.errors import CheckpointError, ConfigError, RunError
from artok.interop import hub
from artok.interop.families import Hints, families, find_family
from artok.interop.importing import ImportOptions as Options
from artok.interop.importing import import_file
from artok.layout import TokenLayout
from artok.pipeline import Pipeline
from artok.saved import load_generator, load_tokenizer
from artok.weights import empty_parameters

SMALL = Options(size=16)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "last.ckpt"
    torch.save({"state_dict": vqgan()[1] | {"loss.discriminator.weight": torch.zeros(3)}}, path)
    return path


def changed(file: Path, folder: Path, **changes: Tensor | None) -> Path:
    """The file with tensors put in, or taken out where None."""
    state = torch.load(file)["state_dict"] | {key.replace("__", "."): value for key, value in changes.items()}
    torch.save({"state_dict": {key: value for key, value in state.items() if value is not None}}, folder / "file.ckpt")
    return folder / "file.ckpt"


# ---------------------------------------------------------------------------------------------- what is written


def test_a_tokenizer_becomes_a_run_that_computes_the_same(file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    report = import_file(file, tmp_path / "run", SMALL, said.append)
    built, _ = vqgan()
    tokenizer, saved = load_tokenizer(tmp_path / "run")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        tokens = tokenizer.encode(images)
        assert torch.equal(tokens.values, built.encode(images).values)
        torch.testing.assert_close(tokenizer.decode(tokens), built.decode(tokens), rtol=0, atol=1e-6)
    assert saved.facts.image == (3, 16, 16)
    config = read_yaml(tmp_path / "run" / "config.yaml")
    assert config["source"]["sha256"] == report.checksum
    assert config["source"]["licence"] == "MIT"
    assert report.unused == {"training losses": ["loss.discriminator.weight"]}
    assert any("loss.discriminator.weight" in line for line in said)
    assert any("loading it needs" in line for line in said)


@pytest.mark.parametrize(
    "changes",
    [
        {"downsample": 4, "channel_multipliers": (1, 2, 2), "attention_resolutions": (8, 4), "groups": 8},
        {"attention_resolutions": (), "decoder_attention_resolutions": (16,), "middle_attention": False},
        {
            "decoder_channel_multipliers": (3, 2),
            "decoder_num_res_blocks": 3,
            "num_res_blocks": 2,
            "groups": 1,
            "base_channels": 8,
        },
        {"channel_multipliers": (2, 3), "stem": 16, "base_channels": 32, "z_channels": 6},
        {"quantizer": VQ | {"codebook_size": 7, "code_dim": 3}, "z_channels": 5, "quantizer_kernel": 3},
        {"quantizer": {"kind": "gumbel", "codebook_size": 16, "code_dim": 4}, "z_channels": 8},
    ],
)
def test_any_size_of_vqgan_is_recognised(changes: dict[str, Any], tmp_path: Path) -> None:
    if "groups" not in changes:
        changes = changes | {"groups": 1}
    quantizer = changes.pop("quantizer", VQ)
    config = tokenizer_config(quantizer, **changes)
    built = randomised(config.build((3, 16, 16)))
    hint = "quantize.embed.weight" if quantizer["kind"] == "gumbel" else "quantize.embedding.weight"
    state = published_state(
        "taming_vqgan", built, {hint: torch.empty(quantizer["codebook_size"], quantizer["code_dim"])}
    )
    if quantizer["kind"] == "gumbel":  # a 1x1 convolution there
        state["quantize.proj.weight"] = state["quantize.proj.weight"][..., None, None]
    torch.save({"state_dict": state}, tmp_path / "file.pt")
    import_file(
        tmp_path / "file.pt", tmp_path / "run", Options(size=16, overrides=(f"tokenizer.groups={changes['groups']}",))
    )
    tokenizer, _ = load_tokenizer(tmp_path / "run")
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(tokenizer.decode(tokenizer.encode(images)), built.decode(built.encode(images)))


@pytest.mark.parametrize(("family", "commitment"), [("taming_vqgan", 1.0), ("llamagen_vq", 0.25)])
def test_training_goes_on_from_an_import_with_the_published_commitment(
    family: str, commitment: float, tmp_path: Path
) -> None:
    """taming's code has its beta of .25 on the loss of the codebook, and 1 on that of the encoder."""
    deep = {"downsample": 2, "attention_resolutions": "coarsest", "groups": 1}
    built = randomised(tokenizer_config(VQ, **deep).build((3, 16, 16)))
    hints = {"quantize.embedding.weight": torch.empty(VQ["codebook_size"], VQ["code_dim"])}
    torch.save({"model": published_state(family, built, hints)}, tmp_path / "file.pt")
    import_file(tmp_path / "file.pt", tmp_path / "run", Options(size=16, overrides=("tokenizer.groups=1",)))
    _, saved = load_tokenizer(tmp_path / "run")
    assert saved.tokenizer.quantizer.commitment_weight == commitment  # type: ignore[union-attr]


@pytest.mark.parametrize("scales", [[1, 8], [1, 4, 8], [1, 2, 4, 6, 8]])
def test_convolutions_that_few_scales_leave_idle_are_no_strangers(scales: list[int], tmp_path: Path) -> None:
    """VAR's files hold four of them, however many of those the scales use."""
    quantizer = {"kind": "multiscale", "codebook_size": 16, "code_dim": 4, "scales": scales, "phi": 4} | {
        key: VQ[key] for key in ("update", "dead_code_threshold")
    }
    built = randomised(tokenizer_config(quantizer, quantizer_kernel=3, groups=1).build((3, 16, 16)))
    hints = {f"quantize.quant_resi.qresi_ls.{i}.weight": torch.ones(4, 4, 3, 3) for i in range(4)}
    state = published_state("var_vqvae", built, hints | {"quantize.embedding.weight": torch.empty(16, 4)})
    torch.save(hints | {key.replace("weight", "bias"): torch.ones(4) for key in hints} | state, tmp_path / "vae.pth")
    told = ("tokenizer.groups=1", f"tokenizer.quantizer.scales={scales}")
    import_file(tmp_path / "vae.pth", tmp_path / "run", Options(size=16, overrides=told))
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        found = load_tokenizer(tmp_path / "run")[0].encode(images)
        assert torch.equal(found.values, built.encode(images).values)  # type: ignore[operator]


def test_half_precision_is_widened_exactly(file: Path, tmp_path: Path) -> None:
    state = torch.load(file)["state_dict"]
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        torch.save({"state_dict": {key: value.to(dtype) for key, value in state.items()}}, tmp_path / f"{name}.ckpt")
        report = import_file(tmp_path / f"{name}.ckpt", tmp_path / name, SMALL)
        assert report.widened == name
        tokenizer, _ = load_tokenizer(tmp_path / name)
        assert {parameter.dtype for parameter in tokenizer.parameters()} == {torch.float32}
        half = state["encoder.conv_in.weight"].to(dtype).float()
        assert torch.equal(tokenizer.state_dict()["encoder.conv_in.weight"], half)


def raster_file(folder: Path, classes: int = 3, **extra: Tensor) -> tuple[Path, Path]:
    """A LlamaGen file and the run of its tokenizer."""
    run = tokenizer_run(folder / "vq", VQ)
    layout = load_tokenizer(run)[0].layout
    built = randomised(generator_config(RASTER).build(layout, classes))
    torch.save({"model": published_state("llamagen_gpt", built) | extra}, folder / "c2i.pt")
    return folder / "c2i.pt", run


def test_a_generator_becomes_a_run_with_its_tokenizer(tmp_path: Path) -> None:
    path, run = raster_file(tmp_path)
    options = Options(tokenizer=str(run), overrides=("generator.heads=2", "facts.classes=[cat,dog,cow]"))
    import_file(path, tmp_path / "run", options)
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    assert pipeline.classes == ("cat", "dog", "cow")
    assert pipeline([0, 2]).shape == (2, 3, 16, 16)
    again = Options(tokenizer=str(tmp_path / "run"), size=32, overrides=("generator.heads=2",))
    import_file(path, tmp_path / "larger", again)  # the tokenizer inside a generator's run, at another size
    assert Pipeline.from_pretrained(tmp_path / "larger")([0]).shape == (1, 3, 32, 32)


# ---------------------------------------------------------------------------------------------- published sizes

GRID16 = TokenLayout(((16, 16),), 8, 16384, (3, 256, 256))
LATENT16 = TokenLayout(((16, 16),), 16, None, (3, 256, 256))
LATENT32 = TokenLayout(((32, 32),), 4, None, (3, 256, 256))
SCALES = TokenLayout(tuple((s, s) for s in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)), 32, 4096, (3, 256, 256))
PUBLISHED: list[tuple[str, str, dict[str, Any], TokenLayout]] = [
    *(("llamagen_gpt", f"LlamaGen-{s}", {"kind": "raster", "size": s}, GRID16) for s in ("B", "L", "XL", "XXL", "3B")),
    *(("var_transformer", f"VAR-d{depth}", {"kind": "var", "depth": depth}, SCALES) for depth in (16, 20, 24, 30)),
    ("var_transformer", "VAR-d36", {"kind": "var", "depth": 36, "shared_adaln": True}, SCALES),
    *(("mar", f"MAR-{size}", {"kind": "mar", "size": size}, LATENT16) for size in ("base", "large", "huge")),
    ("dit", "DiT-XL/2", {"kind": "diffusion", "network": {"kind": "dit", "size": "XL"}}, LATENT32),
    ("dit_diffusers", "DiT-XL/2", {"kind": "diffusion", "network": {"kind": "dit", "size": "XL"}}, LATENT32),
    ("dit", "DiT-S/8", {"kind": "diffusion", "network": {"kind": "dit", "size": "S", "patch_size": 8}}, LATENT32),
]  # fmt: skip


def meta_state(family: str, module: torch.nn.Module, layout: TokenLayout) -> dict[str, Tensor]:
    """The keys and shapes of a published file, without memory."""
    state = module.state_dict()
    hints: dict[str, Tensor] = {}
    if family == "mar":
        width = state["body.conditioner.labels.embedding.weight"].shape[1]
        hints = {"class_emb.weight": torch.empty(1000, width), "fake_latent": torch.empty(1, width)}
    sources = families()[family].sources(module, hints)
    found = shapes(state, sources, hints)
    reshaped: dict[str, tuple[int, ...]] = {  # where the published shape is not artok's
        "pos_start": (1, 1)[: 3 - len(found.get("pos_start", ()))], "pos_1LC": (1,),
        "x_embedder.proj.weight": (), "pos_embed.proj.weight": (),
    }  # fmt: skip
    for name, shape in found.items():
        if name.endswith("scale_mul_1H11"):
            found[name] = (1, shape[0], 1, 1)
        elif reshaped.get(name):
            found[name] = (*reshaped[name], *shape)
        elif name in reshaped:
            side = module.network.patch  # type: ignore[union-attr]
            found[name] = (shape[0], layout.width, side, side)  # type: ignore[assignment]
    return {name: torch.empty(shape, device="meta") for name, shape in found.items()}


@pytest.mark.parametrize(("family", "size", "section", "layout"), PUBLISHED, ids=[f"{p[0]}-{p[1]}" for p in PUBLISHED])
def test_published_sizes_are_recognised_by_shapes_alone(
    family: str, size: str, section: Mapping[str, Any], layout: TokenLayout
) -> None:
    module = on_meta(section, layout)
    tensors = meta_state(family, module, layout)
    chosen = find_family(tensors, None)
    assert chosen.name == family
    found = chosen.describe(tensors, Hints(layout=layout))
    assert (found.size, found.classes) == (size, 1000)
    again = on_meta(found.section, layout)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in module.state_dict().items()}


@pytest.mark.parametrize(
    ("family", "section", "quantizer", "codes"),
    [
        ("taming_vqgan", {}, {"kind": "vq", "codebook_size": 16384, "code_dim": 256}, (16384, 256)),
        ("llamagen_vq", {}, {"kind": "vq", "codebook_size": 16384, "code_dim": 8}, (16384, 8)),
        (
            "mar_kl",
            {"z_channels": 16, "decoder_attention_resolutions": []},
            {"kind": "gaussian", "latent_channels": 16},
            None,
        ),
        (
            "sd_vae_kl",
            {"downsample": 8, "channel_multipliers": [1, 2, 4, 4], "z_channels": 4, "attention_resolutions": []},
            {"kind": "gaussian", "latent_channels": 4},
            None,
        ),
    ],
)
def test_published_tokenizers_are_recognised(
    family: str, section: dict[str, Any], quantizer: dict[str, Any], codes: tuple[int, int] | None
) -> None:
    stages = {"base_channels": 128, "channel_multipliers": [1, 1, 2, 2, 4], "num_res_blocks": 2}
    config = {"downsample": 16, **stages, "z_channels": 256} | section
    with empty_parameters():
        module = tokenizer_config(quantizer, **config).build((3, 256, 256))
    hints = {} if codes is None else {"quantize.embedding.weight": torch.empty(codes, device="meta")}
    state = module.state_dict()
    tensors = {
        name: torch.empty(shape, device="meta")
        for name, shape in shapes(state, families()[family].sources(module, hints), hints).items()
    }
    chosen = find_family(tensors, None)
    assert chosen.name == family
    found = chosen.describe(tensors, Hints())
    assert {key: found.section[key] for key in config if key != "attention_resolutions"} == {
        key: value for key, value in config.items() if key != "attention_resolutions"
    }
    width = "latent_channels" if codes is None else "code_dim"
    assert found.section["quantizer"][width] == quantizer[width]


# ---------------------------------------------------------------------------------------------- refusals


def refused(file: Path, folder: Path, options: Options, words: str, kind: type[Exception] = CheckpointError) -> None:
    with pytest.raises(kind, match=words) as error:
        import_file(file, folder / "run", options)
    assert "\n" not in str(error.value)
    assert not (folder / "run" / "config.yaml").exists()


def test_another_family_is_refused_and_named(file: Path, tmp_path: Path) -> None:
    refused(file, tmp_path, Options(family="mar"), "not those of the family mar; they look like taming_vqgan")
    refused(file, tmp_path, Options(family="taming"), "no family 'taming'; did you mean 'taming_vqgan'")
    torch.save({"model": {"layer1.0.conv1.weight": torch.zeros(2, 2)}}, tmp_path / "resnet.pt")
    refused(tmp_path / "resnet.pt", tmp_path, SMALL, "match no published family")


def test_keys_that_do_not_match_are_refused_and_all_are_reported(file: Path, tmp_path: Path) -> None:
    extra = changed(file, tmp_path, encoder__strange__weight=torch.zeros(1), more=torch.zeros(1))
    said: list[str] = []
    with pytest.raises(CheckpointError, match="2 keys not part of this model"):
        import_file(extra, tmp_path / "run", SMALL, said.append)
    assert {"not part of this model: encoder.strange.weight", "not part of this model: more"} <= set(said)
    import_file(extra, tmp_path / "run", Options(size=16, ignore=("encoder.strange.*", "more")))
    missing = changed(file, tmp_path, decoder__norm_out__bias=None)
    refused(missing, tmp_path / "2", SMALL, r"1 key missing \(decoder.norm_out.bias\)")
    shape = changed(file, tmp_path, decoder__norm_out__bias=torch.zeros(5))
    refused(shape, tmp_path / "3", SMALL, r"1 key of another shape \(decoder.norm_out.bias \(5,\), not \(8,\)")
    swapped = changed(file, tmp_path, quant_conv__bias=torch.zeros(4, dtype=torch.int64))
    refused(swapped, tmp_path / "4", SMALL, r"1 key of another type of number \(quant_conv.bias int64\)")


def test_numbers_that_are_not_finite_are_refused(file: Path, tmp_path: Path) -> None:
    broken = changed(file, tmp_path, post_quant_conv__bias=torch.full((4,), float("nan")))
    refused(broken, tmp_path, SMALL, "post_quant_conv.bias holds values that are not finite")
    assert not list((tmp_path / "run").glob("*"))


def test_a_failed_import_leaves_nothing_and_touches_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = changed(file, tmp_path, post_quant_conv__bias=torch.full((4,), float("nan")))
    refused(broken, tmp_path / "deep" / "er", SMALL, "not finite")
    assert not (tmp_path / "deep").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_text("mine")
    refused(file, tmp_path, SMALL, "holds other files already", ConfigError)
    assert (tmp_path / "run" / "model.safetensors").read_text() == "mine"
    with pytest.raises(ConfigError, match="holds other files already"):
        import_file(file, tmp_path / "run" / "model.safetensors", SMALL)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("artok.interop.importing.write_each", full)
    with pytest.raises(RunError, match=r"No space left on device .free some space"):
        import_file(file, tmp_path / "full" / "run", SMALL)
    assert not (tmp_path / "full").exists()


def test_a_killed_import_can_be_run_again(file: Path, tmp_path: Path) -> None:
    (tmp_path / ".run.writing").mkdir()
    (tmp_path / ".run.writing" / "model.safetensors").write_text("half of it")
    (tmp_path / "run").mkdir()
    import_file(file, tmp_path / "run", SMALL)
    assert load_tokenizer(tmp_path / "run")
    assert not (tmp_path / ".run.writing").exists()


def test_a_run_is_measured_on_images_of_its_own_size(file: Path, tmp_path: Path) -> None:
    folder = ("data.kind=folder", "data.root=photos")
    import_file(file, tmp_path / "run", Options(size=16, overrides=folder))
    section = {"kind": "folder", "root": "photos", "size": 16, "channels": 3}
    assert read_yaml(tmp_path / "run" / "config.yaml")["data"] == section
    refused(
        file, tmp_path / "2", Options(size=16, overrides=(*folder, "data.size=8")), "data.size=8 does not", ConfigError
    )
    refused(
        file, tmp_path / "3", Options(size=16, overrides=("data.kind=fodler",)), "did you mean 'folder'", ConfigError
    )
    refused(file, tmp_path / "4", Options(size=16, overrides=("data.root=x",)), "unknown key 'data.root'", ConfigError)
    path, run = raster_file(tmp_path)
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text() + "data: {kind: folder, root: photos, size: 9}\n"
    )
    import_file(path, tmp_path / "gpt", Options(tokenizer=str(run), overrides=("generator.heads=2",)))
    assert read_yaml(tmp_path / "gpt" / "config.yaml")["data"] == section  # as its tokenizer's


def test_what_the_file_does_not_tell_is_asked_for(file: Path, tmp_path: Path) -> None:
    path, run = raster_file(tmp_path)
    refused(
        path,
        tmp_path,
        Options(tokenizer=str(run)),
        "generator.heads cannot be read from the shapes .*; add generator.heads=",
        ConfigError,
    )
    refused(path, tmp_path, Options(), "needs the tokenizer that it was trained on", ConfigError)
    refused(file, tmp_path, Options(tokenizer=str(run)), "is a tokenizer itself", ConfigError)
    refused(
        file,
        tmp_path,
        Options(overrides=("tokenizer.base_chanels=3",)),
        "did you mean 'tokenizer.base_channels'|'base_channels'",
        ConfigError,
    )
    import_file(file, tmp_path / "taken", SMALL)
    with pytest.raises(ConfigError, match="holds a run already"):
        import_file(file, tmp_path / "taken", SMALL)


def test_a_tokenizer_of_other_tokens_is_refused(tmp_path: Path) -> None:
    path, _ = raster_file(tmp_path)
    heads = ("generator.heads=2",)
    other = tokenizer_run(tmp_path / "other", VQ | {"codes": 16})
    refused(path, tmp_path, Options(tokenizer=str(other), overrides=heads), "of another shape")
    with pytest.raises(Exception, match="needs codes"):
        continuous = tokenizer_run(tmp_path / "kl", KL)
        import_file(path, tmp_path / "run", Options(tokenizer=str(continuous), overrides=heads))


def test_a_generator_says_how_many_positions_it_has(tmp_path: Path) -> None:
    run = tokenizer_run(tmp_path / "kl", KL)
    section = {"kind": "mar", "depth": 1, "width": 32, "heads": 2, "head_depth": 1, "head_width": 32, "buffer_size": 2}
    layout = load_tokenizer(run)[0].layout
    built = randomised(generator_config(section).build(layout, 3))
    hints = {"class_emb.weight": torch.empty(3, 32), "fake_latent": torch.empty(1, 32)}
    torch.save({"model_ema": published_state("mar", built, hints)}, tmp_path / "mar.pth")
    larger = Options(tokenizer=str(run), size=32, overrides=("generator.heads=2",))
    refused(tmp_path / "mar.pth", tmp_path, larger, "64 positions of 1x1 tokens, and the tokenizer gives 256 tokens")


def test_a_dit_with_another_table_of_positions_is_refused(tmp_path: Path) -> None:
    run = tokenizer_run(tmp_path / "kl", KL)
    layout = load_tokenizer(run)[0].layout
    built = randomised(generator_config(DIT).build(layout, 3))
    state = published_state("dit", built)
    state["x_embedder.proj.weight"] = state["x_embedder.proj.weight"].view(32, 4, 2, 2)
    options = Options(tokenizer=str(run), overrides=("generator.network.heads=2",))
    torch.save(state | {"pos_embed": torch.zeros(1, 16, 32)}, tmp_path / "dit.pt")
    refused(tmp_path / "dit.pt", tmp_path, options, "not the fixed table")
    torch.save(state | {"pos_embed": torch.zeros(1, 64, 32)}, tmp_path / "dit.pt")
    refused(tmp_path / "dit.pt", tmp_path, options, "64 positions, and the tokenizer gives 16")


# ---------------------------------------------------------------------------------------------- memory


def test_too_little_memory_is_said_before_loading(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("artok.interop.importing.available_memory", lambda: 3_000_000_000)
    import_file(file, tmp_path / "run", SMALL, said.append)
    assert any("of memory; 3.0 GB are free here" in line for line in said)
    monkeypatch.setattr(weights, "available_memory", lambda: 1000)
    with pytest.raises(RunError, match=r"loading .* needs 0\.\d MB of memory, and 0\.0 MB are free here"):
        load_tokenizer(tmp_path / "run")


def test_a_file_that_does_not_fit_the_memory_is_refused_before_it_is_read(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(torch.load(file), tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False)
    monkeypatch.setattr(weights, "available_memory", lambda: 1000)
    refused(tmp_path / "legacy.ckpt", tmp_path, SMALL, r"reading .* needs 0\.\d MB of memory, and", RunError)
    import_file(file, tmp_path / "mapped", SMALL)  # a file that is read in parts needs no memory for its whole
    monkeypatch.setattr(weights, "_address_space_left", lambda: iter([1000]))
    refused(file, tmp_path, SMALL, r"reading .* needs 0\.\d MB of memory, and", RunError)


PEAK = """
import resource, sys, torch
from pathlib import Path
from artok.interop.importing import ImportOptions as Options
from artok.interop.importing import import_file
from artok.generators import raster
from artok.saved import load_generator, load_tokenizer

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

file, run, out = map(Path, sys.argv[1:])
import_file(run / "small.pt", out / "warm", Options(tokenizer=str(run), overrides=("generator.heads=2",)))
layout = load_tokenizer(run)[0].layout
load_generator(out / "warm", layout)
size, before = file.stat().st_size, peak()
import_file(file, out / "run", Options(tokenizer=str(run), overrides=("generator.heads=8",)))
imported = peak()
generator, _ = load_generator(out / "run", layout)
print((imported - before) / size, (peak() - before) / size)
"""


@pytest.mark.slow
def test_import_and_loading_take_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    path, run = raster_file(tmp_path)
    path.rename(run / "small.pt")
    layout = load_tokenizer(run)[0].layout
    large = on_meta({"kind": "raster", "depth": 5, "width": 768, "heads": 8}, layout, 3)
    state = {name: torch.zeros(tensor.shape) for name, tensor in meta_state("llamagen_gpt", large, layout).items()}
    torch.save({"model": state}, tmp_path / "large.pt")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "large.pt"), str(run), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported, loaded = map(float, done.stdout.split())
    assert imported < 1.2
    assert loaded < 1.2


# ---------------------------------------------------------------------------------------------- the hub


def test_without_a_network_one_sentence_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "_reachable", lambda host: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    said: list[str] = []
    for name in hub.CATALOGUE:
        with pytest.raises(RunError, match=f"^{name} could not be fetched .there is no network.; .*by hand") as error:
            hub.import_published(f"hub:{name}", tmp_path / "run", Options(), said.append)
        assert "\n" not in str(error.value)
        assert hub.CATALOGUE[name].address in str(error.value)
        assert f"--family {hub.CATALOGUE[name].family}" in str(error.value)
        assert hub.CATALOGUE[name].licence in str(error.value)
        assert not (tmp_path / "run").exists()
        assert any("licence" in line and name in line for line in said)
    with pytest.raises(RunError, match="--family var_vqvae --size 512 --out RUN"):
        hub.fetch("var-d36-512", said.append)
    with pytest.raises(ConfigError, match="did you mean 'var-d16'"):
        hub.published("var-d-16")


def test_a_file_of_the_hub_is_held_to_the_checksum_it_is_kept_under(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = hub.replace(hub.CATALOGUE["llamagen-vq-ds16"], family="taming_vqgan", size=16)
    monkeypatch.setitem(hub.CATALOGUE, "llamagen-vq-ds16", entry)
    monkeypatch.setattr(hub, "_reachable", lambda host: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # whatever the environment says
    for name, whole in ((hub.sha256(file), True), ("0" * 64, False)):
        kept = tmp_path / "blobs" / name  # as huggingface_hub keeps a large file
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(file.read_bytes())
        link = tmp_path / name / "vq_ds16_c2i.pt"
        link.parent.mkdir()
        link.symlink_to(kept)

        def download(repository: str, file_name: str, local_files_only: bool, link: Path = link) -> str:
            assert (repository, file_name, local_files_only) == (entry.repository, entry.file, False)
            return str(link)

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        said: list[str] = []
        if whole:
            hub.import_published("hub:llamagen-vq-ds16", tmp_path / "run", Options(), said.append)
            assert said[0] == f"llamagen-vq-ds16: {entry.address}, licence MIT"
            assert read_yaml(tmp_path / "run" / "config.yaml")["source"]["file"] == "vq_ds16_c2i.pt"
        else:
            with pytest.raises(RunError, match=r"is damaged: its sha256 is .*, not 0{64}; delete it"):
                hub.import_published("hub:llamagen-vq-ds16", tmp_path / "other", Options(), said.append)
            assert not (tmp_path / "other").exists()


def test_every_name_has_a_family_and_its_tokenizer() -> None:
    for entry in hub.CATALOGUE.values():
        family = families()[entry.family]
        assert (family.role == "generator") == (entry.tokenizer is not None)
        assert entry.tokenizer is None or families()[hub.CATALOGUE[entry.tokenizer].family].role == "tokenizer"


def test_a_fetched_file_is_held_to_its_checksum(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = hub.CATALOGUE["vqgan-f16-16384"]
    monkeypatch.setattr(hub, "_download", lambda entry, name: file)
    said: list[str] = []
    monkeypatch.setitem(hub.CATALOGUE, "vqgan-f16-16384", hub.replace(entry, size=16))
    hub.import_published("hub:vqgan-f16-16384", tmp_path / "run", Options(), said.append)
    assert load_tokenizer(tmp_path / "run")
    assert any("sha256" in line for line in said)
    monkeypatch.setitem(hub.CATALOGUE, "vqgan-f16-16384", hub.replace(entry, sha256="0" * 64))
    with pytest.raises(RunError, match="is damaged: its sha256 is"):
        hub.fetch("vqgan-f16-16384", said.append)


def test_a_generators_tokenizer_is_fetched_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, run = raster_file(tmp_path)
    built, _ = load_tokenizer(run)
    table = {"quantize.embedding.weight": torch.empty(32, 4)}
    torch.save({"model": published_state("llamagen_vq", built, table)}, tmp_path / "vq.pt")
    monkeypatch.setattr(hub, "_download", lambda entry, name: tmp_path / "vq.pt" if entry.tokenizer is None else path)
    for name in ("llamagen-b-256", "llamagen-vq-ds16"):
        monkeypatch.setitem(hub.CATALOGUE, name, hub.replace(hub.CATALOGUE[name], size=16))
    options = Options(overrides=("generator.heads=2",))
    hub.import_published("hub:llamagen-b-256", tmp_path / "runs" / "gpt", options, lambda line: None)
    assert (tmp_path / "runs" / "llamagen-vq-ds16" / "config.yaml").exists()
    assert load_generator(tmp_path / "runs" / "gpt", built.layout)
