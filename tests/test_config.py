"""YAML to typed configs: layers, overrides, and mistakes named with their place and the nearest right key."""

from pathlib import Path

import pytest

from artok import config
from artok.errors import ConfigError
from artok.training.experiment import Experiment

VQ = {
    "name": "x",
    "data": {"kind": "digits"},
    "tokenizer": {
        "kind": "conv",
        "downsample": 4,
        "channel_multipliers": [1, 1, 1],
        "quantizer": {"kind": "vq", "codebook_size": 32},
    },
    "training": {"images": 10},
}


def built(**changes: object) -> Experiment:
    return config.validate(Experiment, config.merge(VQ, changes), "test")


def test_a_section_becomes_the_config_of_its_kind() -> None:
    experiment = built()
    assert experiment.tokenizer.quantizer.codebook_size == 32
    assert experiment.data.kind == "digits"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainning": {}}, ["'trainning'", "'training'"]),
        ({"training": {"global_bacth": 3}}, ["'training.global_bacth'", "'global_batch'"]),
        (
            {"tokenizer": {"quantizer": {"codebook_sise": 3}}},
            ["'tokenizer.quantizer.codebook_sise'", "'codebook_size'"],
        ),
        ({"tokenizer": {"quantizer": {"kind": "vqq"}}}, ["'tokenizer.quantizer'", "'vq'"]),
        ({"tokenizer": {"kind": "comv"}}, ["'tokenizer'", "'conv'"]),
        ({"training": {"images": "many"}}, ["'training.images'", "a whole number", "'many'"]),
        ({"training": {"optimizer": {"lr": 1e-320}}}, ["'training.optimizer'", "'lr' holds"]),
        ({"tokenizer": {"channel_multipliers": [2**53 + 1]}}, ["'channel_multipliers' holds", "2^53"]),
        ({"seed": -1}, ["'seed'", "greater than or equal to 0"]),
        ({"training": {"images": -5}}, ["'training.images'", "greater than 0"]),
        ({"training": {"precision": "bf61"}}, ["'training.precision'", "bf16"]),
        ({"tokenizer": {"downsample": 6}}, ["'tokenizer'", "power of two"]),
        ({"tokenizer": {"channel_multipliers": [1]}}, ["needs 3 multipliers"]),
        ({"training": {"optimizer": {"lr": "fast"}}}, ["'training.optimizer.lr'", "a number"]),
        ({"data": {"kind": "../x"}}, ["'data'", "digits"]),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_nearest_right_key(changes: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        built(**changes)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        built(trainning={}, tokenizer={"widht": 3})
    assert "'trainning'" in str(error.value)
    assert "'tokenizer.widht'" in str(error.value)


def test_layers_and_overrides_go_above_what_they_extend(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("a: {b: 1, c: 2}\nd: 3\nrate: 1e-4\n")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\na: {b: 5}\ne: ${a.b}\n")
    data = config.resolve(config.override(config.read_yaml(tmp_path / "top.yaml"), ["a.c=7", "f=[1,2]", "g=2e-3"]))
    assert data == {"a": {"b": 5, "c": 7}, "d": 3, "rate": 1e-4, "e": 5, "f": [1, 2], "g": 2e-3}


def test_a_section_whose_kind_changes_starts_afresh() -> None:
    below = {"quantizer": {"kind": "vq", "codebook_size": 8}}
    assert config.override(below, ["quantizer.kind=fsq"]) == {"quantizer": {"kind": "fsq"}}
    assert config.override(below, ["quantizer.code_dim=4"]) == {
        "quantizer": {"kind": "vq", "codebook_size": 8, "code_dim": 4}
    }


NESTED = "[" * 500 + "]" * 500


@pytest.mark.parametrize(
    "text",
    ["a: [1", "- 1\n- 2", "a: ${nothing}\nb: 1", f"a: {NESTED}", f"a: {'9' * 5000}", "a: \udcff", "a: !!python/name:x"],
)
def test_a_broken_file_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as error:
        config.load(Experiment, str(tmp_path / "broken.yaml"))
    assert "\n" not in str(error.value)


def test_long_values_and_many_mistakes_are_cut_short() -> None:
    with pytest.raises(ConfigError, match="and 22 more mistakes") as error:
        built(training={"images": list(range(9999)), **{f"{index}" * 9000: 1 for index in range(29)}})
    assert len(str(error.value)) < 4_000


def test_a_missing_file_and_a_bad_override_are_refused() -> None:
    with pytest.raises(ConfigError, match="no config"):
        config.load(Experiment, "nowhere/at-all")
    with pytest.raises(ConfigError, match=r"key\.sub=value"):
        config.override({}, ["no-equals-sign"])


def test_a_file_of_ones_own_extends_a_shipped_config_or_a_neighbour(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: [digits/vq, own.yaml]\n")
    (tmp_path / "own.yaml").write_text("name: mine\n")
    found, shipped = config.read_yaml(tmp_path / "mine.yaml"), config.read_yaml(config.locate("digits/vq"))
    assert found == {**shipped, "name": "mine"}


@pytest.mark.parametrize("parent", ["digits/none", "5", "{a: 1}", "[[digits/vq]]", "."])
def test_what_cannot_be_extended_is_named_with_the_file_that_asks(tmp_path: Path, parent: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: {parent}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml extends .*, which is neither"):
        config.read_yaml(tmp_path / "mine.yaml")


def test_a_file_that_extends_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        config.read_yaml(tmp_path / "a.yaml")


def test_a_dumped_config_reads_back_the_same(tmp_path: Path) -> None:
    experiment = built()
    (tmp_path / "out.yaml").write_text(config.dump(experiment))
    assert config.load(Experiment, str(tmp_path / "out.yaml")) == experiment


@pytest.mark.parametrize("causal", [True, False])
def test_mar_with_its_old_causal_flag_is_read_as_the_kind_that_it_means(causal: bool) -> None:
    old = {"kind": "mar", "depth": 2, "mask_low": 0.5, "decoder_depth": None, "steps": 8, "causal": causal}
    generator = built(tokenizer="runs/kl", generator=old).generator
    assert generator.kind == ("causal_mar" if causal else "mar")
    assert generator.depth == 2
    assert causal or generator.mask_ratio_min == 0.5


@pytest.mark.parametrize(
    ("assignment", "suggestion"),
    [
        ("training.lr=1", "'training.optimizer.lr'"),
        ("training.batch_size=8", "'global_batch'"),
        ("tokenizer.codebook_size=8", "'tokenizer.quantizer.codebook_size'"),
    ],
)
def test_a_key_of_another_section_or_library_is_pointed_to_artoks(assignment: str, suggestion: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {suggestion}"):
        config.validate(Experiment, config.override(VQ, [assignment]), "test")


def test_one_entry_of_a_list_can_be_overridden() -> None:
    below = {"losses": [{"kind": "reconstruction"}, {"kind": "adversarial", "critic": {"lecam": 0.1, "augment": []}}]}
    changed = config.override(below, ["losses.1.critic.lecam=0.5", "losses.0.l1=1"])
    assert changed["losses"][0] == {"kind": "reconstruction", "l1": 1}
    assert changed["losses"][1]["critic"] == {"lecam": 0.5, "augment": []}
    of_default = config.validate(Experiment, config.override(VQ, ["losses.0.l1=3"]), "test")
    assert of_default.losses[0].l1 == 3
    for data in (below, VQ):
        with pytest.raises(ConfigError, match=r"no 'losses\.2'"):
            config.validate(Experiment, config.override(data, ["losses.2.l1=1"]), "test")
