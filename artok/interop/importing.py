"""`artok import`: a published file becomes a run directory, to be sampled from, measured and built on as any other.

Tensors go from the file to the run one at a time, so an import needs the memory of the largest of them, and the run's
weights are float32 under artok's own names.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from artok import __version__
from artok.config import override, read_yaml, validate
from artok.errors import CheckpointError, ConfigError
from artok.interop.families import Asked, Family, Found, Source, family_of, made, shape_of
from artok.interop.reading import Checkpoint, read
from artok.layout import TokenLayout
from artok.saved import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    Saved,
    check_layout,
    copy_model,
    find_saved,
    fingerprint,
    load_tokenizer,
    read_saved,
    write_aside,
    write_text,
)
from artok.weights import DTYPES, available_memory, empty_parameters, gigabytes, size_in_bytes, write_each

SHOWN = 6  # keys that a message names
IMAGENET = {
    "kind": "hub",
    "path": "ILSVRC/imagenet-1k",
}  # what all published models here were trained on, but some VQGANs


@dataclass
class Report:
    """What an import did.

    unused: published keys that are not part of the model, by reason. strangers: classes that were not loaded.
    widened: the half-precision type that was turned into float32, if any. needed: bytes to load the model.
    """

    family: str
    size: str
    licence: str
    checksum: str
    parameters: int
    needed: int
    wrapper: str
    strangers: tuple[str, ...]
    unused: dict[str, list[str]] = field(default_factory=dict)
    widened: str | None = None

    def lines(self) -> list[str]:
        """The report in words."""
        where = f" (under {self.wrapper})" if self.wrapper else ""
        lines = [
            f"{self.size}: {self.parameters:,} parameters, family {self.family}{where}",
            f"licence {self.licence}, sha256 {self.checksum}",
        ]
        lines += [f"unused, {reason}: {', '.join(keys)}" for reason, keys in self.unused.items()]
        if self.strangers:
            lines.append(f"not loaded, since nothing in a file is executed: {', '.join(self.strangers)}")
        if self.widened:
            lines.append(f"weights widened from {self.widened} to float32")
        available = available_memory()
        free = "" if available is None else f"; {gigabytes(available)} are free here"
        return [*lines, f"loading it needs {gigabytes(self.needed)} of memory{free}"]


@dataclass(frozen=True)
class Wishes:
    """What the user says of a file.

    family: found by the keys unless given. tokenizer: for a generator, the run of the tokenizer whose tokens it models.
    size: side of the images. overrides: `key.sub=value` on top of what keys and shapes tell. part: of the file, such as
    "model", where the averaged weights are not wanted. ignore: patterns of keys that may be left over. scale: what a KL
    autoencoder's latents are multiplied by for a generator, where it is not the family's usual.
    """

    family: str | None = None
    tokenizer: str | None = None
    size: int | None = None
    overrides: tuple[str, ...] = ()
    part: str | None = None
    ignore: tuple[str, ...] = ()
    scale: float | None = None


def import_file(
    path: Path, out: Path, wishes: Wishes | None = None, say: Callable[[str], None] = lambda _: None
) -> Report:
    """Write the run directory `out` from a published file; `say` gets the report line by line.

    CheckpointError or ConfigError: the file is damaged, of another family, or does not fit; nothing is written then.
    """
    wishes = wishes or Wishes()
    if (out / CONFIG).exists():
        raise ConfigError(f"{out} holds a run already; choose another folder with --out")
    checkpoint = read(path, wishes.part)
    chosen = family_of(checkpoint.tensors, wishes.family)
    own = frozen_tokenizer(chosen, checkpoint, wishes.tokenizer, wishes.size)
    layout = None if own is None else cast(Any, own.tokenizer).build(own.facts.image).layout
    found = chosen.describe(checkpoint.tensors, Asked(wishes.size, layout))
    config = configured(chosen, found, checkpoint, own, wishes.overrides)
    module = built(config, layout)
    scale = found.scale if wishes.scale is None else wishes.scale
    sources = chosen.sources(module, checkpoint.tensors) | latent_statistics(module, scale)
    unused = compare(chosen, module, checkpoint, sources, wishes.ignore, say)
    chosen.check(module, checkpoint.tensors)
    report = Report(
        family=chosen.name,
        size=found.size,
        licence=chosen.licence,
        checksum=sha256(checkpoint.path),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        needed=size_in_bytes(module),
        wrapper=checkpoint.wrapper,
        strangers=checkpoint.strangers,
        unused=unused,
        widened=widened(checkpoint, sources),
    )
    for line in report.lines():
        say(line)
    config["source"] = {
        "family": chosen.name,
        "file": path.name,
        "sha256": report.checksum,
        "licence": chosen.licence,
        "from": chosen.source,
    }
    write_run(
        out,
        config,
        module,
        checkpoint.tensors,
        sources,
        None if own is None else (tokenizer_folder(str(wishes.tokenizer)), own),
    )
    return report


# ---------------------------------------------------------------------------------------------- config


def configured(
    family: Family, found: Found, checkpoint: Checkpoint, own: Saved | None, overrides: Sequence[str]
) -> dict[str, Any]:
    """The run's `config.yaml`: what keys and shapes tell, under the user's overrides."""
    facts: dict[str, Any] = {"data": f"published: {checkpoint.path.name}", "version": __version__}
    if own is None:
        assert found.image is not None
        sections: dict[str, Any] = {"tokenizer": found.section}
        channels = shape_of(checkpoint.tensors, "encoder.conv_in.weight", 4)[1]
        facts |= {"image": [channels, found.image, found.image], "classes": []}
    else:
        sections = {"tokenizer": TOKENIZER, "generator": found.section, "sampling": found.sampling}
        facts |= {"image": list(own.facts.image), "classes": [str(label) for label in range(found.classes or 0)]}
    open_ = [place for place, value in _leaves(sections) if value is None]
    data = IMAGENET | {"size": facts["image"][-1]}
    config = override({"name": "imported", **sections, "data": data, "facts": facts}, overrides)
    left = [place for place, value in _leaves(config) if value is None and place in open_]
    if left:
        raise ConfigError(
            f"the shapes of {checkpoint.path} ({found.size}) do not tell {' and '.join(left)}; add {left[0]}=VALUE"
        )
    return config


def _leaves(section: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in section.items():
        found += _leaves(value, f"{above}{key}.") if isinstance(value, Mapping) else [(f"{above}{key}", value)]
    return found


def frozen_tokenizer(family: Family, checkpoint: Checkpoint, name: str | None, size: int | None) -> Saved | None:
    """The settings of the tokenizer that a generator needs; None for a tokenizer."""
    if family.role == "tokenizer":
        if name is not None:
            raise ConfigError(f"{checkpoint.path} is a tokenizer itself ({family.name}); leave --tokenizer out")
        return None
    if name is None:
        raise ConfigError(
            f"{checkpoint.path} is a generator ({family.name}), whose run needs the tokenizer that it was trained on: "
            "import that first, then give its run with --tokenizer"
        )
    return resized(read_saved(tokenizer_folder(name)), size)


def resized(saved: Saved, size: int | None) -> Saved:
    """A tokenizer's settings for images of another size, where it is told one."""
    if size is None or saved.facts.image[-1] == size:
        return saved
    ratio = size / saved.facts.image[-1]
    settings = cast(Any, saved.tokenizer).model_dump()
    for key in ("attention", "decoder_attention"):
        if isinstance(settings.get(key), list | tuple):
            settings[key] = [round(side * ratio) for side in settings[key]]
    facts = saved.facts.model_copy(update={"image": (saved.facts.image[0], size, size)})
    return validate(Saved, {"tokenizer": settings, "facts": facts.model_dump()}, "the tokenizer")


