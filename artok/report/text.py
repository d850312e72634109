"""What the figures say, in words. Each verdict follows from a rule that stands here, and names its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from artok.evaluation.run_directory import Run
from artok.layout import TokenLayout
from artok.metrics.quantity import number
from artok.metrics.results import Measurement
from artok.training.health import COLLAPSED, DIVERGED, OFF_DISTRIBUTION
from artok.training.log import duration

REAL = 1.25  # a distance up to so many times its floor is that of real images, as far as so few images can tell
CLOSE, APART = 2.5, 8.0  # up to so many times the floor it is close; a distance beyond the second is far
COPIED, LEANING = 0.5, 0.2  # shares of memorised samples: it memorises; more than chance has it
BROKEN = (DIVERGED, COLLAPSED, OFF_DISTRIBUTION)  # findings that no figure of a run can be read without
GAP = 0.1  # the share of its held-out nats per token by which training tokens may be easier


def joined(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def about_tokenizer(run: Run, layout: TokenLayout) -> str:
    """A paragraph on one tokenizer."""
    return " ".join([*_training(run), *_health(run), _tokens(layout), *_reconstruction(run), *_codebook(run)])


def about_generator(run: Run) -> str:
    """A paragraph on one generator."""
    rules: tuple[Callable[[Run], Iterator[str]], ...] = (
        _training,
        _health,
        _quality,
        _consistency,
        _coverage,
        _memorisation,
        _likelihood,
    )
    return " ".join(sentence for rule in rules for sentence in rule(run))


def alarm(run: Run) -> str:
    """What a reader must know beside every figure of a run, in a word or two: that it broke. Empty for any other."""
    return joined([finding.kind for finding in run.findings if finding.kind in BROKEN])


def comparison(runs: Sequence[Run]) -> str:
    """Which of several generators comes closest to real images, and how far that can be trusted."""
    found = {run.name: entry for run in runs if (entry := run.results.find("fd")) is not None}
    if len(found) < 2:
        return ""
    ranked = sorted(found, key=lambda name: found[name].value)
    first, second = found[ranked[0]], found[ranked[1]]
    share = second.value / first.value - 1 if first.value else float("inf")
    hedge = (
        "too little to rank them: one seed each says nothing of the spread" if share < 0.15 else "with one seed each"
    )
    return (
        f"Of the {len(found)} generators {ranked[0]} comes closest to held-out images: {first.title} "
        f"{_short(first.value)}, then {ranked[1]} with {_short(second.value)}, {share:.0%} more ({hedge})."
    )


# ---------------------------------------------------------------------------------------------- sentences


def _short(value: float) -> str:
    """Three significant digits: prose needs no more, and one seed gives no more."""
    return f"{value:.3g}"


def _training(run: Run) -> Iterator[str]:
    spent, parameters = run.spent, run.results.cost.get("parameters")
    size = f"{parameters:,.0f} parameters" if parameters is not None else ""
    if spent is None:
        yield f"{size}, trained elsewhere.".lstrip(", ").capitalize()
        return
    place = "one process" if spent.processes == 1 else f"{spent.processes} processes"
    text = f"{size}, trained on {spent.images:,} images in {duration(spent.seconds)} by {place}."
    yield text.removeprefix(", ")
    if not spent.finished:
        yield f"Its training stopped short of {spent.wanted:,} images, so these figures are not its last."


def _health(run: Run) -> Iterator[str]:
    for finding in run.findings:
        yield f"{finding.kind.capitalize()}, from {finding.since:,} images on: {finding.text}."


def _tokens(layout: TokenLayout) -> str:
    sides = " by ".join(map(str, layout.image[1:]))
    bits = f": {layout.bits:,.0f} bits, {layout.bits_per_pixel:.3g} a pixel" if layout.discrete else ""
    return f"It turns an image of {sides} pixels into {layout}{bits}."


def _reconstruction(run: Run) -> Iterator[str]:
    psnr, ssim = run.results.find("psnr_db"), run.results.find("ssim")
    if psnr is not None:
        likeness = f" and an SSIM of {ssim.value:.3f}" if ssim is not None else ""
        yield f"Held-out images come back with a PSNR of {psnr.value:.1f} dB{likeness}."
    distance = run.results.find("fd")
    if distance is not None:
        yield f"Taken together, the reconstructions are {_distance(distance)}."
        if distance.floor and distance.value < distance.floor:
            yield "They can pass below that floor since they show the very images that they are compared with."


def _codebook(run: Run) -> Iterator[str]:
    used, share = run.results.find("codes_used"), run.results.find("codebook_usage")
    if used is not None and share is not None:
        every = "every code" if share.value == 1 else f"{share.value:.0%} of the codes"
        yield f"The {used.n:,} held-out images use {every}."


def _distance(entry: Measurement) -> str:
    if not entry.floor or entry.floor < 0:
        return f"at {entry.title} {_short(entry.value)} from held-out images"
    times = entry.value / entry.floor
    far = number(float(f"{times:.2g}"))
    verdict = "as close to held-out images as other real images are"
    if times > REAL:
        verdict = "close to held-out images" if times <= CLOSE else "apart from held-out images"
    if times > APART:
        verdict = "far from held-out images"
    return (
        f"{verdict}: {entry.title} {_short(entry.value)}, {far} times the floor of {_short(entry.floor)} "
        "between real and real"
    )


def _quality(run: Run) -> Iterator[str]:
    entry = run.results.find("fd")
    if entry is not None:
        yield f"Its samples are {_distance(entry)}."


def _consistency(run: Run) -> Iterator[str]:
    entry = run.results.find("class_consistency")
    if entry is not None:
        real = f", and {entry.floor:.1%} of real images for theirs" if entry.floor is not None else ""
        yield f"The classifier takes {entry.value:.1%} of them for the class that was asked for{real}."


def _coverage(run: Run) -> Iterator[str]:
    entry = run.results.find("coverage")
    if entry is not None:
        floor = f" (other real images: {entry.floor:.1%})" if entry.floor is not None else ""
        yield f"They cover {entry.value:.1%} of the held-out images{floor}."
    kinds = run.results.find("modes_covered")
    if kinds is not None and kinds.floor is not None:
        yield (
            f"{kinds.n:,} samples show {kinds.value:,.0f} kinds of image, where so many independent draws of the data "
            f"would show {kinds.floor:,.1f}."
        )


def _memorisation(run: Run) -> Iterator[str]:
    entry, copied = run.results.find("nearest_train_distance"), run.results.find("memorised_share")
    if entry is not None:
        real = f", half of the held-out images within {_short(entry.floor)}" if entry.floor else ""
        yield f"Half of them lie within {_short(entry.value)} of a training image{real}."
    if copied is None:
        return
    if copied.value < max(LEANING, copied.floor or 0):
        yield "Their nearest image is one of training no more often than chance has it: no sign of memorised images."
        return
    verdict = "the generator memorises" if copied.value > COPIED else "they lean towards the training images"
    yield (
        f"Their nearest image is one of training more often than chance has it, as if {copied.value:.0%} of them were "
        f"copies: {verdict}."
    )


def _likelihood(run: Run) -> Iterator[str]:
    new, old = run.results.find("nats_per_token"), run.results.find("nats_per_token_train")
    if new is None or old is None:
        return
    text = f"A held-out token costs {_short(new.value)} nats and a training token {_short(old.value)}"
    gap = new.value - old.value
    if gap > GAP * new.value:
        yield f"{text}: the gap of {_short(gap)} shows that it knows the training images better than their kind."
    else:
        yield f"{text}, a small gap."


def hedges(runs: Iterable[Run]) -> list[str]:
    """What a reader should know before trusting the figures."""
    entries = [entry for run in runs for entry in run.results.measurements]
    least = min((entry.n for entry in entries), default=0)
    texts = [
        f"Every figure comes from one seed and from {least:,} images or more; differences of a few percent between "
        "runs are within what another seed would give."
    ]
    return texts + list(dict.fromkeys(f"{entry.title}: {entry.note}." for entry in entries if entry.note))
