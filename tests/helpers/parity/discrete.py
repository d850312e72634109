"""Recorded tensors of the transformers over codes: LlamaGen and VAR."""

from __future__ import annotations

import math
import re
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor

from artok.generators import raster, raster_decoder, var
from artok.generators.base import Generator
from artok.layout import Codec, Condition, Tokens
from artok.noise import Noise
from artok.sampling.logits import probabilities
from artok.sampling.settings import Sampling
from helpers.parity.fixtures import Fixture, any_tokenizer, imported_generator
from helpers.parity.fixtures import fixture as read_fixture
from helpers.parity.tokenizers import imported_var_vqvae, transformer_input

FILTER = re.compile(r"filter_probs(?:_T([\d.]+))?(?:_k(\d+))?(?:_p([\d.]+))?")


def filtered(fixture: Fixture) -> dict[str, Tensor]:
    """The distributions after temperature, top-k and top-p; in both families 0, or nothing, leaves a filter out."""
    found = {}
    for name in fixture.about["outputs"]:
        asked = FILTER.fullmatch(name)
        if asked:
            temperature, top_k, top_p = float(asked[1] or 1), int(asked[2] or 0), float(asked[3] or 0)
            found[name] = probabilities(fixture.io["filter_logits"], temperature, top_k or None, top_p or None)
    return found


def generated(
    module: ModuleType, drawing: str, built: Generator, labels: Tensor, sampling: Sampling, codec: Codec | None
) -> tuple[Tokens, list[Tensor]]:
    """Tokens of a whole generation, and the logits that each draw was given. drawing: the function of the module that
    draws."""
    given, draw = list[Tensor](), getattr(module, drawing)

    def watched(logits: Tensor, *rest: object) -> Tensor:
        given.append(logits)
        return draw(logits, *rest)

    with mock.patch.object(module, drawing, watched):
        *_, tokens = built.steps(Condition(labels), sampling, Noise(0, torch.arange(len(labels))), codec)
    return tokens, given


def llamagen_gpt(fixture: Fixture) -> dict[str, Tensor]:
    made, io = fixture.made, fixture.io
    side = math.isqrt(made["block_size"])
    quantizer = {"kind": "vq", "codebook_size": made["vocab_size"], "code_dim": 4}
    tokenizer = any_tokenizer(fixture.folder / f"{fixture.name}-tokenizer", side, quantizer)
    own = [f"generator.heads={made['n_head']}", f"generator.rope_base={made['rope_base']}"]
    built, codec = imported_generator(fixture, tokenizer, *own)
    assert isinstance(built, raster.Raster)
    labels, codes = io["labels"], io["codes"]
    tokens = Tokens(codes[..., None], built.layout)
    found = {
        "logits": built.logits(codes[:, :-1], built.context(Condition(labels))),
        "logits_null": built.logits(codes[:, :-1], built.context(Condition(torch.full_like(labels, built.classes)))),
        "loss": built(tokens, Condition(labels), Noise(0, torch.arange(len(labels))), codec)["nll"],
        "rope_table": built.rotary,
    }
    for name, given in fixture.about["generation"].items():
        last = given.get("cfg_interval", -1)  # the last decode step that is guided; the prefill comes before step 0
        until = 1.0 if last < 0 else min(1.0, (last + 2) / codes.shape[1])
        sampling = Sampling(temperature=0, cfg_scale=max(given["cfg_scale"], 1.0), cfg_interval=(0.0, until))
        made_tokens, logits = generated(raster_decoder, "draw_gumbel", built, labels, sampling, codec)
        found |= {f"{name}_idx": made_tokens.values[..., 0], f"{name}_logits": torch.cat(logits, dim=1)}
    return found | filtered(fixture)


def var_transformer(fixture: Fixture) -> dict[str, Tensor]:
    tokenizer, published_codec = imported_var_vqvae(read_fixture(fixture.about["vqvae_fixture"], fixture.folder))
    built, codec = imported_generator(fixture, tokenizer)
    assert isinstance(built, var.Var)
    labels = fixture.io["labels"]
    tokens = Tokens(fixture.io["targets"][..., None], codec.layout)
    found = {
        "var_input": transformer_input(published_codec, tokens),
        "logits": built.logits(tokens, built.context(Condition(labels)), codec),
        "logits_null": built.logits(tokens, built.context(Condition(torch.full_like(labels, built.classes))), codec),
    }
    for name, given in fixture.about["generation"].items():
        sampling = Sampling(temperature=0, cfg_scale=1 + given["cfg"], cfg_schedule="linear")
        made_tokens, logits = generated(var, "draw", built, labels, sampling, codec)
        found |= {
            f"{name}_idx": made_tokens.values[..., 0],
            f"{name}_logits": torch.cat(logits, dim=1),
            f"{name}_f_hat": codec.embed(made_tokens),
            f"{name}_image": codec.decode(made_tokens).clamp(-1, 1) / 2 + 0.5,
        }
    return found | filtered(fixture)
