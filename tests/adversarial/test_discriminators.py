"""Discriminators against their formulas, written out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.models import IMAGE
from torch import nn
from torch.nn import functional

from artok.adversarial.critic import CriticConfig
from artok.adversarial.discriminators.base import Projection
from artok.config import find, validate
from artok.errors import ConfigError
from artok.nn.blur2d import halve
from artok.nn.r3 import GroupedBlock


def images(count: int, *image: int) -> torch.Tensor:
    return torch.rand(count, *(image or IMAGE), generator=torch.Generator().manual_seed(0)) * 2 - 1


def of_kind(kind: str, image: tuple[int, ...] = IMAGE, classes: int = 0, **section: Any) -> Any:
    torch.manual_seed(0)
    return find("adversarial.discriminators", kind)(**section).build(image, classes).eval()  # type: ignore[attr-defined]


def leaky(x: torch.Tensor) -> torch.Tensor:
    return functional.leaky_relu(x, 0.2)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("patch", {"base_channels": 64, "layers": 3, "norm": "batch"}),
        ("dcgan", {"base_channels": 64, "norm": "batch"}),
        ("stylegan", {"base_channels": 64, "largest": 512}),
        ("residual", {"channels": (8, 4), "blocks": 2, "groups": 1, "embedding_dim": 64}),
        (
            "backbone",
            {"model": "vit_small_patch16_224.dino", "weights": None, "layers": (2, 5, 8, 11)}
            | {"kernel": 9, "size": None, "random": False},
        ),
    ],
)
def test_a_setting_of_a_critic_that_is_left_out_stays_what_it_was(kind: str, expected: dict[str, Any]) -> None:
    """Configs of earlier runs leave settings out."""
    section = {"kind": kind} | ({"channels": [8, 4]} if kind == "residual" else {})
    critic = validate(CriticConfig, {"discriminator": section}, "critic")
    with torch.device("meta"):  # where a backbone needs no weights
        built = critic.build((3, 256, 256), 0)
        assert len(built.discriminator(torch.zeros(2, 3, 256, 256), None)) == 2
    found = critic.model_dump()
    assert found.pop("discriminator") == expected | {"kind": kind}
    penalties = {"r1": 0.0, "r2": 0.0, "gradient_penalty": 0.0, "penalty_every": 1, "penalty_final": 1.0, "lecam": 0.0}
    others = {"gan_loss": "hinge", "lecam_decay": 0.99, "spectral_norm": False, "augment": (), "n_critic": 1}
    assert found == penalties | others


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_scores_of_the_patch_discriminator_by_hand(norm: str) -> None:
    """Layers of stride 2, one of stride 1 and the scores; a norm after all but the first, which then needs no bias."""
    built = of_kind("patch", base_channels=8, layers=4, norm=norm, image=(3, 96, 64))
    convolutions = [m for m in built.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in built.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    assert [m.out_channels for m in convolutions] == [8, 16, 32, 64, 64, 1]
    assert [m.bias is None for m in convolutions] == [False, *[norm != "none"] * 4, False]
    assert len(norms) == (0 if norm == "none" else 4)
    assert all(m.num_groups == 1 for m in norms if isinstance(m, nn.GroupNorm))
    x = pictures = images(2, 3, 96, 64)
    for index, layer in enumerate(convolutions[:-1]):
        x = functional.conv2d(x, layer.weight, layer.bias, stride=2 if index < 4 else 1, padding=1)
        x = leaky(norms[index - 1](x) if norms and index else x)
    last = convolutions[-1]
    torch.testing.assert_close(built(pictures, None), functional.conv2d(x, last.weight, last.bias, padding=1))


def test_scores_of_the_dcgan_discriminator_by_hand() -> None:
    """As wide as it is high or not, down to 4 pixels, and once where there are but 4."""
    for side, halvings in ((4, 1), (8, 1), (16, 2), (32, 3)):
        built = of_kind("dcgan", (3, side, 2 * side), base_channels=4, norm="batch")
        convolutions = [m for m in built.modules() if isinstance(m, nn.Conv2d)]
        norms = [m for m in built.modules() if isinstance(m, nn.BatchNorm2d)]
        assert [m.out_channels for m in convolutions] == [4, 8, 16][:halvings] and len(norms) == halvings - 1
        assert all(layer.kernel_size == (4, 4) for layer in convolutions)
        x = pictures = images(2, 3, side, 2 * side)
        for index, layer in enumerate(convolutions):
            x = functional.conv2d(x, layer.weight, layer.bias, stride=2, padding=1)
            x = leaky(norms[index - 1](x) if index else x)
        assert built.score.score.weight.shape == (1, x[0].numel())
        torch.testing.assert_close(built(pictures, None), built.score.score(x.flatten(1))[:, 0])


def test_scores_of_the_stylegan_discriminator_by_hand() -> None:
    """Blocks (deep + shortcut) / sqrt 2 down to 4 pixels, and a convolution, a linear layer and the scores."""
    for side, widths in ((4, [4]), (16, [4, 8, 12])):
        built = of_kind("stylegan", (3, side, 2 * side), base_channels=4, largest=12)
        assert [built.start.out_channels, *(block.conv2.out_channels for block in built.blocks)] == widths
        pictures = images(2, 3, side, 2 * side)
        x = leaky(functional.conv2d(pictures, built.start.weight, built.start.bias))
        for block in built.blocks:
            deep = leaky(functional.conv2d(x, block.conv1.weight, block.conv1.bias, padding=1))
            deep = leaky(functional.conv2d(halve(deep), block.conv2.weight, block.conv2.bias, padding=1))
            assert block.skip.bias is None and block.conv1.kernel_size == block.conv2.kernel_size == (3, 3)
            x = (deep + functional.conv2d(halve(x), block.skip.weight)) / 2**0.5
        x = leaky(functional.conv2d(x, built.last.weight, built.last.bias, padding=1))
        x = leaky(functional.linear(x.flatten(1), built.features.weight, built.features.bias))
        assert x.shape == (2, widths[-1])
        torch.testing.assert_close(built(pictures, None), built.score.score(x)[:, 0])
        assert torch.equal(built.score(x, None), built.score.score(x)[:, 0])


def test_a_label_adds_the_product_of_its_vector_and_the_features() -> None:
    torch.manual_seed(0)
    built, features, labels = Projection(6, 3), torch.randn(2, 6), torch.tensor([2, 0])
    assert built.embedding is not None
    alone = features @ built.score.weight[0] + built.score.bias
    torch.testing.assert_close(built(features, None), alone)
    torch.testing.assert_close(built(features, labels), alone + (features * built.embedding.weight[labels]).sum(1))
    assert Projection(6, 0).embedding is None


@pytest.mark.parametrize("classes", [0, 5])
def test_scores_of_r3gans_discriminator_by_hand(classes: int) -> None:
    """Blocks at each resolution, a weighted sum over the places of the last, and its product with a label's."""
    built = of_kind("residual", (3, 16, 64), classes, channels=(16, 8, 8), blocks=2, groups=2, embedding_dim=6)
    pictures, labels = images(2, 3, 16, 64), torch.tensor([4, 1]) if classes else None
    for block in (block for stage in built.stages for block in stage):
        assert isinstance(block, GroupedBlock) and block.mix.groups == 2
        nn.init.normal_(block.reduce.weight, std=0.2)  # a block starts as the identity
    assert [[block.expand.in_channels for block in stage] for stage in built.stages] == [[8] * 2, [8] * 2, [16] * 2]
    x = functional.conv2d(pictures, built.start.weight)
    x = halve(built.stages[0](x))
    x = functional.conv2d(halve(built.stages[1](x)), built.transitions[1].weight)
    x = torch.einsum("bchw,chw->bc", built.stages[2](x), built.basis)
    x = functional.linear(x, built.features.weight)
    expected = x[:, 0] if labels is None else (x * built.embedding.weight[labels]).sum(1)
    torch.testing.assert_close(built(pictures, labels), expected)
    assert built.start.bias is None and built.features.bias is None
    assert built.features.weight.shape == (6 if classes else 1, 16)


