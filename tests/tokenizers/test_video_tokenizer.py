"""Video tokenizers: parts of a clip give what the whole gives, and nothing leaks from the future."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.models import VIDEO_TOKENIZERS
from torch import Tensor

from artok.config import validate
from artok.errors import ConfigError, LayoutError
from artok.layout import Tokens
from artok.nn.conv3d import Decoder, Encoder, Past
from artok.planning.op_trace import Trace
from artok.tokenizers import conv3d
from artok.tokenizers.conv3d import VideoTokenizer

IMAGE = conv3d.Config.tiny_image
BY_POSITION = [name for name, make in VIDEO_TOKENIZERS.items() if not make().quantizer.mixes_positions]  # type: ignore[attr-defined]
PLANS = ([1, 4, 4, 4], [1, 8, 4], [1, 12], [13], [5, 8])  # frames of the parts of a clip of 13
ROUNDINGS = 1e-4  # of float32, through about twenty layers of a few hundred products each


def clips(count: int, frames: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, frames, 16, 16, generator=random) * 2 - 1


def built(name: str = "conv3d-gaussian", **changes: Any) -> VideoTokenizer:
    """With started codebooks, in eval mode; `chunk` does not change the weights."""
    torch.manual_seed(0)
    config = VIDEO_TOKENIZERS[name]().model_copy(update=changes)
    tokenizer = config.build(IMAGE)
    assert isinstance(tokenizer, VideoTokenizer)
    tokenizer(clips(8, 5))
    return tokenizer.eval()


def parts_of(tokens: Tokens, tokenizer: VideoTokenizer, plan: list[int]) -> list[Tokens]:
    """Tokens cut where a plan cuts the frames."""
    counts = [1 + (plan[0] - 1) // 4, *(frames // 4 for frames in plan[1:])]
    values = tokens.values.split([16 * count for count in counts], dim=1)
    return [
        Tokens(value, tokenizer.part_layout(count, index == 0))
        for index, (value, count) in enumerate(zip(values, counts, strict=True))
    ]


# ---------------------------------------------------------------------------------------------- parts and wholes


@torch.no_grad()
@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize(
    ("steps", "patch"), [([(2, 2, 2), (2, 1, 2)], 1), ([(1, 2, 2), (2, 2, 1)], 2), ([(1, 2, 2)], 4)]
)
def test_parts_are_the_whole_to_float64s_rounding(plan: list[int], steps: list[Any], patch: int) -> None:
    torch.manual_seed(0)
    widths, levels = [4] * (len(steps) + 1), [False] * (len(steps) + 1)
    shared: dict[str, Any] = {"steps": steps, "widths": widths, "blocks": 1, "attention": levels, "groups": 2}
    shared |= {"middle_attention": True, "frames": 3, "patch": patch}
    encoder = Encoder(in_channels=3, stem=4, out_channels=4, **shared).double()
    decoder = Decoder(in_channels=4, out_channels=3, **shared).double()
    video = clips(2, 13).double().transpose(1, 2)
    features = encoder(video)
    assert features.shape[1] == 4
    past = Past()
    found = torch.cat([encoder(part, past) for part in video.split(plan, dim=1)], dim=1)
    torch.testing.assert_close(found, features, rtol=1e-11, atol=1e-11)
    counts, past = [1 + (plan[0] - 1) // 4, *(frames // 4 for frames in plan[1:])], Past()
    made = [decoder(part, past) for part in features.split(counts, dim=1)]
    assert [part.shape[1] for part in made] == plan
    torch.testing.assert_close(torch.cat(made, dim=1), decoder(features), rtol=1e-11, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("name", BY_POSITION)
def test_every_plan_of_parts_gives_the_same_tokens_and_frames(name: str) -> None:
    tokenizer, video = built(name, chunk=None), clips(2, 13)
    whole = tokenizer.encode(video)
    decoded = tokenizer.decode(whole)
    assert decoded.shape == video.shape
    for plan in PLANS:
        encoded = list(tokenizer.encode_chunks(video.split(plan, dim=2)))
        assert [part.layout for part in encoded] == [part.layout for part in parts_of(whole, tokenizer, plan)]
        vectors = torch.cat([tokenizer.embed(part) for part in encoded], dim=2)
        torch.testing.assert_close(vectors, tokenizer.embed(whole), rtol=ROUNDINGS, atol=ROUNDINGS)
        made = list(tokenizer.decode_chunks(parts_of(whole, tokenizer, plan)))
        assert [part.shape[2] for part in made] == plan
        torch.testing.assert_close(torch.cat(made, dim=2), decoded, rtol=ROUNDINGS, atol=ROUNDINGS)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_the_chunk_changes_no_result(chunk: int) -> None:
    whole, parts, video = built(chunk=None), built(chunk=chunk), clips(2, 17)
    tokens = whole.encode(video)
    torch.testing.assert_close(parts.encode(video).values, tokens.values, rtol=ROUNDINGS, atol=ROUNDINGS)
    torch.testing.assert_close(parts.decode(tokens), whole.decode(tokens), rtol=ROUNDINGS, atol=ROUNDINGS)


@torch.no_grad()
@pytest.mark.parametrize("name", BY_POSITION)
def test_nothing_leaks_from_the_future(name: str) -> None:
    tokenizer, video = built(name, chunk=None), clips(2, 17)
    tokens = tokenizer.encode(video)
    decoded = tokenizer.decode(tokens)
    for group in range(4):  # frames up to 4 group are those of the first 1 + group frames of the grid
        seen = 1 + 4 * group
        other = torch.cat([video[:, :, :seen], clips(2, 17, seed=1)[:, :, seen:]], dim=2)
        changed = tokenizer.encode(other)
        known = 16 * (1 + group)
        assert torch.equal(changed.values[:, :known], tokens.values[:, :known])
        assert not torch.equal(changed.values[:, known:], tokens.values[:, known:])
        mixed = torch.cat([tokens.values[:, :known], changed.values[:, known:]], dim=1)
        again = tokenizer.decode(Tokens(mixed, tokens.layout))
        assert torch.equal(again[:, :, :seen], decoded[:, :, :seen])
        assert not torch.equal(again[:, :, seen:], decoded[:, :, seen:])


@torch.no_grad()
def test_a_clip_begins_like_a_longer_one() -> None:
    tokenizer, video = built(), clips(2, 17)
    whole = tokenizer.encode(video)
    decoded = tokenizer.decode(whole)
    for frames in (1, 5, 9, 13):
        tokens = tokenizer.encode(video[:, :, :frames])
        assert tokens.layout == tokenizer.layout_of(frames)
        known = tokens.layout.length
        torch.testing.assert_close(tokens.values, whole.values[:, :known], rtol=ROUNDINGS, atol=ROUNDINGS)
        first = tokenizer.decode(tokens)
        torch.testing.assert_close(first, decoded[:, :, :frames], rtol=ROUNDINGS, atol=ROUNDINGS)


def test_memory_of_decoding_depends_on_the_chunk_and_not_on_the_length() -> None:
    tokenizer = built().to("meta")

    def peak(groups: int, chunk: int) -> int:
        def parts() -> Any:
            for start in range(0, 1 + groups, chunk):
                layout = tokenizer.part_layout(min(chunk, 1 + groups - start), start == 0)
                yield Tokens(torch.empty(1, *layout.value_shape(), device="meta"), layout)

        with torch.no_grad(), Trace() as trace:
            for _ in tokenizer.decode_chunks(parts()):
                pass
        return trace.peak

    assert peak(63, 2) == peak(15, 2)
    assert peak(63, 8) > 2 * peak(63, 2)


# ---------------------------------------------------------------------------------------------- frames that do not fit


@pytest.mark.parametrize(
    ("frames", "words"), [(16, "use 13 or 17 frames"), (3, "use 1 or 5 frames"), (0, "use 1 or 5")]
)
def test_frames_that_do_not_fit_are_refused(frames: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        conv3d.Config.tiny().build((3, frames, 16, 16))
    with pytest.raises(ConfigError, match=words):
        built().layout_of(frames)
    if frames:
        with pytest.raises(ConfigError, match=words):
            built().encode(clips(1, frames))


@torch.no_grad()
@pytest.mark.parametrize("frames", [2, 4, 5, 16])
def test_padding_repeats_the_last_frame_and_keeps_every_one(frames: int) -> None:
    padded, plain, video = built(pad_frames=True), built(), clips(2, frames)
    tokens = padded.encode(video)
    assert tokens.layout.image == (3, frames, 16, 16)
    assert tokens.layout.grid == (1 + -(-(frames - 1) // 4), 4, 4)
    longer = 1 + 4 * (tokens.layout.grid[0] - 1)
    repeated = torch.cat([video, video[:, :, -1:].expand(-1, -1, longer - frames, -1, -1)], dim=2)
    assert torch.equal(tokens.values, plain.encode(repeated).values)
    assert padded.decode(tokens).shape == video.shape
    assert padded.train()(video).images.shape == video.shape
    other = video.clone()
    other[:, :, -1] = -other[:, :, -1]
    assert not torch.equal(padded.eval().encode(other).values, tokens.values)


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"a part of a video has 4 frames, and it needs 1 \+ 4 k"):
        next(built().encode_chunks([clips(1, 4)]))
    parts = built().encode_chunks([clips(1, 5), clips(1, 5)])
    next(parts)
    with pytest.raises(ConfigError, match="has 5 frames, and it needs a multiple of 4"):
        next(parts)


def test_a_quantizer_of_whole_clips_takes_one_length_only() -> None:
    tokenizer = built("conv3d-multiscale")
    assert tokenizer.layout_of(5) == tokenizer.layout
    for refused in (lambda: tokenizer.layout_of(9), lambda: tokenizer.part_layout(1, True)):
        with pytest.raises(LayoutError, match="takes clips of 5 frames only"):
            refused()
    with pytest.raises(LayoutError, match="takes clips of 5 frames only"):
        next(tokenizer.decode_chunks([]))


def test_another_length_is_the_tokenizers_own_from_then_on() -> None:
    tokenizer = built()
    tokenizer.fit((3, 9, 16, 16))
    assert tokenizer.layout.image == (3, 9, 16, 16) and tokenizer.layout.grid == (3, 4, 4)
    assert tokenizer.layout_of(9) is tokenizer.layout
    tokenizer.fit((1, 5, 16, 16))  # whoever asks compares the shapes
    assert tokenizer.layout.image == (3, 9, 16, 16)


# ---------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("downsample", "levels", "grid"),
    [
        ([4, 8, 8], 4, (5, 2, 4)),
        ([1, 4, 2], 3, (17, 4, 16)),
        ([8, 2, 4], 4, (3, 8, 8)),
        ([2, 1, 1], 2, (9, 16, 32)),
    ],
)
def test_each_axis_has_its_own_downsampling(downsample: list[int], levels: int, grid: tuple[int, ...]) -> None:
    section = conv3d.Config.tiny().model_dump() | {"downsample": downsample, "channel_multipliers": [1] * levels}
    config = validate(conv3d.Config, section | {"frame_patch": 1, "patch_size": 1}, "test")
    tokenizer = config.build((1, 17, 16, 32))
    assert tokenizer.layout.grid == grid
    video = torch.zeros(1, 1, 17, 16, 32)
    assert tokenizer(video).images.shape == video.shape


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"downsample": [3, 4, 4]}, "downsample of frames must be a power of two"),
        ({"frame_patch": 8}, "frame_patch 8 is more than downsample of frames 4"),
        ({"channel_multipliers": [1, 1, 1]}, "needs 2 multipliers, got 3"),
    ],
)
def test_settings_that_contradict_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(conv3d.Config, conv3d.Config.tiny().model_dump() | changes, "test")


@pytest.mark.parametrize(
    ("image", "words"), [((3, 16, 16), "use data with frames"), ((3, 5, 16, 18), "the width of a clip must be")]
)
def test_images_and_sizes_that_do_not_fit_are_refused(image: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        conv3d.Config.tiny().build(image)
