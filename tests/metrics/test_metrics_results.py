"""From metrics to records and tables: one feature pass, floors, and what is refused side by side."""

import json
from dataclasses import replace

import pytest
import torch

from artok.errors import ArtokError, CheckpointError, RunError
from artok.metrics.base import EvalBatch, MetricContext
from artok.metrics.consistency import Config as Consistency
from artok.metrics.evaluate import Evaluation
from artok.metrics.features import Extractor
from artok.metrics.floor import class_counts, floor, largest, stratified
from artok.metrics.frechet import Config as Frechet
from artok.metrics.kid import Config as Kid
from artok.metrics.likelihood import Likelihood
from artok.metrics.memorisation import Config as Memorisation
from artok.metrics.prdc import Config as Prdc
from artok.metrics.quantity import number
from artok.metrics.reconstruction import Config as Reconstruction
from artok.metrics.results import Measurement, Results, side_by_side

SUBJECT = MetricContext(extractor="means")


class Means(Extractor):
    """Features are the mean of each row of pixels; counts the images that it was shown."""

    def __init__(self, classes=2):
        self.name, self.fingerprint, self.dim, self.device = "means", "abc", 4, torch.device("cpu")
        self.classes, self.images = classes, 0

    def __call__(self, images):
        self.images += len(images)
        features = images.float().mean((1, 3))
        return features, features[:, : self.classes] if self.classes else None


def pictures(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 4, 4), generator=generator).to(torch.uint8)


# ---------------------------------------------------------------------------------------------- evaluation


def test_each_image_passes_the_extractor_once_for_all_metrics():
    extractor = Means()
    configs = [Frechet(), Kid(), Prdc(), Consistency(), Memorisation()]
    evaluation = Evaluation([config.build(SUBJECT) for config in configs], extractor, batch=3)
    for seed in (1, 2):
        evaluation.update(EvalBatch(images=pictures(seed, 8), labels=torch.zeros(8, dtype=torch.int64)))
        evaluation.update(EvalBatch(samples=pictures(seed + 5, 7), conditions=torch.ones(7, dtype=torch.int64)))
    evaluation.update(EvalBatch(train_images=pictures(0, 9)))
    results = evaluation.results("raster", seed=4, floor={"fd": 0.5})
    assert extractor.images == 2 * 8 + 2 * 7
    distance = results["fd"]
    assert (distance.n, distance.reference_n, distance.seed, distance.floor) == (14, 16, 4, 0.5)
    assert (distance.extractor, distance.fingerprint, distance.dim) == ("means", "abc", 4)
    nearest = results["nearest_train_distance"]
    assert (nearest.extractor, nearest.fingerprint, nearest.dim) == (None, None, None)
    assert results["nearest_train_distance"].floor is not None
    assert 0 <= results["class_consistency"].floor <= 1
    assert not any("held_out" in measurement.name for measurement in results.measurements)


def test_reconstructions_count_as_generated_where_there_are_no_samples():
    evaluation = Evaluation([Frechet().build(SUBJECT), Reconstruction().build(SUBJECT)], Means())
    images = pictures(0, 8)
    evaluation.update(EvalBatch(images=images, reconstructions=images))
    results = evaluation.results("vq", seed=0)
    assert results["fd"].value == pytest.approx(0, abs=1e-8) and results["fd"].n == 8
    assert results["psnr_db"].value == 100


def test_features_that_were_given_are_not_computed_again():
    extractor = Means()
    evaluation = Evaluation([Frechet().build(SUBJECT)], extractor)
    features = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    evaluation.update(EvalBatch(images=pictures(0, 8), real_features=features, samples=pictures(1, 8)))
    assert extractor.images == 8


def test_a_missing_or_unfit_extractor_is_refused():
    with pytest.raises(ArtokError, match="need a feature extractor, for fake_features, real_features"):
        Evaluation([Frechet().build(SUBJECT)])
    evaluation = Evaluation([Consistency().build(SUBJECT)], Means(classes=0))
    with pytest.raises(ArtokError, match="means does not"):
        evaluation.update(EvalBatch(samples=pictures(0, 3), conditions=torch.zeros(3, dtype=torch.int64)))


def test_a_value_that_is_not_finite_stops_the_run(layout):
    evaluation = Evaluation([Likelihood(layout)])
    evaluation.update(EvalBatch(log_likelihood=torch.tensor([-torch.inf])))
    with pytest.raises(RunError, match="nats_per_token is not finite"):
        evaluation.results("raster", seed=0)


