"""The evaluator: images are streamed, the number asked for is measured, and what a figure is of is noted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from artok.conditioning.base import Conditioners, ContextShape
from artok.config import find
from artok.data.base import DataConfig, Examples, Split
from artok.errors import ArtokError, ConfigError, DataError
from artok.evaluation import evaluator as evaluating
from artok.evaluation.evaluator import Evaluator
from artok.generators.base import Codec, Generator
from artok.layout import Condition, TokenLayout, Tokens
from artok.metrics.base import EvalBatch, MetricContext
from artok.metrics.features import Extractor
from artok.metrics.frechet import Moments, frechet_distance
from artok.metrics.kid import Config as Kid
from artok.metrics.prdc import precision_recall
from artok.metrics.reference import Reference
from artok.metrics.selection import MetricChoice
from artok.noise import Noise
from artok.pipeline import Pipeline
from artok.planning.op_trace import Trace
from artok.sampling.settings import Sampling
from artok.saved import Facts, Saved
from artok.tokenizers import pixels
from artok.tokenizers.base import Tokenizer
from artok.training import monitor as monitoring
from artok.training.monitor import Monitor
from artok.training.progress import Progress


class Means(Extractor):
    """Four means of an image: features that weigh nothing beside the images."""

    def __init__(self) -> None:
        self.name, self.fingerprint, self.dim, self.device = "means", "abc", 4, torch.device("cpu")

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        features = images.float().unflatten(2, (4, -1)).mean((1, 3, 4)) / 255
        return features, 1 - features


class Drawn(Split):
    """Images that follow from their number, drawn when they are read. labels: of all of them."""

    def __init__(self, labels: Tensor, side: int, first: int, classes: Sequence[str] = ("a", "b")) -> None:
        self.labels, self.all, self.shape, self.first = labels, labels, (3, side, side), first
        self.classes, self.fingerprint = tuple(classes), f"drawn{first}"
        self.skipped, self.enlarged = {}, set()

    def __len__(self) -> int:
        return len(self.all)

    def read(self, indices: Sequence[int]) -> Examples:
        rows = torch.as_tensor(indices)
        hashed = (rows[:, None] + 10007 * self.first) * (7919 + 104729 * torch.arange(48)) % 65521
        cells = ((hashed * hashed % 65521) >> 8).to(torch.uint8).unflatten(1, (3, 4, 4))
        scale = self.shape[1] // 4
        return Examples(cells.repeat_interleave(scale, 2).repeat_interleave(scale, 3), self.all[rows])


class Data:
    """Drawn data: `train` and `test` are the labels of each split."""

    def __init__(self, train: Tensor, test: Tensor, side: int = 8) -> None:
        self.size, self.workers, self.image, self.control = side, 0, (3, side, side), None
        self.splits = {"train": Drawn(train, side, 1), "test": Drawn(test, side, 2)}

    def open(self, split: str) -> Split:
        return self.splits[split]

    def model_copy(self, update: dict[str, Any]) -> Data:
        assert update == {"control": None}
        return self


def labels(*counts: int) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


class Repeats(Generator):
    """Makes the training images of a split in their order, or noise where there is none."""

    reads = frozenset({"temperature"})

    def __init__(self, layout: TokenLayout, split: Split | None = None) -> None:
        super().__init__(layout, 2)
        shape = ContextShape(4, layout.grids[-1], layout.image)
        self.conditioner = Conditioners((find("conditioning", "labels").tiny(),), shape, 2)  # type: ignore[arg-type]
        self.place, self.split, self.next = nn.Parameter(torch.zeros(())), split, 0

    def passes(self, sampling: Sampling) -> int:
        return 1

    def forward(self, tokens: Tokens, condition: Condition, noise: Noise, codec: Codec | None) -> dict[str, Tensor]:
        return {"loss": self.place}

    def steps(self, condition: Condition, sampling: Sampling, noise: Noise, codec: Codec | None) -> Iterator[Tokens]:
        assert isinstance(codec, pixels.PixelTokenizer)
        if self.split is None:
            yield codec.encode(noise.uniform(*self.layout.image) * 2 - 1)
            return
        rows = torch.arange(self.next, self.next + len(condition)) % len(self.split)
        self.next += len(condition)
        yield codec.encode(self.split.read(rows.tolist()).images / 127.5 - 1)


def pipeline_of(split: Split | None, side: int = 8) -> Pipeline:
    tokenizer, classes = tokenizer_of(side), ("a", "b")
    facts = Facts(image=(3, side, side), classes=classes, data="", version="")
    saved = Saved(tokenizer=pixels.Config(patch_size=4), facts=facts)
    return Pipeline(tokenizer, Repeats(tokenizer.layout, split), classes, Sampling(), saved, saved)


def tokenizer_of(side: int = 8) -> Tokenizer:
    return pixels.Config(patch_size=4).build((3, side, side))


def evaluator_of(data: Data, n: int | None, *metrics: Any, **more: Any) -> Evaluator:
    choice = MetricChoice.model_validate({"metrics": metrics} | more.pop("choice", {}))
    return Evaluator(cast(DataConfig, data), "pixels", "cpu", n, Progress("test", quiet=True), choice, **more)


@pytest.fixture
def means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "build_extractor", lambda *args, **kwargs: Means())


# ---------------------------------------------------------------------------------------------- memory and number


def test_images_of_neither_split_are_held(means: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "READ", 8)
    monkeypatch.setattr("artok.metrics.memorisation.ROWS", 32)
    monkeypatch.setattr(evaluating, "BATCH", 8)
    data, count = Data(labels(400, 400), labels(400, 400), side=64), 800
    whole = count * 3 * 64 * 64  # bytes of either split
    with Trace() as trace:
        found = evaluator_of(data, None, "frechet").tokenizer(tokenizer_of(64), "vq")
    assert (found["fd"].n, found["fd"].reference_n) == (count, count)
    assert trace.peak < whole / 4
    with Trace() as trace:
        evaluator = evaluator_of(data, 32, "frechet", "memorisation")
        found = evaluator.generator(pipeline_of(data.open("train"), 64), "copier", Sampling(), timed=False)
    assert found["fd"].n == 32 and found["memorised_share"].value == 1
    assert (
        trace.peak < whole * 3 / 4
    )  # of which a half are held-out images reduced to 32 pixels a side, once more to join them


def test_a_rare_class_costs_the_floor_and_no_image(means: None, capfd: pytest.CaptureFixture[str]) -> None:
    data = Data(labels(90, 2), labels(20, 20))
    evaluator = evaluator_of(data, None, "frechet")
    evaluator.progress = Progress("test")
    found = evaluator.generator(pipeline_of(None), "noise", Sampling(), timed=False)
    assert (found["fd"].n, found["fd"].reference_n, found["fd"].floor) == (40, 40, None)
    assert (
        "floors of 40 images are left out: training images with these classes suffice for 5" in capfd.readouterr().err
    )
    few = evaluator.of(4).generator(pipeline_of(None), "noise", Sampling(), timed=False)
    assert few["fd"].n == 4 and few["fd"].floor is not None
    assert evaluator.of(100).samples_alone(pipeline_of(None), "noise", Sampling())["fd"].n == 100  # more than held out


def test_a_floor_needs_labels_that_are_known(means: None) -> None:
    data = Data(labels(50, 50), labels(10, 10))
    data.open("train").labels = None
    found = evaluator_of(data, None, "frechet").generator(pipeline_of(None), "noise", Sampling(), timed=False)
    assert found["fd"].n == 20 and found["fd"].floor is None


def test_a_tokenizer_is_measured_on_no_more_images_than_are_held_out(means: None) -> None:
    data = Data(labels(50, 50), labels(10, 10))
    assert evaluator_of(data, 15, "reconstruction").tokenizer(tokenizer_of(), "vq")["psnr_db"].n == 15
    with pytest.raises(ConfigError, match=r"the data have 20: ask for -n 20 or fewer, not 21"):
        evaluator_of(data, 21, "reconstruction").tokenizer(tokenizer_of(), "vq")


def test_a_part_of_the_training_images_is_searched_when_asked(means: None) -> None:
    data = Data(labels(300, 300), labels(150, 150))
    choice = {"train_images": 300}
    evaluator = evaluator_of(data, 600, "memorisation", choice=choice)
    found = evaluator.generator(pipeline_of(data.open("train")), "copier", Sampling(), timed=False)
    assert found["train_searched_share"].value == 0.5
    assert found["memorised_share"].value > 0.75  # .5 of the copies are found
    new = evaluator.generator(pipeline_of(None), "noise", Sampling(), timed=False)["memorised_share"]
    assert new.value <= cast(float, new.floor)


# ---------------------------------------------------------------------------------------------- seeds and noise


def test_subsets_are_drawn_with_the_recorded_seed(means: None) -> None:
    data = Data(labels(40, 40), labels(40, 40))
    section = {"kind": "kid", "subsets": 2, "subset_size": 10}
    evaluator, pipeline = evaluator_of(data, 60, section), pipeline_of(None)
    found = evaluator.generator(pipeline, "noise", Sampling(seed=5), timed=False)["kid"]
    assert found.seed == 5

    def value(seed: int) -> float:
        metric = Kid.model_validate(section).build(MetricContext(seed=seed))
        metric.update(evaluator.held_out)
        for seen in evaluator.samples(pipeline, Sampling(seed=5)):
            metric.update(EvalBatch(fake_features=Means()(cast(Tensor, seen.samples))[0]))
        return metric.compute()["kid"]

    assert found.value == pytest.approx(value(5), rel=1e-9)
    assert abs(found.value - value(0)) > 1e-6 * abs(found.value)


def test_samples_do_not_depend_on_the_batch(means: None, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = evaluator_of(Data(labels(9, 9), labels(9, 9)), 20, "frechet")

    def made() -> Tensor:
        parts = [cast(Tensor, seen.samples) for seen in evaluator.samples(pipeline_of(None), Sampling(seed=1))]
        return torch.cat(parts)

    whole = made()
    assert len(whole.unique(dim=0)) == 20
    monkeypatch.setattr(evaluating, "BATCH", 3)
    assert torch.equal(made(), whole)


def test_the_monitors_samples_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Tensor]()
    honest = monitoring.extract
    monkeypatch.setattr(
        monitoring, "extract", lambda extractor, images: seen.append(images) or honest(extractor, images)
    )
    data = Data(labels(30, 30), labels(30, 30))
    monitor = Monitor("pixels", 24, data.open("train"), data.open("test"), None, None, 8, torch.device("cpu"))
    seen.clear()
    whole = monitor(pipeline_of(None))
    assert len(torch.cat(seen).unique(dim=0)) == 24
    monkeypatch.setattr(monitoring, "BATCH", 5)
    assert monitor(pipeline_of(None)) == pytest.approx(whole)


# ---------------------------------------------------------------------------------------------- a reference file


def reference_file(path: Path, images: Tensor, statistics: bool, arrays: bool) -> Path:
    moments = Moments()
    moments.update(Means()(images)[0])
    content = {"mu": moments.mean.numpy(), "sigma": moments.covariance.numpy()} if statistics else {}
    content |= {"arr_0": images.permute(0, 2, 3, 1).numpy()} if arrays else {}
    np.savez(path, **content)
    return path


def test_a_published_reference_is_compared_with(means: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artok.metrics.reference.BATCH", 7)
    data = Data(labels(40, 40), labels(10, 10))
    images = data.open("train").read(range(50)).images
    features = Means()(images)[0]
    for statistics, arrays in ((True, False), (False, True), (True, True)):
        path = reference_file(tmp_path / "adm.npz", images, statistics, arrays)
        reference = Reference.open(path)
        assert reference.count == (50 if arrays else 0)
        evaluator = evaluator_of(data, None, "frechet", {"kind": "prdc", "neighbours": 3}, reference=reference)
        found = evaluator.generator(pipeline_of(None), "noise", Sampling(), timed=False)
        made = torch.cat(
            [Means()(cast(Tensor, seen.samples))[0] for seen in evaluator.samples(pipeline_of(None), Sampling())]
        )
        moments = Moments()
        moments.update(made)
        real = Moments()
        real.update(features)
        distance = found["fd/against_adm"]
        expected = frechet_distance(real.mean, real.covariance, moments.mean, moments.covariance)
        assert distance.value == pytest.approx(expected, rel=1e-9)
        assert (distance.n, distance.reference, distance.floor, distance.extractor) == (20, "adm.npz", None, "means")
        assert distance.title == "FD[means], against adm"
        assert found["fd"].reference == "held-out"
        assert (found.find("precision/against_adm") is not None) == arrays
        if arrays:
            balls = found["precision/against_adm"]
            assert (balls.k, balls.reference_n, balls.title) == (3, 50, "precision[means, k=3], against adm")
            assert balls.value == precision_recall(features, made, 3)["precision"]
    found = evaluator.tokenizer(tokenizer_of(), "vq")
    assert found["fd/against_adm"].n == 20 and found["fd/against_adm"].value != found["fd"].value


def test_a_reference_that_does_not_fit_is_refused(means: None, tmp_path: Path) -> None:
    data = Data(labels(9, 9), labels(9, 9))
    np.savez(tmp_path / "wide.npz", mu=np.zeros(2048), sigma=np.zeros((2048, 2048)))
    evaluator = evaluator_of(data, None, "frechet", reference=Reference.open(tmp_path / "wide.npz"))
    with pytest.raises(ArtokError, match="statistics of 2048 features, and the extractor means gives 4") as caught:
        evaluator.tokenizer(tokenizer_of(), "vq")
    assert "\n" not in str(caught.value)
    np.savez(tmp_path / "other.npz", values=np.zeros(3))
    np.savez(tmp_path / "square.npz", mu=np.zeros(3), sigma=np.zeros(3))
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((2, 4, 4, 3)))
    np.savez(tmp_path / "objects.npz", mu=np.array([{}]), sigma=np.zeros((1, 1)))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "wide.npz").read_bytes()[:5000])
    for name, reason in {
        "none": "there is no reference file",
        "other": "neither mu and sigma nor images as arr_0, but values",
        "square": "do not fit each other",
        "float": "must be images",
        "objects": "cannot be read as a reference",
        "text": "cannot be read as a reference",
        "cut": "cannot be read as a reference",
    }.items():
        with pytest.raises(DataError, match=reason):
            Reference.open(tmp_path / f"{name}.npz")
