"""`artok evaluate`: one run measured on the held-out images of its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from artok.cascade import Cascade
from artok.config import override, read_yaml, validate
from artok.errors import ConfigError
from artok.evaluation.controls import BaseSamples
from artok.evaluation.edits import add_edits
from artok.evaluation.evaluator import Evaluator
from artok.evaluation.rollouts import add_rollouts
from artok.metrics.reference import Reference
from artok.metrics.results import Results
from artok.metrics.selection import MetricChoice
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling
from artok.saved import (
    CONFIG,
    RESULTS,
    Saved,
    count_training_images,
    describe_unfinished,
    digest_weights,
    find_saved,
    load_tokenizer,
    read_saved,
)
from artok.training.encode import read_data_section
from artok.training.progress import Progress


def evaluate(
    name: str,
    n: int | None,
    extractor: str,
    changes: Sequence[str],
    device: str,
    progress: Progress,
    reference: Path | None = None,
    base: str | None = None,
) -> Results:
    """Measure a run on the held-out images of its data and write `results.json` beside it.

    n: images, all held-out ones unless given. changes: sampling settings as key=value, settings of the data as
    data.key=value and the choice of metrics as evaluation.key=value. reference: an .npz in ADM's format to compare
    with too. base: a run whose samples a super-resolution stage enlarges, in the place of held-out images. Errors as in
    loading; a ConfigError when the data do not fit the model or a tokenizer is to be measured on more images than are
    held out.
    """
    folder = find_saved(name)
    saved = read_saved(folder)
    of_data = [change for change in changes if change.startswith("data.")]
    of_choice = [change.partition(".")[2] for change in changes if change.startswith("evaluation.")]
    of_sampling = [change for change in changes if not change.startswith(("data.", "evaluation."))]
    data = read_data_section(folder, saved.facts.image, of_data, any_length=saved.generator is None)
    if saved.generator is None and of_sampling:
        raise ConfigError(f"{folder} is a tokenizer; sampling settings such as {of_sampling[0]} do not apply")
    weights, progressed = digest_weights(folder), count_training_images(folder)
    pipeline = Pipeline.from_pretrained(folder, device) if saved.generator is not None else None
    sampling = pipeline.settings(override({}, of_sampling)) if pipeline is not None else Sampling()
    section = read_yaml(folder / CONFIG).get("evaluation") or {}
    choice = validate(MetricChoice, override(section, of_choice), "evaluation")
    known = Reference.open(reference) if reference is not None else None
    evaluator = Evaluator(data, extractor, device, n, progress, choice, known)
    classes = compare_classes(saved, evaluator.train_split.classes, folder)
    notes = tuple(filter(None, (describe_unfinished(folder), classes)))
    for note in notes:
        progress.say(note)
    if base is not None:
        if pipeline is None:
            raise ConfigError(f"{folder} is a tokenizer; a base is for a super-resolution stage, so leave it out")
        cascade = Cascade(Pipeline.from_pretrained(base, device), [pipeline])
        evaluator.controls = BaseSamples(cascade, data.control, lambda: evaluator.held_out)
        notes += (f"a stage on samples of {Path(base).name}",)
    if pipeline is None:
        tokenizer, _ = load_tokenizer(folder)
        tokenizer.fit(data.image)
        results = evaluator.tokenizer(tokenizer.to(device), folder.name)
    else:
        results = evaluator.generator(pipeline, folder.name, sampling)
        results = add_edits(evaluator, pipeline, sampling, results)
        results = add_rollouts(evaluator, pipeline, sampling, results)
    seen, wanted = progressed or (None, None)
    results = replace(results, weights=weights, images_seen=seen, images_wanted=wanted, notes=notes)
    results.save(folder / RESULTS)
    return results


def compare_classes(saved: Saved, classes: Sequence[str], folder: Path) -> str | None:
    """What to say of data whose classes have other names than those that a model was trained on; None if all is well.

    Models that know their classes by number only, such as imported ones, fit any names. A ConfigError when a generator
    has another number of classes.
    """
    own = saved.facts.classes
    if saved.generator is not None and len(classes) != len(own):
        raise ConfigError(
            f"{folder} makes images of {len(own)} classes and the data have {len(classes)}; "
            "name the data that it was made for with data.key=value"
        )
    differing = [label for label, names in enumerate(zip(own, classes, strict=False)) if names[0] != names[1]]
    if not differing or own == tuple(map(str, range(len(own)))):
        return None
    first = differing[0]
    return (
        f"the classes of the data have other names than those of {folder.name}: label {first} is {classes[first]!r} "
        f"here and {own[first]!r} to the model; {len(differing)} of {len(own)} differ"
    )
