"""`artok plan`: what a design costs before anyone trains it, counted with its real modules on the meta device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from artok.config import load
from artok.metrics.cost import parameters
from artok.planning.calibrate_cpu import this_cpu
from artok.planning.from_numbers import FAMILIES, Wish, design_of, transformer, wish_of
from artok.planning.meta_model import Design, build
from artok.planning.roofline import DTYPES, PRECISIONS, Device, Precision, published
from artok.planning.sampling_cost import Sampled, sample
from artok.planning.sparse_attention import Pattern, chunks, full, local
from artok.planning.training_cost import training_step
from artok.planning.training_memory import Need, needs, training_bytes
from artok.sampling.settings import Sampling
from artok.training.experiment import Experiment
from artok.training.settings import settle_precision
from artok.weights import size_in_bytes

COUNTS = (1, 8, 64)
CPU = torch.device("cpu")
UPDATE = 40  # bytes that AdamW and the averaged weights move for each weight: read and written, gradients read


@dataclass(frozen=True)
class Asked:
    """device, precision: to run on; precision as the config has it unless given. batch: of sampling for throughput.

    window, neighbours, key_frames, chunk, overlap: of the sparse attention patterns that a video is planned with.
    """

    device: str = "H100"
    precision: Precision | None = None
    sample_batch: int = 64
    window: int = 16
    neighbours: int = 1
    key_frames: int = 1
    chunk: int = 5
    overlap: int = 1


@dataclass(frozen=True)
class TokenPlan:
    """length: positions. pixels, colours: what tokens would be without a tokenizer."""

    layout: str
    length: int
    codes: int
    vocabulary: int | None
    bits: float | None
    bits_per_pixel: float | None
    pixels: int
    colours_log2: int


@dataclass(frozen=True)
class TrainingPlan:
    """For one image, on one device with the whole batch: flops: forward and backward. activations: bytes kept between
    the two. memory: bytes for the whole batch. seconds: with the optimizer's share. images: of the whole run."""

    flops: float
    attention_share: float
    activations: float
    memory: float
    seconds: float
    images: int
    batch: int


@dataclass(frozen=True)
class SamplingPlan:
    """flops, cache: of one image, guidance and decoding included. latency: seconds to one image. rate: images a second
    at `batch`. memory: bytes at `batch`, with the weights."""

    precision: str
    passes: int
    flops: float
    attention_share: float
    cache: float
    latency: float
    batch: int
    rate: float
    memory: float


@dataclass(frozen=True)
class AttentionPlan:
    """flops: of one forward pass through all layers. scores: bytes of one layer's. cache: bytes of keys and values.
    seconds: of those FLOPs on the device."""

    name: str
    tokens: int
    pairs: int
    flops: float
    scores: float
    cache: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    name: str
    family: str
    device: str
    source: str
    device_memory: float
    precision: str
    tokens: TokenPlan
    parameters: int
    tokenizer_parameters: int
    training: TrainingPlan
    sampling: SamplingPlan | None
    needs: tuple[Need, ...]
    attention: tuple[AttentionPlan, ...]


def plan_config(name: str, overrides: Sequence[str], asked: Asked) -> Plan:
    """The plan of a config. Errors as in training it; nothing but the config has to exist."""
    return plan(build(load(Experiment, name, overrides)), asked)


def plan_wish(wish: Wish, asked: Asked) -> Plan:
    """The plan of a few numbers, which a GPU computes in bfloat16 unless told."""
    if asked.precision is None and asked.device.lower() != "cpu":
        asked = replace(asked, precision="bf16")
    return plan(design_of(wish), asked)


def all_families(wish: Wish, asked: Asked) -> list[Plan]:
    """The plan of every family at the same images, downsampling, layers and width; over video, of all but VAR."""
    families = [family for family in FAMILIES if wish.frames == 1 or family != "var"]
    return [plan_wish(replace(wish, family=family), asked) for family in families]


def families_of_config(name: str, overrides: Sequence[str], asked: Asked) -> list[Plan]:
    return all_families(wish_of(build(load(Experiment, name, overrides))), asked)


