"""A study of generators that hear text: the same prompts by every entry, and what share of images shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.html import Tags
from helpers.models import generator_experiment, tokenizer_experiment

from artok.commands import compare as conductor
from artok.commands.compare import compare, run_part
from artok.config import validate
from artok.data import shapes
from artok.report.prompts import NEW, SHOWN, ask
from artok.studies.config import Study, load_study
from artok.studies.scheduler import Job
from artok.training.run import train

DATA = {"kind": "shapes", "size": 16, "objects": [1, 2], "hold_out": 4, "train": 64, "test": 64}
TEXT = {"kind": "text", "encoder": {"kind": "learned", "length": 16, "vocab_size": 300, "depth": 0, "heads": 2}}
BRIEF = {"images": 32, "log_every": 16, "validate_every": 32, "preview_every": 32, "checkpoint_every": 32}


def run_here(jobs: Sequence[Job], *rest: object) -> dict[str, float]:
    for job in jobs:
        run_part(load_study(job.arguments[1], []), Path(job.arguments[3]), job.arguments[5], "cpu")
    return dict.fromkeys((job.name for job in jobs), 1.0)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a generator that hears text alone and one that hears classes alone, on one tokenizer."""
    root = tmp_path_factory.mktemp("prompts")
    train(tokenizer_experiment(data=DATA, training=BRIEF), root / "vq")
    for name, conditioning in (("told", [TEXT]), ("classes", [{"kind": "labels"}])):
        network = {"kind": "raster", "depth": 1, "width": 16, "heads": 2, "conditioning": conditioning}
        train(generator_experiment(str(root / "vq"), data=DATA, training=BRIEF, generator=network), root / name)
    section = {
        "name": "prompted",
        "data": DATA,
        "entries": {name: {"run": str(root / name)} for name in ("told", "classes")},
        "seeds": [0],
        "evaluation": {"n": 16, "extractor": "pixels"},
        "curve": {"points": 1},
        "sampling_grid": {"steps": [], "cfg_scale": []},
        "timing": {"batches": [1], "rounds": 1, "repeats": 1},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conductor, "run_jobs", run_here)
        path = compare(validate(Study, section, "test"), root / "study", "cpu")
    assert path is not None
    return path.read_text(encoding="utf-8")


def test_every_entry_shows_the_same_prompts(page: str) -> None:
    asked, tags = ask(validate(shapes.Config, DATA, "data")), Tags(page)
    assert len(asked.captions) == SHOWN + NEW and asked.new == [False] * SHOWN + [True] * NEW
    shown = [str(attributes["alt"]) for tag, attributes in tags.found if tag == "img"]
    for who in ("held-out image", "image by told", "image by classes"):
        assert [alt for alt in shown if alt.startswith(f"{who}: ")] == [f"{who}: {text}" for text in asked.captions]
    for text in asked.captions[SHOWN:]:
        assert f"{text}*" in tags.text


def test_matches_stand_by_what_was_asked_and_by_number(page: str) -> None:
    table = page.partition('<table class="shares">')[2].partition("</table>")[0]
    cells = [row.count("<td>") for row in table.split("<tr")[2:]]
    for column in ("all", "shape", "colour", "place", "relation", "one object", "two objects", "unseen", "shuffled"):
        assert f'<th scope="col">{column}</th>' in table
    assert len(cells) == 3 and len(set(cells)) == 1, "two generators, and the reconstructions of their tokenizer"
    numbers = [row.count("<td></td>") for row in table.split("<tr")[2:]]
    assert numbers[1] == cells[1], "a generator that hears no text was asked nothing"
    assert numbers[0] == 0


def test_no_prompt_is_new_where_no_combination_is_held_out() -> None:
    new = ask(validate(shapes.Config, {**DATA, "hold_out": 0}, "data")).new
    assert new == [False] * (SHOWN + NEW)
