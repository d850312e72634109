"""The report: one page that needs nothing else, says all that was measured, and refuses what it cannot show."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.html import Tags
from helpers.models import generator_experiment, tokenizer_experiment
from PIL import Image

from artok import cli
from artok.config import load
from artok.errors import ArtokError, CheckpointError
from artok.evaluation.run_directory import distinct_names, open_runs
from artok.layout import TokenLayout, Tokens
from artok.metrics.catalogue import describe, head
from artok.metrics.results import Measurement, Results
from artok.report import images as gallery
from artok.report import text as summary
from artok.report.data_uris import animation, strip, thin
from artok.report.plots.learning_curves import HELD_OUT, PLAIN, SAMPLES, read_series
from artok.report.provenance import from_shipped
from artok.report.run import write_report
from artok.report.tables import figures
from artok.saved import digest_weights
from artok.training.experiment import Experiment
from artok.training.run import train

CLASSES = ("<b>bold</b> & co", 'plain "x"')


# ---------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and two generators of images in oddly named class folders, trained for a moment, with results."""
    root = tmp_path_factory.mktemp("report")
    noise = torch.Generator().manual_seed(0)
    # "/" cannot be part of a folder's name, so a closing tag has another sign there; it must be escaped all the same
    for name in CLASSES:
        for index in range(12):
            pixels = torch.randint(0, 256, (16, 16, 3), generator=noise, dtype=torch.uint8).numpy()
            place = root / "images" / name.replace("/", "|")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{index}.png")
    data = {"kind": "folder", "root": str(root / "images"), "size": 16, "holdout": 0.25}
    brief = {"images": 64, "log_every": 16, "validate_every": 32, "preview_every": 64, "checkpoint_every": 64}
    train(tokenizer_experiment(data=data, training=brief), root / "vq")
    for name, depth in (("raster", 1), ("deeper", 2)):
        sections = {"data": data, "training": brief, "generator": {"depth": depth}}
        train(generator_experiment(str(root / "vq"), name=name, **sections), root / name)
        results = generator_results(name)
        edits = (entry("fd/edit_left", 1.1, featured=True), entry("known_kept/edit_left", 1.0))
        keep(replace(results, measurements=(*results.measurements, *edits)), root / name)
    keep(tokenizer_results(), root / "vq")
    return root


def keep(results: Results, folder: Path) -> None:
    """Results in the folder of the run that they are of."""
    replace(results, weights=digest_weights(folder)).save(folder / "results.json")


def entry(name: str, value: float, floor: float | None = None, featured: bool = False) -> Measurement:
    seen = {"extractor": "classifier", "fingerprint": "abc", "dim": 64, "reference_n": 540} if featured else {}
    return Measurement(name, value, n=540, seed=0, floor=floor, **seen)


def tokenizer_results() -> Results:
    entries = [entry("psnr_db", 25.51), entry("fd", 0.91, 0.7, True), entry("codes_used", 16.0)]
    cost = {"tokens_per_image": 16, "parameters": 4321}
    return Results("vq", (*entries, entry("codebook_usage", 1.0), entry("something_new", 0.125)), cost)


def generator_results(name: str, **values: float) -> Results:
    known = {"distance": 1.4, "nearest": 2.9, "copied": 0.0, "chance": 0.0, "held_out": 2.7, "train": 2.6} | values
    entries = (
        entry("fd", known["distance"], 0.7, True),
        entry("kid", 0.5, -0.1, True),
        entry("coverage", 0.91, 0.97, True),
        entry("nearest_train_distance", known["nearest"], 2.97),
        entry("memorised_share", known["copied"], known["chance"]),
        entry("class_consistency", 0.96, 0.99),
        entry("nats_per_token", known["held_out"]),
        entry("nats_per_token_train", known["train"]),
    )
    return Results(name, entries, {"parameters": 1234, "latency_s": 12.5})


@pytest.fixture(scope="module")
def page(runs: Path) -> str:
    folders = [runs / "raster", runs / "deeper", runs / "vq"]
    path = write_report(runs / "out" / "report.html", folders, "Title & all", "One <i>intro</i>.", plots=runs / "plots")
    return path.read_text(encoding="utf-8")


