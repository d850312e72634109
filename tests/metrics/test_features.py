"""Extractors: the trained classifier and its cache, Inception and timm backbones from files, names and refusals."""

import hashlib
import warnings
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from artok.cache import cache_directory
from artok.data.digits import Config as Digits
from artok.errors import ArtokError, CheckpointError, ConfigError
from artok.metrics.base import EvalBatch, MetricContext
from artok.metrics.extractors import classifier, inception
from artok.metrics.features import TrainingImages, extract, open_extractor, parse
from artok.metrics.floor import floor, stratified
from artok.metrics.frechet import Config as Frechet
from artok.training import progress

QUICK = 3 * classifier.BATCH


@pytest.fixture(scope="session")
def digits():
    splits = []
    for name in ("train", "test"):
        split = Digits(size=16, channels=1).open(name)
        examples = split.read(range(len(split)))
        splits.append(TrainingImages(examples.images, examples.labels, 10))
    return splits


@pytest.fixture(scope="session")
def evaluator(digits, tmp_path_factory):
    return open_extractor("classifier", digits[0], cache=tmp_path_factory.mktemp("evaluator"))


def quick(training, cache, **changes):
    return classifier.Config(images_seen=QUICK, **changes).build(training, "cpu", cache)


def colours(seed, side=40, count=20, channels=3):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, side, side), generator=generator).to(torch.uint8)
    return TrainingImages(images, torch.arange(count) % 4, 4)


# ---------------------------------------------------------------------------------------------- the classifier


def test_whoever_waits_for_its_training_sees_how_far_it_is(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(progress, "SILENT", 0.0)
    watched = replace(colours(0), watch=progress.Progress("measured"))
    quick(watched, tmp_path)
    told = capfd.readouterr().err.splitlines()
    assert told[0] == "training the classifier that judges on 384 images, once for this data set"
    assert [line.split()[1] for line in told[1:]] == ["128/384", "256/384", "384/384"]
    assert all(line.split()[2] == "images," and line.endswith("left") for line in told[1:])
    quick(watched, tmp_path)
    assert not capfd.readouterr().err, "the cached one needs no waiting"


@pytest.mark.slow
def test_it_knows_held_out_digits(evaluator, digits):
    _, logits = extract(evaluator, digits[1].images)
    assert logits is not None and logits.shape == (540, 10)
    assert (logits.argmax(1) == digits[1].labels).double().mean() >= 0.98


@pytest.mark.slow
def test_its_features_are_normalised_on_the_training_split(evaluator, digits):
    features, _ = extract(evaluator, digits[0].images)
    assert features.dtype == torch.float32 and features.shape == (1257, evaluator.dim)
    assert features.double().mean(0).abs().max() < 1e-4
    assert features.double().var(0, correction=0).sum() == pytest.approx(4 * evaluator.dim, rel=1e-4)


@pytest.mark.slow
def test_it_tells_real_images_from_blurred_noisy_and_mean_ones(evaluator, digits):
    """The order and the rough size of the reference figures: floor 0.7, blurred 6.3, class means 18."""
    train, test = digits
    real, labels = extract(evaluator, test.images)[0], test.labels
    known = extract(evaluator, train.images)[0]
    rows = stratified(train.labels, labels, 540)
    images = train.images[rows].float()
    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    blurred = functional.conv2d(functional.pad(images, (2,) * 4, "replicate"), (kernel[:, None] * kernel)[None, None])
    noisy = images + 25 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    means = torch.stack([train.images[train.labels == label].float().mean(0) for label in range(10)])
    means = means[train.labels[rows]]

    def distance(pixels):
        metric = Frechet().build(MetricContext())
        fake = extract(evaluator, pixels.round().clamp(0, 255).to(torch.uint8))[0]
        metric.update(EvalBatch(real_features=real, fake_features=fake))
        return metric.compute()["fd"]

    least = floor([Frechet().build(MetricContext())], known, train.labels, real, labels, 540)["fd"]
    assert 0.3 < least < 1.1
    assert distance(blurred) > 4 * least
    assert distance(noisy) > 2 * least
    assert distance(means) > 12 * least


def test_training_is_deterministic_whatever_the_threads_and_random_state(digits, tmp_path):
    before = torch.get_num_threads()
    prints = []
    try:
        for run, threads in enumerate((1, 2)):
            torch.set_num_threads(threads)
            torch.manual_seed(run)
            expected = torch.rand(1)
            torch.manual_seed(run)
            prints.append(quick(digits[0], tmp_path / str(run)).fingerprint)
            assert torch.equal(torch.rand(1), expected)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert prints[0] == prints[1]
    assert quick(digits[0], tmp_path, seed=1).fingerprint != prints[0]


def test_the_cache_is_used_and_keyed_by_data_and_settings(digits, tmp_path, monkeypatch):
    first = quick(digits[0], tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    changed = digits[0].images.clone()
    changed[0, 0, 0, 0] ^= 1
    quick(TrainingImages(changed, digits[0].labels, 10), tmp_path)
    classifier.Config(images_seen=1).build(digits[0], "cpu", tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    monkeypatch.setattr(classifier, "train", lambda *_, **__: pytest.fail("trained again"))
    again = quick(digits[0], tmp_path)
    assert again.fingerprint == first.fingerprint
    images = digits[1].images[:7]
    assert torch.equal(again(images)[0], first(images)[0])


def test_a_damaged_cache_is_trained_again_and_an_unwritable_one_costs_a_warning(digits, tmp_path):
    first = quick(digits[0], tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="is damaged"):
        assert quick(digits[0], tmp_path).fingerprint == first.fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(digits[0], tmp_path)
    with pytest.warns(UserWarning, match="could not be cached"):
        assert quick(digits[0], file / "below").fingerprint == first.fingerprint


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 3), (100, 3)])
def test_it_works_at_other_sizes(tmp_path, side, channels):
    training = colours(0, side, channels=channels)
    evaluator = classifier.Config(images_seen=1).build(training, "cpu", tmp_path)
    features, logits = extract(evaluator, training.images, batch=7)
    assert features.shape == (20, 64) and logits is not None and logits.shape == (20, 4)
    assert torch.isfinite(features).all() and features.std() > 0.1
    assert torch.allclose(features, extract(evaluator, training.images, batch=20)[0], atol=1e-4)


