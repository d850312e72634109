"""Recorded tensors of the generators over continuous tokens: MAR with its diffusion head, and DiT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from artok.generators.diffusion import Guided, LatentDiffusion
from artok.generators.mar import Mar
from artok.generators.masked import count_masked
from artok.layout import Condition, Tokens
from artok.nn.time import sinusoids
from artok.noise import Noise
from artok.sampling.diffusion import Diffusion, DiffusionConfig
from artok.sampling.schedules import Level, Levels
from artok.sampling.settings import Sampling
from artok.sampling.solvers import SOLVERS, Denoised, Options, ancestral, posterior_log_variance
from artok.sampling.targets import transition
from helpers.parity.fixtures import Fixture, any_tokenizer, imported_generator

# ---------------------------------------------------------------------------------------------- chains


def tables(levels: Levels, prefix: str) -> dict[str, Tensor]:
    """Every coefficient table of a chain under its official name."""
    pairs = [(levels[index], levels[index - 1]) for index in range(len(levels))]
    steps = [transition(level, before) for level, before in pairs]
    found = {
        "timestep_map": levels.times.long(),
        "betas": [step.added for step in steps],
        "alphas_cumprod": levels.signal_squared,
        "alphas_cumprod_prev": [before.signal_squared for _, before in pairs],
        "posterior_mean_coef1": [step.from_clean for step in steps],
        "posterior_mean_coef2": [step.from_noisy for step in steps],
        "posterior_variance": [step.variance for step in steps],
        "posterior_log_variance_clipped": [posterior_log_variance(levels, index) for index in range(len(levels))],
        "sqrt_recip_alphas_cumprod": [1 / level.signal for level, _ in pairs],
        "sqrt_recipm1_alphas_cumprod": [level.sigma / level.signal for level, _ in pairs],
    }
    return {
        f"{prefix}_{name}": table if isinstance(table, Tensor) else torch.tensor(table, dtype=torch.float64)
        for name, table in found.items()
    }


def first(levels: Levels, count: int) -> Levels:
    """The cleanest `count` levels of a chain: sampling them begins with the step from the last of these."""
    fields = ("signal_squared", "sigma_squared", "power", "times")
    return replace(levels, **{name: getattr(levels, name)[:count] for name in fields})


def each_step(
    diffusion: Diffusion, network: Callable[[Tensor, Tensor], Tensor], x: Tensor, noises: Tensor, levels: Levels,
    solver: str, options: Options,
) -> dict[str, Tensor]:  # fmt: skip
    """Each step of a chain by itself from the same x, the noisiest first."""
    kept: dict[str, list[Tensor]] = {name: [] for name in ("mean", "log_variance", "pred_xstart", "sample")}

    def denoise(state: Tensor, t: Level, _: Level) -> Denoised:
        return diffusion.denoise(network(state, torch.full((len(state),), t.time)), state, t.signal, t.sigma)

    for step, noise in enumerate(noises):
        index = len(levels) - 1 - step
        part = first(levels, index + 1)
        mean, log_variance = ancestral(denoise(x, levels[index], levels[index]), x, levels, index, options)
        reached, clean = next(SOLVERS[solver](denoise, x, part, lambda noise=noise: noise, options))
        for name, value in zip(kept, (mean, log_variance, clean, reached), strict=True):
            kept[name].append(value)
    return {name: torch.stack(values) for name, values in kept.items()}


# ---------------------------------------------------------------------------------------------- MAR


class GivenNoise(Noise):
    """The recorded noise of a generation, kept by position: start (B, N, D), steps (K, B, N, D)."""

    def __init__(self, start: Tensor, steps: Tensor, orders: Tensor, iterations: int) -> None:
        self.orders, self.calls, self.noises = orders, 0, torch.cat([start[None], steps])
        self.places, now = [], orders.shape[1]
        for step in range(iterations):
            left = count_masked(orders.shape[1], iterations, step, now)
            self.places.append(orders[:, left:now])
            now = left

    def permutation(self, n: int) -> Tensor:
        return self.orders

    def normals(self, expected: int, *shape: int) -> Iterator[Tensor]:
        while True:
            yield self.normal(*shape)

    def normal(self, *shape: int) -> Tensor:
        iteration, draw = divmod(self.calls, len(self.noises) - 1)  # the start and one a step, none in the last
        self.calls += 1
        return self.noises[draw].gather(1, self.places[iteration][..., None].expand(-1, -1, shape[1]))


def spaced(built: Mar | LatentDiffusion, **changes: object) -> DiffusionConfig:
    """The model's diffusion with other settings of sampling."""
    diffusion = built.head.diffusion if isinstance(built, Mar) else built.diffusion
    diffusion.config = diffusion.config.model_copy(update=changes)
    return diffusion.config


