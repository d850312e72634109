"""`artok plan`: what it says of known designs, of sparse attention, and of devices."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from artok import cli
from artok.errors import ConfigError
from artok.planning.from_numbers import FAMILIES, DesignSpec
from artok.planning.measure import measure_device
from artok.planning.op_trace import OpCost
from artok.planning.plan import Plan, PlanOptions, plan_config, plan_families, plan_spec
from artok.planning.roofline import GPUS, published
from artok.planning.sampling_cost import extrapolate
from artok.planning.sparse_attention import chunks, full, local
from artok.planning.text import families_text, plan_text

VIDEO = (30, 128, 128)


@pytest.fixture(scope="module")
def video() -> Plan:
    return plan_spec(DesignSpec(size=1024, downsample=8, frames=240, frame_downsample=8, depth=4), PlanOptions())


def test_a_megapixel_at_downsampling_8_is_16384_tokens() -> None:
    tokens = plan_spec(DesignSpec(size=1024, downsample=8, depth=2), PlanOptions()).tokens
    assert tokens.length == 16_384
    assert tokens.vocabulary == 16_384
    assert tokens.bits == 16_384 * 14
    assert (tokens.pixels, tokens.colours_log2) == (1_048_576, 24)


def test_240_frames_are_491520_tokens_far_beyond_full_attention(video: Plan) -> None:
    assert video.tokens.length == 30 * 128 * 128 == 491_520
    assert "30x128x128" in video.tokens.layout
    whole = video.attention[0]
    assert whole.pairs == 491_520**2
    assert whole.flops == 4 * 4 * 256 * 491_520**2
    assert whole.scores == 2 * 4 * 491_520**2  # 4 heads in half precision: 1.8 TiB in each layer
    assert not any(need.fits(video.device_memory) for need in video.memory)
    assert "491,520 tokens" in plan_text(video)


def test_sparse_attention_of_a_video_by_its_formulas(video: Plan) -> None:
    whole, near, chunked = video.attention
    assert near.pairs == 491_520 * (16 * 16 * 3 + 128 * 128)
    assert chunked.pairs == math.ceil(29 / 4) * (5 * 128 * 128) ** 2
    assert whole.flops / near.flops == pytest.approx(491_520 / (768 + 16_384))
    assert near.cache < whole.cache


def test_patterns_that_see_everything_are_full_attention() -> None:
    assert chunks(VIDEO, 30, 0).pairs == full(VIDEO).pairs
    assert local((1, 16, 16), 16, 0, 0).pairs == full((1, 16, 16)).pairs


@pytest.mark.parametrize("wrong", ["window", "frames", "overlap"])
def test_patterns_that_do_not_fit_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigError):
        {
            "window": lambda: local((4, 8, 8), 9, 1, 1),
            "frames": lambda: local((4, 8, 8), 4, 2, 1),
            "overlap": lambda: chunks(VIDEO, 4, 4),
        }[wrong]()


def test_published_models_have_their_published_size() -> None:
    plan = plan_config("imagenet/dit-xl-2", [], PlanOptions())
    assert plan.parameters == 674_834_720
    assert plan.sampling is not None
    # 118.6 G multiply-adds a pass (Peebles and Xie 2023, table 4), both halves of guidance, 250 passes
    assert plan.sampling.flops == pytest.approx(2 * 2 * 250 * 118.64e9, rel=0.02)
    assert [(need.devices, need.way) for need in plan.memory] == [
        (1, "DDP"), (8, "DDP"), (8, "FSDP"), (64, "DDP"), (64, "FSDP"),
    ]  # fmt: skip


@pytest.mark.slow
def test_all_families_at_one_size() -> None:
    plans = plan_families(DesignSpec(size=32, downsample=4, codes=64, depth=2, width=64, batch=8), PlanOptions("A100"))
    assert [plan.family for plan in plans] == list(FAMILIES)
    lengths = {plan.family: plan.tokens.length for plan in plans}
    assert lengths == {"raster": 64, "var": 1 + 4 + 16 + 64, "maskgit": 64, "mar": 64, "diffusion": 64}
    caches = {plan.family: plan.sampling.cache for plan in plans if plan.sampling}
    assert caches["raster"] == 2 * 2 * 64 * 64 * 2  # keys and values, layers, tokens, width, bytes in bfloat16
    assert caches["mar"] == caches["maskgit"] == caches["diffusion"] == 0
    assert all(plan.family in families_text(plans) for plan in plans)


# ---------------------------------------------------------------------------------------------- time


def test_a_roofline_is_the_slower_of_arithmetic_and_memory() -> None:
    device = published("h100")
    bound = OpCost("mm", 10**12, 10, torch.bfloat16, False)
    moving = OpCost("mm", 10, 10**10, torch.bfloat16, False)
    assert device.seconds(bound) == pytest.approx(device.launch + 1e12 / (0.5 * 989.4e12))
    assert device.seconds(moving) == pytest.approx(device.launch + 1e10 / (0.8 * 3.35e12))
    assert device.seconds(OpCost("view", 0, 0, torch.bfloat16, False)) == 0


def test_costs_go_on_in_a_straight_line() -> None:
    assert extrapolate([1, 2, 3], 6) == sum(range(1, 7))
    assert extrapolate([1, 2, 3], 3) == 6


def test_the_device_at_hand_is_measured() -> None:
    """How near estimates come is for tools/bench_plan.py to say: a test must not depend on the machine's load."""
    device = measure_device("cpu")
    assert device.bytes_per_s > 1e8
    assert device.flops_per_s["fp32"] > 1e8
    plan_ = plan_config("digits/raster", [], PlanOptions(device="here"))
    assert plan_.sampling is not None
    assert 0 < plan_.sampling.latency < 64 / plan_.sampling.rate


