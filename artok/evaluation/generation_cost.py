"""What generating costs: work that depends on the model alone, and times on this machine."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from artok.layout import last
from artok.metrics import cost
from artok.noise import Noise
from artok.pipeline import Pipeline
from artok.planning.op_trace import Trace
from artok.sampling.settings import Sampling

BATCH = 64  # of the throughput
COUNTED = 20  # samples whose passes are counted
TRACED = 4  # images of the batch whose peak memory is taken


def generation_work(pipeline: Pipeline, sampling: Sampling) -> dict[str, float]:
    """Parameters, passes, FLOPs and memory of generating: all that does not depend on the machine."""
    plain = sampling.model_copy(update={"dtype": "float32"})

    @torch.inference_mode()
    def work(count: int) -> None:  # on the model as it was trained: prepared weights hide what they multiply
        noise = Noise(0, torch.arange(count, device=pipeline.device))
        condition = pipeline.generator.conditioner.example(count, pipeline.device)
        steps = pipeline.generator.steps(condition, plain, noise, pipeline.tokenizer)
        pipeline.decode(last(steps))

    with Trace() as trace:
        work(TRACED)
    return {
        "parameters": cost.parameters(pipeline.generator),
        "network_passes": network_passes(pipeline, sampling),
        "flops_per_image": cost.flops(lambda: work(1)),
        "peak_memory_bytes_per_image": trace.peak / TRACED,
    }


def network_passes(pipeline: Pipeline, sampling: Sampling) -> float:
    """Passes for one sample: with drafts the mean over samples of all classes, each made alone."""
    if sampling.decoding not in ("jacobi", "speculative"):
        return pipeline.generator.passes(sampling)
    classes, taken = max(len(pipeline.classes), 1), 0
    for index in range(COUNTED):
        condition = pipeline.generator.conditioner.example(1, pipeline.device)
        if condition.labels is not None:
            condition = replace(condition, labels=torch.full_like(condition.labels, index % classes))
        taken += sum(1 for _ in pipeline.steps(condition, sampling, first=index))
    return taken / COUNTED


def generation_times(pipeline: Pipeline, sampling: Sampling) -> dict[str, float]:
    """Times of generating; this machine's, as it is now."""
    device = pipeline.device
    return {
        "latency_s": cost.latency(lambda: make(pipeline, sampling, 1), device).median,
        "throughput_images_per_s": cost.throughput(lambda: make(pipeline, sampling, BATCH), BATCH, device),
        "best_batch": BATCH,
    }


def make(pipeline: Pipeline, sampling: Sampling, count: int) -> Tensor:
    """So many images of the first class, or of a text of the largest length."""
    condition = pipeline.generator.conditioner.example(count, pipeline.device)
    tokens = last(pipeline.steps(condition, sampling))
    return pipeline.decode(tokens, sampling.dtype)
