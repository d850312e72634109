"""The classifier that judges, part by part: its network, the images it sees, how long and how it is trained."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from artok.errors import ArtokError
from artok.metrics.extractors import classifier
from artok.metrics.extractors.classifier import Block, Network, chosen, reduce, shrunk
from artok.metrics.features import TrainingImages
from artok.metrics.trained import cycle


def training(count: int = 20, channels: int = 3, height: int = 12, width: int = 5) -> TrainingImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, height, width), generator=generator).to(torch.uint8)
    return TrainingImages(images, torch.arange(count) % 4, 4)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize(
    ("side", "widths", "sides"),
    [
        (2, [64, 64], [2, 2]),
        (4, [64, 64], [4, 4]),
        (5, [64, 64], [5, 5]),
        (8, [16, 16, 64], [8, 8, 4]),
        (16, [16, 16, 32, 64], [16, 16, 8, 4]),
        (32, [16, 16, 32, 64, 64], [32, 32, 16, 8, 4]),
        (33, [16, 16, 32, 64], [17, 17, 9, 5]),
        (64, [16, 16, 32, 64, 64], [32, 32, 16, 8, 4]),
        (100, [16, 16, 32, 64, 64], [32, 32, 16, 8, 4]),
    ],
)
def test_one_block_a_resolution_down_to_four_pixels(side: int, widths: list[int], sides: list[int]) -> None:
    network = Network(3, side, classes=7).eval()
    images = torch.zeros(2, 3, min(side, 64), min(side, 64))
    assert [tuple(each.shape[1:]) for each in network.maps(images)] == [
        (width, size, size) for width, size in zip(widths, sides, strict=True)
    ]
    features, logits = network(images)
    assert features.shape == (2, 64) and logits.shape == (2, 7)
    convolutions = [each for each in network.modules() if isinstance(each, torch.nn.Conv2d)]
    assert all(each.bias is None for each in convolutions), "the norms that follow have one"
    assert network.centre.tolist() == [0] * 64 and network.scale == 1, "until it is trained"


@pytest.mark.parametrize(("channels", "stride"), [(4, 1), (6, 2)])
def test_a_block_is_two_convolutions_beside_a_shorter_way(channels: int, stride: int) -> None:
    torch.manual_seed(0)
    block = Block(4, channels, stride).eval()
    x = torch.randn(2, 4, 5, 7)  # odd sides, of which half is rounded up

    def norm(y: Tensor) -> Tensor:
        return y / math.sqrt(1 + 1e-5)

    inner = functional.relu(norm(functional.conv2d(x, block.conv1.weight, stride=stride, padding=1)))
    inner = norm(functional.conv2d(inner, block.conv2.weight, padding=1))
    short = x
    if stride == 2:
        inside = functional.avg_pool2d(functional.pad(x, (0, 1, 0, 1)), 2)
        edges = functional.avg_pool2d(functional.pad(torch.ones_like(x), (0, 1, 0, 1)), 2)
        short = functional.conv2d(inside / edges, block.skip.weight)  # type: ignore[arg-type]
    assert torch.allclose(block(x), functional.relu(inner + short), atol=1e-5)


def test_features_are_means_of_the_last_map_and_all_maps_are_of_the_one_before() -> None:
    torch.manual_seed(0)
    network = Network(1, 8, classes=3).eval()
    images = torch.randn(2, 1, 8, 6)
    stem, first, second = network.maps(images)
    assert torch.allclose(
        stem,
        functional.relu(functional.conv2d(images, network.stem.weight, padding=1) / math.sqrt(1 + 1e-5)),
        atol=1e-6,
    )
    assert torch.equal(first, network.blocks[0](stem)) and torch.equal(second, network.blocks[1](first))
    features, logits = network(images)
    assert torch.allclose(features, second.flatten(2).mean(2), atol=1e-6)
    assert torch.equal(logits, network.head(features))


def test_layers_are_chosen_by_number() -> None:
    maps = [torch.full((1,), float(layer)) for layer in range(3)]
    assert chosen(maps, None) is maps and chosen(maps, []) == []
    assert [float(each) for each in chosen(maps, [2, 0])] == [2, 0]
    for layer in (-1, 3):
        with pytest.raises(ArtokError, match=f"has layers 0 to 2, and no {layer}"):
            chosen(maps, [0, layer])


@pytest.mark.parametrize(
    ("shape", "reduced"),
    [((64, 64), (64, 64)), ((64, 3), (64, 3)), ((128, 32), (64, 16)), ((100, 256), (25, 64)), ((1, 200), (1, 64))],
)
def test_large_images_are_reduced_as_pillow_reduces_them(shape: tuple[int, int], reduced: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (1, 1, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pixels = images[0, 0].numpy().astype(np.float32) / 127.5 - 1
    expected = Image.fromarray(pixels).resize(reduced[::-1], Image.Resampling.BILINEAR)
    assert reduce(images)[0, 0].numpy() == pytest.approx(np.asarray(expected), abs=1e-5)
    floats = images.float()
    assert (shrunk(floats) is floats) == (shape == reduced)


def test_black_and_white_span_minus_one_to_one() -> None:
    assert reduce(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)).flatten().tolist() == pytest.approx(
        [-1, -0.6, 1]
    )


def test_maps_of_a_blank_network_are_shaped_like_those_of_the_trained(tmp_path: Path) -> None:
    shown = training(count=8, channels=1)
    extractor = classifier.Config(images_seen=1).build(shown, "cpu", tmp_path)
    blank = classifier.Config().blank_maps((1, 12, 5))
    images = torch.rand(3, 1, 12, 5, requires_grad=True)
    found = extractor.maps(images, None)
    assert [each.shape for each in blank(images, None)] == [each.shape for each in found]
    for maps in (extractor.maps, blank):
        alone = maps(images[:1], [1])[0]
        assert torch.allclose(alone, maps(images, [1])[0][:1], atol=1e-5), "an image's maps depend on it alone"
        assert torch.autograd.grad(alone.sum(), images)[0].abs().sum() > 0
        assert not maps(images.detach(), [1])[0].requires_grad, "its weights are not trained"
    with pytest.raises(ArtokError, match="was trained on images of"):
        extractor(torch.zeros(1, 1, 12, 6, dtype=torch.uint8))


# ---------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("progress", "share"),
    [(0, 0.05), (0.1, 0.525), (0.2, 1), (0.4, 0.5 + 0.125**0.5), (0.6, 0.5), (0.8, 0.5 - 0.125**0.5), (1, 0)],
)
def test_the_learning_rate_rises_for_a_fifth_and_falls_along_a_cosine(progress: float, share: float) -> None:
    assert cycle(progress) == pytest.approx(share, abs=1e-12)


def test_images_are_turned_resized_shifted_blurred_and_made_noisy() -> None:
    images = 2 * torch.rand(6, 2, 9, 12, generator=torch.Generator().manual_seed(1)) - 1
    found = classifier._augment(images, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    drawn = torch.rand(6, 6, generator=generator).double().numpy()
    noise = torch.randn(images.shape, generator=generator).numpy()
    for index, (turn, size, right, down, blur, grain) in enumerate(drawn):
        angle, size = math.radians(20 * turn - 10), 0.9 + 0.2 * size
        y, x = np.meshgrid((2 * np.arange(9) + 1) / 9 - 1, (2 * np.arange(12) + 1) / 12 - 1, indexing="ij")
        across = size * (math.cos(angle) * x - math.sin(angle) * y) + 0.24 * right - 0.12
        along = size * (math.sin(angle) * x + math.cos(angle) * y) + 0.24 * down - 0.12
        places = [((along + 1) * 9 - 1) / 2, ((across + 1) * 12 - 1) / 2]
        for channel in range(2):
            moved = ndimage.map_coordinates(images[index, channel].numpy(), places, order=1, mode="nearest")
            mean = ndimage.uniform_filter(moved, 3, mode="nearest")
            expected = moved + 0.5 * blur * (mean - moved) + 0.1 * grain * noise[index, channel]
            assert found[index, channel].numpy() == pytest.approx(expected, abs=1e-4)


def test_training_is_the_loop_written_out() -> None:
    shown = training()
    found = classifier.train(shown, steps=3, seed=5, device="cpu")
    generator = torch.Generator().manual_seed(5)
    with seeded(5):
        network = Network(3, 12, 4).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.05)
        for step in range(3):
            optimizer.param_groups[0]["lr"] = 4e-3 * cycle(step / 3)
            rows = torch.randint(20, (128,), generator=generator)
            batch = classifier._augment(shown.images[rows].float() / 127.5 - 1, generator)
            fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                _, logits = network(batch.contiguous(memory_format=torch.channels_last))
            gradients = torch.autograd.grad(
                functional.cross_entropy(logits.float(), shown.labels[rows]), list(network.parameters())
            )
            for weight, gradient in zip(network.parameters(), gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
    for name, weight in network.named_parameters():
        assert torch.equal(found.get_parameter(name), weight), name
    assert not found.training
    features = classifier.Classifier(found, (3, 12, 5), torch.device("cpu"))(shown.images)[0].double()
    assert features.mean(0).abs().max() < 1e-4
    assert features.var(0, correction=0).sum() == pytest.approx(4 * 64, rel=1e-4)


def test_features_of_images_that_are_all_alike_stay_finite() -> None:
    alike = replace(training(), images=torch.full((20, 3, 8, 8), 9, dtype=torch.uint8))
    network = classifier.train(alike, steps=1, seed=0, device="cpu")
    assert bool(torch.isfinite(network.scale))


@pytest.mark.parametrize(
    ("count", "given", "images", "steps"),
    [
        (20, None, 38_400, 300),
        (2_000, None, 60_000, 469),
        (20_000, None, 250_000, 1_954),
        (20, 129, 129, 2),
        (20, 128, 128, 1),
    ],
)
def test_it_sees_thirty_epochs_within_bounds_in_batches_of_128(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, given: int | None, images: int, steps: int
) -> None:
    asked = []

    def train(shown: TrainingImages, steps: int, seed: int, device: str) -> Network:
        asked.append((steps, seed))
        return Network(1, 6, 4)

    monkeypatch.setattr(classifier, "train", train)
    config = classifier.Config(images_seen=given, seed=7)
    extractor = config.build(training(count, 1, 4, 6), "cpu", tmp_path)
    assert asked == [(steps, 7)] and extractor(torch.zeros(1, 1, 4, 6, dtype=torch.uint8))[0].shape == (1, 64)
    (file,) = tmp_path.glob("*.safetensors")
    assert file.stem.endswith(f"-v1-1x4x6-4-{images}-7"), "what is trained otherwise is kept apart"


def test_two_classes_are_enough_and_the_usual_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTOK_CACHE", str(tmp_path / "usual"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # the file is written beside its place
    two = TrainingImages(training().images, torch.arange(20) % 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.Config(images_seen=1).build(two, "cpu", None)
    left = sorted(each.suffix for each in (tmp_path / "usual").iterdir())
    assert left == [".lock", ".safetensors"], "the weights, and nothing left of writing them"


@dataclass
class Watched:
    """Notes how torch is set while a network is trained, and what it is told."""

    told: list[object] = field(default_factory=list)
    set: list[tuple[int, bool, bool, bool]] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.told.append(text)

    def over(self, done: int, total: int) -> nullcontext[None]:
        self.told.append((done, total))
        return nullcontext()

    def advance(self, done: int) -> None:
        self.told.append(done)
        self.set.append(settings())


def settings() -> tuple[int, bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.get_num_threads(), cudnn.enabled, cudnn.benchmark, cudnn.deterministic


def test_sums_are_in_a_fixed_order_while_it_trains_and_as_before_afterwards(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        watch, before = Watched(), settings()
        classifier.Config(images_seen=200).build(replace(training(), watch=watch), "cpu", tmp_path)
        assert watch.set == [(1, True, False, True)] * 2 and settings() == before
        assert watch.told[1:] == [(0, 256), 128, 256] and "on 256 images" in str(watch.told[0])
    finally:
        torch.set_num_threads(threads)
