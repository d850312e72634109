"""MAR computes what the official code computes: every layer, the loss, and whole generations, on recorded tensors."""

from __future__ import annotations

import pytest
import torch
from helpers.official import Official, close, exact, load, official, renamed
from torch import Tensor

from artok.generators.mar import Config, Mar
from artok.generators.masked import masked_flags, still_masked
from artok.layout import Condition, TokenLayout, Tokens
from artok.noise import Noise
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.guidance import scale_at
from artok.sampling.schedules import Levels
from artok.sampling.settings import Sampling
from artok.sampling.solvers import Denoised, Options, ancestral, posterior_log_variance
from artok.sampling.targets import transition

NAMES = [
    (r"^class_emb\.weight$", "body.conditioner.labels.embedding.weight"),
    (r"^z_proj_ln\.", "body.input_norm."),
    (r"^z_proj\.", "input."),
    (r"^(en|de)coder_pos_embed_learned$", r"body.\1coder_positions"),
    (r"^diffusion_pos_embed_learned$", "body.output_positions"),
    (r"^(en|de)coder_blocks\.", r"body.\1coder."),
    (r"^(en|de)coder_norm\.", r"body.\1coder_norm."),
    (r"^decoder_embed\.", "body.between."),
    (r"^mask_token$", "body.mask_token"),
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".feed_forward_norm."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.fc1\.", ".feed_forward.0."),
    (r"\.mlp\.fc2\.", ".feed_forward.2."),
    (r"^diffloss\.net\.", "head.net."),
    (r"time_embed\.mlp\.", "time.layers."),
    (r"cond_embed\.", "condition."),
    (r"input_proj\.", "input."),
    (r"res_blocks\.", "blocks."),
    (r"in_ln\.", "norm."),
    (r"final_layer\.linear\.", "output.out."),
    (r"final_layer\.", "output."),
    (r"adaLN_modulation\.", "modulation."),
]


@pytest.fixture(params=["mar", "mar_patch2"])
def recorded(request: pytest.FixtureRequest) -> Official:
    return official(request.param)


def model(recorded: Official) -> Mar:
    given = recorded.about["constructor"]
    side, patch, width = given["img_size"] // given["vae_stride"], given["patch_size"], given["vae_embed_dim"]
    config = Config(
        depth=given["encoder_depth"],
        width=given["encoder_embed_dim"],
        heads=given["encoder_num_heads"],
        head_depth=given["diffloss_d"],
        head_width=given["diffloss_w"],
        buffer_size=given["buffer_size"],
        patch_size=patch,
        diffusion_batch_mul=given["diffusion_batch_mul"],
        diffusion=DiffusionConfig(
            schedule="cosine", variance="learned", timestep_spacing="leading", steps=int(given["num_sampling_steps"])
        ),
    )
    layout = TokenLayout(((side, side),), width, None, (3, given["img_size"], given["img_size"]))
    built = config.build(layout, given["class_num"])
    assert isinstance(built, Mar)
    state = renamed(recorded.weights, NAMES)
    state["body.conditioner.labels.embedding.weight"] = torch.cat(
        [state["body.conditioner.labels.embedding.weight"], state.pop("fake_latent")]
    )
    load(built, state)
    return built.eval()


def grid_tokens(built: Mar, latents: Tensor) -> Tokens:
    """Official latents (B, D, h, w) as tokens."""
    return Tokens(latents.flatten(2).transpose(1, 2), built.layout)


@torch.no_grad()
def test_patches(recorded: Official) -> None:
    built, io = model(recorded), recorded.io
    close(built.patches(grid_tokens(built, io["latents"])), io["tokens"], 0)
    values = built.finished(io["tokens_in"], None).values
    close(values.transpose(1, 2).unflatten(2, io["unpatchified"].shape[2:]), io["unpatchified"], 0)


@torch.no_grad()
def test_encoder_and_decoder(recorded: Official) -> None:
    built, io = model(recorded), recorded.io
    body, embedded = built.body, built.input(io["tokens"])
    masked = int(io["mask"][0].sum())
    assert torch.equal(masked_flags(io["orders"], torch.full((2,), masked)), io["mask"].bool())
    kept = io["orders"][:, masked:].sort(1).values
    null = torch.full_like(io["labels"], built.classes)
    for labels, suffix in ((io["labels"], ""), (null, "_null")):
        sequence = built.context(Condition(labels)).sequence
        encoded = body.encode(embedded, sequence, kept)
        close(encoded, io["encoder_out" + suffix])
        close(body.decode(encoded, kept), io["decoder_out" + suffix])
        close(body(embedded, sequence, io["orders"], masked), io["decoder_out" + suffix])
        counts = torch.full((2,), masked)
        close(body(embedded, sequence, io["orders"], counts, room=embedded.shape[1]), io["decoder_out" + suffix])
    close(
        body.encode(0 * embedded, built.context(Condition(io["labels"])).sequence, kept[:, :0]),
        io["encoder_out_allmasked"],
    )


