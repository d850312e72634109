"""A compiled tokenizer is one graph, which is traced once whatever its quantizer does at the end of a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.models import tokenizer_experiment
from torch._dynamo import config

from artok.noise import Noise
from artok.tokenizers.base import Tokenizer
from artok.training.quantizers import Quantizers

KINDS: dict[str, dict[str, Any]] = {
    "vq": {"codebook_size": 16, "code_dim": 4},
    "multiscale": {"codebook_size": 16, "code_dim": 4, "scales": [1, 2, 4]},
}


def three_steps(tokenizer: Tokenizer) -> list[float]:
    """The losses, with what follows each step: settling, encoding and decoding."""
    quantizers, optimizer = Quantizers(tokenizer), torch.optim.SGD(tokenizer.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(step)) * 2 - 1
        quantizers.draw_by(Noise(step, torch.arange(8)))
        result = tokenizer.train()(images)
        loss = (result.images - images).square().mean() + sum(result.losses.values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        quantizers.settle()
        with torch.no_grad():
            tokenizer.eval().decode(tokenizer.encode(images))
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_compiles_to_one_graph(kind: str) -> None:
    experiment = tokenizer_experiment(tokenizer={"quantizer": {"kind": kind} | KINDS[kind]})
    assert not isinstance(experiment.tokenizer, str)
    models = list[Tokenizer]()
    for _ in range(2):
        torch.manual_seed(0)
        models.append(experiment.tokenizer.build(experiment.image))
    torch._dynamo.reset()
    models[0].compile(backend="eager", fullgraph=True)  # traced, and run by the same kernels
    with config.patch(error_on_recompile=True):
        losses = [three_steps(model) for model in models]
    assert losses[0] == losses[1]
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name