def test_sampling_is_planned_in_bf16_on_a_gpu_unless_the_config_says() -> None:
    def precision(options: PlanOptions, *overrides: str) -> str:
        found = plan_config("digits/var", list(overrides), options).sampling
        assert found is not None
        return found.precision

    assert precision(PlanOptions()) == "bf16"
    assert precision(PlanOptions(), "sampling.dtype=float32") == "fp32"
    assert precision(PlanOptions(precision="fp16")) == "fp16"
    assert precision(PlanOptions(device="cpu")) == "fp32"


def test_flops_are_split_between_generator_and_frozen_tokenizer() -> None:
    """LlamaGen-B: two thirds of its sampling are the decoder; encoding counts only when tokens are not cached."""
    found = plan_config("imagenet/raster-b", ["tokens.online=true"], PlanOptions())
    assert found.sampling is not None
    assert 0.6 < found.sampling.tokenizer_flops / found.sampling.flops < 0.8
    cached = plan_config("imagenet/raster-b", ["tokens.online=false"], PlanOptions()).training
    assert cached.tokenizer_flops == 0
    assert found.training.flops - found.training.tokenizer_flops == pytest.approx(cached.flops)
    assert found.training.tokenizer_flops > 0


# ---------------------------------------------------------------------------------------------- the command


def artok(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["artok", *line.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_the_command_plans_a_config(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = artok(monkeypatch, capsys, "plan digits/var training.global_batch=64 --gpu L4 --json")
    assert code == 0
    found = json.loads(out)
    assert found["parameters"] == 963_212
    assert (found["training"]["batch"], found["sampling"]["passes"]) == (64, 4)
    assert found["tokens"]["length"] == 30


MISTAKES = {
    "an unknown device": ("plan digits/var --gpu H99", ", ".join(GPUS)),
    "a device that is not here": ("plan digits/var --device cuda:99", "device cuda:99 is not on this machine"),
    "a size that does not fit": ("plan --size 100 --downsample 16", "no multiple of the downsampling 16"),
    "an unknown family": ("plan --family gpt", "raster, var"),
    "an unknown precision": ("plan digits/var --precision int8", "fp32, bf16, fp16"),
    "a config that is none": ("plan nowhere", "no config 'nowhere'"),
    "scales in words": ("plan --family var --scales one", "whole numbers"),
    "scales of another family": ("plan --family mar --scales 1,2,4,8,16", "scales are for the family var"),
    "numbers beside a config": ("plan digits/vq --size 256 --frame-downsample 1", "--size, --frame-downsample would"),
    "families of a tokenizer": ("plan digits/vq --all-families", "name a generator's config"),
    "an unknown tokenizer": ("plan digits/raster tokenizer=runs/nothing", "neither a run nor"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    line, expected = MISTAKES[mistake]
    code, _, err = artok(monkeypatch, capsys, line)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1