SEEN = {"event": "monitor", "time": 1.0, "samples": 32, "precision": 0.9, "recall": 0.7, "coverage": 0.8}
FLOORS = {"precision_floor": 0.9, "recall_floor": 0.9, "coverage_floor": 0.9}
MONITORS = [
    {**SEEN, **FLOORS, "images": 32, "distinct": 1.0, "neighbour_ratio": 0.9},
    {**SEEN, **FLOORS, "images": 64, "distinct": 0.01, "neighbour_ratio": 0.1, "coverage": 0.02, "recall": 0.1},
]


# ---------------------------------------------------------------------------------------------- the page


def test_the_page_needs_no_network(page: str) -> None:
    tags = Tags(page)
    for tag, attributes in tags.found:
        assert tag not in ("script", "iframe", "object")
        for name in ("src", "srcset", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"{tag} {name}={value[:60]}"
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1] and "@import" not in style[1]
    assert len(page) < 5e6


def test_every_picture_is_described(page: str) -> None:
    pictures = [attributes for tag, attributes in Tags(page).found if tag == "img"]
    assert len(pictures) > 30
    assert all(len(attributes.get("alt") or "") > 10 for attributes in pictures)
    kinds = {re.match(r"data:([\w/+]+)", str(attributes["src"]))[1] for attributes in pictures}  # type: ignore[index]
    assert kinds == {"image/png", "image/webp", "image/gif", "image/svg+xml"}  # webp: of more than 256 colours


def test_a_moving_picture_has_a_still_one_for_paper_and_for_less_motion(page: str) -> None:
    """By style alone: a browser that prints chooses no other source of a picture that it has loaded."""
    pictures = [attributes for tag, attributes in Tags(page).found if tag == "img"]
    classes = [str(attributes.get("class", "")).split() for attributes in pictures]
    for index, attributes in enumerate(pictures):
        moving = str(attributes["src"]).startswith("data:image/gif")
        assert moving == ("moving" in classes[index])
        if moving:
            assert "still" in classes[index + 1]
            assert pictures[index + 1]["alt"] == attributes["alt"]
    assert sum("moving" in each for each in classes) == sum("still" in each for each in classes) > 0
    assert re.search(r"\n\.still { display: none; }\n@media print, \(prefers-reduced-motion: reduce\)", page)


def test_every_metric_and_both_generators_are_shown(page: str) -> None:
    text = Tags(page).text
    for results in (tokenizer_results(), generator_results("raster")):
        for measurement in results.measurements:
            assert measurement.head in text
        for name in results.cost:
            assert head(name) in text
    assert text.count("raster") > 3
    assert text.count("deeper") > 3
    assert "fingerprint abc" in text
    assert "artok evaluate" in text


def test_measured_edits_are_shown_as_pictures_and_figures(page: str) -> None:
    for name in ("raster", "deeper"):
        assert f'alt="Held-out images with mask left, above what {name} makes of them"' in page
    figures = page[page.index("FD[classifier], edit left") :]
    assert page.index("Editing") < page.index("FD[classifier], edit left")
    assert "known part kept, edit left" in figures


def test_names_are_escaped(page: str) -> None:
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold&lt;|b&gt; &amp; co" in page
    assert "One &lt;i&gt;intro" in page


def test_generators_show_the_same_classes(page: str) -> None:
    alts = [str(attributes.get("alt")) for tag, attributes in Tags(page).found if tag == "img"]
    for name in ("raster", "deeper"):
        assert sum(f"8 samples by {name}" in alt for alt in alts) == len(CLASSES)


def test_a_page_can_hold_one_tokenizer_only(runs: Path, tmp_path: Path) -> None:
    text = write_report(tmp_path / "page.html", [runs / "vq"]).read_text(encoding="utf-8")
    assert 'id="tokenizers"' in text
    assert 'id="generators"' not in text


