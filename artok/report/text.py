"""Findings about a run, each a label and a sentence that names its numbers and its rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from artok.evaluation.run_directory import Run
from artok.training.health import COLLAPSED, DIVERGED, OFF_DISTRIBUTION

COPIED, LEANING = 0.5, 0.2  # from these shares of memorised samples on, a generator memorises or leans towards it
BROKEN = (DIVERGED, COLLAPSED, OFF_DISTRIBUTION)  # kinds of findings that stand beside every figure of a run
GAP = 0.1  # from this share of the held-out nats per token on, a lower value on training tokens means overfitting


@dataclass(frozen=True)
class Line:
    """label: what was looked at, such as "Training health"."""

    label: str
    text: str


def joined(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def alarm(run: Run) -> str:
    """How a run broke, in a word or two, to stand beside its figures; empty where it did not."""
    return joined([finding.kind for finding in run.findings if finding.kind in BROKEN])


def findings(run: Run) -> list[Line]:
    """Training health, memorisation check and overfitting, as far as they were measured."""
    return [*_training(run), *_memorisation(run), *_overfitting(run)]


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader should know before trusting the figures."""
    entries = [entry for run in runs for entry in run.results.measurements]
    first = "Every figure comes from one seed: differences of a few percent may be chance."
    cautions = [f"{entry.title}: {entry.note}." for entry in entries if entry.note]
    of_runs = [f"{run.name}: {note}." for run in runs for note in run.results.notes]
    return list(dict.fromkeys([first, *cautions, *of_runs]))


def _training(run: Run) -> Iterator[Line]:
    spent, label = run.spent, "Training health"
    if spent is None:
        yield Line(label, "unknown: trained elsewhere, without a log.")
        return
    if not spent.finished:
        yield Line("Training", f"stopped at {spent.images:,} of {spent.wanted:,} images.")
    for finding in run.findings:
        yield Line(label, f"{finding.kind} from {finding.since:,} images on: {finding.text}.")
    if not run.findings:
        yield Line(label, "no sign of collapse, divergence or instability.")


def _memorisation(run: Run) -> Iterator[Line]:
    copied = run.results.find("memorised_share")
    if copied is None:
        return
    verdict = f"as many samples are nearest to a training image as if {copied.value:.0%} of them were copies"
    if (copied.floor or 0) >= COPIED:
        searched = run.results.find("train_searched_share")
        part = f", of which {searched.value:.2g} were searched" if searched else ""
        text = f"nothing can be told from {copied.n:,} samples and these training images{part}"
        yield Line("Memorisation check", f"{text}: chance alone shows {copied.floor:.0%}.")
    elif copied.value < max(LEANING, copied.floor or 0):
        yield Line("Memorisation check", f"passed: {verdict} (rule: under {LEANING:.0%}).")
    elif copied.value <= COPIED:
        yield Line("Memorisation check", f"leans towards the training images: {verdict} (rule: over {LEANING:.0%}).")
    else:
        yield Line("Memorisation check", f"memorises: {verdict} (rule: over {COPIED:.0%}).")


def _overfitting(run: Run) -> Iterator[Line]:
    new, old = run.results.find("nats_per_token"), run.results.find("nats_per_token_train")
    if new is None or old is None:
        return
    text = f"{new.value:.3g} nats per held-out token, {old.value:.3g} per training token"
    verdict = "yes" if new.value - old.value > GAP * new.value else "no"
    yield Line("Overfitting", f"{verdict}: {text} (rule: a gap of {GAP:.0%}).")
