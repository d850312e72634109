"""The adapter of artok itself. Weights are random: cost does not depend on them.

An adapter of another implementation has the same `build(case, checkout)` and need not have `facts`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from artok.allocator import keep_freed_memory
from artok.config import load
from artok.generators.gan import Gan
from artok.layout import Condition, Tokens, last
from artok.metrics.cost import flops, parameters
from artok.pipeline import Pipeline
from artok.planning.meta_model import build as build_design
from artok.planning.meta_model import tokenizer_section
from artok.planning.op_trace import OpCost
from artok.planning.sampling_cost import sample as sampling_cost
from artok.tokenizers.base import Tokenizer
from artok.training.experiment import Experiment

keep_freed_memory()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "linear", "attention")
CLASSES = {"B": 1000, "digits": 10}


def build(case: dict[str, Any], checkout: Path) -> Callable[[], object]:
    """A call that samples, encodes, decodes or trains on `case["batch"]` images once."""
    experiment = experiment_of(case)
    if case["what"] == "train":
        return training_step(experiment, case)
    tokenizer = tokenizer_of(experiment, case["length"]).eval()
    images = torch.rand(case["batch"], *tokenizer.layout.image, device=DEVICE) * 2 - 1
    if case["what"] == "encode":
        return lambda: tokenizer.encode(images)
    if case["what"] == "decode":
        tokens = tokenizer.encode(images)
        return lambda: pipeline_of(experiment, tokenizer, case).decode(tokens, case["dtype"])
    pipeline = pipeline_of(experiment, tokenizer, case)
    changes: dict[str, object] = {"dtype": case["dtype"]}
    if not experiment.sampling.guides and not isinstance(pipeline.generator, Gan):
        changes["cfg_scale"] = 1.5
    settings = pipeline.settings(changes)
    labels = torch.arange(case["batch"], device=DEVICE) % CLASSES[case["size"]]
    return lambda: pipeline.decode(last(pipeline.steps(Condition(labels), settings)), settings.dtype)


def facts(case: dict[str, Any], checkout: Path) -> dict[str, Any]:
    """parameters, tokens per image, FLOPs per call, seconds of the products' floor, and their share of a step.

    case["floors"]: FLOP/s and bytes per second of the precision, and the bytes of its numbers. The floor of a product
    is the longer of arithmetic and of reading and writing its matrices once. products: share of processor time.
    """
    experiment = experiment_of(case)
    if case["what"] == "train":
        step = training_step(experiment, case)
        for _ in range(3):
            step()
        design = build_design(experiment, CLASSES[case["size"]])
        own = {"parameters": parameters(design.trained), "batch": case["batch"] or experiment.training.global_batch}
        return own | {"flops": flops(step), "products": products_share(step)}
    rate, bandwidth, width = case["floors"]
    tokenizer = tokenizer_of(experiment, case["length"])
    images = torch.zeros(case["batch"], *tokenizer.layout.image, device=DEVICE)
    tokens = {"tokens": tokenizer.layout.length * tokenizer.layout.codes}
    if case["what"] != "sample":  # convolutions, which arithmetic bounds
        with torch.inference_mode():
            code = tokenizer.encode(images)
            count = flops(lambda: tokenizer.encode(images) if case["what"] == "encode" else tokenizer.decode(code))
        return tokens | {"parameters": parameters(tokenizer), "flops": count, "floor_s": count / rate}
    design = build_design(on_size(experiment, tokenizer.layout.image), CLASSES[case["size"]])
    sampling = (
        experiment.sampling
        if experiment.sampling.guides
        else experiment.sampling.model_copy(update={"cfg_scale": 1.5 if case["family"] != "gan" else 1.0})
    )

    def floor(op: OpCost) -> float:
        return max(op.flops / rate, op.bytes * width / 4 / bandwidth) if op.flops else 0.0

    cost = sampling_cost(design, sampling, case["batch"])
    return tokens | {"parameters": parameters(design.trained), "flops": cost.flops, "floor_s": cost.total(floor)}


# ---------------------------------------------------------------------------------------------- models


def experiment_of(case: dict[str, Any]) -> Experiment:
    return load(Experiment, case["config"], case["overrides"])


def on_size(experiment: Experiment, image: tuple[int, ...]) -> Experiment:
    """The experiment on images of another size."""
    section = tokenizer_section(experiment)
    data = experiment.data.model_copy(update={"size": image[1]})
    return experiment.model_copy(update={"data": data, "tokenizer": section})


def tokenizer_of(experiment: Experiment, length: int | None = None) -> Tokenizer:
    """A tokenizer with random weights. length: of its tokens, a square number; None for the config's."""
    section, image = tokenizer_section(experiment), experiment.image
    tokenizer = section.build(image)
    if length is not None:
        side = image[1] // tokenizer.layout.grid[0] * math.isqrt(length)
        tokenizer = section.build((image[0], side, side))
    return tokenizer.to(DEVICE).requires_grad_(False)


def pipeline_of(experiment: Experiment, tokenizer: Tokenizer, case: dict[str, Any]) -> Pipeline:
    generator: nn.Module = nn.Linear(1, 1)
    if experiment.generator is not None:
        generator = experiment.generator.build(tokenizer.layout, CLASSES[case["size"]])
    blank = cast(Any, SimpleNamespace(generator=None, check=lambda settings: None))
    return Pipeline(tokenizer, cast(Any, generator.eval().to(DEVICE)), (), experiment.sampling, blank, blank)


# ---------------------------------------------------------------------------------------------- training


def training_step(experiment: Experiment, case: dict[str, Any]) -> Callable[[], object]:
    """The training loop's own step on one batch of random tokens or images, held in memory."""
    from accelerate import Accelerator

    from artok.data.loader import Batch
    from artok.data.tokens import TokenBatch
    from artok.training.loop import Meter, Trainer
    from artok.training.progress import Progress
    from artok.training.task import Task
    from artok.training.tasks import GeneratorTask, TokenData, TokenizerTask

    batch = case["batch"] or experiment.training.global_batch
    training = experiment.training.model_copy(update={"global_batch": batch})
    experiment = experiment.model_copy(update={"training": training})
    classes = tuple(map(str, range(CLASSES[case["size"]])))
    labels, places = torch.arange(batch) % len(classes), torch.arange(batch)
    images = torch.rand(batch, *experiment.image) * 2 - 1
    blank = cast(Any, SimpleNamespace(classes=classes, fingerprint="", sequential=False, captioned=False))
    items: Any
    task: Task
    if experiment.generator is None:
        task, items = TokenizerTask(experiment, blank, blank, DEVICE), Batch(images, labels, places)
    else:
        tokenizer = tokenizer_of(experiment).eval()
        with torch.no_grad():
            tokens = tokenizer.encode(images.to(DEVICE))
        task = GeneratorTask(experiment, TokenData(tokenizer, blank, blank, blank, blank), DEVICE)
        items = TokenBatch(Tokens(tokens.values.cpu(), tokens.layout), labels, places)
    folder = Path(tempfile.gettempdir())
    trainer = Trainer(task, folder, Accelerator(cpu=DEVICE.type == "cpu"), Progress("", quiet=True))
    meter = Meter()

    def step() -> None:
        trainer.step(items, meter)
        trainer.seen += batch

    return step


def products_share(step: Callable[[], object]) -> float:
    """The share of processor time in matrix products and convolutions."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(3):
            step()
    events = list(profiled.key_averages())
    whole = sum(event.self_cpu_time_total for event in events)
    products = sum(event.self_cpu_time_total for event in events if any(name in event.key for name in PRODUCTS))
    return products / whole