def plan(design: Design, asked: Asked) -> Plan:
    """Everything that is known of a design in advance."""
    device = this_cpu() if asked.device.lower() == "cpu" else published(asked.device)
    experiment = design.experiment
    precision = asked.precision or settled(experiment, device)
    return Plan(
        name=experiment.name,
        family="tokenizer" if experiment.generator is None else experiment.generator.kind,
        device=device.name,
        source=device.source,
        device_memory=device.memory,
        precision=precision,
        tokens=token_plan(design),
        parameters=parameters(design.trained),
        tokenizer_parameters=0 if design.tokenizer is None else parameters(design.tokenizer),
        training=training_plan(design, device, precision),
        sampling=None if design.generator is None else sampling_plan(design, device, asked),
        needs=tuple(needs(design, COUNTS, device.chip, DTYPES[precision])),
        attention=attention_plan(design, device, asked),
    )


def settled(experiment: Experiment, device: Device) -> Precision:
    """What training.precision comes to on a device."""
    wanted = experiment.training.precision
    if device.chip == "gpu":
        return "bf16" if wanted == "auto" else wanted
    found = settle_precision(wanted, CPU)
    return "fp32" if found == "no" else found


def token_plan(design: Design) -> TokenPlan:
    layout = design.layout
    bits = layout.bits if layout.discrete else None
    pixels = math.prod(layout.image[1:])
    return TokenPlan(
        layout=str(layout),
        length=layout.length,
        codes=layout.codes,
        vocabulary=layout.vocab,
        bits=bits,
        bits_per_pixel=None if bits is None else bits / pixels,
        pixels=pixels,
        colours_log2=8 * layout.image[0],
    )


def training_plan(design: Design, device: Device, precision: Precision) -> TrainingPlan:
    training = design.experiment.training
    batch = training.global_batch // training.gradient_accumulation_steps
    step = training_step(design, batch, device.chip, DTYPES[precision])
    resident = size_in_bytes(design.trained)
    seconds = step.costs.total(lambda work: device.seconds(work, resident))
    update = UPDATE * parameters(design.trained, trained_only=True) / device.reading[-1][1]
    return TrainingPlan(
        flops=step.costs.flops / batch,
        attention_share=step.costs.attention_flops / max(step.costs.flops, 1),
        activations=step.saved / batch,
        memory=training_bytes(design, step),
        seconds=(seconds + update / training.gradient_accumulation_steps) / batch,
        images=training.images,
        batch=training.global_batch,
    )


def sampling_plan(design: Design, device: Device, asked: Asked) -> SamplingPlan:
    sampling = design.experiment.sampling
    if asked.precision is not None:
        dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[asked.precision]
        sampling = sampling.model_copy(update={"dtype": dtype})
    one, many = (counted(design, sampling, batch, device) for batch in (1, asked.sample_batch))
    weights = sum(size_in_bytes(model) for model in (design.generator, design.tokenizer) if model is not None)
    assert design.generator is not None
    return SamplingPlan(
        precision=PRECISIONS[getattr(torch, sampling.dtype)],
        passes=design.generator.passes(sampling),
        flops=one.flops,
        attention_share=one.total(lambda work: work.flops if work.attention else 0) / one.flops,
        cache=one.passes.cache,
        latency=one.total(lambda work: device.seconds(work, weights)),
        batch=asked.sample_batch,
        rate=asked.sample_batch / many.total(lambda work: device.seconds(work, weights)),
        memory=weights + many.peak,
    )


def counted(design: Design, sampling: Sampling, batch: int, device: Device) -> Sampled:
    return sample(design, sampling, batch, device.chip, getattr(torch, sampling.dtype))


def attention_plan(design: Design, device: Device, asked: Asked) -> tuple[AttentionPlan, ...]:
    """Full attention over a video, and what sparse patterns reduce it to; nothing for images."""
    grid = design.layout.grid
    if design.generator is None or len(grid) != 3:
        return ()
    rows, columns = grid[1:]
    grid3, (depth, width) = (grid[0], rows, columns), transformer(design)
    patterns = [
        full(grid3),
        local(grid3, min(asked.window, rows, columns), min(asked.neighbours, (grid[0] - 1) // 2), asked.key_frames),
        chunks(grid3, asked.chunk, asked.overlap),
    ]
    return tuple(attention_costs(pattern, depth, width, device) for pattern in patterns)


def attention_costs(pattern: Pattern, depth: int, width: int, device: Device) -> AttentionPlan:
    flops = pattern.flops(depth, width)
    return AttentionPlan(
        name=pattern.name,
        tokens=pattern.tokens,
        pairs=pattern.pairs,
        flops=flops,
        scores=pattern.score_bytes(max(1, width // 64)),
        cache=pattern.cache_bytes(depth, width),
        seconds=flops / device.products["bf16"][-1][1],
    )