def test_an_image_made_in_one_step_has_no_film(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate_steps = gallery.generate_steps

    def at_once(*arguments: object) -> tuple[list[int], torch.Tensor, int]:
        _, frames, _ = generate_steps(*arguments)  # type: ignore[arg-type]
        return [1], frames[-1:], 1

    monkeypatch.setattr(gallery, "generate_steps", at_once)
    text = write_report(tmp_path / "page.html", [runs / "raster"]).read_text(encoding="utf-8")
    assert "image/gif" not in text


# ---------------------------------------------------------------------------------------------- refusals


def copied(runs: Path, name: str, target: Path) -> Path:
    shutil.copytree(runs / name, target)
    return target


def test_a_run_without_results_is_named(runs: Path, tmp_path: Path) -> None:
    bare = copied(runs, "raster", tmp_path / "bare")
    (bare / "results.json").unlink()
    with pytest.raises(CheckpointError, match=r"bare has no results.json; measure it first with 'artok evaluate"):
        write_report(tmp_path / "page.html", [runs / "vq", bare])
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(("names", "sentence"), [([], "at least one run"), (["missing"], "there is no run")])
def test_wrong_runs_are_refused(runs: Path, tmp_path: Path, names: list[str], sentence: str) -> None:
    with pytest.raises(ArtokError, match=sentence):
        write_report(tmp_path / "page.html", [runs / name for name in names])


def test_the_command_writes_a_page_or_one_sentence(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def artok(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["artok", "report", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    page = tmp_path / "page.html"
    assert artok(str(runs / "vq"), "--out", str(page), "--plots", str(tmp_path / "plots")) == 0
    assert page.exists()
    assert list((tmp_path / "plots").glob("*.png"))
    capsys.readouterr()
    assert artok(str(runs / "nowhere"), "--out", str(page)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_results_of_other_weights_are_not_shown(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs / "raster", other)
    keep(generator_results("other"), other)
    assert open_runs([other])[0].results["fd"].value == 1.4
    shutil.copy(runs / "deeper" / "model.safetensors", other)
    with pytest.raises(
        CheckpointError, match=r"are of other weights than it has now; measure it again with 'artok eval"
    ):
        open_runs([other])
    generator_results("other").save(other / "results.json")
    with pytest.raises(CheckpointError, match="are of an older artok, which noted no weights; measure it again"):
        open_runs([other])


def test_results_of_different_extractors_are_refused(runs: Path, tmp_path: Path) -> None:
    other = copied(runs, "deeper", tmp_path / "other")
    data = json.loads((other / "results.json").read_text())
    for measurement in data["metrics"]:
        if measurement["extractor"]:
            measurement["fingerprint"] = "def"
    (other / "results.json").write_text(json.dumps(data))
    with pytest.raises(ArtokError, match="cannot stand side by side"):
        write_report(tmp_path / "page.html", [runs / "raster", other])


# ---------------------------------------------------------------------------------------------- parts


def test_the_log_tells_what_training_took(runs: Path) -> None:
    run = open_runs([runs / "raster"])[0]
    events = [("start", 0, 100.0), ("train", 16, 104.0), ("resume", 16, 900.0), ("end", 64, 906.0)]
    log = [{"event": event, "images": images, "time": time, "processes": 2} for event, images, time in events]
    spent = replace(run, log=log).spent
    assert spent is not None
    assert (spent.images, spent.seconds, spent.processes, spent.finished) == (64, 10.0, 2, True)
    assert replace(run, log=[]).spent is None


def test_curves_tell_the_sources_of_images_apart() -> None:
    train_event = {"event": "train", "images": 16, "time": 1.0, "l2": 0.5, "model_loss": 0.5, "lr": 1e-3}
    validation = {"event": "validation", "images": 16, "time": 2.0, "nll_held_out": 3.0, "nll_train": 1.0}
    found = read_series([train_event, validation])
    assert found[("nll", HELD_OUT)] == [(16, 3.0)]
    assert found[("nll", PLAIN)] == [(16, 1.0)]
    assert {quantity for quantity, _ in found} == {"nll", "l2"}


def test_curves_show_what_the_monitor_saw() -> None:
    found = read_series(MONITORS)
    assert found == {("coverage", SAMPLES): [(32, 0.8), (64, 0.02)], ("recall", SAMPLES): [(32, 0.7), (64, 0.1)]}


def test_a_run_that_broke_is_named_beside_its_figures(runs: Path, tmp_path: Path) -> None:
    broken = copied(runs, "deeper", tmp_path / "broken")
    with (broken / "log.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in MONITORS)
    page = write_report(tmp_path / "page.html", [runs / "raster", broken]).read_text(encoding="utf-8")
    assert page.count('<span class="alarm">collapsed</span>') == 3  # over its samples, its column and its findings
    assert len(re.findall(r"broken <span class=\"alarm\">collapsed</span>", page)) == 3
    assert summary.alarm(open_runs([runs / "raster"])[0]) == ""


@pytest.mark.parametrize(
    ("values", "label", "verdict"),
    [
        ({"copied": 0.6, "chance": 0.9}, "Memorisation check", "nothing can be told"),
        ({"copied": 0.62}, "Memorisation check", "memorises"),
        ({"copied": 0.24}, "Memorisation check", "leans"),
        ({"nearest": 1.5, "copied": 0.1}, "Memorisation check", "passed"),  # near all images, as blurred ones are
        ({"held_out": 4.77, "train": 0.35}, "Overfitting", "yes"),
        ({"held_out": 2.7, "train": 2.6}, "Overfitting", "no"),
    ],
)
def test_verdicts_follow_the_figures(runs: Path, values: dict[str, float], label: str, verdict: str) -> None:
    run = replace(open_runs([runs / "raster"])[0], results=generator_results("raster", **values))
    found = {line.label: line.text for line in summary.findings(run)}
    assert found[label].startswith(verdict)
    assert "Training health" in found


def test_the_best_is_marked_only_where_it_can_be_told() -> None:
    one, two = generator_results("one", nearest=3.6), generator_results("two", distance=1.2, nearest=1.5)
    table = figures([one, two], same_tokens=False)
    best = {row.about.name: [cell.best for cell in row.cells] for _, rows in table.groups for row in rows}
    assert best["fd"] == [False, True]
    assert best["nearest_train_distance"] == [True, False]  # the nearer to held-out images, not the larger
    assert best["coverage"] == [False, False]  # equal
    assert best["nats_per_token"] == [False, False]  # of different tokens
    assert best["parameters"] == [False, False]


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("nats_per_token_train", "Likelihood"),
        ("fd", "Quality"),
        ("fd/edit_left", "Editing"),
        ("perplexity/2x2", "Codebook"),
        ("throughput_images_per_s", "Cost"),
        ("never_heard_of", "Other"),
    ],
)
def test_quantities_stand_in_their_group(name: str, group: str) -> None:
    assert describe(name).group == group


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    assert distinct_names([tmp_path / "a" / "vq", tmp_path / "b" / "vq"]) == ["a/vq", "b/vq"]
    assert distinct_names([tmp_path / "a" / "vq", tmp_path / "b" / "raster"]) == ["vq", "raster"]


def test_the_command_makes_the_experiment_again() -> None:
    overrides = ["training.images=6000", "tokenizer=runs/other", "sampling.top_k=20", "name=mine"]
    experiment = load(Experiment, "digits/raster", overrides)
    command = from_shipped(experiment)
    assert command is not None
    assert load(Experiment, command[0], command[1:]) == experiment
    assert len(command) == 5


def test_few_steps_of_many_are_kept() -> None:
    layout = TokenLayout(((2, 2),), 4, 8, (1, 4, 4))
    steps: Callable[[int], list[Tokens]] = lambda count: [Tokens(torch.zeros(1, 4, 1).long(), layout)] * count  # noqa: E731
    for count in (1, 2, 7, 100, 1001):
        kept, total = gallery.thinned(steps(count), 16)
        numbers = [number for number, _ in kept]
        assert total == count
        assert numbers[0] == 1 and numbers[-1] == count and numbers == sorted(set(numbers))
        assert len(numbers) <= 17
    assert thin(1, 8) == [0]
    assert thin(100, 3) == [0, 50, 99]


@pytest.mark.parametrize("side", [8, 200])
def test_pictures_of_any_size(side: int) -> None:
    images = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
    row = strip(images, "three", side=32)
    assert row.uri.startswith("data:image/png" if side == 8 else "data:image/webp")
    assert row.crisp == (side == 8)
    assert 90 <= row.width <= 110
    film = animation(images[None].repeat(4, 1, 1, 1, 1), "a film", side=32, columns=2)
    assert film.uri.startswith("data:image/gif") and film.still is not None


@pytest.mark.parametrize("grids", [((4, 4),), ((32,),), ((1, 1), (2, 2), (4, 4))])
@pytest.mark.parametrize("vocab", [16, None])
def test_tokens_of_any_layout_have_a_map(grids: tuple[tuple[int, ...], ...], vocab: int | None) -> None:
    layout = TokenLayout(grids, 4, vocab, (3, 16, 16))
    values = torch.randn(2, layout.length, 4) if vocab is None else torch.randint(0, 16, (2, layout.length, 1))
    assert gallery._token_maps(Tokens(values, layout), (16, 16)).shape == (2, 3, 16, 16)
