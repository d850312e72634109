"""`artok plan`: what it says of known designs, of sparse attention, of devices and of this machine."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from artok import cli
from artok.config import load
from artok.errors import ConfigError
from artok.metrics.cost import parameters
from artok.planning import calibrate_cpu as calibration
from artok.planning import meta_model as design
from artok.planning.from_numbers import FAMILIES, Wish
from artok.planning.op_trace import Work
from artok.planning.plan import Asked, Plan, all_families, plan_config, plan_wish
from artok.planning.roofline import GPUS, at, published
from artok.planning.sampling_cost import extended, sample
from artok.planning.sparse_attention import chunks, full, local
from artok.planning.text import families_text, text
from artok.training.experiment import Experiment
from artok.training.progress import Progress

VIDEO = (30, 128, 128)


@pytest.fixture(scope="module")
def video() -> Plan:
    return plan_wish(Wish(size=1024, downsample=8, frames=240, frame_downsample=8, depth=4), Asked())


def test_a_megapixel_at_downsampling_8_is_16384_tokens() -> None:
    tokens = plan_wish(Wish(size=1024, downsample=8, depth=2), Asked()).tokens
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
    assert not any(need.fits(video.device_memory) for need in video.needs)
    assert "491,520 tokens" in text(video)


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
    plan = plan_config("imagenet/dit-xl-2", [], Asked())
    assert plan.parameters == 674_834_720
    assert plan.sampling is not None
    # 118.6 G multiply-adds a pass (Peebles and Xie 2023, table 4), both halves of guidance, 250 passes
    assert plan.sampling.flops == pytest.approx(2 * 2 * 250 * 118.64e9, rel=0.02)
    assert [(need.devices, need.way) for need in plan.needs] == [
        (1, "DDP"), (8, "DDP"), (8, "FSDP"), (64, "DDP"), (64, "FSDP"),
    ]  # fmt: skip


@pytest.mark.slow
def test_all_families_at_one_size() -> None:
    plans = all_families(Wish(size=32, downsample=4, codes=64, depth=2, width=64, batch=8), Asked("A100"))
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
    bound = Work("mm", 10**12, 10, torch.bfloat16, False)
    moving = Work("mm", 10, 10**10, torch.bfloat16, False)
    assert device.seconds(bound) == pytest.approx(device.operator + 1e12 / (0.5 * 989.4e12))
    assert device.seconds(moving) == pytest.approx(device.operator + 1e10 / (0.8 * 3.35e12))
    assert device.seconds(Work("view", 0, 0, torch.bfloat16, False)) == 0


def test_rates_lie_between_the_measured_ones() -> None:
    curve = [(1.0, 10.0), (100.0, 1000.0)]
    assert [at(curve, size) for size in (0.1, 1, 10, 100, 1000)] == pytest.approx([10, 10, 100, 1000, 1000])


def test_costs_go_on_in_a_straight_line() -> None:
    assert extended([1, 2, 3], 6) == sum(range(1, 7))
    assert extended([1, 2, 3], 3) == 6


@pytest.fixture(scope="module")
def calibrated() -> Path:
    return calibration.calibrate(Progress("calibrate", quiet=True))


def test_times_on_this_cpu_follow_what_was_measured_of_it(calibrated: Path) -> None:
    """How near they come is for tools/bench_plan.py to say: a test must not depend on who else uses the machine."""
    device = calibration.this_cpu()
    assert str(torch.get_num_threads()) in device.source
    experiment = load(Experiment, "digits/raster")
    planned = design.build(experiment)
    resident = 4.0 * parameters(planned.trained)
    seconds = [
        sample(planned, experiment.sampling, batch).total(lambda work: device.seconds(work, resident))
        for batch in (1, 8, 64)
    ]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < 64 * seconds[0]


# ---------------------------------------------------------------------------------------------- the command


def artok(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["artok", *line.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_the_command_plans_a_config(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = artok(monkeypatch, capsys, "plan digits/var training.global_batch=64 --device L4 --json")
    assert code == 0
    found = json.loads(out)
    assert found["parameters"] == 963_212
    assert (found["training"]["batch"], found["sampling"]["passes"]) == (64, 4)
    assert found["tokens"]["length"] == 30


MISTAKES = {
    "an unknown device": ("plan digits/var --device H99", ", ".join(GPUS)),
    "a size that does not fit": ("plan --size 100 --downsample 16", "no multiple of the downsampling 16"),
    "an unknown family": ("plan --family gpt", "raster, var"),
    "an unknown precision": ("plan digits/var --precision int8", "fp32, bf16, fp16"),
    "a config that is none": ("plan nowhere", "no config 'nowhere'"),
    "scales in words": ("plan --family var --scales one", "whole numbers"),
    "scales of another family": ("plan --family mar --scales 1,2,4,8,16", "scales are for the family var"),
    "numbers beside a config": ("plan digits/vq --size 256 --frame-downsample 1", "--size, --frame-downsample would"),
    "families of a tokenizer": ("plan digits/vq --all-families", "name a generator's config"),
    "an unknown tokenizer": ("plan digits/raster tokenizer=runs/nothing", "neither a run here nor"),
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