def test_training_images_that_cannot_be_used_are_refused(tmp_path):
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 3])
    with pytest.raises(ArtokError, match="outside the 3 classes"):
        TrainingImages(images, labels, 3)
    with pytest.raises(ArtokError, match="must be uint8"):
        TrainingImages(images.float(), labels, 4)
    with pytest.raises(ArtokError, match="no training images"):
        TrainingImages(images[:0], labels[:0], 4)
    with pytest.raises(ArtokError, match="none were given"):
        open_extractor("classifier", cache=tmp_path)
    with pytest.raises(ArtokError, match="at least 2 classes"):
        open_extractor("classifier", TrainingImages(images, labels * 0, 1), cache=tmp_path)


@pytest.mark.slow
def test_it_refuses_images_of_another_shape(evaluator):
    with pytest.raises(ArtokError, match="cannot evaluator"):
        extract(evaluator, torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ArtokError, match="features are taken of uint8"):
        extract(evaluator, torch.zeros(2, 1, 16, 16))
    assert extract(evaluator, torch.zeros(0, 1, 16, 16, dtype=torch.uint8))[0].shape == (0, 64)


# ---------------------------------------------------------------------------------------------- names


def test_names_are_parsed_and_mistakes_named():
    assert parse("classifier").kind == "classifier"
    config = parse("timm:resnet10t.c3_in1k@/some/file.safetensors")
    assert config.model_dump(mode="json") == {
        "kind": "timm",
        "model": "resnet10t.c3_in1k",
        "weights": "/some/file.safetensors",
    }
    with pytest.raises(ConfigError, match="did you mean 'classifier'"):
        parse("clasifier")
    with pytest.raises(ConfigError, match="unknown key 'model'"):
        parse("classifier:large")
    with pytest.raises(ConfigError, match="'model' is missing"):
        parse("timm")


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ARTOK_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("ARTOK_CACHE")
    assert cache_directory().parts[-2:] == (".cache", "artok")


