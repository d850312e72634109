"""LlamaGen's text-to-image files: keys, shapes and equations of the published module, of random weights.

There is no recorded output of a published file: one reads flan-t5-xl, which is not here.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.commands import artok
from helpers.published import VQ, on_meta, tokenizer_run
from helpers.text_models import FEATURES, tiny_t5
from torch import Tensor

from artok.errors import CheckpointError
from artok.generators.raster import SIZES, Raster
from artok.interop.families import Hints, find_family
from artok.interop.importing import ImportOptions as Options
from artok.interop.importing import Report, import_file
from artok.interop.matching import compare
from artok.interop.reading import Checkpoint
from artok.layout import Condition, TokenLayout
from artok.nn.rotary import rotary_table
from artok.pipeline import Pipeline
from artok.sampling.guidance import append_unconditional

LENGTH, WIDTH, HEADS, LAYERS, HIDDEN, VOCAB = 6, 32, 2, 2, 48, 32  # of the small file
PROMPTS = ["a red circle", "a star at the top left of the blue square"]  # 4 entries, and more than are read


def layout_of_file(
    layers: int = LAYERS,
    width: int = WIDTH,
    hidden: int = HIDDEN,
    vocab: int = VOCAB,
    length: int = LENGTH,
    features: int = FEATURES,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file (autoregressive/models/gpt.py, model_type t2i)."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_embedding.cap_proj.fc1.weight": (width, features),
        "cls_embedding.cap_proj.fc2.weight": (width, width),
        "cls_embedding.uncond_embedding": (length, features),
        "tok_embeddings.weight": (vocab, width),
        "norm.weight": (width,),
        "output.weight": (vocab, width),
    }
    for layer in (f"layers.{index}" for index in range(layers)):
        shapes |= {
            f"{layer}.attention.wqkv.weight": (3 * width, width),
            f"{layer}.attention.wo.weight": (width, width),
            f"{layer}.feed_forward.w1.weight": (hidden, width),
            f"{layer}.feed_forward.w3.weight": (hidden, width),
            f"{layer}.feed_forward.w2.weight": (width, hidden),
            f"{layer}.attention_norm.weight": (width,),
            f"{layer}.ffn_norm.weight": (width,),
        }
    return shapes


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=random) for name, shape in layout_of_file().items()}


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5(tmp_path_factory.mktemp("t5"))


def imported(state: dict[str, Tensor], t5: Path, folder: Path) -> tuple[Report, Path]:
    torch.save({"model": state}, folder / "t2i.pt")
    vq = tokenizer_run(folder / "vq", VQ)
    own = (f"generator.conditioning.0.encoder.name={t5}", "generator.heads=2")
    return import_file(folder / "t2i.pt", folder / "run", Options(tokenizer=str(vq), overrides=own)), folder / "run"


# ------------------------------------------------------------------------------------------ the published equations


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def turn(x: Tensor, table: Tensor) -> Tensor:
    """(B, N, heads, D) turned by the table (N, D / 2, 2) of cosines and sines; zeros make it vanish."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.view_as_complex(table.contiguous())[:, None]).flatten(-2)


