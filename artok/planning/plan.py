"""`artok plan`: the costs of a design before training, counted with its real modules on the meta device.

FLOPs, parameters and memory are counted. Times are estimates from ceilings (see `roofline.py`): they leave out loading
of data and communication between devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from artok.config import load
from artok.generators.networks import dit
from artok.metrics.cost import parameters
from artok.planning.from_numbers import FAMILIES, DesignSpec, design_of, spec_of, transformer
from artok.planning.measure import measure_device
from artok.planning.meta_model import Design, build
from artok.planning.roofline import DTYPES, PRECISIONS, Device, Precision, published
from artok.planning.sampling_cost import sample
from artok.planning.sparse_attention import Pattern, chunks, full, local, of_config
from artok.planning.training_cost import training_step
from artok.planning.training_memory import MemoryEstimate, estimate_memory, training_bytes
from artok.training.experiment import Experiment
from artok.training.settings import settle_precision
from artok.weights import size_in_bytes

COUNTS = (1, 8, 64)
CPU = torch.device("cpu")
UPDATE = 40  # bytes that AdamW and the EMA move per weight: read and written, gradients read


@dataclass(frozen=True)
class PlanOptions:
    """gpu: a listed GPU. device: of this machine, measured and planned for instead ("cpu", "cuda", "here").

    precision: of training and sampling; by default as the config says, and bf16 for sampling on a GPU. sample_batch:
    images at a time, for throughput. The others are of the sparse attention patterns that a video is planned with.
    """

    gpu: str = "H100"
    device: str | None = None
    precision: Precision | None = None
    sample_batch: int = 64
    window: int = 16
    neighbours: int = 1
    key_frames: int = 1
    chunk: int = 5
    overlap: int = 1


@dataclass(frozen=True)
class TokenPlan:
    """length: positions. pixels, colours_log2: length and log2 of the vocabulary of an image without a tokenizer."""

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
    """flops, tokenizer_flops, activations, seconds: per image; flops of forward and backward pass include those of the
    frozen tokenizer's encoding; activations: bytes kept between the passes; seconds: on one device, with the optimizer.

    memory: bytes for the whole batch on one device. images: of the whole run.
    """

    flops: float
    tokenizer_flops: float
    attention_share: float
    activations: float
    memory: float
    seconds: float
    images: int
    batch: int


@dataclass(frozen=True)
class SamplingPlan:
    """flops, tokenizer_flops, cache: per image, with guidance; flops include those of the tokenizer's decoding.

    latency: seconds at batch 1. rate: images per second at `batch`. memory: bytes at `batch`, with the weights.
    """

    precision: str
    passes: int
    flops: float
    tokenizer_flops: float
    attention_share: float
    cache: float
    latency: float
    batch: int
    rate: float
    memory: float


@dataclass(frozen=True)
class AttentionPlan:
    """flops: of one forward pass through all layers. scores: bytes, of one layer. cache: bytes of keys and values.
    seconds: of these FLOPs on the device in bf16."""

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
    memory: tuple[MemoryEstimate, ...]
    attention: tuple[AttentionPlan, ...]


def plan_config(name: str, overrides: Sequence[str], options: PlanOptions) -> Plan:
    """The plan of a config. Errors are those of training it; data and tokenizer need not exist."""
    return plan(build(load(Experiment, name, overrides)), options)


def plan_spec(spec: DesignSpec, options: PlanOptions) -> Plan:
    """The plan of a design in a few numbers; precision "auto" means bf16 on a GPU."""
    return plan(design_of(spec), options)


def plan_families(spec: DesignSpec, options: PlanOptions) -> list[Plan]:
    """The plan of every family at the same images, downsampling, layers and width; over video, of all but VAR."""
    device = find_device(options)
    families = [family for family in FAMILIES if spec.frames == 1 or family != "var"]
    return [plan(design_of(replace(spec, family=family)), options, device) for family in families]


def plan_families_of_config(name: str, overrides: Sequence[str], options: PlanOptions) -> list[Plan]:
    return plan_families(spec_of(build(load(Experiment, name, overrides))), options)


def find_device(options: PlanOptions) -> Device:
    """The device to plan for. Raises ConfigError when there is no such device."""
    return published(options.gpu) if options.device is None else measure_device(options.device)


def plan(design: Design, options: PlanOptions, device: Device | None = None) -> Plan:
    """The plan of a design. device: default from the options."""
    device = device or find_device(options)
    experiment = design.experiment
    precision = options.precision or training_precision(experiment, device)
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
        sampling=None if design.generator is None else sampling_plan(design, device, options),
        memory=tuple(estimate_memory(design, COUNTS, device.chip, DTYPES[precision])),
        attention=attention_plan(design, device, options),
    )


def training_precision(experiment: Experiment, device: Device) -> Precision:
    """The training precision on a device."""
    wanted = experiment.training.precision
    if device.chip == "gpu":
        return "bf16" if wanted == "auto" else wanted
    found = settle_precision(wanted, CPU)
    return "fp32" if found == "no" else found


def sampling_precision(experiment: Experiment, device: Device) -> Precision:
    """sampling.dtype where the config sets it; else bf16 on a GPU and fp32 on a CPU."""
    if device.chip == "gpu" and experiment.sampling.dtype in (None, "auto"):
        return "bf16"
    return PRECISIONS[experiment.sampling.activations]


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
    update = UPDATE * parameters(design.trained, trained_only=True) / device.bytes_per_s
    return TrainingPlan(
        flops=step.costs.flops / batch,
        tokenizer_flops=step.encoding.flops / batch,
        attention_share=step.costs.attention_flops / max(step.costs.flops, 1),
        activations=step.saved / batch,
        memory=training_bytes(design, step),
        seconds=(step.costs.total(device.seconds) + update / training.gradient_accumulation_steps) / batch,
        images=training.images,
        batch=training.global_batch,
    )


def sampling_plan(design: Design, device: Device, options: PlanOptions) -> SamplingPlan:
    assert design.generator is not None
    precision = options.precision or sampling_precision(design.experiment, device)
    dtype = DTYPES[precision]
    sampling = design.experiment.sampling.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
    one, many = (sample(design, sampling, batch, device.chip, dtype) for batch in (1, options.sample_batch))
    weights = sum(size_in_bytes(model) for model in (design.generator, design.tokenizer) if model is not None)
    return SamplingPlan(
        precision=precision,
        passes=design.generator.passes(sampling),
        flops=one.flops,
        tokenizer_flops=one.decoding.flops,
        attention_share=one.total(lambda op: op.flops if op.attention else 0) / one.flops,
        cache=one.passes.cache,
        latency=one.total(device.seconds),
        batch=options.sample_batch,
        rate=options.sample_batch / many.total(device.seconds),
        memory=weights + many.peak,
    )


def attention_plan(design: Design, device: Device, options: PlanOptions) -> tuple[AttentionPlan, ...]:
    """Full and sparse attention over a video; nothing for images."""
    grid = design.layout.grid
    if design.generator is None or len(grid) != 3:
        return ()
    rows, columns = grid[1:]
    grid3, (depth, width) = (grid[0], rows, columns), transformer(design)
    window = min(options.window, rows, columns)
    neighbours = min(options.neighbours, (grid[0] - 1) // 2)
    network = getattr(design.experiment.generator, "network", None)
    own = network.attention if isinstance(network, dit.Config) and network.patch_size == 1 else None
    patterns = [
        full(grid3),
        *([] if own is None or own.kind == "full" else [of_config(own, grid3, depth)]),
        local(grid3, window, neighbours, options.key_frames),
        chunks(grid3, options.chunk, options.overlap),
    ]
    return tuple(attention_cost(pattern, depth, width, device) for pattern in patterns)


def attention_cost(pattern: Pattern, depth: int, width: int, device: Device) -> AttentionPlan:
    flops = pattern.flops(depth, width)
    return AttentionPlan(
        name=pattern.name,
        tokens=pattern.tokens,
        pairs=pattern.pairs,
        flops=flops,
        scores=pattern.score_bytes(max(1, width // 64)),
        cache=pattern.cache_bytes(depth, width),
        seconds=flops / device.flops_per_s["bf16"],
    )
