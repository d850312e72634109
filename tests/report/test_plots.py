"""Plots draw what they are given, follow the page's colours, and say in words what they show."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import torch
from PIL import Image

from artok.report.data_uris import Picture, strip
from artok.report.plots.codebook import codebook_plot
from artok.report.plots.heatmaps import heat_map
from artok.report.plots.learning_curves import learning_curves
from artok.report.plots.lines import Line, line_plot
from artok.report.plots.style import round_numbers, write_png
from artok.report.plots.tradeoffs import Point, trade_off


def drawing(picture: Picture) -> str:
    assert picture.uri.startswith("data:image/svg+xml;base64,")
    return base64.b64decode(picture.uri.partition(",")[2]).decode()


def test_a_heat_map_has_numbers_units_names_and_words() -> None:
    rows, columns = ["2", "4"], ["64", "256", "1024"]
    values = [[1.0, 2.5, None], [40.0, 0.25, 3.0]]
    picture = heat_map("rFD", values, rows, columns, "downsampling", "codes", "dB", "lower")
    text = drawing(picture)
    for words in (">rFD<", ">dB<", ">downsampling<", ">codes<", ">1024<", ">2.5<", ">40<", ">0.25 ★<", ">–<"):
        assert words in text, words
    assert text.count("★") == 1
    assert "prefers-color-scheme:dark" in text
    assert "currentColor" in text
    assert "4 and 256: 0.25" in picture.alt
    assert "2 and 1024: none" in picture.alt
    higher = drawing(heat_map("PSNR", [[1, 2, 3], [4, 5, 6]], rows, columns, better="higher"))
    assert ">6 ★<" in higher
    flat = heat_map("same", [[7, 7, 7]], [""], columns, better="lower")
    assert "★" not in drawing(flat)  # nothing to choose between


def test_a_trade_off_shows_every_setting_and_its_front() -> None:
    points = [
        Point("small", 16, 9.0, y_error=0.5, colour="64 codes", marker="f2"),
        Point("large", 64, 2.0, y_error=0.1, colour="256 codes", marker="f2"),
        Point("bad", 64, 8.0, y_error=0.1, colour="64 codes", marker="f4"),
    ]
    legend = ["64 codes", "256 codes"], ["f2", "f4"]
    picture = trade_off("Samples", "tokens", "FD", points, ["small", "large"], *legend)
    text = drawing(picture)
    for words in (">tokens<", ">FD<", ">256 codes<", ">f4<", ">Pareto front"):
        assert words in text, words
    assert "small: 16, 9 (on the front)" in picture.alt
    assert "bad: 64, 8" in picture.alt
    assert "8 (on the front)" not in picture.alt


def test_lines_share_an_entry_by_name_and_ring_what_is_marked() -> None:
    lines = [Line("raster", [1, 10, 100], [9, 8, 7], [0.1, 0.2, 0.3], marked=1), Line("raster", [1, 2], [3, 4])]
    picture = line_plot("FD against ms", "ms", "FD", [*lines, Line("$var_", [5], [6], colour=1)], floor=1.5)
    text = drawing(picture)
    assert text.count(">raster<") == 1
    for words in (">own settings<", ">real images<", ">$var_<", ">100<"):
        assert words in text, words
    assert "raster: 9 at 1, 8 at 10, 7 at 100" in picture.alt


def test_learning_curves_have_a_plot_per_quantity_and_a_colour_per_model() -> None:
    train = [{"event": "train", "images": images, "time": 1.0, "nll": 3 - images / 100} for images in (10, 100)]
    held = [{"event": "validation", "images": 100, "time": 1.0, "nll_held_out": 2.5, "l1_held_out": 0.1}]
    found = learning_curves([("elsewhere", []), ("raster", [*train, *held]), ("raster", train), ("var", train)])
    assert len(found) == 2
    assert drawing(found[0]).count(">raster<") == 1
    assert "held-out images: 2.5 at 100" in found[0].alt
    assert "#d55e00" in drawing(found[0]) and "#009e73" in drawing(found[0]) and "#0072b2" not in drawing(found[0])


def test_a_large_codebook_makes_a_small_plot() -> None:
    picture = codebook_plot(torch.arange(20_000), 8, "vq")
    assert "19999 of 20000 codes" in picture.alt
    assert len(picture.uri) < 60_000


@pytest.mark.parametrize(("low", "high"), [(1, 9), (0.003, 40), (7, 1e7)])
def test_ticks_are_few_and_round(low: float, high: float) -> None:
    ticks = round_numbers(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(f"{tick:e}"[0] in "125" for tick in ticks)


def test_plots_can_be_written_as_png(tmp_path: Path) -> None:
    path = write_png(line_plot("t", "x", "y", [Line("a", [1, 2], [3, 4])]), tmp_path / "a.png")
    with Image.open(path) as image:
        assert image.width > 500
    with pytest.raises(ValueError, match="only plots"):
        write_png(strip(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "black", 8), path)