def published_logits(state: dict[str, Tensor], features: Tensor, mask: Tensor, codes: Tensor, grid: int) -> Tensor:
    """Logits of all codes. features (B, L, E), padded on the left, and their mask (B, L), as the sampler gives them."""
    entries = F.gelu(F.linear(features, state["cls_embedding.cap_proj.fc1.weight"]), approximate="tanh")
    entries = F.linear(entries, state["cls_embedding.cap_proj.fc2.weight"])
    x = torch.cat([entries, state["tok_embeddings.weight"][codes]], dim=1)
    length, prefix = x.shape[1], entries.shape[1]
    places = rotary_table((grid, grid), WIDTH // HEADS, 10000.0)
    table = torch.cat([torch.zeros(prefix, *places.shape[1:]), places])[:length]
    sees = torch.ones(length, length).tril() * F.pad(mask.float(), (0, length - prefix), value=1)[:, None]
    sees = (sees * (1 - torch.eye(length)) + torch.eye(length)).bool()[:, None]
    for layer in (f"layers.{index}" for index in range(LAYERS)):
        own = {name: state[f"{layer}.{name}.weight"] for name in ("attention_norm", "ffn_norm")}
        qkv = F.linear(rms(x, own["attention_norm"]), state[f"{layer}.attention.wqkv.weight"])
        q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in qkv.chunk(3, dim=-1))
        q, k, v = (part.transpose(1, 2) for part in (turn(q, table), turn(k, table), v))
        scores = (q @ k.transpose(-2, -1) / math.sqrt(WIDTH // HEADS)).masked_fill(~sees, -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, state[f"{layer}.attention.wo.weight"])
        h = rms(x, own["ffn_norm"])
        w1, w2, w3 = (state[f"{layer}.feed_forward.w{index}.weight"] for index in (1, 2, 3))
        x = x + F.linear(F.silu(F.linear(h, w1)) * F.linear(h, w3), w2)
    return F.linear(rms(x, state["norm.weight"]), state["output.weight"])[:, prefix - 1 :]


@torch.no_grad()
def test_an_imported_file_computes_the_published_equations_under_a_text_and_its_null(
    state: dict[str, Tensor], t5: Path, tmp_path: Path
) -> None:
    _, run = imported(state, t5, tmp_path)
    generator = Pipeline.from_pretrained(run).generator
    assert isinstance(generator, Raster)
    text = generator.condition(texts=PROMPTS).text
    assert text is not None and text.mask.sum(1).tolist() == [4, 6]
    codes = torch.randint(0, VOCAB, (2, generator.layout.length - 1), generator=torch.Generator().manual_seed(1))
    grid = generator.layout.grid[0]
    mask = text.mask.flip(1)  # the sampler moves the padding to the left and sets it to zero
    features = torch.zeros_like(text.values, dtype=torch.float32)
    for row, count in enumerate(text.mask.sum(1).tolist()):
        features[row, LENGTH - count :] = text.values[row, :count].float()
    null = state["cls_embedding.uncond_embedding"].expand(2, -1, -1)  # seen where the text has entries
    both = append_unconditional(Condition(text=text), ("text",))
    context = generator.context(both).left_padded()
    logits = generator.logits(codes.repeat(2, 1), context)
    for made, given in zip(logits.chunk(2), (features, null), strict=True):
        torch.testing.assert_close(made, published_logits(state, given, mask, codes, grid), rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------ keys and shapes


@pytest.mark.parametrize("size", ["XL", "B"])
def test_the_published_sizes_are_recognised_and_all_keys_are_used(size: str) -> None:
    depth, _, width = SIZES[size]
    hidden = {"XL": 3584, "B": 2048}[size]
    shapes = layout_of_file(depth, width, hidden, 16384, 120, 2048)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    layout = TokenLayout(((16, 16),), 8, 16384, (3, 256, 256))
    family = find_family(tensors, None)
    found = family.describe(tensors, Hints(layout=layout))
    assert (found.size, found.classes) == (f"LlamaGen-{size} (text to image)", 0)
    assert (found.sampling["cfg_scale"], found.sampling["top_k"]) == (7.5, 1000)
    module = on_meta(found.section, layout, 0)
    assert isinstance(module, Raster) and module.prefix == 120
    assert not module.rotary[:120].any()  # as published: the words have no positions
    encoder = module.conditioner.encoder
    assert encoder is not None and encoder.config.name == "google/flan-t5-xl" and encoder.config.lowercase  # type: ignore[attr-defined]
    said: list[str] = []
    checkpoint = Checkpoint(Path("t2i.pt"), tensors, "model", (), ())
    unused = compare(family, module, checkpoint, family.sources(module, tensors), (), said.append)
    assert unused == {"kept as its projection": ["cls_embedding.uncond_embedding"]}
    assert not said
    count = sum(parameter.numel() for parameter in module.parameters())
    assert count == sum(tensor.numel() for tensor in tensors.values()) + 120 * (width - 2048)


def test_a_damaged_file_is_refused(state: dict[str, Tensor], t5: Path, tmp_path: Path) -> None:
    null = "cls_embedding.uncond_embedding"
    for name, changed, words in (
        ("without", {key: value for key, value in state.items() if key != null}, f"the key {null} is missing"),
        ("nan", state | {null: torch.full((LENGTH, FEATURES), math.nan)}, f"{null} holds values that are not finite"),
        ("other", state | {"cls_embedding.cap_proj.fc2.weight": torch.zeros(WIDTH, 5)}, "of another shape"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        with pytest.raises(CheckpointError, match=words):
            imported(changed, t5, folder)
        assert not (folder / "run").exists()


# ------------------------------------------------------------------------------------------ as any other run


def test_it_is_imported_and_sampled_from_the_command_line(
    state: dict[str, Tensor],
    t5: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save({"model": state}, tmp_path / "t2i.pt")
    vq, run = tokenizer_run(tmp_path / "vq", VQ), tmp_path / "run"

    def call(*arguments: object) -> tuple[int, str]:
        code = artok(monkeypatch, *arguments)
        out, err = capsys.readouterr()
        return code, out + err

    own = (f"generator.conditioning.0.encoder.name={t5}", "generator.heads=2")
    code, said = call("import", tmp_path / "t2i.pt", "--tokenizer", vq, "--out", run, *own)
    assert code == 0, said
    assert "text to image" in said and "kept as its projection: cls_embedding.uncond_embedding" in said
    code, said = call("sample", run, "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--out", tmp_path / "s")
    assert code == 0, said
    assert f"'{PROMPTS[1]}' has 11 tokens, and the model reads the first 6" in said
    code, said = call("sample", run, "--labels", "0", "--out", tmp_path / "l")
    assert code == 2 and "conditioned on text; give it one with --prompt" in said
    pipeline = Pipeline.from_pretrained(run)
    one, two = pipeline(PROMPTS, seed=0)
    assert not torch.equal(one, two)
    assert torch.equal(pipeline(PROMPTS, seed=0)[0], one)
    assert not torch.equal(pipeline(PROMPTS, seed=0, cfg_scale=1.0)[0], one)