# ---------------------------------------------------------------------------------------------- networks from files


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A timm model with its classification layer, as published files have it, and its file."""
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=5).eval()
    path = tmp_path_factory.mktemp("timm") / "resnet10t.safetensors"
    save_file(network.state_dict(), path)
    return network, path


def test_a_timm_backbone_gives_its_pooled_features(backbone):
    network, path = backbone
    evaluator = open_extractor(f"timm:resnet10t@{path}")
    assert evaluator.name == "timm:resnet10t" and evaluator.dim == network.num_features
    images = colours(0, side=network.default_cfg["input_size"][-1], count=2).images
    mean, std = (torch.tensor(network.default_cfg[key])[:, None, None] for key in ("mean", "std"))
    expected = network.forward_head(network.forward_features((images / 255 - mean) / std), pre_logits=True)
    features, logits = extract(evaluator, images)
    assert logits is None
    assert torch.allclose(features, expected.detach(), atol=1e-5)
    grey = colours(0, side=16, count=2, channels=1).images
    assert torch.equal(extract(evaluator, grey)[0], extract(evaluator, grey.repeat(1, 3, 1, 1))[0])


def test_a_timm_fingerprint_is_that_of_the_weights(backbone, tmp_path):
    network, path = backbone
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.save(state, tmp_path / "same.pth")
    state["conv1.0.weight"][0] += 1
    save_file(state, tmp_path / "other.safetensors")
    first, same, other = (
        open_extractor(f"timm:resnet10t@{file}")
        for file in (path, tmp_path / "same.pth", tmp_path / "other.safetensors")
    )
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_timm_mistakes_are_named(backbone, tmp_path, monkeypatch):
    with pytest.raises(ArtokError, match=r"timm has no model 'resnet10'; the nearest are .*resnet10t"):
        open_extractor("timm:resnet10")
    with pytest.raises(CheckpointError, match="there is no file"):
        open_extractor(f"timm:resnet10t@{tmp_path / 'nothing.safetensors'}")
    with pytest.raises(CheckpointError, match="does not hold weights of this backbone"):
        open_extractor(f"timm:vit_tiny_patch16_224@{backbone[1]}")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="does not hold weights"):
        open_extractor(f"timm:resnet10t@{tmp_path / 'text.pth'}")

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match="could not be downloaded: no network; name a local file"):
        open_extractor("timm:resnet10t")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """torch-fidelity's Inception with random weights, in a file like the published one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("inception") / inception.FILE
    torch.save(network.state_dict(), path)
    return network, path


def test_inception_is_torch_fidelitys(published, monkeypatch):
    network, path = published
    monkeypatch.setattr(inception, "DIGEST", hashlib.sha256(path.read_bytes()).hexdigest())
    evaluator = open_extractor("inception", cache=path.parent)
    grey = colours(0, side=32, count=2, channels=1).images
    features, logits = extract(evaluator, grey)
    assert evaluator.name == "inception" and features.shape == (2, evaluator.dim) and logits is None
    assert torch.equal(features, network(grey.repeat(1, 3, 1, 1))[0])


def test_other_weights_or_none_are_no_inception(published, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="is not the published Inception"):
        open_extractor(f"inception@{published[1]}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match=rf"download {inception.URL} to {tmp_path}.*inception@FILE"):
        open_extractor("inception", cache=tmp_path)
    with pytest.raises(CheckpointError, match="there is no file"):
        open_extractor("inception@nothing.pth", cache=tmp_path)
    (tmp_path / "checkpoints").mkdir()  # where torch keeps what it has downloaded
    (tmp_path / "checkpoints" / inception.FILE).write_text("other weights")
    with pytest.raises(CheckpointError, match=rf"checkpoints/{inception.FILE} is not the published Inception"):
        open_extractor("inception", cache=tmp_path)


def test_a_pickle_that_runs_code_is_not_loaded(tmp_path, monkeypatch):
    class Harm:
        def __reduce__(self):
            return (pytest.fail, ("the file was unpickled",))

    path = tmp_path / "weights.pth"
    torch.save({"weight": Harm()}, path)
    monkeypatch.setattr(inception, "DIGEST", "")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        open_extractor(f"inception@{path}")
