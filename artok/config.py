"""YAML to typed configs: layers, overrides, validation, and the registry of kinds.

`kind: fsq` under `quantizer:` means the class `Config` in `artok/quantizers/fsq.py`. The file name is the registry.
"""

from __future__ import annotations

import importlib
import math
import os
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache, partial
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, cast

from omegaconf import OmegaConf
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from artok.errors import ConfigError, shorten
from artok.mistakes import UNREADABLE, is_tag, nearest, reason, sentence
from artok.renamed import RENAMED, RENAMED_VALUES, SPLIT_KINDS, SYNONYMS, say_renamed, say_together

MOST_MISTAKES = 8  # named in one message
SHIPPED = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")  # in a wheel, in a checkout


MOST_WHOLE = 2**53  # up to which every whole number is a float64
LEAST, MOST = 1e-37, 1e37  # sizes of a number that float32 holds with full precision
Depth = Annotated[int, Field(ge=1, le=256)]  # of a stack of layers; published models have up to 64


class Config(BaseModel):
    """A typed section: frozen, and unknown keys are refused, as are numbers that no model can compute with."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _check_numbers(cls, section: object) -> object:
        for key, value in section.items() if isinstance(section, Mapping) else ():
            for number in value if isinstance(value, list | tuple) else (value,):
                if isinstance(number, int) and abs(number) > MOST_WHOLE:
                    raise ValueError(f"'{key}' holds {shorten(str(number))}, and whole numbers go up to 2^53")
                if isinstance(number, float) and number and not LEAST <= abs(number) <= MOST and math.isfinite(number):
                    raise ValueError(f"'{key}' holds {number}, and numbers go from {LEAST} to {MOST} in size")
        return section

    @model_validator(mode="before")
    @classmethod
    def _read_renamed(cls, section: object) -> object:
        """Replace keys of earlier versions by their new names, with one warning per key."""
        if not isinstance(section, Mapping):
            return section
        read = dict(section)
        for above in cls.__mro__:
            table = RENAMED.get(f"{above.__module__.removeprefix('artok.')}.{above.__qualname__}", {})
            for old in set(read) & set(table) - set(cls.model_fields):
                say_renamed(old, table[old])
                read[table[old]] = read.pop(old)
        for key, values in RENAMED_VALUES.items():
            if key in cls.model_fields and isinstance(read.get(key), str) and read[key] in values:
                say_renamed(read[key], values[read[key]])
                read[key] = values[read[key]]
        for key, field in cls.model_fields.items():  # `losses.0.l1=1` where no file lists the losses
            if _is_indexed(read.get(key)) and isinstance(field.default, tuple):
                dumped = [each.model_dump() if isinstance(each, BaseModel) else each for each in field.default]
                read[key] = _merge_entries(dumped, read[key], key)
        return read


class Part(Config):
    """A section whose `kind` names the file that defines it. Each such file has one class called `Config`."""

    kind: str


ConfigType = TypeVar("ConfigType", bound=Config)


# ---------------------------------------------------------------------------------------------- registry


def kinds(room: str) -> list[str]:
    """The kinds in a room such as "quantizers": its modules that define a `Config`."""
    package = importlib.import_module(f"artok.{room}")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return [name for name in names if _config_class(room, name) is not None]


def find(room: str, kind: object) -> type[Part]:
    """The `Config` class of `artok/<room>/<kind>.py`, or a ConfigError that names the nearest kind."""
    found = _config_class(room, kind) if isinstance(kind, str) and kind.isidentifier() else None
    if found is None:
        raise ConfigError(f"there is no {room} kind {shorten(repr(kind))}{nearest(str(kind), kinds(room))}")
    return found


def _config_class(room: str, kind: str) -> type[Part] | None:
    try:
        module = importlib.import_module(f"artok.{room}.{kind}")
    except ModuleNotFoundError as error:
        if error.name == f"artok.{room}.{kind}":
            return None
        raise
    found = getattr(module, "Config", None)
    ours = isinstance(found, type) and issubclass(found, Part) and found.__module__ == module.__name__
    return cast(type[Part], found) if ours else None


class _Room:
    """Validates {"kind": ..., ...} as the config of that kind; nested errors keep their location."""

    def __init__(self, room: str) -> None:
        self.room = room

    def __call__(self, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        value = self._split_kind(value)
        try:
            part = find(self.room, value.get("kind"))
            return part.model_validate(value)
        except ConfigError as error:
            raise PydanticCustomError("unknown_kind", "{text}", {"text": str(error)}) from None
        except ValidationError as error:
            raise PydanticCustomError("nested", "nested", {"part": part, "error": error}) from None

    def _split_kind(self, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """Rewrite a section of an earlier version whose kind was split in two."""
        key, kind, unknown = SPLIT_KINDS.get((self.room, str(value.get("kind"))), ("", "", ()))
        if key not in value:
            return value
        rest = {name: given for name, given in value.items() if name != key}
        if not value[key]:
            return rest
        say_renamed(f"kind: {value['kind']}, {key}: true", f"kind: {kind}")
        return {name: given for name, given in rest.items() if name not in unknown} | {"kind": kind}


def of_kind(room: str) -> BeforeValidator:
    """Marks a field as a part of a room: `quantizer: Annotated[QuantizerConfig, of_kind("quantizers"), OPEN]`."""
    return BeforeValidator(_Room(room))


OPEN = SerializeAsAny()  # written out with the keys of its own kind, not only with those of the declared base class
FREE = "free"  # marks a field that does not change what a training computes: `workers: Annotated[int, FREE] = 0`


# ---------------------------------------------------------------------------------------------- error messages


def validate(cls: type[ConfigType], data: object, source: str) -> ConfigType:
    """`data` as a `cls`, or a ConfigError with one line for each mistake: its place, what is wrong, the nearest key."""
    try:
        with say_together(source):
            return cls.model_validate(data)
    except ValidationError as error:
        by_depth = partial(sorted, key=lambda key: key.count("."))
        mistakes = list(_explain(cls, error, (), lambda: by_depth(_places(cls, data))))
        if len(mistakes) > MOST_MISTAKES:
            mistakes[MOST_MISTAKES:] = [f"and {len(mistakes) - MOST_MISTAKES} more mistakes"]
        raise ConfigError(f"{source}: " + "; ".join(mistakes)) from None


def _explain(
    cls: type[BaseModel], error: ValidationError, place: tuple[int | str, ...], places: Callable[[], list[str]]
) -> Iterator[str]:
    """places: every key of the whole config, the outer ones first; read only for an unknown key."""
    mistakes = error.errors()
    for detail in mistakes:
        if detail["type"] == "too_short" and any(
            len(other["loc"]) > len(detail["loc"]) and other["loc"][: len(detail["loc"])] == detail["loc"]
            for other in mistakes
        ):
            continue  # pydantic does not count invalid entries of a list
        inside = place + tuple(part for part in detail["loc"] if not is_tag(part))
        if detail["type"] == "nested":
            yield from _explain(detail["ctx"]["part"], detail["ctx"]["error"], inside, places)
        elif detail["type"] == "extra_forbidden":
            section = _section(cls, detail["loc"][:-1])
            yield _unknown_key(inside, list(section.model_fields) if section else [], places())
        else:
            yield sentence(detail, inside)


def _unknown_key(place: tuple[int | str, ...], keys: Sequence[str], places: Sequence[str]) -> str:
    """The sentence on an unknown key: the place where there is such a key, else the nearest of its section's `keys`."""
    path, word = shorten(".".join(map(str, place))), str(place[-1])
    name, above = SYNONYMS.get(word, word), path.removesuffix(word)
    same = sorted((key for key in places if key.rpartition(".")[2] == name), key=lambda key: not key.startswith(above))
    found = [name] if name in keys else same
    return f"unknown key '{path}'" + (f"; did you mean '{found[0]}'?" if found else nearest(word, keys))