def test_r3gans_discriminator_starts_at_unit_scale() -> None:
    """Weights of deviation 1 / sqrt(fan in), the places of the last resolution counted as inputs.

    A deviation of n draws is known to 1 / sqrt(2 n), of itself.
    """
    built = of_kind("residual", (48, 16, 64), 400, channels=(64, 64), blocks=2, embedding_dim=64)
    fans = {"start": 48, "features": 64, "basis": 8 * 32, "embedding": 64}
    for name, fan in fans.items():
        weight = built.get_parameter(name if name == "basis" else f"{name}.weight").detach()
        assert float(weight.std()) * fan**0.5 == pytest.approx(1, rel=5 / math.sqrt(2 * weight.numel())), name
    gain = math.sqrt(2 / (1 + 0.2**2)) / 4 ** (1 / 4)  # of four residual blocks in all
    weight = built.stages[0][0].expand.weight.detach()
    assert float(weight.std()) * 8 == pytest.approx(gain, rel=5 / math.sqrt(2 * weight.numel()))


def test_scores_on_a_frozen_backbone_by_hand() -> None:
    """A head for each layer: a convolution of one place, a residual one around the row of places, and the scores."""
    built = of_kind("backbone", model="resnet10t", layers=(1, 3), kernel=3, size=64, random=True)
    assert built.backbone.size == (64, 64)
    expected = []
    for head, features in zip(built.heads, built.backbone.maps(images(2), (1, 3)), strict=True):
        row = features.flatten(2)
        x = functional.conv1d(row, head.first.weight, head.first.bias)
        x = leaky(functional.group_norm(x, 1, head.norm1.weight, head.norm1.bias))
        around = functional.pad(x, (1, 1), mode="circular")
        y = functional.conv1d(around, head.second.weight, head.second.bias)
        x = (x + leaky(functional.group_norm(y, 1, head.norm2.weight, head.norm2.bias))) / 2**0.5
        expected.append(functional.conv1d(x, head.score.weight, head.score.bias)[:, 0])
    torch.testing.assert_close(built(images(2), None), torch.cat(expected, 1), rtol=1e-4, atol=1e-5)
    whole = of_kind("backbone", model="resnet10t", layers=(1,), kernel=3, random=True)
    assert whole.backbone.size == (176, 176)  # that it was trained at


