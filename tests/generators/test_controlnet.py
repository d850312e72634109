"""ControlNet: it starts as the model that it steers, trains nothing of it, and is that model where no map is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.generators import CLASSES, config_of, networks, noise, randomise_zeros, texts, tokenizer
from torch import Tensor

from artok.conditioning import control, labels, text
from artok.config import validate
from artok.errors import CheckpointError, ConfigError
from artok.generators import diffusion
from artok.generators.diffusion import LatentDiffusion
from artok.generators.networks import dit
from artok.generators.networks.base import NetworkConfig
from artok.layout import Condition, TokenLayout, Tokens
from artok.nn.controlnet import copied_from
from artok.saved import CONFIG, WEIGHTS, Facts, Saved, whole_state, write_config, write_weights
from artok.training.initial import load_initial
from artok.training.optimizers import make_optimizer
from artok.training.settings import Optimizer

LAYOUT = TokenLayout(((4, 4),), 4, None, (3, 16, 16))
FACTS = Facts(image=LAYOUT.image, classes=tuple("abcd"), data="", version="", tokenizer="mark")
TOLD = (labels.Config(), text.Config.tiny())
NETWORKS = dict(networks())


def build(network: NetworkConfig, controlnet: bool, **changes: Any) -> LatentDiffusion:
    heard = (*TOLD, control.Config.tiny()) if controlnet else TOLD
    section = {"network": network, "conditioning": heard, "controlnet": controlnet} | changes
    torch.manual_seed(0)
    model = config_of("diffusion").model_copy(update=section).build(LAYOUT, CLASSES)
    assert isinstance(model, LatentDiffusion)
    return model.eval()


def save(model: LatentDiffusion, folder: Path, tokenizer_mark: str = "mark") -> Path:
    write_weights(whole_state(model), folder / WEIGHTS)
    facts = FACTS.model_copy(update={"tokenizer": tokenizer_mark})
    write_config(folder / CONFIG, Saved(tokenizer="elsewhere", generator=model.config, facts=facts))
    return folder


def start(model: LatentDiffusion, folder: Path) -> list[str]:
    said: list[str] = []
    load_initial(model, str(folder), model.config, FACTS, said.append)
    return said


def condition(maps: bool = True) -> Condition:
    """Three rows, the second of which has a map of zeros, so none."""
    asked = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    asked[1] = 0
    return Condition(torch.arange(3), texts(3), control=asked if maps else None)


@torch.no_grad()
def outputs(model: LatentDiffusion, given: Condition) -> Tensor:
    random = torch.Generator().manual_seed(2)
    x, times = torch.randn(3, 16, 4, generator=random), torch.tensor([3.0, 20.0, 40.0])
    return model.network(x, times, model.context(given))


@pytest.fixture(params=NETWORKS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LatentDiffusion, LatentDiffusion]:
    """A model all of whose weights act, and a ControlNet that starts from it."""
    network = NETWORKS[request.param]
    if isinstance(network, dit.Config):
        network = network.model_copy(update={"depth": 3})
    base = randomise_zeros(build(network, controlnet=False))
    assert isinstance(base, LatentDiffusion)
    steered = build(network, controlnet=True)
    start(steered, save(base, tmp_path / "base"))
    return base, steered


def test_it_starts_as_the_model_that_it_steers(pair: tuple[LatentDiffusion, LatentDiffusion]) -> None:
    base, steered = pair
    assert torch.equal(outputs(steered, condition()), outputs(base, condition(maps=False)))
    weights = steered.state_dict()
    copies = {name: source for name in weights if (source := copied_from(name))}
    assert copies and all(torch.equal(weights[name], weights[source]) for name, source in copies.items())


def test_training_moves_what_hears_control_and_leaves_the_model(pair: tuple[LatentDiffusion, LatentDiffusion]) -> None:
    base, steered = pair
    optimizer = make_optimizer(steered.train(), Optimizer(lr=0.05))
    before = {name: weight.clone() for name, weight in steered.named_parameters()}
    images = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(3))
    for _ in range(3):  # the layers after the copies move first, then the copies, then the map's encoder
        losses = steered(Tokens(images, LAYOUT), condition(), noise(3), None)
        torch.stack(list(losses.values())).sum().backward()
        own = base.state_dict()
        assert [name for name, weight in steered.named_parameters() if name in own and weight.grad is not None] == []
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, weight in steered.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name, weight in before.items() if weight.numel()} - set(own)
    steered.eval()
    alone, with_maps = outputs(base, condition(maps=False)), outputs(steered, condition())
    changed = (with_maps != alone).flatten(1).any(1)
    assert changed.tolist() == [True, False, True]
    assert torch.equal(outputs(steered, condition(maps=False)), alone)


def test_it_goes_on_from_a_controlnet_with_its_own_copies(tmp_path: Path) -> None:
    network = dit.Config.tiny()
    first = build(network, controlnet=True)
    for weight in first.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    second = build(network, controlnet=True)
    start(second, save(first, tmp_path))
    assert torch.equal(outputs(second, condition()), outputs(first, condition()))


def test_what_is_copied_is_said(tmp_path: Path) -> None:
    base, steered = build(dit.Config.tiny(), controlnet=False), build(dit.Config.tiny(), controlnet=True)
    said = "\n".join(start(steered, save(base, tmp_path)))
    assert "copied" in said and "controlnet.zeros" in said and "left out" not in said


def test_gradient_checkpointing_changes_nothing(pair: tuple[LatentDiffusion, LatentDiffusion]) -> None:
    _, steered = pair
    for weight in steered.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    found = []
    for checkpointing in (False, True):
        steered.network.gradient_checkpointing = checkpointing
        losses = steered.train()(Tokens(torch.ones(3, 16, 4), LAYOUT), condition(), noise(3), None)
        torch.stack(list(losses.values())).sum().backward()
        found.append([weight.grad for weight in steered.parameters() if weight.grad is not None])
        steered.zero_grad(set_to_none=True)
    assert found[0] and all(torch.equal(one, other) for one, other in zip(*found, strict=True))


# ------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "base, message",
    [
        ({"network": dit.Config(depth=2, width=32, heads=2, patch_size=1)}, "has another section network"),
        ({"conditioning": (*TOLD, control.Config.tiny())}, "hears control already"),
        ({"inpaint": True}, "is trained with masks"),
        ({"conditioning": (labels.Config(),)}, r"lacks network\.conditioner\.text\S* .*leaves this weight as it is"),
        ({"mark": "other"}, r"of another tokenizer \(other\) than this one \(mark\)"),
    ],
    ids=["network", "control", "masks", "conditioning", "tokenizer"],
)
def test_a_model_that_it_cannot_steer_is_refused(base: dict[str, Any], message: str, tmp_path: Path) -> None:
    mark = base.pop("mark", "mark")
    other = build(**{"network": dit.Config.tiny(), "controlnet": False} | base)
    steered = build(dit.Config.tiny(), controlnet=True)
    before = whole_state(steered)
    with pytest.raises(CheckpointError, match=message):
        start(steered, save(other, tmp_path, mark))
    assert all(torch.equal(tensor, before[name]) for name, tensor in steered.state_dict().items())


def test_another_family_is_refused(tmp_path: Path) -> None:
    codec = tokenizer("conv-gaussian")
    config = config_of("mar")
    write_weights(whole_state(config.build(codec.layout, CLASSES)), tmp_path / WEIGHTS)
    write_config(tmp_path / CONFIG, Saved(tokenizer="elsewhere", generator=config, facts=FACTS))
    with pytest.raises(CheckpointError, match="is a mar, and a ControlNet steers a diffusion model"):
        start(build(dit.Config.tiny(), controlnet=True), tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"conditioning": [{"kind": "labels"}]}, "controlnet hears a control; add {kind: control}"),
        ({"inpaint": True}, "controlnet leaves the network as it is, and inpaint trains it"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    section = {
        "kind": "diffusion",
        "network": {"kind": "dit", "depth": 1},
        "conditioning": [{"kind": "labels"}, {"kind": "control"}],
        "controlnet": True,
    }
    assert validate(diffusion.Config, section, "test").needs_init
    with pytest.raises(ConfigError, match=message):
        validate(diffusion.Config, section | changes, "test")
