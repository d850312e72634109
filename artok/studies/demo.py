"""`artok demo`: the whole pipeline on real digits, from nothing to a page of pictures and figures."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from artok.studies.jobs import Job, run_jobs
from artok.studies.report import write_report
from artok.training.log import duration

TOKENIZERS = {"vq": "digits/vq"}  # folder: config
GENERATORS = {"raster": ("digits/raster", "vq")}  # folder: config, folder of its tokenizer
WORKERS = min(2, os.cpu_count() or 1)

TITLE = "artok demo: digits, token by token"
INTRO = (
    "Real 8x8 digits (scikit-learn), shown at 16x16: tokenizers turn an image into a few codes, generators learn to "
    "make new codes, and one evaluator measures them all on held-out digits."
)


def demo(folder: Path, fresh: bool = False) -> Path:
    """Train, evaluate and report into `folder`; what is there already is kept, so a stopped demo goes on. The page."""
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    run_jobs(plan(folder), WORKERS)
    runs = [folder / name for name in TOKENIZERS], [folder / name for name in GENERATORS]
    page = write_report(folder / "report.html", TITLE, INTRO, *runs)
    print(f"the demo took {duration(time.perf_counter() - began)}")
    return page


def plan(folder: Path) -> list[Job]:
    """Train every tokenizer and then its generators, the long jobs first; evaluate each once it is trained."""
    training = [Job(f"train {name}", train(config, folder / name)) for name, config in TOKENIZERS.items()]
    for name, (config, tokenizer) in GENERATORS.items():
        arguments = (*train(config, folder / name), f"tokenizer={folder / tokenizer}")
        training.append(Job(f"train {name}", arguments, (f"train {tokenizer}",)))
    evaluation: list[Job] = []
    for name in (*TOKENIZERS, *GENERATORS):
        # Each waits for the one before: the first trains the judge, which the others then find in the cache.
        after = (f"train {name}", *(job.name for job in evaluation[-1:]))
        evaluation.append(Job(f"evaluate {name}", ("evaluate", str(folder / name)), after))
    return training + evaluation


def train(config: str, folder: Path) -> tuple[str, ...]:
    return ("train", config, "--out", str(folder))