def mar(fixture: Fixture) -> dict[str, Tensor]:
    made, about = fixture.made, fixture.about
    side = made["img_size"] // made["vae_stride"]
    quantizer = {"kind": "gaussian", "latent_channels": made["vae_embed_dim"]}
    tokenizer = any_tokenizer(fixture.folder / f"{fixture.name}-tokenizer", side, quantizer)
    own = [
        f"generator.heads={made['encoder_num_heads']}",
        f"generator.diffusion_batch_mul={made['diffusion_batch_mul']}",
    ]
    own.append(f"generator.decoder_heads={made['decoder_num_heads']}")
    built, _ = imported_generator(fixture, tokenizer, *own)
    assert isinstance(built, Mar)
    found = mar_body(fixture, built) | mar_losses(fixture, built) | mar_head(fixture, built)
    chains = {"train": built.config.diffusion.training_levels()}
    for prefix, spacing in (("short", "linspace"), ("strided", "leading")):
        config = spaced(built, timestep_spacing=spacing)
        chains[prefix] = config.sampling_levels(len(fixture.io[f"{prefix}_timestep_map"]))
    for prefix, levels in chains.items():
        found |= tables(levels, prefix)
    for name in about["generation"]:
        found |= mar_generation(fixture, built, name)
    return found


def grid(values: Tensor, official: Tensor) -> Tensor:
    """Token values (B, N, D) as latents (B, D, h, w)."""
    return values.transpose(1, 2).unflatten(2, official.shape[2:])


def mar_body(fixture: Fixture, built: Mar) -> dict[str, Tensor]:
    io, body = fixture.io, built.body
    tokens = built.patches(Tokens(io["latents"].flatten(2).transpose(1, 2), built.layout))
    embedded, labels = built.input(tokens), io["labels"]
    masked = int(io["mask"][0].sum())
    kept = io["orders"][:, masked:].sort(1).values
    found = {
        "tokens": tokens,
        "unpatchified": grid(built.to_tokens(io["tokens_in"], None).values, io["unpatchified"]),
        "class_embedding": built.context(Condition(labels)).pooled,
        "encoder_out_allmasked": body.encode(built.input(0 * tokens), built.context(Condition(labels)), kept[:, :0]),
    }
    for given, suffix in ((labels, ""), (torch.full_like(labels, built.classes), "_null")):
        context = built.context(Condition(given))
        found[f"encoder_out{suffix}"] = body.encode(embedded, context, kept)
        found[f"decoder_out{suffix}"] = body(embedded, context, io["orders"], masked)
    return found


def mar_losses(fixture: Fixture, built: Mar) -> dict[str, Tensor]:
    io, repeats, diffusion = fixture.io, fixture.made["diffusion_batch_mul"], built.head.diffusion
    tokens = io["tokens"].flatten(0, 1).repeat(repeats, 1)
    z = io["decoder_out"].flatten(0, 1).repeat(repeats, 1)
    times = diffusion.at(io["loss_t"])
    given = built.head.net.condition(z)
    terms = diffusion.losses(lambda x, time: built.head.net(x, time, given), tokens, io["loss_noise"], times)
    mask = io["mask"].flatten().repeat(repeats)
    both = terms["mse"] + terms["vb"]
    names = {"loss_per_token": both, "loss_mse_per_token": terms["mse"], "loss_vb_per_token": terms["vb"]}
    return names | {
        "loss_masked_mean": (both * mask).sum() / mask.sum(),
        "loss_forward_loss": whole_loss(fixture, built),
    }


class TrainingNoise(Noise):
    """The recorded order, times and noises, where the model's training pass asks for its random numbers."""

    def __init__(self, fixture: Fixture, length: int) -> None:
        self.io, self.shape = fixture.io, (fixture.made["diffusion_batch_mul"], -1, length)

    def permutation(self, n: int) -> Tensor:
        return self.io["orders"]

    def uniform(self, *shape: int) -> Tensor:
        if not shape:
            return torch.zeros(len(self.io["labels"]))
        return ((self.io["loss_t"] + 0.5) / 1000).unflatten(0, self.shape).movedim(0, 2)

    def normal(self, *shape: int) -> Tensor:
        return self.io["loss_noise"].unflatten(0, self.shape).movedim(0, 2)


