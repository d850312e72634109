"""`artok sample`: settings from flags and overrides, then images as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from artok.cascade import Cascade
from artok.config import merge, override
from artok.device import resolve_device
from artok.errors import ConfigError
from artok.evaluation.controls import read_controls
from artok.evaluation.sample import Asked, parse_labels, read_prompts
from artok.evaluation.sample import sample as write_samples
from artok.evaluation.videos import MOST_VIDEOS, read_clip, write_videos
from artok.pipeline import Pipeline
from artok.rollout import Clip
from artok.sampling.settings import Sampling
from artok.training.progress import Progress


@dataclass(frozen=True)
class Request:
    """What is sampled for, as the command line takes it: classes by number or name, prompts and a file of them, what
    guidance leads away from, pictures and ready maps of control, and the number of samples of each."""

    labels: str = ""
    prompts: Sequence[str] = ()
    prompt_file: Path | None = None
    negative: str | None = None
    control: Sequence[Path] = ()
    control_maps: Sequence[Path] = ()
    n: int = 8


def open_pipeline(
    run: str, overrides: Sequence[str], flags: Mapping[str, object], device: str | None
) -> tuple[Pipeline, Sampling]:
    """A run's pipeline, and its sampling settings with changes.

    overrides: sampling settings as key=value. flags: settings by name, applied after the overrides; None is not given.
    """
    pipeline = Pipeline.from_pretrained(run, resolve_device(device))
    changes = merge(override({}, overrides), {key: value for key, value in flags.items() if value is not None})
    return pipeline, pipeline.settings(changes)


def sample(
    run: str,
    overrides: Sequence[str],
    flags: Mapping[str, object],
    request: Request,
    batch: int,
    folder: Path,
    device: str | None,
    stages: Sequence[str] = (),
) -> Tensor:
    """Write `request.n` images per label, prompt or control to a folder; without any, a model of text and images writes
    as many captions, which `prompts.txt` keeps, with an image each. Returns the images (n * rows, C, H, W) in [-1, 1].

    overrides, flags, device: as in `open_pipeline`. stages: runs that enlarge the images one after the other, each into
    a folder named by its size; those of the last are returned.
    """
    pipeline, settings, asked, n, progress = ask(run, overrides, flags, request, device)
    cascade = Cascade(pipeline, [Pipeline.from_pretrained(stage, pipeline.device) for stage in stages])
    made = write_samples(pipeline, asked, n, settings, folder, batch, progress)
    for stage in cascade.stages:
        size = "x".join(map(str, stage.saved.facts.image[1:]))
        told = asked.enlarged(stage, made)
        made = write_samples(stage, told, 1, stage.settings({"seed": settings.seed}), folder / size, batch, progress)
    return made


def sample_videos(
    run: str,
    overrides: Sequence[str],
    flags: Mapping[str, object],
    request: Request,
    batch: int,
    folder: Path,
    device: str | None,
    frames: int | None,
    continued: Path | None,
    fps: float,
) -> str:
    """Write `request.n` videos per label or prompt to a folder; says which files they are.

    frames: of each, by default as many as a clip of training has. continued: a clip that all begin with. The others as
    in `sample`.
    """
    pipeline, settings, asked, n, progress = ask(run, overrides, flags, request, device)
    layout = pipeline.generator.layout
    Clip.of(layout)
    given = None if continued is None else read_clip(continued, layout.image)
    return write_videos(
        pipeline, asked, n, settings, frames or layout.image[1], folder, given, fps, min(batch, MOST_VIDEOS), progress
    )


def ask(
    run: str,
    overrides: Sequence[str],
    flags: Mapping[str, object],
    request: Request,
    device: str | None,
) -> tuple[Pipeline, Sampling, Asked, int, Progress]:
    """The pipeline, its settings, what is sampled for, and how many of each."""
    pipeline, settings = open_pipeline(run, overrides, flags, device)
    progress = Progress("sample")
    labels, negative, n = request.labels, request.negative, request.n
    texts = [*request.prompts, *(read_prompts(request.prompt_file) if request.prompt_file is not None else [])]
    files = [*request.control, *request.control_maps]
    maps = read_controls(pipeline, request.control, request.control_maps)
    if not (texts or labels or files) and pipeline.generator.writes_text:
        texts, n = pipeline.write(n, settings), 1
    asked = choose(pipeline, labels, texts, negative, tuple(path.stem for path in files), maps)
    for line in pipeline.describe_cut([*texts, *([negative] if negative else [])]):
        progress.say(line)
    return pipeline, settings, asked, n, progress


def choose(
    pipeline: Pipeline,
    labels: str,
    prompts: Sequence[str],
    negative: str | None,
    files: tuple[str, ...] = (),
    control: Tensor | None = None,
) -> Asked:
    """Rows for the prompts, labels and maps, where one of any goes with all others; without prompts and maps, for
    labels alone, by default all. files: the names of the maps."""
    if not prompts and "labels" not in pipeline.generator.hears:
        raise ConfigError('this model is conditioned on text; give it one with --prompt "..."')
    wanted = parse_labels(labels, pipeline.classes) if labels or not (prompts or files) else None
    texts = tuple(prompts)
    names = max(texts, files, tuple(pipeline.classes[label] for label in wanted or ()), key=len)
    return Asked(names, wanted, texts or None, negative, control)
