"""Critics: every discriminator kind, GAN losses and penalties in closed form, augmentation, LeCam's running means."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.models import IMAGE
from torch import nn

from artok.adversarial.augment import augment, change_color, cut_out, translate
from artok.adversarial.critic import Critic, CriticConfig, decay_by_cosine
from artok.adversarial.discriminators.base import Discriminator, DiscriminatorConfig
from artok.adversarial.gan_losses import GAN_LOSSES, square_gradients
from artok.config import find, kinds, validate
from artok.errors import ConfigError
from artok.nn.blur2d import double, halve
from artok.nn.r3 import GroupedBlock
from artok.noise import Noise

KINDS = kinds("adversarial.discriminators")
LABELLED = [kind for kind in KINDS if kind not in ("patch", "backbone")]


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *IMAGE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(count: int, seed: int = 0) -> Noise:
    return Noise(seed, torch.arange(count))


def discriminator(kind: str, classes: int = 0, text: int = 0) -> Discriminator:
    torch.manual_seed(0)
    config: DiscriminatorConfig = find("adversarial.discriminators", kind).tiny()  # type: ignore[attr-defined]
    built = config.build(IMAGE, classes, text)
    for parameter in built.parameters():  # outputs that start at zero would make every test pass
        if parameter.requires_grad and parameter.ndim >= 2 and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return built


def critic(**changes: Any) -> Critic:
    torch.manual_seed(0)
    section = {"discriminator": {"kind": "dcgan", "base_channels": 8, "norm": "none"}} | changes
    return validate(CriticConfig, section, "critic").build(IMAGE, 0)


# ---------------------------------------------------------------------------------------------- discriminators


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_of_each_image_alone_and_every_weight_learns(kind: str) -> None:
    scorer = discriminator(kind).eval()
    whole = scorer(images(4), None)
    assert whole.shape[0] == 4
    torch.testing.assert_close(scorer(images(4)[1:3], None), whole[1:3], rtol=1e-4, atol=1e-5)
    x = images(4).requires_grad_()
    scorer.train()(x, None).square().sum().backward()
    assert x.grad is not None and x.grad.flatten(1).norm(dim=1).gt(0).all()
    idle = [name for name, p in scorer.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle


@pytest.mark.parametrize("kind", KINDS)
def test_a_penalty_on_slopes_reaches_the_weights(kind: str) -> None:
    scorer = discriminator(kind).train()
    x = images(2).requires_grad_()
    square_gradients(scorer(x, None), x).mean().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in scorer.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_matter_or_are_refused(kind: str) -> None:
    if kind not in LABELLED:
        with pytest.raises(ConfigError, match="hears no labels or texts"):
            discriminator(kind, classes=3)
        with pytest.raises(ConfigError, match="hears no labels or texts"):
            discriminator(kind, text=5)
        return
    scorer = discriminator(kind, classes=3).eval()
    scores = [scorer(images(2), torch.full((2,), label)) for label in range(3)]
    assert not torch.allclose(scores[0], scores[1]) and not torch.allclose(scores[1], scores[2])


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("kind", LABELLED)
def test_a_text_is_a_linear_part_of_the_score(kind: str, classes: int) -> None:
    scorer = discriminator(kind, classes=classes, text=5).eval()
    labels = torch.tensor([0, 2]) if classes else None
    one, two = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0)).unbind()
    silent, *scores = (scorer(images(2), labels, text) for text in (torch.zeros(2, 5), one, two, one + two))
    assert (scores[0] != silent).all() and (scores[1] != silent).all()
    torch.testing.assert_close(scores[2] - silent, scores[0] + scores[1] - 2 * silent)
    if classes:
        assert (scorer(images(2), labels.flip(0), one) != scores[0]).all()
    assert [name for name, _ in scorer.named_parameters() if "text" in name]
    assert not [name for name, _ in discriminator(kind, classes=classes).named_parameters() if "text" in name]


def test_a_frozen_backbone_stays_as_it_is() -> None:
    scorer = discriminator("backbone").train()
    before = {name: tensor.clone() for name, tensor in scorer.backbone.state_dict().items()}
    trained = [p for p in scorer.parameters() if p.requires_grad]
    assert trained and not any(p.requires_grad for p in scorer.backbone.parameters())
    optimizer = torch.optim.SGD(trained, lr=0.1)
    scorer(images(4), None).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in scorer.backbone.state_dict().items())


def test_images_too_small_for_a_discriminator_are_refused() -> None:
    patch = find("adversarial.discriminators", "patch")
    with pytest.raises(ConfigError, match="too small"):
        patch(layers=3).build((3, 8, 8), 0)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="multiples of 4"):
        find("adversarial.discriminators", "residual")(channels=(8, 8, 8)).build((3, 18, 18), 0)  # type: ignore[attr-defined]


def test_the_patch_discriminator_is_the_published_one() -> None:
    """taming-transformers: three convolutions of stride 2 and two of 1, scores of 30x30 patches at 256 px."""
    patch = find("adversarial.discriminators", "patch")().build((3, 256, 256), 0)  # type: ignore[attr-defined]
    trained = sum(p.numel() for p in patch.parameters())
    by_hand = 3 * 64 * 16 + 64 + sum(a * b * 16 + 2 * b for a, b in ((64, 128), (128, 256), (256, 512))) + 512 * 16 + 1
    assert trained == by_hand
    assert patch(torch.zeros(2, 3, 256, 256), None).shape == (2, 1, 30, 30)


# ----------------------------------------------------------------------------------------- GAN losses and penalties


def test_gan_losses_in_closed_form() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])

    def soft(x: float) -> float:
        return math.log1p(math.exp(x))

    expected = {
        "hinge": (0.5 * ((0 + 0.5) / 2 + (0 + 1) / 2), 1.5),
        "non_saturating": ((soft(-2) + soft(-0.5)) / 2 + (soft(-3) + soft(0)) / 2, (soft(3) + soft(0)) / 2),
        "least_squares": (0.5 * ((1 + 0.25) / 2 + 9 / 2), 0.5 * (16 + 1) / 2),
        "relativistic": ((soft(-5) + soft(-0.5)) / 2, (soft(5) + soft(0.5)) / 2),
        "wasserstein": (-1.5 - 1.25, 1.5),
    }
    assert set(expected) == set(GAN_LOSSES)
    for name, loss in GAN_LOSSES.items():
        found = float(loss.discriminator(real, fake)), float(loss.generator(real, fake))
        assert found == pytest.approx(expected[name], rel=1e-5), name


class Linear(Discriminator):
    """A score whose gradient is known: the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(math.prod(IMAGE)))

    def forward(self, images: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return images.flatten(1) @ self.weight


def test_penalties_of_a_linear_critic() -> None:
    config = critic(r1=2.0, r2=4.0, gradient_penalty=10.0, penalty_every=3, penalty_final=0.5).config
    built = Critic(config, Linear())
    square = float(built.discriminator.weight.detach().square().sum())  # type: ignore[union-attr,operator]
    for progress, share in ((0.0, 1.0), (0.5, 0.75), (1.0, 0.5)):
        losses = {
            name: x.detach() for name, x in built(images(4), images(4, 1), None, noise(4), 3, progress).losses.items()
        }
        assert float(losses["r1"]) == pytest.approx(3 * share * 1.0 * square, rel=1e-4)
        assert float(losses["r2"]) == pytest.approx(3 * share * 2.0 * square, rel=1e-4)
        assert float(losses["gradient_penalty"]) == pytest.approx(3 * 10 * (square**0.5 - 1) ** 2, rel=1e-3)
    assert set(built(images(4), images(4, 1), None, noise(4), 4, 0.0).losses) == {"critic"}  # not due


@pytest.mark.parametrize("penalty", ["r1", "r2", "gradient_penalty"])
def test_penalties_hold_in_bfloat16_too(penalty: str) -> None:
    built = critic(**{penalty: 1.0})
    exact = built(images(4), images(4, 1), None, noise(4), 0, 0.0).losses[penalty].detach()
    with torch.autocast("cpu", torch.bfloat16):
        rough = built(images(4), images(4, 1).bfloat16(), None, noise(4), 0, 0.0).losses[penalty]
    rough.backward()
    torch.testing.assert_close(rough.detach(), exact, rtol=0.05, atol=1e-3)


def test_a_critic_is_trained_on_the_penalties_that_it_has() -> None:
    for names in ((), ("r1",), ("r2",), ("gradient_penalty",), ("lecam",)):
        found = critic(**dict.fromkeys(names, 1.0))(images(4), images(4, 1), None, noise(4), 0, 0.0)
        assert set(found.losses) == {"critic", *names}


def test_the_cosine_of_a_penalty() -> None:
    assert [decay_by_cosine(0.1, p) for p in (0.0, 1.0, 2.0)] == pytest.approx([1.0, 0.1, 0.1])
    assert decay_by_cosine(0.0, 0.5) == pytest.approx(0.5)


def test_lecam_pulls_scores_to_the_other_sides_running_mean() -> None:
    built = critic(lecam=2.0, lecam_decay=0.9)
    first = built(images(4), images(4, 1), None, noise(4), 0, 0.0)
    means = torch.stack([first.monitors["score_real"], first.monitors["score_fake"]])
    built.settle(lambda value: value)
    torch.testing.assert_close(built.mean_scores, means)  # the first means are taken whole
    second = built(images(4, 2), images(4, 3), None, noise(4), 1, 0.0)
    real, fake = (built.scores(x, (None,), noise(4)).detach() for x in (images(4, 2), images(4, 3)))
    expected = 2.0 * ((real - means[1]).square().mean() + (fake - means[0]).square().mean())
    torch.testing.assert_close(second.losses["lecam"].detach(), expected)
    built.settle(lambda value: value)
    now = torch.stack([real.mean(), fake.mean()])
    torch.testing.assert_close(built.mean_scores, 0.9 * means + 0.1 * now)


def test_without_lecam_a_step_ends_with_no_exchange_between_processes() -> None:
    built = critic()
    built(images(4), images(4, 1), None, noise(4), 0, 0.0)
    built.settle(lambda value: pytest.fail("the running means are LeCam's alone"))


def test_lecam_is_refused_where_scores_have_no_zero() -> None:
    with pytest.raises(ConfigError, match="lecam needs scores"):
        critic(gan_loss="relativistic", lecam=0.1)


def test_spectral_normalisation_bounds_every_layer() -> None:
    built = critic(spectral_norm=True).train()
    for _ in range(30):
        built.scores(images(2), (None,), noise(2))
    built.eval()
    weights = [m.weight.detach().flatten(1) for m in built.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weights) == 3
    for weight in weights:
        assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1.0, abs=0.05)


