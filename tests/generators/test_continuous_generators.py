"""What MAR, masked generation of codes and latent diffusion promise beyond the contract of all generators."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import generator_experiment, tokenizer_experiment
from pydantic import ValidationError
from scipy import stats
from torch import Tensor, nn

from artok.conditioning.base import Context
from artok.config import validate
from artok.errors import ConfigError, LayoutError, RunError
from artok.generators import causal_mar, diffusion, mar, maskgit
from artok.generators.causal_mar import CausalMar
from artok.generators.diffusion import LatentDiffusion, code_vectors
from artok.generators.masked import count_masked, flag_masked
from artok.generators.maskgit import MaskedCodes
from artok.layout import Condition, TokenLayout, Tokens
from artok.noise import Noise
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling
from artok.tokenizers import conv
from artok.training import checkpoints
from artok.training.run import train

IMAGE = (3, 16, 16)
LATENTS = TokenLayout(((4, 4),), 4, None, IMAGE)
CODES = TokenLayout(((4, 4),), 4, 16, IMAGE)
CLASSES = 4


def random_outputs(module: nn.Module) -> nn.Module:
    """Layers that start at zero would make every comparison pass."""
    for parameter in module.parameters():
        if parameter.ndim >= 2 and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return module.eval()


def built(config: Any, layout: TokenLayout) -> Any:
    torch.manual_seed(0)
    return random_outputs(config.build(layout, CLASSES))


def condition(count: int) -> Condition:
    return Condition(torch.arange(count) % CLASSES)


def noise(count: int) -> Noise:
    return Noise(0, torch.arange(count))


def latents(count: int) -> Tokens:
    return Tokens(torch.randn(count, 16, 4, generator=torch.Generator().manual_seed(1)), LATENTS)


def last(model: Any, sampling: Sampling, count: int = 3, codec: Any = None) -> Tokens:
    with torch.no_grad():
        *_, tokens = model.steps(condition(count), sampling, noise(count), codec)
    return tokens


# ------------------------------------------------------------------------------------------------- MAR


def rows_of(module: nn.Module) -> list[int]:
    """Collects the rows of every input that the module is called on."""
    rows: list[int] = []
    module.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    return rows


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_head_runs_on_the_tokens_of_the_step_only(guidance: float) -> None:
    model = built(mar.Config.tiny(), LATENTS)
    rows = rows_of(model.head.net.output)
    last(model, Sampling(cfg_scale=guidance, steps=4, head_steps=5), count=3)
    left = [16]
    for step in range(4):
        left.append(count_masked(16, 4, step, left[-1]))
    decided = [before - after for before, after in pairwise(left)]
    assert sum(decided) == 16
    halves = 2 if guidance != 1 else 1
    assert rows == [halves * 3 * count for count in decided for _ in range(5)]


def test_the_cosine_schedule_decides_some_in_every_step_and_all_in_the_end() -> None:
    for length, steps in [(256, 64), (256, 256), (16, 8), (16, 16), (5, 1)]:
        now = length
        for step in range(steps):
            left = count_masked(length, steps, step, now)
            assert left < now
            if step < steps - 1:
                assert left >= 1
            now = left
        assert now == 0
    assert count_masked(256, 8, 0, 256) == math.floor(256 * math.cos(math.pi / 16))


def test_mask_rates_are_a_truncated_normal_rounded_up() -> None:
    model = mar.Config.tiny().build(TokenLayout(((32, 32),), 4, None, IMAGE), CLASSES)
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    shares = model.masked_counts(uniform).double() / 1024
    expected = stats.truncnorm((0.7 - 1) / 0.25, 0, loc=1, scale=0.25)
    assert float(shares.min()) >= 0.7
    assert float(shares.max()) == 1.0
    assert stats.kstest((shares - 0.5 / 1024).numpy(), expected.cdf).statistic < 0.005
    assert (model.masked_counts(torch.tensor([0.0, 1.0 - 2**-24])) == torch.tensor([math.ceil(0.7 * 1024), 1024])).all()


@torch.no_grad()
def test_images_that_keep_different_numbers_do_not_see_each_other() -> None:
    """The room that a batch with several mask rates needs changes nothing."""
    body = built(mar.Config.tiny(), LATENTS).body
    context = Context(torch.randn(3, 32), torch.randn(3, 1, 32))
    embedded, order = torch.randn(3, 16, 32), noise(3).permutation(16)
    counts = torch.tensor([16, 13, 12])
    together = body(embedded, context, order, counts, room=5)
    for row, count in enumerate(counts.tolist()):
        part = slice(row, row + 1)
        alone = body(embedded[part], context[part], order[part], count)
        torch.testing.assert_close(together[part], alone, rtol=1e-4, atol=1e-5)
    masked = flag_masked(order, counts)
    changed = torch.where(masked[..., None], torch.randn_like(embedded), embedded)
    torch.testing.assert_close(body(changed, context, order, counts, room=5), together)


@pytest.mark.parametrize("kind", [mar, causal_mar])
def test_patches_are_decided_as_squares(kind: Any) -> None:
    config = kind.Config.tiny().model_copy(update={"patch_size": 2})
    model = built(config, LATENTS)
    with torch.no_grad():
        states = list(model.steps(condition(2), Sampling(), noise(2), None))
    assert len(states) == model.passes(Sampling()) == 4
    for state in states[:-1]:
        assert state.known is not None
        squares = state.known.unflatten(1, (2, 2, 2, 2))
        assert torch.equal(squares, squares[:, :, :1, :, :1].expand_as(squares))
    assert states[-1].values.shape == (2, 16, 4)


@torch.no_grad()
def test_causal_mar_with_its_cache_sees_what_it_sees_without_and_nothing_later() -> None:
    model = built(causal_mar.Config.tiny(), LATENTS)
    assert isinstance(model, CausalMar)
    tokens, context = latents(3).values, model.context(condition(3))
    whole = model.conditions(tokens[:, :-1], context)
    from artok.nn.attention import KVCache

    cache = KVCache.allocate(2, 3, 2, 2 + 15, 16, torch.device("cpu"), torch.float32)
    for step in range(16):
        latest = tokens[:, max(step - 1, 0) : step]
        torch.testing.assert_close(model.conditions(latest, context, step, cache)[:, 0], whole[:, step])
    changed = tokens.clone()
    changed[:, 9:] += 1
    torch.testing.assert_close(model.conditions(changed[:, :-1], context)[:, :10], whole[:, :10])
    assert not torch.allclose(model.conditions(changed[:, :-1], context)[:, 10:], whole[:, 10:])


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "euler", "heun", "dpm++"])
@pytest.mark.parametrize("schedule", ["cosine", "straight"])
def test_every_solver_serves_the_head(solver: str, schedule: str) -> None:
    target = "velocity" if schedule == "straight" else "epsilon"
    section = {"schedule": schedule, "target": target, "timesteps": 50, "steps": 8}
    config = mar.Config.tiny().model_copy(update={"diffusion": validate(diffusion.DiffusionConfig, section, "test")})
    tokens = last(built(config, LATENTS), validate(Sampling, {"solver": solver, "cfg_scale": 1.5}, "test"))
    assert tokens.values.isfinite().all()


@pytest.mark.parametrize(("size", "millions"), [("base", 208), ("large", 479), ("huge", 943)])
def test_mar_has_the_published_sizes(size: str, millions: int) -> None:
    layout = TokenLayout(((16, 16),), 16, None, (3, 256, 256))
    with torch.device("meta"):
        model = validate(mar.Config, {"kind": "mar", "size": size}, "test").build(layout, 1000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1)


# ------------------------------------------------------------------------------------------------- codes


@torch.no_grad()
def test_known_codes_are_kept_and_confidence_decides() -> None:
    model = built(maskgit.Config.tiny(), CODES)
    assert isinstance(model, MaskedCodes)
    states = list(model.steps(condition(5), Sampling(), noise(5), None))
    for before, after in pairwise(states):
        assert before.known is not None
        assert torch.equal(before.values[before.known], after.values[before.known])
        assert after.known is None or (after.known | ~before.known).all()


@torch.no_grad()
def test_without_gumbel_noise_the_surest_codes_are_kept() -> None:
    model = built(maskgit.Config.tiny(), CODES)
    first = next(model.steps(condition(4), Sampling(temperature=0, choice_temperature=0), noise(4), None))
    order = torch.arange(16).expand(4, -1)
    codes = torch.zeros(4, 16, dtype=torch.int64)
    sure = model.logits(codes, model.context(condition(4)), order, (16,) * 4).log_softmax(-1).amax(-1)
    assert first.known is not None
    for row in range(4):
        assert sure[row][first.known[row]].min() >= sure[row][~first.known[row]].max()


# ------------------------------------------------------------------------------------------------- diffusion


def vq_codec() -> conv.ConvTokenizer:
    torch.manual_seed(0)
    return conv.Config.tiny().build(IMAGE).eval()


@torch.no_grad()
def test_codes_are_diffused_at_unit_scale_and_come_back_as_the_nearest() -> None:
    codec = vq_codec()
    config = diffusion.Config.tiny()
    model = config.build(codec.layout, CLASSES)
    assert isinstance(model, LatentDiffusion)
    table = code_vectors(codec, torch.device("cpu"))
    torch.testing.assert_close(table, codec.quantizer.codebook())
    codes = Tokens(torch.arange(16).repeat(2).view(2, 16, 1), codec.layout)
    vectors = model.vectors(codes, codec)
    torch.testing.assert_close(vectors.flatten(0, 1).mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    nudged = model.tokens(vectors + 1e-3, codec)
    assert torch.equal(codec.embed(nudged), codec.embed(codes))
    with pytest.raises(ConfigError, match="needs the tokenizer"):
        model.vectors(codes, None)


@pytest.mark.parametrize(
    ("size", "patch", "millions"), [("S", 2, 33), ("B", 2, 131), ("L", 2, 458), ("XL", 2, 675.1), ("XL", 8, 676)]
)
def test_dit_has_the_published_sizes(size: str, patch: int, millions: float) -> None:
    section = {"kind": "diffusion", "network": {"kind": "dit", "size": size, "patch_size": patch}}
    layout = TokenLayout(((32, 32),), 4, None, (3, 256, 256))
    config = validate(diffusion.Config, section, "test")
    with torch.device("meta"):
        network = config.network.build(
            layout.grid, 4, 8, partial(config.conditioners, image=(3, 256, 256), classes=1000)
        )
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_unet_learns_by_heart_and_is_refused_on_grids_it_cannot_halve() -> None:
    section = {
        "kind": "unet",
        "base_channels": 16,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "groups": 4,
        "attention_resolutions": [1],
    }
    given = {"kind": "diffusion", "network": section, "diffusion": {"prediction_type": "x0"}}
    config = validate(diffusion.Config, given, "test")
    torch.manual_seed(0)
    model, tokens = config.build(LATENTS, CLASSES), latents(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    seen = []
    for step in range(60):
        losses = model(tokens, condition(4), Noise(step, torch.arange(4)), None)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert sum(seen[-10:]) < 0.7 * sum(seen[:10])
    assert config.refuse(TokenLayout(((3, 4),), 4, None, IMAGE)) is not None


def test_the_guidance_interval_counts_evaluations() -> None:
    model = built(diffusion.Config.tiny(), LATENTS)
    rows = rows_of(model.network)
    last(model, Sampling(cfg_scale=2.0, cfg_interval=(0.25, 0.75), steps=8), count=3)
    assert rows == [3, 3, 6, 6, 6, 6, 3, 3]


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (mar.Config.tiny(), LATENTS),
        (causal_mar.Config.tiny(), LATENTS),
        (maskgit.Config.tiny(), CODES),
        (diffusion.Config.tiny(), LATENTS),
    ],
    ids=["mar", "causal mar", "maskgit", "diffusion"],
)
def test_training_and_sampling_in_bfloat16(config: Any, layout: TokenLayout) -> None:
    model = built(config, layout)
    codes = torch.randint(0, 16, (3, 16, 1), generator=torch.Generator().manual_seed(0))
    tokens = Tokens(codes, layout) if layout.discrete else latents(3)
    plain = torch.stack(list(model(tokens, condition(3), noise(3), None).values())).sum()
    with torch.autocast("cpu", torch.bfloat16):
        half = torch.stack(list(model(tokens, condition(3), noise(3), None).values())).sum()
        made = last(model, Sampling(dtype="bfloat16", cfg_scale=1.5))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0.05, atol=0.05)
    assert made.values.dtype == (torch.int64 if layout.discrete else torch.float32)
    assert made.values.isfinite().all()


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("config", "layout"),
    [(mar.Config.tiny(), CODES), (maskgit.Config.tiny(), LATENTS), (diffusion.Config.tiny(), None)],
    ids=["mar on codes", "maskgit on latents", "diffusion on scales"],
)
def test_the_wrong_tokens_are_refused(config: Any, layout: TokenLayout | None) -> None:
    from artok.saved import check_layout

    given = layout or TokenLayout(((1, 1), (4, 4)), 4, 16, IMAGE)
    with pytest.raises(LayoutError, match="needs"):
        check_layout(config, given)


@pytest.mark.parametrize(
    ("config", "layout", "asked", "words"),
    [
        (mar.Config.tiny(), LATENTS, {"steps": 17}, "17 sampling steps are more than the 16 tokens"),
        (mar.Config.tiny(), LATENTS, {"head_steps": 51}, "51 sampling steps are more than the 50"),
        (maskgit.Config.tiny(), CODES, {"steps": 17}, "more than the 16 tokens"),
        (diffusion.Config.tiny(), LATENTS, {"steps": 51}, "51 sampling steps are more than the 50"),
        (causal_mar.Config.tiny(), LATENTS, {"steps": 3}, "leave sampling.steps out"),
    ],
)
def test_impossible_numbers_of_steps_are_refused(config: Any, layout: TokenLayout, asked: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.build(layout, CLASSES).check(Sampling(**asked))


@pytest.mark.parametrize(
    "section",
    [{}, {"size": "base", "depth": 2}, {"size": "base", "head_width": 8}, {"depth": 1, "width": 9, "heads": 2}],
)
def test_sizes_that_say_nothing_or_two_things_are_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        mar.Config.model_validate(section)


@pytest.fixture(scope="module")
def kl_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("kl") / "run"
    assert train(tokenizer_experiment(tokenizer={"quantizer": {"kind": "gaussian", "latent_channels": 4}}), folder)
    return str(folder)


TINY_MAR = {"kind": "mar", "depth": 1, "width": 16, "heads": 2, "buffer_size": 2, "dropout": 0.0, "steps": 4}


def mar_experiment(kl_run: str, **changes: Any) -> Any:
    section = TINY_MAR | {
        "diffusion": {"schedule": "straight", "prediction_type": "velocity", "solver": "euler", "steps": 4}
    }
    return generator_experiment(kl_run, **{"generator": section, "sampling": {}} | changes)


def test_mar_trains_and_samples_and_without_label_dropout_refuses_guidance(kl_run: str, tmp_path: Path) -> None:
    section = mar_experiment(kl_run).generator.model_dump() | {"class_dropout": 0.0}
    assert train(mar_experiment(kl_run, generator=section), tmp_path / "run")
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    assert pipeline([0, 1]).shape == (2, 1, 16, 16)
    with pytest.raises(ConfigError, match="no unconditional"):
        pipeline([0], cfg_scale=2.0)


def test_too_many_steps_are_refused_before_training(kl_run: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than the 16 tokens"):
        train(mar_experiment(kl_run, sampling={"steps": 64}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_checkpoint(
    kl_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = mar.Mar.forward
    calls = 0

    def failing(self: mar.Mar, *inputs: Any) -> dict[str, Tensor]:
        nonlocal calls
        calls += self.training
        losses = honest(self, *inputs)
        return {name: value * (math.nan if calls > 5 else 1.0) for name, value in losses.items()}

    monkeypatch.setattr(mar.Mar, "forward", failing)
    with pytest.raises(RunError, match=r"after 96 images.*last good checkpoint"):
        train(mar_experiment(kl_run), tmp_path / "run")
    newest = checkpoints.find_latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert newest.name == "000000000064"


@pytest.mark.parametrize("kind", ["mar", "causal", "maskgit"])
def test_the_first_deviation_of_embeddings_is_a_setting(kind: str) -> None:
    continuous, codes = TokenLayout(((16, 16),), 4, None, (1, 64, 64)), TokenLayout(((16, 16),), 4, 64, (1, 64, 64))

    tiny: Any = {"mar": mar, "causal": causal_mar, "maskgit": maskgit}[kind].Config.tiny()
    assert tiny.embedding_init == 0.02  # as published
    model = tiny.model_copy(update={"embedding_init": 1.0}).build(codes if kind == "maskgit" else continuous, 10)
    named = dict(model.named_parameters())
    read = [name for name in named if name.endswith(("embedding.weight", "positions")) and "output" not in name]
    written = [name for name in named if "output_positions" in name]
    assert len(read) >= 2
    assert len(written) == 1
    for name in read:
        assert float(named[name].detach().std()) == pytest.approx(1.0, rel=0.15), name
    assert float(named[written[0]].detach().std()) == pytest.approx(0.02, rel=0.15)  # noise to the head otherwise