@torch.no_grad()
def test_head(recorded: Official) -> None:
    built, io = model(recorded), recorded.io
    net, x, t = built.head.net, io["head_x"], io["head_t"]
    close(net.time(t), io["head_time_embed"])
    close(net(x, t, net.condition(io["head_c"])), io["head_out"])
    network = built.head.guided_network(torch.cat([io["head_c"], io["head_c_null"]]), recorded.about["cfg_scale"], True)
    close(network(x, t.repeat(2)), io["head_out_cfg"][: len(x)])


@pytest.mark.parametrize("prefix", ["train", "short", "strided"])
def test_coefficients(recorded: Official, prefix: str) -> None:
    config, io = model(recorded).config.diffusion, recorded.io
    kept = io[f"{prefix}_timestep_map"]
    if prefix == "train":
        levels = config.training_levels()
    else:
        spacing = {"short": "linspace", "strided": "leading"}[prefix]
        levels = config.model_copy(update={"timestep_spacing": spacing}).sampling_levels(len(kept))
    assert levels.times.tolist() == kept.tolist()
    agrees_with_tables(levels, io, prefix)


def agrees_with_tables(levels: Levels, io: dict[str, Tensor], prefix: str) -> None:
    steps = [transition(levels[index], levels[index - 1]) for index in range(len(levels))]
    exact(levels.signal_squared, io[f"{prefix}_alphas_cumprod"])
    exact([step.added for step in steps], io[f"{prefix}_betas"])
    exact([step.from_clean for step in steps], io[f"{prefix}_posterior_mean_coef1"])
    exact([step.from_noisy for step in steps], io[f"{prefix}_posterior_mean_coef2"])
    low = [posterior_log_variance(levels, index) for index in range(len(levels))]
    exact(low, io[f"{prefix}_posterior_log_variance_clipped"])


@torch.no_grad()
def test_loss(recorded: Official) -> None:
    built, io = model(recorded), recorded.io
    repeats = recorded.about["constructor"]["diffusion_batch_mul"]
    tokens = io["tokens"].flatten(0, 1).repeat(repeats, 1)
    z = io["decoder_out"].flatten(0, 1).repeat(repeats, 1)
    diffusion = built.head.diffusion
    terms = diffusion.losses(
        lambda x, told: built.head.net(x, told, built.head.net.condition(z)),
        tokens,
        io["loss_noise"],
        diffusion.at(io["loss_t"]),
    )
    close(terms["mse"], io["loss_mse_per_token"])
    close(terms["vb"], io["loss_vb_per_token"])
    mask = io["mask"].flatten().repeat(repeats)
    close(((terms["mse"] + terms["vb"]) * mask).sum() / mask.sum(), io["loss_masked_mean"])


class TrainingNoise(Noise):
    """Gives the recorded masks, times and noises where the model asks for its random numbers."""

    def __init__(self, recorded: Official) -> None:
        self.io, self.repeats = recorded.io, recorded.about["constructor"]["diffusion_batch_mul"]

    def permutation(self, n: int) -> Tensor:
        return self.io["orders"]

    def uniform(self, *shape: int) -> Tensor:
        if not shape:
            return torch.zeros(2)
        return self._per_token((self.io["loss_t"] + 0.5) / 1000)

    def normal(self, *shape: int) -> Tensor:
        return self._per_token(self.io["loss_noise"])

    def _per_token(self, listed: Tensor) -> Tensor:
        """(repeats * B * N, ...) to (B, N, repeats, ...)."""
        return listed.unflatten(0, (self.repeats, 2, -1)).movedim(0, 2)


@torch.no_grad()
def test_the_whole_training_loss(recorded: Official, monkeypatch: pytest.MonkeyPatch) -> None:
    built, io = model(recorded), recorded.io
    counts = io["mask"].sum(1).long()
    monkeypatch.setattr(built, "masked_counts", lambda uniform: counts)
    monkeypatch.setattr(built, "config", built.config.model_copy(update={"mask_ratio_min": 0.0}))
    losses = built(grid_tokens(built, io["latents"]), Condition(io["labels"]), TrainingNoise(recorded), None)
    close(torch.stack(list(losses.values())).sum(), io["loss_forward_loss"])