def _places(cls: type[BaseModel], data: object, above: str = "") -> Iterator[str]:
    """Every key of a config and of the sections below it, as `training.optimizer.lr`; parts by the kinds in `data`."""
    for name, field in cls.model_fields.items():
        yield f"{above}{name}"
        inside = data.get(name) if isinstance(data, Mapping) else None
        section = _model_in(field.annotation)
        room = next((mark.func.room for mark in field.metadata if isinstance(getattr(mark, "func", None), _Room)), None)
        if room and isinstance(inside, Mapping):
            section = _config_class(room, str(inside.get("kind")))
        if section is not None:
            yield from _places(section, inside, f"{above}{name}.")


def _section(cls: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel] | None:
    """The config class at a location below `cls`, whose keys a message can suggest."""
    section: type[BaseModel] | None = cls
    for key in loc:
        if section is None or key not in section.model_fields:
            continue
        section = _model_in(section.model_fields[str(key)].annotation)
    return section


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (Union, types.UnionType, Annotated, tuple, list, dict):
        return next(filter(None, map(_model_in, typing.get_args(annotation))), None)
    return None


# ---------------------------------------------------------------------------------------------- files and layers


def read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML file merged over the files that it `extends:`, before interpolation.

    A parent is a path relative to the file, or a shipped name such as "digits/vq".
    """
    if path.resolve() in above:
        raise ConfigError(f"{path} extends itself, through {above[-1].name}")
    try:
        loaded = deepcopy(_parse(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {path}") from None
    except UNREADABLE as error:
        raise ConfigError(f"{path} is not a readable YAML file: {reason(error)}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} must hold keys and values")
    data = cast(dict[str, Any], loaded)
    parents = data.pop("extends", [])
    merged: dict[str, Any] = {}
    for parent in parents if isinstance(parents, list) else [parents]:
        merged = merge(merged, read_yaml(_parent(path, parent), (*above, path.resolve())))
    return merge(merged, data)


def _parent(path: Path, name: object) -> Path:
    if isinstance(name, str):
        shipped = (root / f"{name.removesuffix('.yaml')}.yaml" for root in SHIPPED)
        for place in (path.parent / name, *shipped):
            if os.path.isfile(place):
                return place
    raise ConfigError(f"{path} extends {name}, which is neither a file beside it nor a shipped config")


@lru_cache(maxsize=256)
def _parse(text: str) -> object:
    """Parse a YAML text, before interpolation. Cached, since a study reads the same files many times."""
    return OmegaConf.to_container(OmegaConf.load(StringIO(text)), resolve=False)


def merge(below: Mapping[str, Any], above: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Merge two layers. A section whose `kind` changes drops the keys of the old kind.

    Whole numbers as keys, `losses.0.l1`, name entries of a list below. place: of the layers, for messages.
    ConfigError: the list has no such entry.
    """
    return dict(below) | {key: _merge_value(below.get(key), value, f"{place}{key}") for key, value in above.items()}


