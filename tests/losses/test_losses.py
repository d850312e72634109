"""The contract of every loss kind, and what is special to the perceptual and the adversarial one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.models import IMAGE, tokenizer_experiment
from torch import nn

from artok.config import find, kinds, validate
from artok.data.loader import Batch
from artok.errors import ArtokError, CheckpointError, ConfigError
from artok.losses import adversarial, perceptual
from artok.losses.base import AdversarialLoss, BatchContext, Comparisons, Loss, LossConfig, Setting
from artok.metrics import cost
from artok.metrics.features import Extractor, ExtractorConfig, Maps, TrainingImages, open_extractor, parse
from artok.metrics.per_channel import PerChannel, maps_of_channels
from artok.noise import Noise
from artok.planning.meta_model import comparisons
from artok.planning.training_cost import training_flops
from artok.training.tasks import TokenizerTask

DEVICE = torch.device("cpu")


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *IMAGE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def training() -> TrainingImages:
    bright = (images(64, 5) * 60 + 127 + 60 * torch.sign(torch.arange(64) % 2 - 0.5)[:, None, None, None]).byte()
    return TrainingImages(bright, torch.arange(64) % 2, 2)


def extractor(config: ExtractorConfig) -> Extractor:
    return config.build(training() if config.trained else None, DEVICE, None)


SETTING = Setting(IMAGE, DEVICE, extractor)


@pytest.fixture(autouse=True)
def short_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    from artok.metrics.extractors import classifier

    monkeypatch.setattr(classifier, "SEEN_AT_LEAST", 512)
    monkeypatch.setattr(classifier, "EPOCHS", 1)


def config(kind: str, **changes: Any) -> LossConfig:
    found = find("losses", kind)
    tiny: LossConfig = found.tiny()  # type: ignore[attr-defined]
    return validate(found, tiny.model_dump() | changes, "loss")  # type: ignore[return-value]


def moment(seen: int, others: torch.Tensor, layer: nn.Parameter | None = None, count: int = 4) -> BatchContext:
    return BatchContext(seen, Noise(0, torch.arange(count)), others, layer)


CRITIC = {"discriminator": {"kind": "patch", "base_channels": 8, "layers": 1, "norm": "none"}}


@pytest.mark.parametrize("kind", kinds("losses"))
def test_a_loss_trains_the_reconstruction_and_nothing_of_itself(kind: str) -> None:
    torch.manual_seed(0)
    loss = config(kind).build(SETTING)
    x = images(4, 1).requires_grad_()
    if isinstance(loss, AdversarialLoss):
        loss.critic.get_buffer("factor").fill_(1.0)
        losses, _ = loss(x, images(4), moment(0, x.sum()))
        assert loss.critic is not None
    else:
        assert isinstance(loss, Loss)
        losses = loss(x, images(4))
        assert not any(p.requires_grad for p in loss.parameters())
        assert float(sum(v.detach() for v in loss(images(4), images(4)).values())) == pytest.approx(0, abs=1e-6)
    torch.stack(list(losses.values())).sum().backward()
    assert x.grad is not None and x.grad.flatten(1).norm(dim=1).gt(0).all()


@pytest.mark.parametrize(
    ("kind", "section", "expected"),
    [
        ("reconstruction", {}, {"l1": 1.0, "l2": 0.0}),
        ("perceptual", {}, {"features": "classifier", "weight": 1.0, "layers": None, "weights": None, "seed": 1}),
        ("adversarial", {"critic": CRITIC}, {"weight": 0.5, "adaptive": True, "warmup": 0, "ramp": 0}),
    ],
)
def test_a_setting_that_is_left_out_stays_what_it_was(kind: str, section: dict[str, Any], expected: Any) -> None:
    """Configs of earlier runs leave settings out."""
    found = validate(find("losses", kind), {"kind": kind} | section, "loss").model_dump()
    assert {name: value for name, value in found.items() if name != "critic"} == expected | {"kind": kind, "start": 0}


# ---------------------------------------------------------------------------------------------- several losses


def test_losses_of_one_kind_add_up_under_names_that_do_not_change() -> None:
    section = [{"l1": 1.0, "start": 100}, {"l1": 5.0}, {"l1": 0.0, "l2": 2.0}]
    configs = [config("reconstruction", **changes) for changes in ({"l2": 0.0} | each for each in section)]
    compared = Comparisons(configs, [each.build(SETTING) for each in configs])
    x, y = images(4), images(4, 1)
    l1, l2 = float((x - y).abs().mean()), float((x - y).square().mean())
    expected = {"l1": l1, "l1_2": 5 * l1, "l2_3": 2 * l2}
    assert {name: float(value) for name, value in compared(x, y, 100).items()} == pytest.approx(expected)
    assert list(compared(x, y, 99)) == ["l1_2", "l2_3"]


def test_every_config_needs_its_loss() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Comparisons([config("reconstruction")] * 2, [config("reconstruction").build(SETTING)])


def test_a_tokenizer_is_trained_on_the_sum_of_its_losses() -> None:
    losses = [{"kind": "reconstruction", "l1": 1.0}, {"kind": "reconstruction", "l1": 5.0}]
    experiment = tokenizer_experiment(losses=losses)
    task = TokenizerTask(experiment, experiment.data.open("train"), experiment.data.open("test"), DEVICE)
    rows = images(4)[:, :1]
    step = task.losses(task.players, "model", Batch(rows, torch.zeros(4), torch.arange(4)), 0)
    assert {"l1", "l1_2", "commitment"} == set(step.losses)
    assert step.losses["l1_2"].item() == pytest.approx(5 * step.losses["l1"].item())


def test_a_plan_counts_every_loss() -> None:
    pixel = {"kind": "reconstruction"}
    features = {"kind": "perceptual", "features": "classifier"}

    def flops(*losses: dict[str, Any]) -> float:
        return training_flops(tokenizer_experiment(losses=[pixel, *losses]), 10)

    one, two = flops(features) - flops(), flops(features, features) - flops()
    assert two == pytest.approx(2 * one) and one > 0


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([{"kind": "reconstruction"}, *[{"kind": "adversarial", "critic": CRITIC}] * 2], "more than one loss with a"),
        ([{"kind": "reconstruction"}, {"kind": "adversarial", "critic": CRITIC | {"n_critic": 5}}], "n_critic is for"),
        ([{"kind": "adversarial", "critic": CRITIC}], "from the start on"),
        ([{"kind": "reconstruction", "start": 16}], "from the start on"),
        ([], "from the start on"),
    ],
)
def test_losses_that_cannot_train_together_are_refused(losses: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tokenizer_experiment(losses=losses)


# ---------------------------------------------------------------------------------------------- perceptual


def test_the_classifier_that_trains_is_not_the_one_that_judges() -> None:
    loss = config("perceptual").build(SETTING)
    evaluator = open_extractor("classifier", training())
    own = loss.distance.maps.__self__  # type: ignore[union-attr]
    assert own.fingerprint != evaluator.fingerprint
    with pytest.raises(ConfigError, match="greater than or equal to 1"):
        config("perceptual", seed=0)


def test_a_seed_is_that_of_the_classifier_and_leaves_backbones_as_they_are() -> None:
    asked: list[ExtractorConfig] = []

    class Opened(Extractor):
        def __init__(self, config: ExtractorConfig) -> None:
            asked.append(config)

        def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
            return images.flatten(1), None

    for features in ("classifier", "timm:resnet10t"):
        config("perceptual", features=features, seed=3).build(Setting(IMAGE, DEVICE, Opened))
    assert asked == [parse("classifier").model_copy(update={"seed": 3}), parse("timm:resnet10t")]


@pytest.mark.parametrize(("features", "apart"), [("classifier", False), ("classifier", True), ("timm:resnet10t", True)])
def test_a_plan_counts_the_features_that_are_compared(features: str, apart: bool) -> None:
    """A classifier sees channels that are images of their own one by one; a backbone sees images of three channels."""
    image = (3, 64, 16)
    by_channel = features == "classifier" and apart

    def expected() -> Maps:
        maps = parse(features).blank_maps((1, *image[1:]) if by_channel else image)
        return maps_of_channels(maps) if by_channel else maps

    section = config("perceptual", features=features)
    with torch.device("meta"):
        x, maps = torch.zeros(2, *image), expected()
        setting = Setting(image, torch.device("meta"), None)
        compared = Comparisons([section], [section.build(replace(setting, channels_apart=True) if apart else setting)])
        assert cost.flops(lambda: compared(x, x, 0)) == 2 * cost.flops(lambda: maps(x, None)) > 0


def test_a_plan_of_lpips_reads_no_weights(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lpips")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("weights are read"))
    with torch.device("meta"):
        loss = config("perceptual", features="lpips").build(Setting(IMAGE, torch.device("meta"), None)).to("meta")
        x = torch.zeros(2, *IMAGE)
        assert cost.flops(lambda: loss(x, x)) > 0  # type: ignore[operator]
    assert {parameter.device.type for parameter in loss.parameters()} == {"meta"}
    assert not capsys.readouterr().out


def test_layers_are_chosen_and_unknown_ones_refused() -> None:
    x, y = images(2), images(2, 1)
    every = config("perceptual").build(SETTING).distance(x, y)
    some = [config("perceptual", layers=[layer]).build(SETTING).distance(x, y) for layer in range(4)]
    torch.testing.assert_close(torch.stack(some).mean(0), every)
    with pytest.raises(ArtokError, match="layers 0 to 3, and no 9"):
        config("perceptual", layers=[9]).build(SETTING).distance(x, y)


def test_the_network_of_a_perceptual_loss_does_not_drop_out() -> None:
    """LPIPS has dropout, which must not be on while the tokenizer trains."""

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.dropout((x - y).square()).flatten(1).mean(1)

    loss = perceptual.Perceptual(perceptual.Config(weight=2.0), Dropping())
    x, y = images(4), images(4, 1)
    torch.testing.assert_close(loss(x, y)["perceptual"], 2 * (x - y).square().mean())


def test_a_distance_is_that_of_directions() -> None:
    """Feature vectors (1, 0) and (0, 5) are at right angles: their unit vectors differ by 2, whatever their lengths.

    One without a direction is 0, so it differs from a unit vector by 1 and from another such by 0.
    """

    def maps(x: torch.Tensor, layers: Any) -> list[torch.Tensor]:
        return [x]

    distance = perceptual.FeatureDistance(maps, None)
    first, second = (torch.tensor(v)[:, None, None].expand(2, 3, 3) for v in ([1.0, 0.0], [0.0, 5.0]))
    none = torch.zeros(2, 3, 3)
    x = torch.stack([first, second, first, none]).requires_grad_()
    y = torch.stack([second, 7 * second, none, none])
    found = distance(x, y)
    torch.testing.assert_close(found, torch.tensor([2.0, 0.0, 1.0, 0.0]))
    found.sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


@pytest.mark.slow
def test_channels_that_are_images_of_their_own_are_compared_one_by_one() -> None:
    """The features are those of a classifier of single channels, and a plan counts what such a comparison costs."""
    experiment = tokenizer_experiment(
        data={"kind": "stacked", "size": 16, "train": 64, "test": 32},
        losses=[{"kind": "perceptual", "features": "classifier"}],
    )
    task = TokenizerTask(experiment, experiment.data.open("train"), experiment.data.open("test"), DEVICE)
    ((loss, _, _),) = task.comparisons.entries
    assert isinstance(loss, perceptual.Perceptual)
    x, y = images(2), images(2, 1)
    joined = loss.distance.maps.__self__  # type: ignore[union-attr]
    assert isinstance(joined, PerChannel)
    first_maps, last_maps = (joined.single.maps(x[:, [channel]], None) for channel in (0, 2))
    for whole, first, last in zip(joined.maps(x, None), first_maps, last_maps, strict=True):
        assert whole.shape[1] == 3 * first.shape[1]
        torch.testing.assert_close(whole[:, : first.shape[1]], first)
        torch.testing.assert_close(whole[:, -last.shape[1] :], last)
    assert float(loss(x, y)["perceptual"]) > 0
    (blank,) = comparisons(experiment)
    counted = cost.flops(lambda: blank(x.to("meta"), y.to("meta")))
    assert counted == pytest.approx(cost.flops(lambda: loss(x, y)))


def test_a_timm_backbone_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=0)
    torch.save(network.state_dict(), tmp_path / "resnet10t.pth")
    name = f"timm:resnet10t@{tmp_path / 'resnet10t.pth'}"
    loss = config("perceptual", features=name, layers=[0, 2]).build(SETTING)
    assert float(loss.distance(images(2), images(2, 1)).min()) > 0  # type: ignore[union-attr,operator]
    with pytest.raises(ConfigError, match="not all there"):
        config("perceptual", features=name, layers=[40]).build(SETTING).distance(images(2), images(2, 1))


def test_an_extractor_without_maps_says_so() -> None:
    class Pooled(Extractor):
        name = "pooled"

        def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
            return images.float().mean((2, 3)), None

    with pytest.raises(ArtokError, match="'pooled' gives no maps to train on"):
        Pooled().maps(images(1), None)


def test_settings_that_belong_to_other_features_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave layers out"):
        config("perceptual", features="lpips", layers=[1])
    with pytest.raises(ConfigError, match="weights are for features lpips"):
        config("perceptual", weights="x.pth")
    assert config("perceptual", features="lpips", weights="x.pth").weights == Path("x.pth")  # type: ignore[attr-defined]


@pytest.mark.slow
def test_lpips_mistakes_are_named(tmp_path: Path) -> None:
    pytest.importorskip("lpips")
    with pytest.raises(CheckpointError, match="there is no file"):
        perceptual.open_lpips(tmp_path / "nothing.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not hold torchvision's VGG16"):
        perceptual.open_lpips(tmp_path / "other.pth")


@pytest.mark.slow
def test_lpips_is_that_of_its_authors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lpips = pytest.importorskip("lpips")
    import torchvision

    torch.manual_seed(0)
    vgg = torchvision.models.vgg16(weights=None)
    torch.save(vgg.state_dict(), tmp_path / "vgg16.pth")
    ours = perceptual.open_lpips(tmp_path / "vgg16.pth")
    assert not capsys.readouterr().out
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    for index, layer in enumerate(vgg.features):
        for part in theirs.net.children():
            if str(index) in dict(part.named_children()):
                part.get_submodule(str(index)).load_state_dict(layer.state_dict())
    x, y = images(2).repeat(1, 1, 4, 4), images(2, 1).repeat(1, 1, 4, 4)
    torch.testing.assert_close(ours(x, y), theirs(x, y).flatten(), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------- adversarial


def layer_and_output(count: int = 4) -> tuple[nn.Parameter, torch.Tensor]:
    """A last layer, and reconstructions that it made."""
    torch.manual_seed(0)
    layer = nn.Parameter(torch.randn(3, 3))
    return layer, torch.einsum("oc,bchw->bohw", layer, images(count, 3))


def built(**changes: Any) -> adversarial.Adversarial:
    torch.manual_seed(0)
    loss = config("adversarial", **changes).build(SETTING)
    assert isinstance(loss, adversarial.Adversarial)
    return loss


def test_the_adaptive_weight_is_the_published_ratio() -> None:
    loss = built(weight=0.8)
    layer, made = layer_and_output()
    others = made.square().mean()
    for _ in range(2):
        losses, told = loss(made, images(4), moment(0, others, layer))
        loss.settle(lambda value: value)
    plain = loss.critic.generator_loss(images(4), made, None, Noise(0, torch.arange(4)))
    slopes = [torch.autograd.grad(part, layer, retain_graph=True)[0].norm() for part in (others, plain)]
    factor = slopes[0] / (slopes[1] + 1e-4)
    torch.testing.assert_close(told["adversarial_factor"], factor)
    torch.testing.assert_close(losses["adversarial"], 0.8 * factor * plain)


def test_an_adaptive_weight_is_measured_before_it_is_used_and_a_fixed_one_holds_at_once() -> None:
    layer, made = layer_and_output()
    for adaptive in (True, False):
        loss = built(weight=0.8, adaptive=adaptive, ramp=200)
        plain = loss.critic.generator_loss(images(4), made, None, Noise(0, torch.arange(4))).detach()
        losses, told = loss(made, images(4), moment(50, made.square().mean(), layer))
        torch.testing.assert_close(losses["adversarial"].detach(), 0.8 * 50 / 200 * plain * (not adaptive))
        torch.testing.assert_close(told["adversarial_unweighted"], plain)
        assert not any(value.requires_grad for value in told.values())
        loss.settle(lambda value: value)
        assert (loss.critic.get_buffer("factor") == 1) == (not adaptive)


def test_the_adaptive_weight_is_at_most_ten_thousand_fold() -> None:
    loss = built()
    layer, made = layer_and_output()
    loss(made, images(4), moment(0, 1e9 * made.square().mean(), layer))
    loss.settle(lambda value: value)
    assert loss.critic.get_buffer("factor") == 1e4


def test_the_adaptive_weight_does_not_depend_on_how_a_batch_is_split() -> None:
    factors = []
    for parts in (1, 2, 4):
        loss = built()
        layer, made = layer_and_output()
        for rows in torch.arange(4).chunk(parts):
            part = made[rows]
            loss(part, images(4)[rows], BatchContext(0, Noise(0, rows), part.square().mean(), layer))
        loss.settle(lambda value: value)
        factors.append(float(loss.critic.get_buffer("factor")))
    assert factors[0] > 0
    assert factors[1:] == pytest.approx([factors[0]] * 2, rel=1e-4)


def test_the_adaptive_weight_holds_in_float16_at_any_batch() -> None:
    """The mean over many images is one over a few, divided: float16's least number is 6e-8."""
    torch.manual_seed(0)
    inputs, target = torch.randn(8, 16, 64, 64), torch.randn(8, 3, 64, 64)
    layer, scorer = nn.Conv2d(16, 3, 3, padding=1), nn.Conv2d(3, 1, 4, 2, 1)

    def ratio(dtype: torch.dtype, share: float) -> float:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            made = layer(inputs).float()
            others = (made - made.detach() - 0.05 * target).square().mean() * share
            own = -scorer(made).float().mean() * share
        found = [adversarial.compute_gradient(loss, made, layer.weight) for loss in (others, own)]
        if dtype == torch.float32:
            for loss, gradient in zip((others, own), found, strict=True):
                (expected,) = torch.autograd.grad(loss, layer.weight, retain_graph=True)
                torch.testing.assert_close(gradient, expected.flatten())
        return float(found[0].norm() / found[1].norm())

    for share in (1.0, 1 / 64, 1 / 4096):
        # 11 bits at each of about five roundings in a row, for each of two losses
        assert ratio(torch.float16, share) == pytest.approx(ratio(torch.float32, share), rel=10 * 2**-11)