def built(config: Mapping[str, Any], layout: TokenLayout | None) -> nn.Module:
    """The module of a config, without memory for its parameters."""
    saved = validate(Saved, config, "the imported model")
    with empty_parameters():
        if layout is None:
            return cast(Any, saved.tokenizer).build(saved.facts.image)
        assert saved.generator is not None
        check_layout(saved.generator, layout)
        return saved.generator.build(layout, len(saved.facts.classes))


def latent_statistics(module: nn.Module, scale: float | None) -> dict[str, Source]:
    """What takes latents to tokens and back: published models multiply by a constant, artok divides by a deviation."""
    deviation = getattr(module, "latent_deviation", None)
    if scale is None or not isinstance(deviation, Tensor):
        return {}
    return {
        "latent_mean": made(lambda: torch.zeros_like(deviation)),
        "latent_deviation": made(lambda: torch.full_like(deviation, 1 / scale)),
    }


def tokenizer_folder(name: str) -> Path:
    folder = find_saved(name)
    return folder if read_saved(folder).generator is None else folder / TOKENIZER


# ---------------------------------------------------------------------------------------------- keys


def compare(
    family: Family,
    module: nn.Module,
    checkpoint: Checkpoint,
    sources: Mapping[str, Source],
    ignore: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, list[str]]:
    """Hold every key against the module's. Unused keys by the reason why they may be; all others are a
    CheckpointError, whose full list is said first."""
    own = module.state_dict()
    used = {name for source in sources.values() for name in source.names}
    allowed = dict(family.ignored) | dict.fromkeys(ignore, "as told to ignore")
    unused: dict[str, list[str]] = {}
    problems: dict[str, list[str]] = {"not part of this model": [], "missing": [], "of another shape": []}
    for key in checkpoint.tensors:
        if key not in used:
            reason = next((why for pattern, why in allowed.items() if fnmatch.fnmatch(key, pattern)), None)
            (problems["not part of this model"] if reason is None else unused.setdefault(reason, [])).append(key)
    for name, place in own.items():
        source = sources.get(name, Source())
        missing = [key for key in source.names if key not in checkpoint.tensors]
        problems["missing"] += missing or ([] if source.names or source.value else [f"the counterpart of {name}"])
        if source.names and not missing and not fits(source, place, [checkpoint.tensors[key] for key in source.names]):
            shapes = ", ".join(str(tuple(checkpoint.tensors[key].shape)) for key in source.names)
            problems["of another shape"].append(f"{' + '.join(source.names)} {shapes}, not {tuple(place.shape)}")
    if any(problems.values()):
        for what, keys in problems.items():
            for key in keys:
                say(f"{what}: {key}")
        parts = [
            f"{len(keys)} keys {what} ({', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''})"
            for what, keys in problems.items()
            if keys
        ]
        hint = (
            "; keys that are no part of it can be left out with --ignore"
            if not any(problems[what] for what in ("missing", "of another shape"))
            else ""
        )
        raise CheckpointError(f"{checkpoint.path} does not fit {family.name}: {'; '.join(parts)}{hint}")
    if checkpoint.others:
        unused["outside the part that was read"] = list(checkpoint.others)
    return unused