@pytest.mark.parametrize("kind", ["dcgan", "stylegan"])
def test_images_that_cannot_be_halved_down_to_four_pixels_are_refused(kind: str) -> None:
    for height, width in ((36, 36), (32, 36), (36, 32), (18, 18)):
        with pytest.raises(ConfigError, match=f"cannot halve images of {height}x{width}"):
            of_kind(kind, (3, height, width), base_channels=4)
    for height, width in ((40, 40), (12, 14), (6, 6)):
        assert of_kind(kind, (1, height, width), base_channels=4)(torch.zeros(1, 1, height, width), None).shape == (1,)


def test_the_patch_discriminator_takes_images_from_one_patch_on() -> None:
    patch = find("adversarial.discriminators", "patch")
    for layers in (1, 2, 3):
        config = patch(base_channels=1, layers=layers, norm="none")
        least = next(side for side in range(1, 65) if config.side(side) > 0)  # type: ignore[attr-defined]
        for image in ((1, least - 1, 64), (1, 64, least - 1)):
            with pytest.raises(ConfigError, match="too small"):
                config.build(image, 0)  # type: ignore[attr-defined]
        for side in range(least, least + 9):
            scores = config.build((1, side, 64), 0)(torch.zeros(1, 1, side, 64), None)  # type: ignore[attr-defined]
            assert scores.shape == (1, 1, config.side(side), config.side(64))  # type: ignore[attr-defined]
        assert config.side(least) == 1  # type: ignore[attr-defined]