@pytest.fixture
def layout():
    from artok.layout import TokenLayout

    return TokenLayout(((2, 2),), width=2, vocab=4, image=(1, 4, 4))


# ---------------------------------------------------------------------------------------------- floor


def labelled(seed, counts):
    """Features of classes 10 apart, (N, 3), and labels (N,), of so many images each."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    noise = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed))
    return noise + 10 * labels[:, None], labels


def test_the_floor_is_the_distance_of_disjoint_real_sets_with_the_class_shares_of_the_reference():
    train, train_labels = labelled(0, [300, 100])
    test, test_labels = labelled(1, [50, 50])
    metrics = [Frechet().build(SUBJECT), Prdc().build(SUBJECT), Memorisation().build(SUBJECT)]
    values = floor(metrics, train, train_labels, test, test_labels, n=100, seed=0)
    assert set(values) == {"fd", "precision", "recall", "density", "coverage"}
    skewed = Frechet().build(SUBJECT)
    skewed.update(EvalBatch(real_features=test, fake_features=train))
    assert values["fd"] < 1 < skewed.compute()["fd"]
    again = floor([Frechet().build(SUBJECT)], train, train_labels, test, test_labels, n=100, seed=0)
    other = floor([Frechet().build(SUBJECT)], train, train_labels, test, test_labels, n=100, seed=1)
    assert again["fd"] == values["fd"] != other["fd"]


def test_strata_have_the_counts_of_the_reference():
    like = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    assert class_counts(like, 10).tolist() == [5, 3, 2]
    assert class_counts(like, 20).tolist() == [10, 6, 4]
    assert class_counts(like, 4).tolist() == [2, 1, 1]
    labels = torch.tensor([2, 1, 0] * 20)
    rows = stratified(labels, like, 20, seed=1)
    assert torch.bincount(labels[rows]).tolist() == [10, 6, 4]
    assert len(rows.unique()) == 20


def test_a_floor_that_the_training_split_cannot_fill_is_refused():
    labels, like = torch.tensor([0] * 9 + [1] * 4), torch.tensor([0, 1])
    with pytest.raises(ArtokError, match=r"needs 5 training images of class 1, but there are 4; at most 9 images"):
        stratified(labels, like, 10)
    assert len(stratified(labels, like, largest(labels, like))) == 9
    with pytest.raises(ArtokError, match="needs images on both sides"):
        stratified(labels, like[:0], 3)


# ---------------------------------------------------------------------------------------------- results


def result(label="a", **changes):
    given = {"name": "fd", "value": 1.25, "n": 540, "seed": 0, "extractor": "classifier"}
    given |= {"fingerprint": "f1", "dim": 64, "reference_n": 540, "floor": 0.7}
    return Results(
        label, (Measurement(**(given | changes)), Measurement("psnr_db", 25.5, 540, 0)), {"parameters": 1060000}
    )


def test_results_survive_their_file(tmp_path):
    path = tmp_path / "results.json"
    result().save(path)
    assert Results.load(path) == result()
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]
    written = json.loads(path.read_text())["metrics"][0]
    assert {"value", "n", "extractor", "fingerprint", "seed", "reference", "reference_n", "floor"} <= set(written)
    with pytest.raises(KeyError):
        result()["FID"]


def test_files_that_are_no_results_are_refused_in_one_sentence(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(CheckpointError, match="cannot be read"):
        Results.load(path)
    for text in ("{", "[]", '{"format": 2}', '{"format": 2, "name": "a", "metrics": [{"nam": 1}], "cost": {}}'):
        path.write_text(text)
        with pytest.raises(CheckpointError, match="holds no results"):
            Results.load(path)
    for key, value in (("cost", []), ("cost", {"parameters": {}}), ("name", 1), ("metrics", [1]), ("sampling", None)):
        path.write_text(json.dumps(result().to_dict() | {key: value}))
        with pytest.raises(CheckpointError, match="holds no results"):
            Results.load(path)
    for key, value in (("value", "a"), ("n", []), ("floor", {}), ("name", None)):
        damaged = result().to_dict()
        damaged["metrics"][0][key] = value
        path.write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError, match="holds no results"):
            Results.load(path)
    for version in (1, 99):
        path.write_text(json.dumps({"format": version}))
        with pytest.raises(CheckpointError, match=f"format {version}"):
            Results.load(path)
    with pytest.raises(RunError, match="could not be written"):
        result().save(tmp_path / "missing" / "results.json")


def test_the_table_shows_extractor_floor_and_number():
    table = side_by_side([result("a"), result("b", value=2.5)])
    assert table.header == ("metric", "a", "b", "floor", "N")
    assert table.names == ("fd", "psnr_db", "parameters")
    assert table.rows[0] == ("FD[classifier]", "1.25", "2.5", "0.7", "540 / 540")
    assert table.rows[1] == ("PSNR (dB)", "25.5", "25.5", "", "540")
    assert table.rows[2] == ("parameters", "1,060,000", "1,060,000", "", "")
    lines = str(table).splitlines()
    assert len(lines) == 5 and "FID" not in str(table)
    assert len({len(line) for line in lines[:4]}) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": "f2"}, "different extractors"),
        ({"extractor": "timm:vit"}, "different extractors"),
        ({"n": 1000}, "1000 images against 540 held-out; evaluate both with the same number"),
        ({"reference_n": 100}, "540 images against 100 held-out"),
        ({"reference": "training"}, "against 540 training"),
    ],
)
def test_what_cannot_stand_side_by_side_is_refused(changes, reason):
    with pytest.raises(ArtokError, match=reason) as caught:
        side_by_side([result("a"), result("b", **changes)])
    assert "a and b cannot stand side by side" in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_without_features_stands_beside_a_generator():
    plain = Results("vq", (Measurement("psnr_db", 25.5, 540, 0),))
    table = side_by_side([plain, result("raster")])
    assert dict(zip(table.names, (row[1:3] for row in table.rows), strict=True))["fd"] == ("", "1.25")
    with pytest.raises(ArtokError, match="no results"):
        side_by_side([])


def test_too_few_images_for_the_dimensions_are_flagged():
    assert "only 64 images for 64 dimensions" in result(n=64)["fd"].note
    assert result(n=65)["fd"].note == ""
    assert replace(result(n=5)["fd"], name="kid").note == ""
    assert side_by_side([result(n=9)]).notes[0].startswith("FD[classifier]: only 9 images")


def test_results_know_whether_training_had_ended_and_whose_weights_they_are_of(tmp_path):
    for seen, wanted, finished in ((8, 8, True), (9, 8, True), (7, 8, False), (None, 8, None), (8, None, None)):
        assert replace(result(), images_seen=seen, images_wanted=wanted).finished is finished
    known = replace(result(), weights="ab")
    assert known.describe_stale(tmp_path, "ab") is None
    assert "of other weights than it has now; measure it again" in known.describe_stale(tmp_path, "cd")
    assert "of an older artok, which noted no weights" in result().describe_stale(tmp_path, "cd")
    assert Results("a", ()).cost == {} and Results("a", ()).sampling == {}


def test_a_table_takes_the_first_floor_and_costs_of_either_and_says_what_a_reader_should_know():
    first = replace(result("a", floor=None), cost={"latency_s": 0.5}, notes=("half trained",))
    table = side_by_side([first, result("b", floor=0.6), replace(result("c", floor=0.9), cost={})])
    rows = {name: row[1:] for name, row in zip(table.names, table.rows, strict=True)}
    assert rows["fd"] == ("1.25", "1.25", "1.25", "0.6", "540 / 540")
    assert rows["latency_s"] == ("500", "", "", "", "") and rows["parameters"] == ("", "1,060,000", "", "", "")
    assert table.notes == ("a: half trained",)
    few = [replace(result(n=9)["fd"], name="fd/against_x"), replace(result(n=9)["fd"], reference_n=None)]
    assert all(measurement.note.startswith("only 9 images for 64 dimensions") for measurement in few)
    assert "only 8 images" in result(reference_n=8)["fd"].note and result()["psnr_db"].note == ""
    assert (few[0].title, few[0].text, few[0].floor_text) == ("FD[classifier], against x", "1.25", "0.7")
    assert result()["psnr_db"].head == "PSNR (dB)" and result()["psnr_db"].floor_text == ""
    with pytest.raises(ArtokError, match="depend on different neighbours"):
        side_by_side([result("a", k=3), result("b", k=5)])


def test_a_value_that_is_no_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        result(value=float("nan")).save(tmp_path / "results.json")


def test_numbers_are_short():
    assert [number(value) for value in (0.123456, 12.3456, 540, 1057792.0, 123456.7, 0)] == [
        "0.1235",
        "12.35",
        "540",
        "1,057,792",
        "123,457",
        "0",
    ]
