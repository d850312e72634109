"""Sections of generators: defaults and sizes as published, what follows from a depth, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.generators import CLASSES, condition, config_of
from helpers.models import IMAGE
from pydantic import ValidationError

from artok.config import kinds
from artok.errors import ConfigError, LayoutError
from artok.generators import causal_mar, diffusion, gan, mar, maskgit, raster, var
from artok.generators.base import AdversarialGenerator, Generator
from artok.generators.gan_networks import dcgan, residual
from artok.generators.networks import dit, unet
from artok.layout import Condition, TokenLayout, Tokens
from artok.nn.dropout import Dropout
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.settings import Sampling

CODES = TokenLayout(((4, 4),), 4, 16, IMAGE)
LATENTS = TokenLayout(((4, 4),), 4, None, IMAGE)
SCALES = TokenLayout(((1, 1), (2, 2), (4, 4)), 4, 16, IMAGE)


# ------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("config", "layout", "count"),
    [
        (mar.Config(size="base"), None, 207_924_768),
        (mar.Config(size="large"), None, 478_326_304),
        (mar.Config(size="huge"), None, 942_403_104),
        (maskgit.Config(size="base"), 1024, 173_640_448),
        (var.Config(depth=16), 4096, 310_283_520),
    ],
    ids=["mar base", "mar large", "mar huge", "maskgit base", "var d16"],
)
def test_published_sizes_to_the_parameter(config: Any, layout: int | None, count: int) -> None:
    grids: tuple[tuple[int, ...], ...] = ((16, 16),)
    if isinstance(config, var.Config):
        grids = tuple((side, side) for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    with torch.device("meta"):
        model = config.build(TokenLayout(grids, 32 if layout == 4096 else 16, layout, (3, 256, 256)), 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(
    ("size", "patch", "count"),
    [("S", 2, 32_865_056), ("B", 2, 130_315_808), ("L", 2, 457_840_672), ("XL", 2, 674_834_720)],
)
def test_published_sizes_of_dit_to_the_parameter(size: Any, patch: int, count: int) -> None:
    """The published figures hold the fixed positions too, such as 675,129,632 for XL/2."""
    config = diffusion.Config(network=dit.Config(size=size, patch_size=patch))
    with torch.device("meta"):
        network = config.network.build((32, 32), 4, 8, partial(config.conditioners, image=(3, 256, 256), classes=1000))
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_a_depth_gives_widths_and_heads() -> None:
    assert raster.Config(depth=3).shape() == (3, 3, 192)
    assert raster.Config(depth=3, width=96, heads=2).shape() == (3, 2, 96)
    assert var.Config(depth=3).shape() == (3, 192)
    assert maskgit.Config(depth=3).shape() == (192, 3, 3)
    assert dit.Config(depth=3).shape() == (3, 192, 3)
    assert mar.Config(depth=4).shape() == (256, 4, 4, 2, 256)
    assert mar.Config(depth=1).shape() == (64, 1, 1, 1, 64)
    config = mar.Config(depth=4, width=128, heads=8, head_depth=3, head_width=32, decoder_depth=2)
    assert config.shape() == (128, 4, 8, 3, 32)
    assert config.decoder_shape() == (128, 2, 8)
    given = mar.Config(depth=4, decoder_width=64, decoder_heads=2)
    assert given.decoder_shape() == (64, 4, 2)
    assert raster.Config(size="B").hidden_width() == 2048  # 8/3 of 768
    assert raster.Config(size="XXL").hidden_width() == 4096
    assert raster.Config(depth=1, width=32, multiple_of=8).hidden_width() == 88  # 85 and a third, rounded down and up
    assert raster.Config(depth=1, hidden=100).hidden_width() == 100


def test_the_rate_of_stochastic_depth_rises_to_the_published_one() -> None:
    rates = var.Config(depth=16).drop_rates()
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.1 * 16 / 24)
    assert rates[5] == pytest.approx(rates[-1] / 3)
    assert var.Config(depth=1).drop_rates() == [0]
    assert var.Config(depth=3, drop_path=0.4).drop_rates() == pytest.approx([0, 0.2, 0.4])


# ------------------------------------------------------------------------------------------------- defaults


@pytest.mark.parametrize(
    ("build", "defaults"),
    [
        (
            lambda: raster.Config(depth=1),
            {
                "dropout": 0.0,
                "rope_base": 10000.0,
                "qk_norm": False,
                "tied_head": False,
                "multiple_of": 256,
                "class_position": None,
            },
        ),
        (
            var.Config,
            {"depth": 16, "mlp_ratio": 4.0, "gate_init": 1e-3, "shared_adaln": False, "attention": "masked"},
        ),
        (
            lambda: mar.Config(depth=2),
            {
                "mlp_ratio": 4.0,
                "buffer_size": 64,
                "patch_size": 1,
                "dropout": 0.1,
                "diffusion_batch_mul": 4,
                "embedding_init": 0.02,
                "mask_ratio_min": 0.7,
                "mask_ratio_std": 0.25,
                "steps": 64,
            },
        ),
        (
            lambda: maskgit.Config(depth=2),
            {
                "mlp_ratio": 4.0,
                "buffer_size": 1,
                "dropout": 0.1,
                "embedding_init": 0.02,
                "label_smoothing": 0.1,
                "steps": 8,
            },
        ),
        (lambda: dit.Config(depth=2), {"mlp_ratio": 4.0, "patch_size": 2, "condition_init": 0.02}),
        (
            unet.Config,
            {
                "base_channels": 128,
                "channel_multipliers": (1, 2, 2),
                "num_res_blocks": 2,
                "groups": 32,
                "attention_resolutions": (),
            },
        ),
        (diffusion.Config.tiny, {"guided_channels": None}),
        (gan.Config.tiny, {"class_dropout": 0.0}),
        (lambda: residual.Config(channels=(8,)), {"blocks": 2, "groups": 1, "embedding_dim": 64}),
        (lambda: dcgan.Config(channels=(8,)), {"embedding_dim": 32}),
    ],
    ids=["raster", "var", "mar", "maskgit", "dit", "unet", "diffusion", "gan", "residual", "dcgan"],
)
def test_defaults_are_the_published_settings(build: Callable[[], Any], defaults: dict[str, object]) -> None:
    config = build()
    assert {name: getattr(config, name) for name in defaults} == defaults


def test_defaults_of_the_diffusions_inside() -> None:
    head = mar.Config(depth=1).diffusion
    assert (
        head
        == causal_mar.Config(depth=1).diffusion
        == DiffusionConfig(schedule="cosine", variance="learned", steps=100)
    )
    assert diffusion.Config(network=dit.Config.tiny()).diffusion == DiffusionConfig(variance="learned", steps=250)
    labels = [
        raster.Config(depth=1),
        var.Config(),
        mar.Config(depth=1),
        maskgit.Config(depth=1),
        diffusion.Config.tiny(),
    ]
    assert {config.class_dropout for config in labels} == {0.1}
    assert gan.Config(network=residual.Config.tiny(), critic=gan.Config.tiny().critic).z_dim == 64


@pytest.mark.parametrize("kind", kinds("generators"))
def test_new_models_recompute_nothing(kind: str) -> None:
    config = config_of(kind)
    layout = next(
        each for each in (CODES, LATENTS, SCALES, TokenLayout(((16, 16),), 3, None, IMAGE)) if not config.refuse(each)
    )
    flags = [
        module.gradient_checkpointing
        for module in config.build(layout, 3).modules()
        if hasattr(module, "gradient_checkpointing")
    ]
    assert not any(flags)


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("config", "section", "words"),
    [
        (maskgit.Config, {}, "either size"),
        (maskgit.Config, {"size": "base", "depth": 2}, "either size"),
        (maskgit.Config, {"size": "base", "heads": 2}, "follow from size"),
        (maskgit.Config, {"size": "base", "width": 64}, "follow from size"),
        (maskgit.Config, {"depth": 2, "heads": 3}, "multiple of the heads"),
        (mar.Config, {}, "either size"),
        (mar.Config, {"size": "base", "depth": 2}, "either size"),
        (mar.Config, {"size": "base", "width": 64}, "follow from size"),
        (mar.Config, {"size": "base", "heads": 2}, "follow from size"),
        (mar.Config, {"size": "base", "head_depth": 2}, "follow from size"),
        (mar.Config, {"size": "base", "head_width": 2}, "follow from size"),
        (mar.Config, {"depth": 2, "heads": 3}, "multiple of the heads"),
        (mar.Config, {"depth": 2, "decoder_heads": 3}, "multiple of its heads"),
        (dit.Config, {}, "either size"),
        (dit.Config, {"size": "S", "depth": 2}, "either size"),
        (dit.Config, {"size": "S", "width": 64}, "follow from size"),
        (dit.Config, {"size": "S", "heads": 2}, "follow from size"),
        (dit.Config, {"depth": 2, "width": 36, "heads": 12}, "twice the heads"),
        (raster.Config, {"size": "B", "width": 64}, "follow from size"),
        (raster.Config, {"size": "B", "heads": 2}, "follow from size"),
        (raster.Config, {"depth": 2, "width": 36, "heads": 12}, "twice the heads"),
        (var.Config, {"depth": 2, "heads": 3}, "multiple of the heads"),
    ],
)
def test_sizes_that_contradict_are_refused(config: Any, section: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config.model_validate(section)


WIDE = TokenLayout(((4, 4),), 4, 16, IMAGE, codes=2)
VIDEO = TokenLayout(((2, 4, 4),), 4, None, (3, 5, 16, 16))
LINE = TokenLayout(((5,),), 4, None, IMAGE)
MULTI = TokenLayout(((2, 2), (4, 4)), 4, None, IMAGE)


@pytest.mark.parametrize(
    ("config", "layout", "words"),
    [
        (raster.Config(depth=1), LATENTS, "needs codes"),
        (raster.Config(depth=1), SCALES, "single grid"),
        (raster.Config(depth=1), WIDE, None),
        (raster.Config(depth=1, tied_head=True), WIDE, "one code per position"),
        (raster.Config(depth=1, tied_head=True), CODES, None),
        (maskgit.Config(depth=1), LATENTS, "needs codes"),
        (maskgit.Config(depth=1), SCALES, "single grid"),
        (maskgit.Config(depth=1), WIDE, "single grid"),
        (maskgit.Config(depth=1), CODES, None),
        (var.Config(), LATENTS, "needs codes"),
        (var.Config(), CODES, "several scales"),
        (var.Config(), SCALES, None),
        (mar.Config(depth=1), CODES, "continuous"),
        (mar.Config(depth=1), MULTI, "single grid"),
        (mar.Config(depth=1, patch_size=3), LATENTS, "multiples"),
        (mar.Config(depth=1, patch_size=2), VIDEO, None),
        (mar.Config(depth=1, patch_size=2), LINE, "multiples"),
        (diffusion.Config(network=dit.Config(depth=1)), SCALES, "single grid"),
        (diffusion.Config(network=dit.Config(depth=1)), WIDE, "single grid"),
        (diffusion.Config(network=dit.Config(depth=1)), LINE, "multiples"),
        (diffusion.Config(network=dit.Config(depth=1)), CODES, None),
        (diffusion.Config(network=dit.Config(depth=1), guided_channels=5), CODES, "at least as wide"),
        (diffusion.Config(network=dit.Config(depth=1), guided_channels=4), CODES, None),
        (gan.Config.tiny(), CODES, "single grid of continuous"),
        (gan.Config.tiny(), MULTI, "single grid of continuous"),
        (gan.Config.tiny(), VIDEO, "two axes"),
        (gan.Config.tiny(), LATENTS, None),
    ],
)
def test_layouts_that_do_not_fit_are_refused_for_their_reason(
    config: Any, layout: TokenLayout, words: str | None
) -> None:
    reason = config.refuse(layout)
    assert (reason is None) if words is None else (words in reason)


def test_a_gan_is_trained_against_a_critic_only() -> None:
    model = gan.Config.tiny().build(TokenLayout(((16, 16),), 3, None, IMAGE), CLASSES)
    assert isinstance(model, AdversarialGenerator)
    with pytest.raises(ConfigError, match="attach_critic"):
        _ = model.critic
    critic = gan.Config.tiny().build_critic(model.layout, CLASSES)
    assert critic is not None
    model.attach_critic(critic)
    assert model.critic is critic
    assert not any("critic" in name for name in model.state_dict())
    assert raster.Config(depth=1).build_critic(CODES, CLASSES) is None
    assert model.log_likelihood(Tokens(torch.zeros(1, 256, 3), model.layout), condition(1), None) is None
    assert "known" not in model.hears


@pytest.mark.parametrize(("family", "layout"), [(mar, LATENTS), (maskgit, CODES), (var, SCALES)])
def test_families_that_keep_known_tokens_hear_them(family: Any, layout: TokenLayout) -> None:
    assert family.Config.tiny().build(layout, CLASSES).hears == {"labels", "known"}


@pytest.mark.parametrize(
    ("family", "layout"), [(raster, CODES), (mar, LATENTS), (causal_mar, LATENTS), (maskgit, CODES)]
)
def test_dropout_is_as_the_config_says(family: Any, layout: TokenLayout) -> None:
    tiny = family.Config.tiny()
    for share in (0.0, 0.3):
        model = tiny.model_copy(update={"dropout": share}).build(layout, CLASSES)
        found = [module.share for module in model.modules() if isinstance(module, Dropout) and module.share]
        assert found == ([share] * (3 if family is raster else 2) if share else [])  # of two blocks, and raster's codes


def test_a_family_that_counts_no_passes_says_so() -> None:
    model = raster.Config.tiny().build(CODES, CLASSES)
    with pytest.raises(ConfigError, match="does not say how many passes"):
        Generator.passes(model, Sampling())
    assert model.passes(Sampling()) == 16


def test_known_tokens_of_another_layout_are_refused() -> None:
    model = mar.Config.tiny().build(LATENTS, CLASSES)
    tokens = Tokens(torch.zeros(2, 16, 4), LATENTS)
    assert model.context(Condition(torch.zeros(2, dtype=torch.int64), known=tokens)).pooled.shape == (2, 32)
    wrong = Tokens(torch.zeros(2, 5, 4), LINE)
    with pytest.raises(LayoutError, match="the known tokens are 5 tokens"):
        model.context(Condition(torch.zeros(2, dtype=torch.int64), known=wrong))


def test_known_tokens_in_parts_of_patches_are_refused() -> None:
    model = mar.Config.tiny().model_copy(update={"patch_size": 2}).build(LATENTS, CLASSES)
    known = torch.zeros(2, 4, 4, dtype=torch.bool)
    known[:, :2, 2:] = True  # the second patch
    tokens = torch.randn(2, 16, 4)
    patches, flags = model.known_patches(
        Condition(torch.zeros(2, dtype=torch.int64), known=Tokens(tokens, LATENTS, known.flatten(1)))
    )
    assert flags is not None and flags.tolist() == [[False, True, False, False]] * 2
    assert torch.equal(patches[:, 1], model.patches(Tokens(tokens, LATENTS))[:, 1])
    assert not patches[:, [0, 2, 3]].any()
    known[0, 3, 3] = True
    with pytest.raises(LayoutError, match="whole patches of 2x2"):
        model.known_patches(
            Condition(torch.zeros(2, dtype=torch.int64), known=Tokens(tokens, LATENTS, known.flatten(1)))
        )
