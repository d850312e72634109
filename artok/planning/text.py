"""A plan as text."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table

from artok.planning.plan import COUNTS, Plan
from artok.training.log import duration

BYTES = ((2**50, "PiB"), (2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
COUNT = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
NOTES = (
    "A multiply-add counts as 2 FLOPs. Some papers count it as 1: DiT-XL/2's 118.6 Gflops per pass are multiply-adds.",
    "Times are estimates from ceilings: measured times are longer. Communication and loading of data are left out.",
)
WIDTH = 200


def size(value: float) -> str:
    """Bytes with a unit."""
    factor, unit = next(((factor, unit) for factor, unit in BYTES if value >= factor), (1, "B"))
    return f"{value / factor:.3g} {unit}" if value / factor < 1000 else f"{value / factor:,.0f} {unit}"


def flops(value: float) -> str:
    factor, unit = next(((factor, unit) for factor, unit in COUNT if value >= factor), (1.0, ""))
    return f"{value / factor:.4g} {unit}FLOPs"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{1000 * seconds:,.0f} ms"


def per_second(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def pairs(title: str, rows: Sequence[tuple[str, str]]) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=True)
    for row in rows:
        table.add_row(*row)
    return Group(title, table, "")


def columns(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return Group(title, table) if title else table


def to_text(*parts: RenderableType) -> str:
    """Plain text, without colours and trailing spaces."""
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, color_system=None, highlight=False, markup=False).print(*parts, sep="\n")
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip("\n")


def plan_text(plan: Plan) -> str:
    """One plan in sections."""
    parts = [pairs(f"{plan.name}: {plan.family} on {plan.tokens.layout}", model_rows(plan)), training_part(plan)]
    if plan.sampling:
        parts.append(sampling_part(plan))
    parts.append(memory_part(plan))
    if plan.attention:
        parts.append(attention_part(plan))
    return to_text(*parts, f"{plan.device}: {plan.source}.", *NOTES)


def model_rows(plan: Plan) -> list[tuple[str, str]]:
    tokens = plan.tokens
    rows = [("tokens", f"{tokens.length * tokens.codes:,}")]
    if tokens.vocabulary and tokens.bits and tokens.bits_per_pixel:
        bits = f"{tokens.bits:,.0f} per image, {tokens.bits_per_pixel:.3g} per pixel"
        rows += [("vocabulary", f"{tokens.vocabulary:,}"), ("bits", bits)]
    else:
        rows.append(("vocabulary", "none: continuous"))
    rows.append(("without a tokenizer", f"{tokens.pixels:,} pixels of 2^{tokens.colours_log2} colours"))
    rows.append(("parameters", f"{plan.parameters:,}"))
    if plan.sampling and plan.tokenizer_parameters:
        rows.append(("parameters of the tokenizer", f"{plan.tokenizer_parameters:,}"))
    return rows


def flops_rows(total: float, tokenizer: float, attention: float, what: str) -> list[tuple[str, str]]:
    """FLOPs per image, split between the model and a frozen tokenizer."""
    rows = [("FLOPs per image", f"{flops(total)}, {attention:.1%} of them attention")]
    if tokenizer:
        rows += [
            ("  generator", f"{flops(total - tokenizer)} ({1 - tokenizer / total:.1%})"),
            (f"  tokenizer, {what}", f"{flops(tokenizer)} ({tokenizer / total:.1%})"),
        ]
    return rows


def training_part(plan: Plan) -> RenderableType:
    training = plan.training
    rows = [
        *flops_rows(training.flops, training.tokenizer_flops, training.attention_share, "encoding"),
        ("activations per image", size(training.activations)),
        ("memory for the batch", f"{size(training.memory)} on one device for {training.batch:,} images"),
        ("time per image", f"{milliseconds(training.seconds)} on one {plan.device}"),
    ]
    if training.images > training.batch:
        whole = training.images * training.seconds
        rows.append(("the whole run", f"{flops(training.images * training.flops)}, {training.images:,} images"))
        rows.append(("", ", ".join(f"{duration(whole / count)} on {count}" for count in COUNTS)))
    return pairs(f"Training in {plan.precision}", rows)


def sampling_part(plan: Plan) -> RenderableType:
    sampling = plan.sampling
    assert sampling is not None
    rows = [
        ("network passes", f"{sampling.passes:,}"),
        *flops_rows(sampling.flops, sampling.tokenizer_flops, sampling.attention_share, "decoding"),
        ("KV cache per image", size(sampling.cache) if sampling.cache else "none"),
        ("latency at batch 1", milliseconds(sampling.latency)),
        (f"throughput at batch {sampling.batch}", f"{per_second(sampling.rate)} images/s, {size(sampling.memory)}"),
    ]
    return pairs(f"Sampling in {sampling.precision} on one {plan.device}, with guidance", rows)


def memory_part(plan: Plan) -> RenderableType:
    if not plan.memory:
        counts = ", ".join(map(str, COUNTS))
        return f"Training memory: the batch of {plan.training.batch} cannot be divided among {counts} devices.\n"
    rows = [
        [
            f"{found.devices} x {plan.device}, {found.way}",
            str(found.local),
            size(found.bytes),
            ("yes" if found.fits(plan.device_memory) else "no") if plan.device_memory else "?",
        ]
        for found in plan.memory
    ]
    title = "Training memory" + (f" ({size(plan.device_memory)} per device, 92% usable)" if plan.device_memory else "")
    return columns(title, ["devices", "images per device", "memory per device", "fits"], rows)


def attention_part(plan: Plan) -> RenderableType:
    first = plan.attention[0]
    header = [
        "pattern",
        "pairs per layer",
        "FLOPs, all layers",
        "less by",
        "scores per layer",
        "keys and values",
        "time",
    ]
    rows = [
        [
            each.name,
            f"{each.pairs:.3g}",
            flops(each.flops),
            "" if each is first else f"{first.flops / each.flops:,.0f}x",
            size(each.scores),
            size(each.cache),
            milliseconds(each.seconds),
        ]
        for each in plan.attention
    ]
    return columns(f"Attention over {first.tokens:,} tokens, one forward pass", header, rows)


def families_text(plans: Sequence[Plan]) -> str:
    """All families side by side."""
    header = ["", "tokens", "vocabulary", "bits", "parameters", "training", "passes", "sampling", "KV cache", "latency"]
    rows = []
    for plan in plans:
        sampling, tokens = plan.sampling, plan.tokens
        assert sampling is not None
        rows.append(
            [
                plan.family,
                f"{tokens.length:,}",
                f"{tokens.vocabulary:,}" if tokens.vocabulary else "-",
                f"{tokens.bits:,.0f}" if tokens.bits else "-",
                f"{plan.parameters / 1e6:,.1f}M",
                flops(plan.training.flops),
                f"{sampling.passes:,}",
                flops(sampling.flops),
                size(sampling.cache) if sampling.cache else "-",
                milliseconds(sampling.latency),
                per_second(sampling.rate),
            ]
        )
    first = plans[0]
    batch = first.sampling.batch if first.sampling else 0
    about = f"FLOPs of training and sampling are per image, with the tokenizer's; images/s at batch {batch}."
    return to_text(columns("", [*header, "images/s"], rows), about, f"{first.device}: {first.source}.", *NOTES)
