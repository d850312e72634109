"""Studies with students: each learns from the run of an earlier entry, which is trained first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from artok.config import validate
from artok.errors import ConfigError
from artok.saved import Facts, Saved
from artok.studies.config import Study
from artok.studies.measure import build_on_meta, possible_steps
from artok.studies.resolve import settle

TEACHER = {"tokenizer": "digits/kl", "generator": "digits/dit"}
STUDENT = {"tokenizer": "digits/kl", "generator": "digits/dit-pairs", "teacher": "dit"}


def study(**entries: Any) -> Study:
    return validate(Study, {"name": "few", "entries": entries, "seeds": [0, 3]}, "test")


def test_a_student_is_trained_after_its_teacher_of_the_same_seed(tmp_path: Path) -> None:
    plan = settle(study(dit=TEACHER, pairs=STUDENT), tmp_path)
    teacher, student = plan.entries
    for seed in (0, 3):
        planned = student.trainings[seed]
        folder = str(teacher.runs[seed])
        assert planned.experiment.distill is not None
        assert (planned.experiment.distill.teacher, planned.experiment.init) == (folder, folder)
        assert planned.after == ("train digits-kl", f"train dit seed {seed}")
    own = settle(study(dit=TEACHER, pairs=STUDENT | {"settings": {"init": "elsewhere"}}), tmp_path).entries[1]
    assert own.trainings[0].experiment.init == "elsewhere"


def test_a_student_starts_from_another_entry(tmp_path: Path) -> None:
    adversarial = STUDENT | {"generator": "digits/dit-adversarial", "init": "pairs"}
    teacher, pairs, student = settle(study(dit=TEACHER, pairs=STUDENT, adversarial=adversarial), tmp_path).entries
    for seed in (0, 3):
        planned = student.trainings[seed]
        assert planned.experiment.distill is not None
        assert planned.experiment.distill.teacher == str(teacher.runs[seed])
        assert planned.experiment.init == str(pairs.runs[seed])
        assert planned.after == ("train digits-kl", f"train dit seed {seed}", f"train pairs seed {seed}")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"pairs": STUDENT, "dit": TEACHER}, "pairs names the teacher dit, which is no generator among the entries"),
        ({"dit": TEACHER, "other": TEACHER | {"teacher": "dit"}}, "no 'distill' section"),
        ({"dit": TEACHER | {"init": "pairs"}, "pairs": STUDENT}, "dit names the init pairs, which is no generator"),
        ({"kl": {"tokenizer": "digits/kl", "teacher": "dit"}}, "for a 'generator' config"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(entries: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        settle(study(**entries), tmp_path)


def test_a_student_is_measured_in_the_steps_that_it_is_made_for(tmp_path: Path) -> None:
    plan = settle(study(dit=TEACHER, pairs=STUDENT), tmp_path)
    found = []
    for entry in plan.entries:
        experiment = entry.trainings[0].experiment
        sections = {name: getattr(experiment, name) for name in ("tokenizer", "generator", "distill", "sampling")}
        saved = Saved(**sections, facts=Facts(image=(1, 16, 16), classes=(), data="", version=""))
        assert saved.generator is not None
        found.append(possible_steps(build_on_meta(entry, saved.generator), saved, saved.sampling, (1, 2, 4)))
    assert found == [[1, 2, 4], []]
