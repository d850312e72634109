"""DiT computes what the official code computes: the network, the loss, and whole DDPM and DDIM chains."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from helpers.official import Official, close, exact, load, official, renamed
from torch import Tensor

from artok.conditioning.base import Context
from artok.generators.diffusion import Config, Guided, LatentDiffusion
from artok.generators.networks import dit
from artok.layout import Condition, TokenLayout
from artok.nn.time import sinusoids
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.schedules import Levels
from artok.sampling.settings import Sampling
from artok.sampling.solvers import Options, ancestral, posterior_log_variance
from artok.sampling.targets import transition

NAMES = [
    (r"^x_embedder\.proj\.", "input."),
    (r"^t_embedder\.mlp\.", "time.layers."),
    (r"^y_embedder\.embedding_table\.", "conditioner.labels.embedding."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.fc1\.", ".feed_forward.0."),
    (r"\.mlp\.fc2\.", ".feed_forward.2."),
    (r"adaLN_modulation\.", "modulation."),
    (r"^final_layer\.linear\.", "output.out."),
    (r"^final_layer\.", "output."),
]


@cache
def recorded() -> Official:
    return official("dit")


def model(clip: float | None = None, steps: int = 10) -> LatentDiffusion:
    about = recorded().about
    given = about["constructor"]
    config = Config(
        network=dit.Config(
            depth=given["depth"], width=given["hidden_size"], heads=given["num_heads"], patch_size=given["patch_size"]
        ),
        guided_channels=3,
        diffusion=DiffusionConfig(variance="learned", clip_sample=clip, steps=steps),
    )
    side, channels = given["input_size"], given["in_channels"]
    layout = TokenLayout(((side, side),), channels, None, (3, 8 * side, 8 * side))
    built = config.build(layout, given["num_classes"])
    state = renamed(recorded().weights, NAMES)
    close(built.network.positions, state.pop("pos_embed")[0], 1e-6)
    state["input.weight"] = state["input.weight"].flatten(1)
    for name in ("output.out.weight", "output.out.bias"):  # (row, column, channel) to (channel, row, column)
        rows = state[name].unflatten(0, (given["patch_size"], given["patch_size"], 2 * channels))
        state[name] = rows.movedim(2, 0).flatten(0, 2)
    load(built.network, state)
    return built.eval()


def tokens(images: Tensor) -> Tensor:
    """(..., C, h, w) to (..., N, C)."""
    return images.flatten(-2).transpose(-1, -2)


def null(built: LatentDiffusion, labels: Tensor) -> Context:
    return built.context(Condition(torch.full_like(labels, built.classes)))


@torch.no_grad()
def test_network() -> None:
    built, io = model(), recorded().io
    close(sinusoids(io["t"], 256), io["t_embed_freq"], 1e-4)  # float32 angles up to 999 differ between machines
    close(built.network.time(io["t"]), io["t_embed"])
    x = tokens(io["x"])
    close(built.network(x, io["t"], built.context(Condition(io["y"]))), tokens(io["out"]))
    close(built.network(x, io["t"], null(built, io["y"])), tokens(io["out_null"]))


@torch.no_grad()
def test_guidance_on_the_first_three_channels() -> None:
    built, io = model(), recorded().io
    guided = Guided(built, Condition(io["y"]), Sampling(cfg_scale=recorded().about["cfg_scale"]), 1)
    close(guided(tokens(io["x"]), io["t"]), tokens(io["out_cfg"])[: len(io["y"])])


def chain(prefix: str) -> Levels:
    config = DiffusionConfig(timestep_spacing="leading" if prefix == "ddim" else "linspace")
    return config.training_levels() if prefix == "full" else config.sampling_levels(10)


@pytest.mark.parametrize("prefix", ["full", "ddpm", "ddim"])
def test_coefficients(prefix: str) -> None:
    io, levels = recorded().io, chain(prefix)
    steps = [transition(levels[index], levels[index - 1]) for index in range(len(levels))]
    assert levels.times.tolist() == io[f"{prefix}_timestep_map"].tolist()
    exact(levels.signal_squared, io[f"{prefix}_alphas_cumprod"])
    exact([step.added for step in steps], io[f"{prefix}_betas"])
    low = [posterior_log_variance(levels, index) for index in range(len(levels))]
    exact(low, io[f"{prefix}_posterior_log_variance_clipped"])
    if prefix == "full":
        return
    exact([step.variance for step in steps], io[f"{prefix}_posterior_variance"])
    exact([step.from_clean for step in steps], io[f"{prefix}_posterior_mean_coef1"])
    exact([step.from_noisy for step in steps], io[f"{prefix}_posterior_mean_coef2"])


@torch.no_grad()
def test_loss() -> None:
    built, io = model(), recorded().io
    terms = built.diffusion.losses(
        lambda x, told: built.network(x, told, built.context(Condition(io["y"]))),
        tokens(io["x0"]), tokens(io["x0_noise"]),
        built.diffusion.at(io["t"]),
    )  # fmt: skip
    close(terms["mse"], io["train_mse"])
    close(terms["vb"], io["train_vb"])
    close(terms["mse"] + terms["vb"], io["train_loss"])


@torch.no_grad()
def test_each_ddpm_step() -> None:
    built, io = model(), recorded().io
    levels, x = chain("ddpm"), tokens(io["x"])
    for j in range(10):
        index = 9 - j
        told = torch.full((len(x),), levels.times[index])
        believed = built.diffusion.believed(built.network(x, told, built.context(Condition(io["y"]))), x, levels[index])
        mean, log_variance = ancestral(believed, x, levels, index, Options())
        close(believed.clean, tokens(io["ddpm_step_pred_xstart"][j]))
        close(mean, tokens(io["ddpm_step_mean"][j]))
        close(log_variance, tokens(io["ddpm_step_log_variance"][j]))


CHAINS = [
    ("ddpm", "ddpm", None, {}),
    ("ddpm_clip", "ddpm", 1.0, {}),
    ("ddim", "ddim", None, {}),
    ("ddim_clip", "ddim", 1.0, {}),
    ("ddim_eta1", "ddim", None, {"eta": 1.0}),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "solver", "clip", "options"), CHAINS, ids=[chain[0] for chain in CHAINS])
def test_whole_guided_chains(name: str, solver: str, clip: float | None, options: dict[str, float]) -> None:
    built, io = model(clip), recorded().io
    spacing = "leading" if solver == "ddim" else "linspace"
    built.diffusion.config = built.diffusion.config.model_copy(update={"timestep_spacing": spacing})
    drawn = iter(io["step_noise"])
    sampling = Sampling(cfg_scale=recorded().about["cfg_scale"])
    predict = Guided(built, Condition(io["y"]), sampling, 10)
    states = list(
        built.diffusion.sample(predict, tokens(io["z"]), lambda: tokens(next(drawn)), solver, 10, Options(**options))
    )
    if f"{name}_pred_x0_first" in io:
        close(states[0][1], tokens(io[f"{name}_pred_x0_first"]), 1e-4)
    for (x, _), theirs in zip(states, io[f"{name}_traj"], strict=True):
        close(x, tokens(theirs), 1e-4)
    close(states[-1][0], tokens(io[f"{name}_final"]), 1e-4)


@torch.no_grad()
def test_the_generator_walks_the_same_chain() -> None:
    """From the generator's own entrance: DDPM without guidance, its random numbers those recorded."""
    built, io = model(), recorded().io
    draws = iter([tokens(io["z"]), *tokens(io["step_noise"])])
    noise = SimpleNamespace(normal=lambda *shape: next(draws))
    *_, last = built.steps(Condition(io["y"]), Sampling(), noise, None)  # type: ignore[arg-type]
    close(last.values, tokens(io["ddpm_nocfg_final"]), 1e-4)