def _merge_value(old: Any, value: Any, place: str) -> Any:
    if isinstance(old, list | tuple) and _is_indexed(value):
        return _merge_entries(old, value, place)
    if (
        isinstance(old, Mapping)
        and isinstance(value, Mapping)
        and value.get("kind", old.get("kind")) == old.get("kind")
    ):
        return merge(old, value, f"{place}.")
    return value


def _is_indexed(value: object) -> bool:
    """Whether a section's keys are all whole numbers, so that it changes entries of a list."""
    return isinstance(value, Mapping) and bool(value) and all(str(key).isdecimal() for key in value)


def _merge_entries(old: Sequence[Any], changes: Mapping[Any, Any], place: str) -> list[Any]:
    entries = list(old)
    for key, value in changes.items():
        if int(key) >= len(entries):
            holds = f"{len(entries)} entr{'y' if len(entries) == 1 else 'ies'}, numbered from 0"
            raise ConfigError(f"there is no '{place}.{key}': the list has {holds}")
        entries[int(key)] = _merge_value(entries[int(key)], value, f"{place}.{key}")
    return entries


def override(data: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply `key.sub=value` assignments to `data` as one layer; values are parsed as YAML."""
    for assignment in assignments:
        if "=" not in assignment or assignment.startswith("="):
            raise ConfigError(f"override {shorten(repr(assignment))} must look like key.sub=value")
    try:
        layer = OmegaConf.to_container(OmegaConf.from_dotlist(list(assignments)), resolve=False)
    except UNREADABLE as error:
        raise ConfigError(f"override {shorten(repr(' '.join(assignments)))} cannot be read: {reason(error)}") from None
    return merge(data, cast(dict[str, Any], layer))


def resolve(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with its `${key.sub}` interpolations replaced."""
    try:
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(dict(data)), resolve=True))
    except UNREADABLE as error:
        raise ConfigError(f"interpolation failed: {reason(error)}") from None


def locate(name: str) -> Path:
    """The YAML file behind a path or a shipped name such as "digits/vq"."""
    given = Path(name)
    if given.suffix in (".yaml", ".yml") and os.path.exists(given):
        return given
    for root in SHIPPED:
        inside = root / (name.removeprefix("configs/").removesuffix(".yaml") + ".yaml")
        if os.path.exists(inside):  # unlike `Path.exists`, it takes names that no file can have
            return inside
    shipped = sorted(str(path.relative_to(root).with_suffix("")) for root in SHIPPED for path in root.rglob("*.yaml"))
    otherwise = "; give a YAML file, or one of those that 'artok configs' lists"
    raise ConfigError(f"there is no config {shorten(repr(name))}{nearest(name, shipped, otherwise)}")


def load(cls: type[ConfigType], name: str, overrides: Sequence[str] = ()) -> ConfigType:
    """The config of a file or shipped name with its layers, overrides and interpolations, validated as `cls`."""
    path = locate(name)
    return validate(cls, resolve(override(read_yaml(path), overrides)), str(path))


def dump_fixed(value: object) -> Any:
    """A config without its FREE fields, as plain values: the settings that change what a training computes."""
    if isinstance(value, Config):
        fields = type(value).model_fields.items()
        return {name: dump_fixed(getattr(value, name)) for name, field in fields if FREE not in field.metadata}
    if isinstance(value, list | tuple):
        return [dump_fixed(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def dump(config: Config) -> str:
    """A config as YAML, complete with its defaults."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))