def whole_loss(fixture: Fixture, built: Mar) -> Tensor:
    """The loss as training computes it, from latents to one number."""
    io = fixture.io
    counts, before = io["mask"].sum(1).long(), built.config
    built.masked_counts = lambda uniform: counts  # type: ignore[method-assign]
    built.config = before.model_copy(update={"mask_ratio_min": 0.0})
    tokens = Tokens(io["latents"].flatten(2).transpose(1, 2), built.layout)
    losses = built(tokens, Condition(io["labels"]), TrainingNoise(fixture, built.length), None)
    built.config = before
    return torch.stack(list(losses.values())).sum()


def mar_head(fixture: Fixture, built: Mar) -> dict[str, Tensor]:
    io, about, head = fixture.io, fixture.about, built.head
    x, z, null, scale = io["head_x"], io["head_c"], io["head_c_null"], about["cfg_scale"]
    net, t = head.net, io["head_t"]
    guided = head.guide_network(torch.cat([z, null]), scale)(x, net.time(t.repeat(2)))
    other = torch.cat([guided[:, : head.width], net(x, t, net.condition(null))[:, head.width :]], dim=1)
    found = {
        "head_time_embed": net.time(t),
        "head_out": net(x, t, net.condition(z)),
        "head_out_cfg": torch.cat([guided, other]),
    }
    order = torch.arange(len(x))[None]
    for suffix, spacing in (("_strided", "leading"), ("", "linspace")):
        steps = len(io["short_timestep_map"])
        levels = spaced(built, timestep_spacing=spacing, steps=steps).sampling_levels(steps)
        guidance = Sampling(temperature=about["temperature"], cfg_scale=scale)
        for name, rows, sampling in (("nocfg", [z], Sampling()), ("cfg", [z, null], guidance)):
            noise = GivenNoise(io["head_init_noise"][None], io["head_step_noise"][:, None], order, 1)
            drawn = head.sample(torch.stack(rows), sampling.cfg_scale, sampling, noise)
            found[f"head_sample{suffix}_{name}"] = drawn[0]
    options = Options(temperature=about["temperature"])
    steps_alone = each_step(
        head.diffusion,
        lambda state, time: net(state, time, net.condition(z)),
        x,
        io["head_step_noise"],
        levels,
        "ddpm",
        options,
    )
    return found | {f"head_step_{name}": value for name, value in steps_alone.items()}


def mar_generation(fixture: Fixture, built: Mar, name: str) -> dict[str, Tensor]:
    io, given, iterations = fixture.io, fixture.about["generation"][name], fixture.about["num_iter"]
    spaced(built, timestep_spacing="leading", steps=len(io["strided_timestep_map"]))
    sampling = Sampling(
        cfg_scale=given["cfg"],
        cfg_schedule=given["cfg_schedule"],
        temperature=given["temperature"],
        steps=iterations,
    )
    noise = GivenNoise(io["gen_init_noise"], io["gen_step_noise"], io["orders"], iterations)
    states = list(built.steps(Condition(io["labels"]), sampling, noise, None))
    side = fixture.made["patch_size"]
    predicted_at = torch.full_like(io["gen_predicted_at"], iterations - 1)
    for step, state in reversed(list(enumerate(states[:-1]))):
        assert state.known is not None
        predicted_at[state.known.unflatten(1, built.layout.grid)[:, ::side, ::side].flatten(1)] = step
    return {f"{name}_latents": grid(states[-1].values, io[f"{name}_latents"]), "gen_predicted_at": predicted_at}


# ---------------------------------------------------------------------------------------------- DiT


def sequence(images: Tensor) -> Tensor:
    """(..., C, h, w) to (..., N, C)."""
    return images.flatten(-2).transpose(-1, -2)


def pictures(values: Tensor, side: int) -> Tensor:
    """The inverse of `sequence`."""
    return values.transpose(-1, -2).unflatten(-1, (-1, side))


