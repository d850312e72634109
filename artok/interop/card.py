"""The model card of a run: description, training data, metrics and licence."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artok.config import read_yaml
from artok.layout import TokenLayout
from artok.metrics.results import Results
from artok.saved import CONFIG, RESULTS, Saved, describe_unfinished, digest_weights, read_saved

UNSAID = "not stated"
IDENTIFIERS = {
    "mit", "apache-2.0", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "openrail",
    "creativeml-openrail-m",
}  # fmt: skip


def model_card(folder: Path, name: str, layout: TokenLayout, parameters: int, licence: str | None) -> str:
    """README.md of a run, with the hub's metadata at the top. licence: used if the run does not name one."""
    config, saved = read_yaml(folder / CONFIG), read_saved(folder)
    source = config.get("source") or {}
    licence = licence or source.get("licence")
    head = ["---", "library_name: artok", f"license: {_identifier(licence)}"]
    if licence and _identifier(licence) == "other":
        head.append(f"license_name: {json.dumps(licence)}")
    dataset = None if source else _hub_dataset(config)
    head += ["datasets:", f"- {dataset}"] if dataset else []
    head += ["tags:", "- image-generation" if saved.generator else "- image-tokenizer", "- artok", "---"]
    unfinished = describe_unfinished(folder)
    parts = [
        "\n".join(head),
        f"# {escape(name)}",
        *([f"**Note:** {escape(unfinished)}."] if unfinished else []),
        _what(saved, layout, parameters),
        _use(name, saved),
        "## Data\n\n" + _data(config, saved),
        "## Measured\n\n" + _metrics(folder),
        "## Licence\n\n" + (escape(licence) if licence else f"{UNSAID}; ask its makers before using it"),
    ]
    if source:
        origin = f"{escape(source['from'])}, file {escape(source['file'])}, sha256 `{escape(source['sha256'])}`"
        parts.insert(-3, f"## Origin\n\nImported by artok from the published weights of {origin}.")
    return "\n\n".join(parts) + "\n"


def escape(value: object) -> str:
    """Text of a run for the page, on one line and without HTML or Markdown of its own."""
    text = html.escape(" ".join(str(value).replace("`", "'").split()), quote=False)
    return re.sub(r"([\\*|#~]|(?<=\])\()", r"\\\1", text)


def _identifier(licence: str | None) -> str:
    """The hub's identifier of a licence."""
    if licence is None:
        return "unknown"
    return licence.lower() if licence.lower() in IDENTIFIERS else "other"


def _hub_dataset(config: Mapping[str, Any]) -> str | None:
    path = (config.get("data") or {}).get("path")
    return path if isinstance(path, str) and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) else None


def _what(saved: Saved, layout: TokenLayout, parameters: int) -> str:
    part: Any = saved.generator or saved.tokenizer
    role = "generator" if saved.generator else "tokenizer"
    size = "x".join(map(str, layout.image[1:]))
    return (
        f"An image {role} (kind {part.kind}) of {parameters:,} parameters for images of {size} pixels and "
        f"{layout.image[0]} channel{'s' * (layout.image[0] > 1)}: {layout}."
    )


def _use(name: str, saved: Saved) -> str:
    if saved.generator:
        code = (
            f"from artok import Pipeline\n\nimages = Pipeline.from_pretrained({json.dumps(name)})([0, 1], n=4)  "
            "# (8, C, H, W) in [-1, 1]"
        )
    else:
        code = (
            f"from artok import load_tokenizer\n\ntokenizer = load_tokenizer({json.dumps(name)})\n"
            "tokens = tokenizer.encode(images)  # (B, C, H, W) in [-1, 1]"
        )
    return f"```python\n{code}\n```"


def _data(config: Mapping[str, Any], saved: Saved) -> str:
    """The training data. The config of an imported model names only the data that it is measured on here."""
    section = config.get("data") or {}
    named = ", ".join(
        f"{key} {escape(section[key])}" for key in ("kind", "path", "root", "size") if section.get(key) is not None
    )
    classes = saved.facts.classes
    said = f"{len(classes)} classes" if classes else "no classes"
    if config.get("source"):
        return f"Trained by its authors (see Origin); {said}. Measured here on {named or UNSAID}."
    return f"{named or UNSAID}; {said}; fingerprint `{escape(saved.facts.data)}`."


def read_results(folder: Path) -> tuple[Results | None, str]:
    """The results of the weights that a run has now, or None and a sentence that says why there are none."""
    if not (folder / RESULTS).exists():
        return None, f"the run {folder.name} is not measured yet; run 'artok evaluate' and export again to show results"
    results = Results.load(folder / RESULTS)
    stale = results.describe_stale(folder, digest_weights(folder))
    return (results, "") if stale is None else (None, stale)


def _metrics(folder: Path) -> str:
    """The table of `results.json`, each value with its N, extractor, seed and floor."""
    results, missing = read_results(folder)
    if results is None:
        return escape(missing[0].upper() + missing[1:] + ".")
    rows = [
        f"| {escape(entry.head)} | {entry.text} | {entry.n:,} | {escape(entry.extractor or '')} | "
        f"{escape(entry.reference)} | "
        f"{entry.floor_text} | {entry.seed} |"
        for entry in results.measurements
    ]
    head = "| metric | value | N | extractor | reference | floor | seed |\n|---|---|---|---|---|---|---|"
    note = (
        "The floor is the distance between two disjoint sets of real images of that size. Values with different N "
        "or extractor cannot be compared."
    )
    return "\n".join([head, *rows]) + "\n\n" + " ".join([note, *(f"Note: {escape(each)}." for each in results.notes)])
