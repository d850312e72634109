"""`init:` starts a training from the weights of another run: what fits is loaded, and what does not is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.models import generator_experiment, tokenizer_experiment
from torch import nn

from artok.errors import CheckpointError
from artok.generators.diffusion import LatentDiffusion
from artok.pipeline import Pipeline
from artok.saved import load_tokenizer, read_saved
from artok.training.experiment import Experiment
from artok.training.initial import load_initial
from artok.training.run import train

DIFFUSION = {
    "kind": "diffusion",
    "network": {"kind": "dit", "depth": 2, "width": 16, "heads": 2},
    "diffusion": {"schedule": "straight", "prediction_type": "velocity", "steps": 3},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert train(tokenizer_experiment(), folder / "vq")
    assert train(generator_experiment(str(folder / "vq")), folder / "raster")
    assert train(diffusion(folder), folder / "diffusion")
    return folder


def diffusion(runs: Path, **generator: object) -> Experiment:
    plain = generator_experiment(str(runs / "vq"))
    section = plain.model_dump(mode="json") | {"generator": DIFFUSION | generator, "name": "diffusion"}
    return Experiment.model_validate(section)


def build(experiment: Experiment, runs: Path) -> LatentDiffusion:
    tokenizer, _ = load_tokenizer(runs / "vq")
    assert experiment.generator is not None
    torch.manual_seed(1)
    built = experiment.generator.build(tokenizer.layout, 10)
    assert isinstance(built, LatentDiffusion)
    return built


def start(module: nn.Module, runs: Path, name: str, say: Callable[[str], None], generates: bool = True) -> None:
    config = diffusion(runs).generator if generates else None
    load_initial(module, str(runs / name), config, read_saved(runs / "diffusion").facts, say)


def test_everything_that_fits_is_loaded_and_the_new_input_is_named(runs: Path) -> None:
    said: list[str] = []
    model = build(diffusion(runs, inpaint=True), runs)
    start(model, runs, "diffusion", said.append)
    source = Pipeline.from_pretrained(runs / "diffusion").generator.state_dict()
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in source.items())
    new = state.keys() - source.keys()
    assert len(new) == 1 and not state[next(iter(new))].any()
    total = sum(parameter.numel() for parameter in model.parameters())
    loaded = total - state[next(iter(new))].numel()
    assert said[0] == f"starts from {runs / 'diffusion'}: {loaded:,} of {total:,} numbers loaded"
    assert said[1:] == [f"new: {next(iter(new))} (16, 20)"]  # patches of 2 x 2, of 4 numbers and a flag


def test_the_same_architecture_is_loaded_whole(runs: Path) -> None:
    said: list[str] = []
    model = build(diffusion(runs), runs)
    start(model, runs, "diffusion", said.append)
    assert len(said) == 1 and said[0].endswith("numbers loaded, all of them")


def test_what_is_left_out_is_said(runs: Path) -> None:
    said: list[str] = []
    shallow = DIFFUSION["network"] | {"depth": 1}
    model = build(diffusion(runs, network=shallow), runs)
    start(model, runs, "diffusion", said.append)
    assert "left out of that checkpoint: network.blocks.1." in said[-1] and "and " in said[-1]


def test_more_input_channels_start_at_zero(runs: Path) -> None:
    """A tokenizer of colour images from one of grey ones computes what that one did of its first channel."""
    said: list[str] = []
    colour = tokenizer_experiment(data={"channels": 3})
    wide = colour.tokenizer.build((3, 16, 16))  # type: ignore[union-attr]
    torch.manual_seed(1)
    start(wide, runs, "vq", said.append, generates=False)
    narrow, _ = load_tokenizer(runs / "vq")
    (line,) = (line for line in said if line.startswith("wider, with zeros: "))
    name = line.removeprefix("wider, with zeros: ")
    before, after = narrow.state_dict()[name], wide.state_dict()[name]
    assert torch.equal(after[:, :1], before) and not after[:, 1:].any()


def test_a_tokenizer_starts_from_that_of_a_generator(runs: Path) -> None:
    said: list[str] = []
    tokenizer = tokenizer_experiment().tokenizer.build((1, 16, 16))  # type: ignore[union-attr]
    start(tokenizer, runs, "raster", said.append, generates=False)
    source, _ = load_tokenizer(runs / "vq")
    state = tokenizer.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in source.state_dict().items())
    assert said[0].startswith(f"starts from {runs / 'raster' / 'tokenizer'}: ")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("vq", "holds a tokenizer, and a generator is trained; name a generator"),
        ("raster", "of another architecture, such as network."),
        ("nothing", "nothing"),
    ],
)
def test_what_cannot_start_a_training_is_refused_in_one_sentence(runs: Path, source: str, message: str) -> None:
    model = build(diffusion(runs), runs)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        start(model, runs, source, print)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_fine_tuning_starts_where_its_source_ended(runs: Path, tmp_path: Path) -> None:
    """One step from there leaves weights near the source's; masks need images, so tokens are made online."""
    experiment = diffusion(runs, inpaint=True)
    section = experiment.model_dump(mode="json")
    section |= {"init": str(runs / "diffusion"), "tokens": {"online": True}}
    section["training"] |= {
        "images": 16,
        "validate_every": 16,
        "preview_every": 16,
        "checkpoint_every": 16,
        "ema": None,
    }
    section["training"]["optimizer"] |= {"lr": 1e-6, "warmup": 0, "weight_decay": 0}
    assert train(Experiment.model_validate(section), tmp_path / "fine")
    source = Pipeline.from_pretrained(runs / "diffusion").generator.state_dict()
    state = Pipeline.from_pretrained(tmp_path / "fine").generator.state_dict()
    for name, tensor in source.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=2e-6)
    assert any(not torch.equal(state[name], tensor) for name, tensor in source.items())