def test_the_adaptive_weight_holds_in_float16_where_an_image_has_one_score() -> None:
    """Its gradient is 1 / B of the loss's, and stays below float16's largest number, 65504, when the loss is scaled."""
    torch.manual_seed(0)
    inputs, layer, scorer = torch.randn(256, 3, 4, 4), nn.Conv2d(3, 3, 1), nn.Linear(48, 1)

    def norm(dtype: torch.dtype) -> float:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            made = layer(inputs).float()
            loss = -scorer(made.flatten(1)).float().mean()
        return float(adversarial.compute_gradient(loss, made, layer.weight).norm())

    assert norm(torch.float16) == pytest.approx(norm(torch.float32), rel=10 * 2**-11)  # of 11 bits, as above


def test_a_gradient_that_overflowed_leaves_the_adaptive_weight_as_it_was() -> None:
    loss = built()
    layer, made = layer_and_output()
    for others in (made.square().mean(), made.square().mean() * math.inf):
        loss(made, images(4), moment(0, others, layer))
        loss.settle(lambda value: value)
        factor = float(loss.critic.get_buffer("factor"))
        assert math.isfinite(factor) and factor > 0


def test_the_critic_warms_up_and_its_weight_ramps() -> None:
    loss = built(start=100, warmup=50, ramp=200)
    assert [loss.ramp_up(seen) for seen in (0, 149, 150, 250, 350, 1000)] == [0, 0, 0, 0.5, 1, 1]
    layer, made = layer_and_output()
    assert loss(made, images(4), moment(149, made.mean(), layer)) == ({}, {})
    losses, _ = loss(made, images(4), moment(150, made.square().mean(), layer))
    loss.settle(lambda value: value)
    assert float(losses["adversarial"].detach()) == 0  # the first step only measures
    losses, _ = loss(made, images(4), moment(250, made.square().mean(), layer))
    assert float(losses["adversarial"].detach()) != 0
