"""Keys of versions before 0.2 are read under today's names, each named once; what never was is refused."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from artok import config, renamed
from artok.errors import ConfigError
from artok.quantizers import vq
from artok.renamed import RENAMED, RENAMED_VALUES, SYNONYMS
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.settings import Sampling


def config_class(name: str) -> type[config.Config]:
    module, _, leaf = name.rpartition(".")
    found: Any = getattr(importlib.import_module(f"artok.{module}"), leaf)
    return found


RENAMES = [(name, old, new) for name, table in RENAMED.items() for old, new in table.items()]


@pytest.mark.parametrize(("name", "old", "new"), RENAMES)
def test_an_old_key_is_read_and_named_once(name: str, old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    cls = config_class(name)
    assert new in cls.model_fields
    assert old not in cls.model_fields
    read: Any = cls._read_renamed  # of the section alone: most parts need other keys too
    renamed._say_once.cache_clear()
    for _ in range(2):
        assert read({old: "value"}) == {new: "value"}
    said = capsys.readouterr().err.splitlines()
    assert said == [f"artok: in configs '{old}' is now called '{new}'; the old name will be refused from 1.0 on"]


def test_an_old_value_is_read_and_an_unknown_one_refused() -> None:
    assert set(RENAMED_VALUES) == {"timestep_spacing"}
    for old, new in RENAMED_VALUES["timestep_spacing"].items():
        assert config.validate(DiffusionConfig, {"spacing": old}, "test").timestep_spacing == new
    with pytest.raises(ConfigError, match="must be one of"):
        config.validate(DiffusionConfig, {"spacing": "spreat"}, "test")
    with pytest.raises(ConfigError, match="cfg_scale"):
        config.validate(Sampling, {"guidance": "strong"}, "test")


def test_a_number_of_choices_is_read_as_a_share_of_an_even_use(capsys: pytest.CaptureFixture[str]) -> None:
    for old, share in ((1.0, 0.05), (2, 0.05), (0, 0.0), (0.03, 0.03)):
        assert config.validate(vq.Config, {"revive_below": old}, "test").dead_code_threshold == share
    assert vq.Config().dead_code_threshold == 0.05
    assert "a share of an even use" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="dead_code_threshold"):
        config.validate(vq.Config, {"dead_code_threshold": "often"}, "test")


def fields() -> Iterator[str]:
    for name in RENAMED:
        yield from config_class(name).model_fields
    yield from ("size", "depth", "steps")


def test_what_other_libraries_call_a_key_leads_to_one_that_exists() -> None:
    known = set(fields())
    assert set(SYNONYMS.values()) <= known
    assert not set(SYNONYMS) & known