def test_spectral_normalisation_is_of_each_trained_weight_once() -> None:
    """A backbone's own stay as they are, and its heads have theirs already."""
    torch.manual_seed(0)
    sections: list[tuple[dict[str, Any], int, int]] = [
        ({"kind": "backbone", "model": "resnet10t", "layers": [1, 2], "size": 32, "random": True}, 0, 2 * 3),
        ({"kind": "residual", "channels": [8, 8], "blocks": 1}, 3, 2 * 3 + 1 + 2),  # blocks, start, features, embedding
    ]
    for section, classes, expected in sections:
        built = validate(CriticConfig, {"discriminator": section, "spectral_norm": True}, "c").build(IMAGE, classes)
        normed = [m for m in built.modules() if nn.utils.parametrize.is_parametrized(m)]
        assert [len(m.parametrizations.weight) for m in normed] == [1] * expected  # type: ignore[union-attr,arg-type,index]
        assert all(p.requires_grad for m in normed for p in m.parameters())


def test_the_critics_accuracy_says_who_wins() -> None:
    built = Critic(critic().config, Linear())
    bright = torch.ones(4, *IMAGE) * built.discriminator.weight.detach().sign().view(IMAGE)  # type: ignore[union-attr,operator]
    assert float(built(bright, -bright, None, noise(4), 0, 0.0).monitors["critic_accuracy"]) == 1
    assert float(built(-bright, bright, None, noise(4), 0, 0.0).monitors["critic_accuracy"]) == 0