def fits(source: Source, place: Tensor, parts: Sequence[Tensor]) -> bool:
    """Whether a source's parts make a tensor of that shape, axes of length 1 aside."""
    shapes = [torch.empty(part.shape, device="meta") for part in parts]
    try:
        joined = _joined(source, shapes)
    except (RuntimeError, IndexError):
        return False
    numbers = all(part.dtype in DTYPES and part.is_floating_point() == place.is_floating_point() for part in parts)
    return numbers and [side for side in joined.shape if side != 1] == [side for side in place.shape if side != 1]


def _joined(source: Source, parts: Sequence[Tensor]) -> Tensor:
    whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    return whole if source.change is None else source.change(whole)


def joined(source: Source, tensors: Mapping[str, Tensor], place: Tensor) -> Tensor:
    """A tensor of artok's from its source; a CheckpointError when it holds infinities or NaN."""
    if source.value is not None:
        return source.value().view(place.shape)
    value = _joined(source, [tensors[name].to(place.dtype) for name in source.names])
    if not torch.isfinite(value).all():
        raise CheckpointError(f"{' + '.join(source.names)} holds values that are not finite: the file is damaged")
    return value.reshape(place.shape)


def widened(checkpoint: Checkpoint, sources: Mapping[str, Source]) -> str | None:
    """The half-precision types among the tensors that are used."""
    used = {checkpoint.tensors[name].dtype for source in sources.values() for name in source.names}
    half = sorted(str(dtype).removeprefix("torch.") for dtype in used & {torch.float16, torch.bfloat16})
    return " and ".join(half) or None


# ---------------------------------------------------------------------------------------------- files


def write_run(
    out: Path,
    config: dict[str, Any],
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    sources: Mapping[str, Source],
    tokenizer: tuple[Path, Saved] | None,
) -> None:
    """The tokenizer of a generator, the weights, and last the config, which makes the folder a run."""
    state = module.state_dict()
    entries = {name: (place.dtype, tuple(place.shape)) for name, place in state.items() if name in sources}

    def write(aside: Path) -> None:
        try:
            write_each(aside, entries, lambda name: joined(sources[name], tensors, state[name]))
        except CheckpointError:
            aside.unlink()
            raise

    write_aside(out / WEIGHTS, write)
    if tokenizer is not None:
        folder, own = tokenizer
        copy_model(folder, out / TOKENIZER)
        changed = read_yaml(folder / CONFIG) | own.model_dump(mode="json", include={"tokenizer", "facts"})
        write_text(out / TOKENIZER / CONFIG, OmegaConf.to_yaml(OmegaConf.create(changed)))
        config["facts"]["tokenizer"] = fingerprint(load_tokenizer(out / TOKENIZER)[0])
    complete = validate(Saved, config, str(out)).model_dump(mode="json", exclude_none=False)
    if tokenizer is None:
        complete.pop("generator")
    ordered = {"name": _run_name(out)} | complete | {key: config[key] for key in ("data", "source")}
    write_text(out / CONFIG, OmegaConf.to_yaml(OmegaConf.create(ordered)))


def _run_name(out: Path) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in out.resolve().name)
    return kept or "imported"


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
