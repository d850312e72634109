"""A plan as text: what it costs, in units that a person reads."""

from __future__ import annotations

from collections.abc import Sequence

from artok.planning.plan import COUNTS, Plan

BYTES = ((2**50, "PiB"), (2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
COUNT = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def size(value: float) -> str:
    """Bytes."""
    factor, unit = next(((factor, unit) for factor, unit in BYTES if value >= factor), (1, "B"))
    return f"{value / factor:.3g} {unit}" if value / factor < 1000 else f"{value / factor:,.0f} {unit}"


def flops(value: float) -> str:
    factor, unit = next(((factor, unit) for factor, unit in COUNT if value >= factor), (1.0, ""))
    return f"{value / factor:.4g} {unit}FLOPs"


def duration(seconds: float) -> str:
    for factor, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "s")):
        if seconds >= 2 * factor or (unit == "s" and seconds >= 1):
            return f"{seconds / factor:.3g} {unit}" if seconds < 1000 * factor else f"{seconds / factor:,.0f} {unit}"
    return f"{1000 * seconds:.3g} ms"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def titled(title: str, rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name.ljust(width)}  {value}" for name, value in rows)])


def text(plan: Plan) -> str:
    """One plan in sections."""
    parts = [titled(f"{plan.name}: {plan.family} on {plan.tokens.layout}", model_rows(plan)), training_text(plan)]
    if plan.sampling:
        parts.append(sampling_text(plan))
    parts.append(memory_text(plan))
    if plan.attention:
        parts.append(attention_text(plan))
    parts.append(f"{plan.device}: {plan.source}.\nTimes leave out communication between devices and loading of data.")
    return "\n\n".join(parts)


def model_rows(plan: Plan) -> list[tuple[str, str]]:
    tokens = plan.tokens
    rows = [("tokens", f"{tokens.length * tokens.codes:,}")]
    if tokens.vocabulary and tokens.bits and tokens.bits_per_pixel:
        bits = f"{tokens.bits:,.0f} an image, {tokens.bits_per_pixel:.3g} a pixel"
        rows += [("vocabulary", f"{tokens.vocabulary:,}"), ("bits", bits)]
    else:
        rows.append(("vocabulary", "none: continuous"))
    rows.append(("pixels as tokens", f"{tokens.pixels:,} of 2^{tokens.colours_log2} colours"))
    rows.append(("parameters", f"{plan.parameters:,}"))
    if plan.sampling and plan.tokenizer_parameters:
        rows.append(("parameters of the tokenizer", f"{plan.tokenizer_parameters:,}"))
    return rows


def training_text(plan: Plan) -> str:
    training = plan.training
    rows = [
        ("FLOPs an image", f"{flops(training.flops)}, {training.attention_share:.1%} of them attention"),
        ("activations an image", size(training.activations)),
        ("memory for the batch", f"{size(training.memory)} on one device for {training.batch:,} images"),
        ("time an image", f"{duration(training.seconds)} on one {plan.device}"),
    ]
    if training.images > training.batch:
        whole = training.images * training.seconds
        rows.append(("the whole run", f"{flops(training.images * training.flops)}, {training.images:,} images"))
        rows.append(("", ", ".join(f"{duration(whole / count)} on {count}" for count in COUNTS)))
    return titled(f"Training in {plan.precision}", rows)


def sampling_text(plan: Plan) -> str:
    sampling = plan.sampling
    assert sampling is not None
    rows = [
        ("network passes", f"{sampling.passes:,}"),
        ("FLOPs an image", f"{flops(sampling.flops)}, {sampling.attention_share:.1%} of them attention"),
        ("KV cache an image", size(sampling.cache) if sampling.cache else "none"),
        ("latency at batch 1", duration(sampling.latency)),
        (f"throughput at batch {sampling.batch}", f"{sampling.rate:.3g} images a second, {size(sampling.memory)}"),
    ]
    return titled(f"Sampling in {sampling.precision} on one {plan.device}, guidance and decoding included", rows)


def memory_text(plan: Plan) -> str:
    if not plan.needs:
        return (
            f"Memory: the batch of {plan.training.batch} cannot be shared out to {', '.join(map(str, COUNTS))} devices."
        )
    memory = plan.device_memory
    rows = [["  training on", "images each", "bytes each", "fits"]]
    for need in plan.needs:
        fits = "?" if not memory else "yes" if need.fits(memory) else "no"
        rows.append([f"  {need.devices} x {plan.device}, {need.way}", str(need.local), size(need.bytes), fits])
    title = "Memory" + (f" (a device has {size(memory)}, of which 92% count)" if memory else "")
    return f"{title}\n{aligned(rows)}"


def attention_text(plan: Plan) -> str:
    rows = [["  pattern", "pairs a layer", "FLOPs, all layers", "scores of a layer", "keys and values", "time"]]
    rows += [
        [f"  {a.name}", f"{a.pairs:.3g}", flops(a.flops), size(a.scores), size(a.cache), duration(a.seconds)]
        for a in plan.attention
    ]
    first = plan.attention[0]
    less = ", ".join(f"{first.flops / other.flops:,.0f} times less" for other in plan.attention[1:])
    return f"Attention over {first.tokens:,} tokens, one forward pass\n{aligned(rows)}\n  below the first row: {less}"


def families_text(plans: Sequence[Plan]) -> str:
    """All families side by side."""
    head = ["", "tokens", "vocabulary", "bits", "parameters", "training", "passes", "sampling", "KV cache", "latency"]
    rows = [[*head, "images/s"]]
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
                duration(sampling.latency),
                f"{sampling.rate:.3g}",
            ]
        )
    first = plans[0]
    batch = first.sampling.batch if first.sampling else 0
    return (
        f"{aligned(rows)}\n\nFLOPs of training and of sampling are those of one image; times on one {first.device}, "
        f"images a second at batch {batch}.\n{first.device}: {first.source}."
    )