# ---------------------------------------------------------------------------------------------- augmentation


def test_every_change_differs_by_image_and_passes_the_gradient() -> None:
    for change in ("color", "translation", "cutout"):
        x = images(1).expand(6, -1, -1, -1).clone().requires_grad_()
        y = augment(x, (change,), noise(6))  # type: ignore[arg-type]
        assert y.shape == x.shape
        assert not torch.equal(y[0], y[1]) or not torch.equal(y[1], y[2])
        y.sum().backward()
        assert x.grad is not None and bool(x.grad.any())
    assert torch.equal(augment(images(2), (), noise(2)), images(2))


def test_a_batch_is_changed_as_its_images_are_alone() -> None:
    every = ("color", "translation", "cutout")
    whole = augment(images(4), every, noise(4))
    torch.testing.assert_close(augment(images(4)[2:], every, noise(4)[2:]), whole[2:])


def test_holes_are_half_the_side_and_colours_keep_their_mean() -> None:
    x = torch.ones(1, 2, 16, 16)
    kept = cut_out(x, torch.tensor([[0.5, 0.5]]))
    assert int((kept == 0).sum()) == 2 * 8 * 8 and not kept[:, :, 4:12, 4:12].any()
    still = torch.tensor([[0.5, 0.5, 0.5]])
    torch.testing.assert_close(change_color(images(1), still), images(1), rtol=1e-5, atol=1e-6)
    bright = change_color(images(1), torch.tensor([[1.0, 0.5, 0.5]]))
    torch.testing.assert_close(bright, images(1) + 0.5, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------- resampling


def test_halving_is_the_binomial_filter() -> None:
    x = images(2)
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = torch.outer(row, row).expand(3, 1, 4, 4)
    expected = nn.functional.conv2d(x, kernel, stride=2, padding=1, groups=3)
    torch.testing.assert_close(halve(x), expected)
    inner = halve(double(torch.full((1, 1, 8, 8), 0.7)))[..., 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.7))


