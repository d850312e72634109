"""The decision guide and the noise behind it, on figures made up to have a winner, a tie, or nothing to tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from artok.config import validate
from artok.evaluation.statistics import Value
from artok.generators.raster import Config as Raster
from artok.layout import TokenLayout
from artok.report.decision_guide import Candidate, Choice, guide, rank
from artok.studies.config import Study, load_study
from artok.studies.model_scaling import choose_heads, count, resize_to
from artok.training.merged_log import merge_resumed_log

NAME = "FD[made up]"


MEMORY = "peak_memory_bytes_per_image"


def candidate(
    name: str, quality: list[float], options: Mapping[str, tuple[float, float]] | None = None, **values: Any
) -> Candidate:
    known = {key: Value.of(each if isinstance(each, list) else [each] * 3) for key, each in values.items()}
    return Candidate(name, Value.of(quality), known, options or {})


def choice(candidates: list[Candidate], begins: str, budget: str | None = None) -> Choice:
    return next(each for each in guide(candidates, budget, NAME) if each.question.startswith(begins))


def test_a_clear_lead_has_one_winner_and_its_size() -> None:
    found = choice([candidate("a", [1.0, 1.1, 0.9]), candidate("b", [3.0, 3.2, 2.9])], "Nothing")
    assert found.winners == ("a",)
    assert all(value in found.text for value in ("1 ± 0.1", "3.03 ± 0.15"))


def test_a_difference_within_the_noise_is_called_so() -> None:
    close = [candidate("a", [1.0, 1.6, 0.7]), candidate("b", [1.2, 0.8, 1.5]), candidate("c", [9.0, 9.5, 8.0])]
    found = choice(close, "Nothing")
    assert set(found.winners) == {"a", "b"}
    assert "8.83" in found.text


def test_single_seeds_leave_the_noise_unknown() -> None:
    found = choice([candidate("a", [1.0]), candidate("b", [1.1]), candidate("c", [2.0])], "Nothing")
    assert found.winners == ("a",) and not found.sure
    assert not rank({"a": Value(1.0), "b": Value(1.1)}, "lower").sure
    quick = [candidate("a", [1.0], recall=[0.5]), candidate("b", [1.1], recall=[0.6])]
    assert [each.sure for each in guide(quick, "flops", NAME)] == [False, False]
    several = [candidate("a", [1.0, 1.1, 0.9], recall=[0.5] * 3), candidate("b", [3.0, 3.1, 2.9], recall=[0.6] * 3)]
    assert all(each.sure for each in guide(several, "flops", NAME))


def test_what_is_broken_is_no_choice() -> None:
    collapsed = replace(candidate("quick", [9.0, 9.1, 8.9], latency_s=[0.002, 0.0021, 0.0019]), broken="collapsed")
    sound = candidate("sound", [1.0, 1.1, 0.9], latency_s=[0.08, 0.082, 0.078])
    found = guide([collapsed, sound], None, NAME)
    assert all(each.winners == ("sound",) for each in found)
    assert "quick (collapsed)" in found[0].text
    assert {each.question.partition(":")[0] for each in found} == {"Nothing but quality", "Latency"}
    both = guide([collapsed, replace(sound, broken="collapsed")], None, NAME)
    assert both[1].winners == ("quick",)


def test_one_that_cannot_be_told_from_the_best_is_among_the_best() -> None:
    close = [
        candidate("a", [1.0, 1.6, 0.7], **{MEMORY: 5.0}),
        candidate("b", [1.2, 0.8, 1.5], **{MEMORY: 1.0}),
    ]
    found = choice([*close, candidate("c", [9.0, 9.5, 8.0], **{MEMORY: 5.0})], "Memory")
    assert found.winners == ("b",)
    assert NAME not in found.text, "it has no price in quality"


def test_a_constraint_names_its_price_in_quality() -> None:
    quick = candidate("quick", [5.0, 5.1, 4.9], latency_s=[0.002, 0.0021, 0.0019], tokens_per_image=4.0)
    options = {"2 steps": (0.01, 3.0)}
    good = candidate("good", [1.0, 1.1, 0.9], options, latency_s=[0.08, 0.082, 0.078], tokens_per_image=16.0)
    found = choice([quick, good], "Latency")
    assert found.winners == ("quick",)
    assert f"{NAME} 5 ± 0.1" in found.text and "1 ± 0.1" in found.text
    rungs = [found.text.index(step) for step in ("2 ms quick (5)", "10 ms good in 2 steps (3)", "80 ms good (1)")]
    assert rungs == sorted(rungs)
    assert choice([quick, good], "Tokens").winners == ("quick",)


def test_where_the_constraint_does_not_decide_quality_does() -> None:
    one, two = (
        candidate("one", [5.0, 5.1, 4.9], tokens_per_image=16.0),
        candidate("two", [1.0, 1.1, 0.9], tokens_per_image=16.0),
    )
    found = choice([one, two], "Tokens")
    assert found.winners == ("two",)


def test_equal_budgets_leave_the_cost_to_quality() -> None:
    one = candidate("one", [5.0, 5.1, 4.9], train_flops=2.0)
    two = candidate("two", [1.0, 1.1, 0.9], train_flops=2.1)
    assert choice([one, two], "Training").winners == ("one",)
    found = choice([one, two], "Training", budget="flops")
    assert found.winners == ("two",)


def test_copies_of_training_images_are_no_answer_to_few_of_them() -> None:
    copying = candidate("copying", [0.5, 0.5, 0.6], memorised_share=[0.4, 0.5, 0.45])
    honest = candidate("honest", [2.0, 2.1, 1.9], memorised_share=[0.0, 0.1, 0.05])
    found = choice([copying, honest], "Data size")
    assert found.winners == ("honest",)


def test_more_is_better_where_it_is() -> None:
    values = {"a": Value.of([0.9, 0.91, 0.92]), "b": Value.of([0.5, 0.52, 0.51])}
    assert rank(values, "higher").best == ("a",)
    assert rank(values, "lower").best == ("b",)


# ---------------------------------------------------------------------------------------------- parts of a study


def test_an_interval_cut_by_a_stop_is_put_together_again() -> None:
    def event(kind: str, images: int, **values: float) -> dict[str, Any]:
        return {"event": kind, "images": images, "time": float(images), **values}

    plain = [event("start", 0), *(event("train", images, model_loss=loss) for images, loss in ((16, 4.0), (32, 3.0)))]
    cut = [
        *plain[:2],
        *(event("train", 20, model_loss=2.0), event("checkpoint", 20), event("stop", 20), event("resume", 20)),
        event("train", 32, model_loss=10 / 3),
    ]
    whole = [each for each in merge_resumed_log(cut, 16) if each["event"] == "train"]
    assert [each["images"] for each in whole] == [16, 32]
    assert whole[1]["model_loss"] == pytest.approx(3.0)
    assert merge_resumed_log(plain, 16) == plain
    frequent = [event("train", images, model_loss=1.0) for images in (16, 32, 48)]
    assert merge_resumed_log(frequent, 10) == frequent  # batches longer than an interval


def test_a_size_keeps_its_proportions() -> None:
    layout = TokenLayout(((4, 4),), 8, 256, (1, 16, 16))
    config = Raster(depth=3, width=160, heads=5, multiple_of=8)
    own = count(config, layout, 10)
    assert own is not None
    for factor in (0.2, 1.0, 5.0, 40.0):
        found, parameters = resize_to(config, layout, 10, factor * own, 0.05)
        assert isinstance(found, Raster)
        assert parameters == count(found, layout, 10)
        assert parameters == pytest.approx(factor * own, rel=0.05)
        depth, heads, width = found.shape()
        assert 0.6 < width / depth / (160 / 3) < 1.7
        assert 32 / 1.6 <= width / heads <= 32 * 1.6
    assert resize_to(config, layout, 10, own * 1.04, 0.05)[0] is config


def test_heads_stay_about_as_wide() -> None:
    assert choose_heads(160, 32.0, 1.6) == 5
    assert choose_heads(164, 32.0, 1.6) is None  # 82 or 2 wide


@pytest.mark.parametrize("name", ["digits-quick", "digits-families", "digits-demo", "cifar10-families"])
def test_the_shipped_studies_are_valid(name: str) -> None:
    study = load_study(name, [])
    assert len(study.entries) > 2
    assert load_study(f"studies/{name}", ["seeds=[4]"]).seeds == (4,)


def test_a_study_survives_being_written() -> None:
    study = load_study("digits-families", [])
    assert validate(Study, study.model_dump(mode="json"), "again") == study