@torch.no_grad()
def test_each_head_step(recorded: Official) -> None:
    built, io = model(recorded), recorded.io
    head, x = built.head, io["head_x"]
    steps = len(io["short_timestep_map"])
    levels = built.config.diffusion.model_copy(update={"timestep_spacing": "linspace"}).sampling_levels(steps)
    for j in range(steps):
        index = steps - 1 - j
        told = torch.full((len(x),), levels.times[index])
        believed: Denoised = head.diffusion.believed(
            head.net(x, told, head.net.condition(io["head_c"])), x, levels[index]
        )
        mean, log_variance = ancestral(believed, x, levels, index, Options())
        close(believed.clean, io["head_step_pred_xstart"][j])
        close(mean, io["head_step_mean"][j])
        close(log_variance, io["head_step_log_variance"][j])
        noise = recorded.about["temperature"] * (0.5 * log_variance).exp() * io["head_step_noise"][j]
        close(mean + noise if index else mean, io["head_step_sample"][j])


class SamplingNoise(Noise):
    """The recorded noise of a generation, which is kept by position."""

    def __init__(self, start: Tensor, steps: Tensor, orders: Tensor, iterations: int) -> None:
        """start: (B, L, D). steps: (K, B, L, D)."""
        self.orders, self.calls, self.noises = orders, 0, torch.cat([start[None], steps])
        self.places, now = [], orders.shape[1]
        for step in range(iterations):
            left = still_masked(orders.shape[1], iterations, step, now)
            self.places.append(orders[:, left:now])
            now = left

    def permutation(self, n: int) -> Tensor:
        return self.orders

    def normal(self, *shape: int) -> Tensor:
        per_iteration = len(self.noises) - 1  # the start and one a step, none in the last
        iteration, draw = divmod(self.calls, per_iteration)
        self.calls += 1
        index = self.places[iteration][..., None].expand(-1, -1, shape[1])
        return self.noises[draw].gather(1, index)


@torch.no_grad()
@pytest.mark.parametrize("suffix", ["", "_strided"])
def test_whole_head_chains(recorded: Official, suffix: str) -> None:
    built, io, about = model(recorded), recorded.io, recorded.about
    spacing = "leading" if suffix else "linspace"
    diffusion = built.head.diffusion
    diffusion.config = diffusion.config.model_copy(update={"timestep_spacing": spacing})
    order = torch.arange(len(io["head_x"]))[None]
    for name, guided in (("nocfg", False), ("cfg", True)):
        noise = SamplingNoise(io["head_init_noise"][None], io["head_step_noise"][:, None], order, 1)
        sampling = Sampling(temperature=about["temperature"] if guided else 1.0)
        other = io["head_c_null"][None] if guided else None
        drawn = built.head.sample(io["head_c"][None], other, about["cfg_scale"], sampling, noise)
        close(drawn[0], io[f"head_sample{suffix}_{name}"], 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gen_cfg", "gen_cfg_constant", "gen_nocfg"])
def test_whole_generations(recorded: Official, name: str) -> None:
    built, io, about = model(recorded), recorded.io, recorded.about
    given, iterations = about["generation"][name], about["num_iter"]
    sampling = Sampling(
        cfg_scale=given["cfg"],
        cfg_schedule=given["cfg_schedule"],
        temperature=given["temperature"],
        steps=iterations,
    )
    noise = SamplingNoise(io["gen_init_noise"], io["gen_step_noise"], io["orders"], iterations)
    states = list(built.steps(Condition(io["labels"]), sampling, noise, None))
    assert len(states) == iterations
    latents = states[-1].values.transpose(1, 2).unflatten(2, io[f"{name}_latents"].shape[2:])
    close(latents, io[f"{name}_latents"], 1e-4)
    side = about["constructor"]["patch_size"]
    predicted_at = torch.full_like(io["gen_predicted_at"], iterations - 1)
    for step, state in reversed(list(enumerate(states[:-1]))):
        assert state.known is not None
        known = state.known.unflatten(1, built.layout.grid)[:, ::side, ::side].flatten(1)
        predicted_at[known] = step
    assert torch.equal(predicted_at, io["gen_predicted_at"])


def test_linear_guidance_follows_the_tokens() -> None:
    sampling = Sampling(cfg_scale=3.0, cfg_schedule="linear")
    assert scale_at(sampling, 0, 4, share=0.25) == 1.5
