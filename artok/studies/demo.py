"""`artok demo`: the whole pipeline on real digits, from nothing to a page of pictures and figures."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from artok.errors import ConfigError
from artok.studies.jobs import Job, run_jobs
from artok.studies.report import write_report
from artok.training.log import duration

TOKENIZERS = {"vq": "digits/vq", "msvq": "digits/msvq", "kl": "digits/kl"}  # folder: config
GENERATORS = {  # folder: config, folder of its tokenizer
    "raster": ("digits/raster", "vq"),
    "mar": ("digits/mar", "kl"),
    "dit": ("digits/dit", "kl"),
    "maskgit": ("digits/maskgit", "vq"),
    "var": ("digits/var", "msvq"),
}
FAMILIES = ("raster", "var")  # what is shown unless told: what two cores train in under three minutes
WORKERS = min(2, os.cpu_count() or 1)

TITLE = "artok demo: digits, token by token"
INTRO = (
    "Real 8x8 digits (scikit-learn), shown at 16x16: tokenizers turn an image into a few codes, generators learn to "
    "make new codes, and one evaluator measures them all on held-out digits."
)


def demo(folder: Path, families: Sequence[str] = FAMILIES, fresh: bool = False) -> Path:
    """Train, evaluate and report into `folder`; what is there already is kept, so a stopped demo goes on. The page.

    families: names of GENERATORS; each brings its tokenizer. ConfigError: one is unknown.
    """
    unknown = [name for name in families if name not in GENERATORS]
    if unknown or not families:
        raise ConfigError(f"the demo has no family {', '.join(unknown) or 'to show'}; it has {', '.join(GENERATORS)}")
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    run_jobs(plan(folder, families), WORKERS)
    runs = [folder / name for name in tokenizers_of(families)], [folder / name for name in families]
    page = write_report(folder / "report.html", TITLE, INTRO, *runs)
    print(f"the demo took {duration(time.perf_counter() - began)}")
    return page


def tokenizers_of(families: Sequence[str]) -> list[str]:
    used = {GENERATORS[name][1] for name in families}
    return [name for name in TOKENIZERS if name in used]


def plan(folder: Path, families: Sequence[str]) -> list[Job]:
    """Train every tokenizer and then its generators; evaluate each once it is trained."""
    tokenizers = tokenizers_of(families)
    training = [Job(f"train {name}", train(TOKENIZERS[name], folder / name)) for name in tokenizers]
    for name in families:
        config, tokenizer = GENERATORS[name]
        arguments = (*train(config, folder / name), f"tokenizer={folder / tokenizer}")
        training.append(Job(f"train {name}", arguments, (f"train {tokenizer}",)))
    evaluation: list[Job] = []
    for name in (*tokenizers, *families):
        # Each waits for the one before: the first trains the judge, which the others then find in the cache.
        after = (f"train {name}", *(job.name for job in evaluation[-1:]))
        evaluation.append(Job(f"evaluate {name}", ("evaluate", str(folder / name)), after))
    return training + evaluation


def train(config: str, folder: Path) -> tuple[str, ...]:
    return ("train", config, "--out", str(folder))