# ---------------------------------------------------------------------------------------------- what a critic sees


class Recorder(Discriminator):
    """Keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        self.seen.append(images.detach().clone())
        return self.weight * images.flatten(1).sum(1)


EVERY = ("color", "translation", "cutout")


def test_a_critic_and_its_opponent_see_images_that_are_augmented() -> None:
    built = Critic(critic(augment=EVERY, gan_loss="relativistic").config, Recorder())
    recorder = built.discriminator
    assert isinstance(recorder, Recorder)
    real, fake = images(4), images(4, 1)
    built(real, fake, None, noise(4), 0, 0.0)
    built.generator_loss(real, fake, None, noise(4))
    draws = noise(4)  # of which each pass takes its own
    expected = [augment(x, EVERY, draws) for x in (real, fake)]
    draws = noise(4)
    expected += [augment(x, EVERY, draws) for x in (fake, real)]
    assert len(recorder.seen) == 4
    for seen, image in zip(recorder.seen, expected, strict=True):
        assert torch.equal(seen, image)


def test_the_opponent_of_a_relativistic_critic_is_compared_with_the_real_images() -> None:
    built = critic(gan_loss="relativistic")
    real, fake = images(4), images(4, 1)
    scores = [built.scores(x, (None,), noise(4)).detach() for x in (real, fake)]
    expected = nn.functional.softplus(scores[0] - scores[1]).mean()
    torch.testing.assert_close(built.generator_loss(real, fake, None, noise(4)).detach(), expected)
    hinge = critic(gan_loss="hinge")
    expected = -hinge.scores(fake, (None,), noise(4)).detach().mean()
    torch.testing.assert_close(hinge.generator_loss(real, fake, None, noise(4)).detach(), expected)


def test_colours_change_in_brightness_saturation_and_contrast() -> None:
    x = images(1)
    grey, mean = x.mean(1, keepdim=True), x.mean((1, 2, 3), keepdim=True)
    by_hand = {
        (0.9, 0.5, 0.5): x + 0.4,
        (0.5, 0.0, 0.5): grey.expand_as(x),
        (0.5, 0.9, 0.5): grey + 1.8 * (x - grey),
        (0.5, 0.5, 0.0): mean + 0.5 * (x - mean),
        (0.5, 0.5, 0.9): mean + 1.4 * (x - mean),
    }
    for draws, expected in by_hand.items():
        torch.testing.assert_close(change_color(x, torch.tensor([draws])), expected, rtol=1e-5, atol=1e-6)


def test_each_augmentation_has_draws_of_its_own() -> None:
    """Seven numbers an image: three, two and two, whichever are on."""
    draws = noise(4).uniform(7)
    assert torch.equal(augment(images(4), ("color",), noise(4)), change_color(images(4), draws[:, :3]))
    assert torch.equal(augment(images(4), ("translation",), noise(4)), translate(images(4), draws[:, 3:5]))
    assert torch.equal(augment(images(4), ("cutout",), noise(4)), cut_out(images(4), draws[:, 5:]))


# ---------------------------------------------------------------------------------------------- how weights start


def test_the_patch_discriminator_starts_as_published() -> None:
    """N(0, .02), and norms N(1, .02). A deviation of n draws is known to 1 / sqrt(2 n)."""
    torch.manual_seed(0)
    built = find("adversarial.discriminators", "patch")().build((3, 64, 64), 0)  # type: ignore[attr-defined]
    convolutions = torch.cat([m.weight.flatten() for m in built.modules() if isinstance(m, nn.Conv2d)])
    norms = torch.cat([m.weight.flatten() for m in built.modules() if isinstance(m, nn.BatchNorm2d)])
    for weights, mean in ((convolutions, 0.0), (norms, 1.0)):
        error = 5 * 0.02 / math.sqrt(len(weights))
        assert float(weights.detach().mean()) == pytest.approx(mean, abs=error)
        assert float(weights.detach().std()) == pytest.approx(0.02, abs=error)


def test_r3gans_blocks_start_at_the_scale_of_fixup() -> None:
    """The identity, whose first two convolutions have the gain of the leaky ReLU over the fourth root of the blocks."""
    torch.manual_seed(0)
    block = GroupedBlock(64, 4, blocks_in_all=16)
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(block(x), x)
    gain = math.sqrt(2 / (1 + 0.2**2)) / 2
    for layer, fan in ((block.expand, 64), (block.mix, 128 // 4 * 9)):
        found = float(layer.weight.detach().std())
        assert found == pytest.approx(gain / math.sqrt(fan), rel=5 / math.sqrt(layer.weight.numel()))


def test_every_shift_and_hole_is_exact() -> None:
    """By up to 2 rows and 3 columns of 16 x 24; of 3 x 4 around any place of 6 x 7 and up to one beyond."""
    x = torch.arange(16.0 * 24).view(1, 1, 16, 24) + 1
    padded = nn.functional.pad(x, (3, 3, 2, 2))
    for down in range(-2, 3):
        for right in range(-3, 4):
            moved = translate(x, torch.tensor([[(down + 2.5) / 5, (right + 3.5) / 7]]))
            assert torch.equal(moved, padded[:, :, 2 - down : 18 - down, 3 - right : 27 - right])
    rows, columns = torch.arange(6)[:, None], torch.arange(7)
    for row in range(7):
        for column in range(8):
            kept = cut_out(torch.ones(1, 1, 6, 7), torch.tensor([[(row + 0.5) / 7, (column + 0.5) / 8]]))
            hole = ((rows - row).abs() <= 1) & (columns >= column - 2) & (columns < column + 2)
            assert torch.equal(kept[0, 0] == 0, hole)


def test_the_gradient_penalty_lies_between_the_two_images() -> None:
    """At the numbers of each image's own draw: of the way from the generated image to the real one."""
    built = Critic(critic(gradient_penalty=1.0).config, Recorder())
    recorder = built.discriminator
    assert isinstance(recorder, Recorder)
    real, fake = torch.ones(4, *IMAGE), torch.zeros(4, *IMAGE)
    draws = noise(4)
    for _ in (real, fake):
        draws.uniform(7)  # of their augmentation
    built(real, fake, None, noise(4), 0, 0.0)
    torch.testing.assert_close(recorder.seen[2], draws.uniform(1, 1, 1).expand(4, *IMAGE))