def dit(fixture: Fixture) -> dict[str, Tensor]:
    made, io = fixture.made, fixture.io
    side, channels = made["input_size"], made["in_channels"]
    tokenizer = any_tokenizer(
        fixture.folder / f"{fixture.name}-tokenizer", side, {"kind": "gaussian", "latent_channels": channels}
    )
    built, _ = imported_generator(fixture, tokenizer, f"generator.network.heads={made['num_heads']}")
    assert isinstance(built, LatentDiffusion)
    found = dit_network(fixture, built) | dit_chains(fixture, built)
    diffusion = built.diffusion
    times, clean, noise = diffusion.at(io["t"]), sequence(io["x0"]), sequence(io["x0_noise"])
    context = built.context(Condition(io["y"]))
    terms = diffusion.losses(lambda x, time: built.network(x, time, context), clean, noise, times)
    found["train_x_t"] = times.signal[:, None, None] * clean + times.sigma[:, None, None] * noise
    shaped = {name: pictures(value, side) for name, value in found.items()}
    coefficients = tables(built.config.diffusion.training_levels(), "full")
    for prefix, spacing in (("ddpm", "linspace"), ("ddim", "leading")):
        levels = spaced(built, timestep_spacing=spacing).sampling_levels(len(io[f"{prefix}_timestep_map"]))
        coefficients |= tables(levels, prefix)
    network = built.network
    return shaped | coefficients | {
        "t_embed_freq": sinusoids(io["t"], io["t_embed_freq"].shape[1]),
        "t_embed": network.time(io["t"]),
        "tokens_in": network.tokens(sequence(io["x"])),
        "train_loss": torch.stack(list(terms.values())).sum(0),
        **{f"train_{name}": value for name, value in terms.items()},  # no vb where the variance is not learned
    }  # fmt: skip


def dit_network(fixture: Fixture, built: LatentDiffusion) -> dict[str, Tensor]:
    io, network = fixture.io, built.network
    x, null = sequence(io["x"]), built.context(Condition(torch.full_like(io["y"], built.classes)))
    sampling = Sampling(cfg_scale=fixture.about["cfg_scale"])
    guided = Guided(built, Condition(io["y"]), sampling, 1, None)(x, io["t"])
    without, acted = network(x, io["t"], null), built.config.guided_channels or built.layout.width
    other = torch.cat([guided[..., :acted], without[..., acted:]], dim=-1)
    plain = network(x, io["t"], built.context(Condition(io["y"])))
    return {"out": plain, "out_null": without, "out_cfg": torch.cat([guided, other])}


CHAINS = {  # solver, clipping and options of each guided run
    "ddpm": ("ddpm", None, Options()),
    "ddpm_clip": ("ddpm", 1.0, Options()),
    "ddim": ("ddim", None, Options()),
    "ddim_clip": ("ddim", 1.0, Options()),
    "ddim_eta1": ("ddim", None, Options(eta=1.0)),
}
SPACING = {"ddpm": "linspace", "ddim": "leading"}


def dit_chains(fixture: Fixture, built: LatentDiffusion) -> dict[str, Tensor]:
    io, labels = fixture.io, Condition(fixture.io["y"])
    noises, start = sequence(io["step_noise"]), sequence(io["z"])
    own = built.diffusion.options(Sampling())
    found = {}

    def run(predict: Callable[[Tensor, Tensor], Tensor], solver: str, options: Options) -> list[tuple[Tensor, Tensor]]:
        draws = iter(noises)
        return list(built.diffusion.sample(predict, start, lambda: next(draws), solver, len(noises), options))  # type: ignore[arg-type]

    for name, (solver, clip, options) in CHAINS.items():
        spaced(built, timestep_spacing=SPACING[solver], clip_sample=clip)
        guided = Guided(built, labels, Sampling(cfg_scale=fixture.about["cfg_scale"]), len(noises), None)
        states = run(guided, solver, replace(options, variance=own.variance))
        found[f"{name}_traj"] = torch.stack([x for x, _ in states])
        found[f"{name}_final"] = states[-1][0]
        found[f"{name}_pred_x0_first"] = states[0][1]

    def network(x: Tensor, time: Tensor) -> Tensor:
        return built.network(x, time, built.context(labels))

    for solver, spacing in SPACING.items():
        levels = spaced(built, timestep_spacing=spacing, clip_sample=None).sampling_levels(len(noises))
        alone = each_step(built.diffusion, network, sequence(io["x"]), noises, levels, solver, own)
        found |= {f"{solver}_step_{name}": value for name, value in alone.items()}
    spaced(built, timestep_spacing="linspace")
    found["ddpm_nocfg_final"] = from_the_entrance(built, labels, [start, *noises])
    return found


def from_the_entrance(built: LatentDiffusion, condition: Condition, draws: list[Tensor]) -> Tensor:
    """DDPM without guidance by the generator's own `steps`."""

    class Given(Noise):
        def __init__(self) -> None:
            self.draws = iter(draws)

        def normals(self, expected: int, *shape: int) -> Iterator[Tensor]:
            return self.draws

    *_, last = built.steps(condition, Sampling(steps=len(draws) - 1), Given(), None)
    return last.values
