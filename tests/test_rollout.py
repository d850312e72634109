"""Videos of any length: what each chunk is given, what comes out, and that nothing grows with the length."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from helpers.generators import condition
from helpers.videos import IMAGE, pipeline
from torch import Tensor

from artok.config import validate
from artok.errors import ConfigError
from artok.generators import diffusion, mar, maskgit, raster
from artok.generators.base import GeneratorConfig
from artok.layout import Condition, TokenLayout, Tokens
from artok.rollout import Clip, roll_out
from artok.sampling.settings import Sampling

STRAIGHT = {"schedule": "straight", "prediction_type": "velocity", "solver": "euler", "steps": 4}
DIT = {"kind": "dit", "depth": 1, "width": 24, "heads": 2, "patch_size": 1}


def diffuse(forcing: str = "none") -> GeneratorConfig:
    return validate(diffusion.Config, {"network": DIT, "diffusion": STRAIGHT, "forcing": forcing}, "test")


FAMILIES: dict[str, tuple[GeneratorConfig, str]] = {
    "raster": (raster.Config.tiny(), "fsq"),
    "raster-past": (raster.Config.tiny().model_copy(update={"past_frames": 2}), "fsq"),
    "maskgit": (maskgit.Config.tiny(), "vq"),
    "mar": (mar.Config.tiny(), "gaussian"),
    "diffusion": (diffuse(), "gaussian"),
    "diffusion-codes": (diffuse("teacher"), "fsq"),
    "diffusion-forcing": (diffuse("diffusion"), "gaussian"),
}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name}-{history}": (name, {"history": history, "overlap": 2})
    for name in FAMILIES
    for history in ("frames", "tokens")
} | {
    "sliding-frames": ("diffusion-forcing", {"rollout": "sliding", "overlap": 2}),
    "sliding-tokens": ("diffusion-forcing", {"rollout": "sliding", "overlap": 2, "history": "tokens"}),
    "stream": ("raster", {"rollout": "stream"}),
    "stream-past": ("raster-past", {"rollout": "stream", "cache_frames": 2, "sinks": 1}),
}


def video(parts: Any) -> Tensor:
    return torch.cat(list(parts), dim=2)


def clips(count: int, frames: int) -> Tensor:
    return torch.rand(count, 3, frames, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize("way", WAYS)
def test_a_video_goes_on_as_long_as_asked(way: str) -> None:
    name, settings = WAYS[way]
    made, sampling = pipeline(*FAMILIES[name]), Sampling(**settings)
    given = clips(2, 9)
    parts = list(roll_out(made, condition(2), 36, sampling, given))
    whole = video(parts)
    assert whole.shape == (2, 3, 36, 16, 16)
    assert torch.equal(whole[:, :, :9], given)
    assert whole.abs().max() <= 1
    assert max(part.shape[2] for part in parts[1:]) <= 12
    short = video(roll_out(made, condition(2), 22, sampling, given))
    assert torch.equal(short, whole[:, :, :22])  # a longer video begins with a shorter one
    alone = video(roll_out(made, condition(2)[1:], 22, sampling, given[1:], first=1))
    torch.testing.assert_close(alone[0], short[1], rtol=0, atol=1e-4)
    other = video(roll_out(made, condition(2), 22, sampling, -given))
    assert not torch.allclose(other[:, :, 9:], short[:, :, 9:], atol=1e-3)  # what is given matters
    free = video(islice(roll_out(made, condition(2), 10**9, sampling), 3))
    assert free.shape[2] >= 3
    assert free.isfinite().all()


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_a_chunk_begins_with_the_last_frames_encoded_anew(overlap: int) -> None:
    made = pipeline(diffuse(), "gaussian")
    seen: list[Condition] = []
    steps = made.generator.steps

    def record(given: Condition, *rest: Any) -> Any:
        seen.append(given)
        return steps(given, *rest)

    made.prepare = lambda dtype: (made.generator, "float32")  # type: ignore[method-assign]
    made.generator.steps = record  # type: ignore[method-assign, assignment]
    whole = video(roll_out(made, condition(1), 49, Sampling(overlap=overlap), clips(1, 9)))
    counts = [int(given.known.flags.sum()) // 16 for given in seen if given.known is not None]
    assert counts[0] == 3  # of the 9 frames given
    assert set(counts[1:]) == {overlap}
    known = seen[1].known
    assert known is not None
    frames = 1 + 4 * (overlap - 1)
    with torch.no_grad():
        expected = made.tokenizer.encode(whole[:, :, 17 - frames : 17]).values
    torch.testing.assert_close(known.values[:, : overlap * 16], expected, rtol=0, atol=1e-5)


def test_a_history_of_tokens_is_decoded_as_one_video() -> None:
    made = pipeline(diffuse(), "gaussian")
    seen: list[Tensor] = []
    tokenizer = made.tokenizer
    embed = tokenizer.embed

    def record(tokens: Tokens) -> Tensor:
        seen.append(tokens.values)
        return embed(tokens)

    tokenizer.embed = record  # type: ignore[method-assign]
    whole = video(roll_out(made, condition(1), 41, Sampling(overlap=2, history="tokens"), clips(1, 9)))
    values = torch.cat(seen, dim=1)
    tokenizer.embed = embed  # type: ignore[method-assign]
    layout = tokenizer.layout_of(1 + 4 * (values.shape[1] // 16 - 1))
    with torch.no_grad():
        at_once = tokenizer.decode(Tokens(values, layout)).clamp(-1, 1)
    torch.testing.assert_close(whole[:, :, 9:], at_once[:, :, 9:41], rtol=0, atol=1e-5)


def test_known_frames_reach_what_follows_and_the_first_chunk_is_an_ordinary_clip() -> None:
    made = pipeline(raster.Config.tiny())
    first = next(roll_out(made, condition(2), 17, Sampling(seed=3)))
    torch.testing.assert_close(first, made(labels=[0, 1], seed=3), rtol=0, atol=1e-5)


def test_a_stream_within_one_clip_draws_as_the_model_does() -> None:
    """Until the first frame leaves the cache, a stream at temperature 0 is the ordinary sample."""
    made = pipeline(raster.Config.tiny().model_copy(update={"past_frames": 1}))
    streamed = video(roll_out(made, condition(2), 13, Sampling(rollout="stream", temperature=0.0)))
    wanted = made(labels=[0, 1], sampling=Sampling(temperature=0.0))
    torch.testing.assert_close(streamed, wanted[:, :, :13], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "frames", "given", "message"),
    [
        ("raster", {"overlap": 5}, 20, None, "overlap 5 leaves no frame"),
        ("raster", {}, 0, None, "at least one frame"),
        ("raster", {"rollout": "sliding"}, 20, None, "a raster makes no video by a sliding window"),
        ("diffusion", {"rollout": "sliding"}, 20, None, "trained with forcing diffusion"),
        ("diffusion", {"rollout": "stream"}, 20, None, "no cache that a video streams from"),
        ("raster", {"rollout": "stream", "cache_frames": 4}, 20, None, "does not fit 5 frames"),
        ("raster", {"rollout": "stream", "cfg_schedule": "linear", "cfg_scale": 2.0}, 20, None, "constant cfg_scale"),
        ("raster", {"rollout": "stream"}, 20, clips(1, 8), r"need 1 \+ 4 k of them"),
        ("raster", {}, 20, clips(1, 9)[:, :, :, :8], "the frames to continue are"),
        ("raster", {}, 20, clips(2, 9), "these 1 videos"),
    ],
)
def test_what_cannot_be_made_is_refused(
    name: str, settings: dict[str, Any], frames: int, given: Tensor | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        video(roll_out(pipeline(*FAMILIES[name]), condition(1), frames, Sampling(**settings), given))


def test_models_of_images_make_no_videos() -> None:
    with pytest.raises(ConfigError, match="need a model of clips"):
        Clip.of(TokenLayout(((4, 4),), 4, 16, (3, 16, 16)))
    assert Clip.of(TokenLayout(((5, 4, 4),), 4, 16, IMAGE)).every == 4
    with pytest.raises(ConfigError, match="not 1"):
        Clip.of(TokenLayout(((5, 4, 4),), 4, 16, (3, 16, 16, 16)))
