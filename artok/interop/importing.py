"""`artok import`: converts a published file to a run directory.

Tensors are converted one at a time, so an import needs the memory of the largest one. The run's weights are float32
under artok's names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from artok import __version__
from artok.config import OPEN, Config, Part, of_kind, override, read_yaml, validate
from artok.errors import CheckpointError, ConfigError
from artok.files import new_folder
from artok.interop.families import Description, Family, Hints, Source, compute, find_family, shape_of
from artok.interop.matching import assemble, compare, find_half_precision
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
from artok.weights import available_memory, empty_parameters, gigabytes, size_in_bytes, write_each

IMAGENET = {"kind": "hub", "path": "ILSVRC/imagenet-1k"}  # default data of a run for evaluation


@dataclass
class Report:
    """The report of an import.

    unused: published keys that are not part of the model, by reason. skipped_classes: classes that were not loaded.
    scale: of a KL autoencoder's latents. widened: the half-precision type that was converted to float32, if any.
    needed: bytes to load the model.
    """

    family: str
    size: str
    licence: str
    checksum: str
    parameters: int
    needed: int
    wrapper: str
    skipped_classes: tuple[str, ...]
    scale: float | None = None
    unused: dict[str, list[str]] = field(default_factory=dict)
    widened: str | None = None

    def lines(self) -> list[str]:
        """The report as lines of text."""
        where = f" (under {self.wrapper})" if self.wrapper else ""
        lines = [
            f"{self.size}: {self.parameters:,} parameters, family {self.family}{where}",
            f"licence {self.licence}, sha256 {self.checksum}",
        ]
        lines += [f"unused, {reason}: {', '.join(keys)}" for reason, keys in self.unused.items()]
        if self.skipped_classes:
            lines.append(f"not loaded, since nothing in a file is executed: {', '.join(self.skipped_classes)}")
        if self.scale is not None:
            lines.append(f"generators get its latents times {self.scale:g}; change that with --scale")
        if self.widened:
            lines.append(f"weights widened from {self.widened} to float32")
        available = available_memory()
        free = "" if available is None else f"; {gigabytes(available)} are free here"
        return [*lines, f"loading it needs {gigabytes(self.needed)} of memory{free}"]


@dataclass(frozen=True)
class ImportOptions:
    """The user's settings for an import.

    family: default by the keys. tokenizer: for a generator, the run of its tokenizer. size: side of the images.
    overrides: `key.sub=value` on top of the detected config. part: part of the file, such as "model"; default the EMA
    weights. ignore: patterns of keys to leave out. scale: factor on a KL autoencoder's latents for generators; default
    the family's.
    """

    family: str | None = None
    tokenizer: str | None = None
    size: int | None = None
    overrides: tuple[str, ...] = ()
    part: str | None = None
    ignore: tuple[str, ...] = ()
    scale: float | None = None


def import_file(
    path: Path, out: Path, options: ImportOptions | None = None, say: Callable[[str], None] = lambda _: None
) -> Report:
    """Write the run directory `out` from a published file; `say` is called with each line of the report.

    CheckpointError, ConfigError: the file is damaged, of another family, or does not fit. Nothing is written then.
    """
    options = options or ImportOptions()
    check_free(out)
    checkpoint = read(path, options.part)
    chosen = find_family(checkpoint.tensors, options.family)
    own = open_tokenizer(chosen, checkpoint, options.tokenizer, options.size)
    layout = None if own is None else own.layout
    try:
        description = chosen.describe(checkpoint.tensors, Hints(options.size, layout))
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path} is no whole {chosen.name}: {error}") from None
    config = make_config(chosen, description, checkpoint, own, options.overrides)
    module = build_model(config, layout)
    scale = description.scale if options.scale is None else options.scale
    sources = chosen.sources(module, checkpoint.tensors) | latent_statistics(module, scale)
    unused = compare(chosen, module, checkpoint, sources, options.ignore, say)
    chosen.check(module, checkpoint.tensors)
    report = Report(
        family=chosen.name,
        size=description.size,
        licence=description.licence or chosen.licence,
        checksum=sha256(checkpoint.path),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        needed=size_in_bytes(module),
        wrapper=checkpoint.wrapper,
        skipped_classes=checkpoint.skipped_classes,
        scale=scale,
        unused=unused,
        widened=find_half_precision(checkpoint, sources),
    )
    for line in report.lines():
        say(line)
    config["source"] = {
        "family": chosen.name,
        "file": path.name,
        "sha256": report.checksum,
        "licence": report.licence,
        "from": chosen.source,
    }
    with new_folder(out, CONFIG) as aside:
        write_run(aside, _run_name(out), config, module, checkpoint.tensors, sources, own)
    return report


# ---------------------------------------------------------------------------------------------- config


class DataSection(Config):
    """A config with only the data that a run is measured on."""

    data: Annotated[Part, of_kind("data"), OPEN]


def make_config(
    family: Family, description: Description, checkpoint: Checkpoint, own: Frozen | None, overrides: Sequence[str]
) -> dict[str, Any]:
    """The run's `config.yaml`: the detected config with the user's overrides on top."""
    facts: dict[str, Any] = {"data": f"published: {checkpoint.path.name}", "version": __version__}
    data: Mapping[str, Any] = IMAGENET
    if own is None:
        assert description.image is not None
        sections: dict[str, Any] = {"tokenizer": description.section}
        channels = shape_of(checkpoint.tensors, "encoder.conv_in.weight", 4)[1]
        facts |= {"image": [channels, description.image, description.image], "classes": []}
    else:
        sections = {"tokenizer": TOKENIZER, "generator": description.section, "sampling": description.sampling}
        image, data = own.saved.facts.image, own.data
        facts |= {"image": list(image), "classes": [str(label) for label in range(description.classes or 0)]}
    open_ = [place for place, value in _leaves(sections) if value is None]
    config = override({"name": "imported", **sections, "data": data, "facts": facts}, overrides)
    left = [place for place, value in _leaves(config) if value is None and place in open_]
    if left:
        raise ConfigError(
            f"{' and '.join(left)} cannot be read from the shapes of {checkpoint.path} ({description.size}); "
            f"add {left[0]}=VALUE"
        )
    return config | {"data": make_data_section(config["data"], config["facts"]["image"])}


def make_data_section(section: object, image: Sequence[int]) -> dict[str, Any]:
    """A `data:` section for images (C, H, W) of the model's size, which is the default."""
    fitting = {"size": image[-1], "channels": image[0]}
    given: dict[str, Any] = dict(section) if isinstance(section, Mapping) else {}
    wrong = [f"data.{key}={given[key]}" for key in fitting if given.get(key, fitting[key]) != fitting[key]]
    if wrong:
        raise ConfigError(f"{' and '.join(wrong)} does not fit the model's images of {'x'.join(map(str, image))}")
    validate(DataSection, {"data": given | fitting}, "the data to measure on")
    return given | fitting


def _leaves(section: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in section.items():
        leaves += _leaves(value, f"{above}{key}.") if isinstance(value, Mapping) else [(f"{above}{key}", value)]
    return leaves


@dataclass(frozen=True)
class Frozen:
    """A generator's tokenizer: its folder, its config for the generator's images, and its data section."""

    folder: Path
    saved: Saved
    data: Mapping[str, Any]

    @property
    def layout(self) -> TokenLayout:
        with empty_parameters():
            return cast(Any, self.saved.tokenizer).build(self.saved.facts.image).layout


def open_tokenizer(family: Family, checkpoint: Checkpoint, name: str | None, size: int | None) -> Frozen | None:
    """Open the tokenizer of a generator; None for a tokenizer."""
    if family.role == "tokenizer":
        if name is not None:
            raise ConfigError(f"{checkpoint.path} is a tokenizer itself ({family.name}); leave --tokenizer out")
        return None
    if name is None:
        raise ConfigError(
            f"{checkpoint.path} is a generator ({family.name}) and needs the tokenizer that it was trained on: "
            "import that first, then name its run with --tokenizer"
        )
    folder = find_saved(name)
    if read_saved(folder).generator is not None:
        folder = folder / TOKENIZER
    data = read_yaml(folder / CONFIG).get("data") or IMAGENET
    kept = {key: value for key, value in data.items() if key not in ("size", "resize", "channels")}
    return Frozen(folder, resize_tokenizer(read_saved(folder), size), kept)


def resize_tokenizer(saved: Saved, size: int | None) -> Saved:
    """A tokenizer's config for images of side `size`; unchanged for None."""
    if size is None or saved.facts.image[-1] == size:
        return saved
    ratio = size / saved.facts.image[-1]
    settings = cast(Any, saved.tokenizer).model_dump()
    for key in ("attention_resolutions", "decoder_attention_resolutions"):
        if isinstance(settings.get(key), list | tuple):
            settings[key] = [round(side * ratio) for side in settings[key]]
    facts = saved.facts.model_copy(update={"image": (saved.facts.image[0], size, size)})
    return validate(Saved, {"tokenizer": settings, "facts": facts.model_dump()}, "the tokenizer")


def build_model(config: Mapping[str, Any], layout: TokenLayout | None) -> nn.Module:
    """Build the module of a config, with parameters on the meta device."""
    saved = validate(Saved, config, "the imported model")
    with empty_parameters():
        if layout is None:
            return cast(Any, saved.tokenizer).build(saved.facts.image)
        assert saved.generator is not None
        check_layout(saved.generator, layout)
        return saved.generator.build(layout, len(saved.facts.classes))


def latent_statistics(module: nn.Module, scale: float | None) -> dict[str, Source]:
    """Sources of the latents' mean and deviation. Published models multiply by a constant instead."""
    deviation = getattr(module, "latent_deviation", None)
    if scale is None or not isinstance(deviation, Tensor):
        return {}
    return {
        "latent_mean": compute(lambda: torch.zeros_like(deviation)),
        "latent_deviation": compute(lambda: torch.full_like(deviation, 1 / scale)),
    }


# ---------------------------------------------------------------------------------------------- files


def check_free(out: Path) -> None:
    """Raise a ConfigError when `out` holds files already."""
    if (out / CONFIG).exists():
        raise ConfigError(f"{out} holds a run already; choose another folder with --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} holds other files already; choose another folder with --out")


def write_run(
    folder: Path,
    name: str,
    config: dict[str, Any],
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    sources: Mapping[str, Source],
    tokenizer: Frozen | None,
) -> None:
    """Write the tokenizer of a generator, the weights and the config."""
    state = module.state_dict()
    entries = {key: (place.dtype, tuple(place.shape)) for key, place in state.items() if key in sources}
    write_aside(
        folder / WEIGHTS,
        lambda aside: write_each(aside, entries, lambda key: assemble(sources[key], tensors, state[key])),
    )
    if tokenizer is not None:
        copy_model(tokenizer.folder, folder / TOKENIZER)
        saved = tokenizer.saved.model_dump(mode="json", include={"tokenizer", "facts"})
        changed = read_yaml(tokenizer.folder / CONFIG) | saved
        write_text(folder / TOKENIZER / CONFIG, OmegaConf.to_yaml(OmegaConf.create(changed)))
        config["facts"]["tokenizer"] = fingerprint(load_tokenizer(folder / TOKENIZER)[0])
    complete = validate(Saved, config, "the imported model").model_dump(mode="json", exclude_none=False)
    if tokenizer is None:
        complete.pop("generator")
    ordered = {"name": name} | complete | {key: config[key] for key in ("data", "source")}
    write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(ordered)))


def _run_name(out: Path) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in out.resolve().name)
    return kept or "imported"


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
