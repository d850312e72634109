"""Maps beside images: they are made of the augmented images, kept in few bytes, and stay aligned."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from artok.config import find, kinds, validate
from artok.data import digits
from artok.data.base import Augment, Examples
from artok.data.controls import edges, low_resolution
from artok.data.controls.base import ControlConfig
from artok.data.loader import Loader, evaluation_batches
from artok.data.splits import MemorySplit
from artok.data.token_writing import EncodedImages, write_tokens
from artok.data.tokens import TokenCache, TokenIndex, TokenLoader, evaluation_tokens
from artok.errors import ConfigError, DataError
from artok.images import to_uint8
from artok.layout import TokenLayout

CHANGES = Augment(flip=True, shift=0.2, rotate=30)


def pictures(count: int, channels: int = 3, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, channels, side, side), generator=torch.Generator().manual_seed(0)).byte()


def tiny(kind: str) -> ControlConfig:
    found = find("data.controls", kind).tiny()
    assert isinstance(found, ControlConfig)
    return found


@pytest.mark.parametrize("kind", kinds("data.controls"))
@pytest.mark.parametrize("channels", [1, 3])
def test_packed_maps_come_back_exactly(kind: str, channels: int) -> None:
    control, images = tiny(kind), pictures(5, channels)
    maps = images[:, : control.count_channels(channels)] if control.stored else control.compute(images)
    assert maps.shape == (5, control.count_channels(channels), 16, 16) and maps.dtype == torch.uint8
    packed = control.pack(maps)
    assert packed.dtype == torch.uint8 and len(packed) == 5
    assert torch.equal(control.unpack(packed, (16, 16)), maps)


def square(top: int, left: int, side: int = 6) -> Tensor:
    image = torch.full((1, 3, 16, 16), 40, dtype=torch.uint8)
    image[..., top : top + side, left : left + side] = 200
    return image


def test_edges_lie_around_a_square() -> None:
    found = edges.Config(sigma=0.5).compute(square(4, 5)) > 0
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[4:10, 5:11] = True
    inner = torch.zeros(16, 16, dtype=torch.bool)
    inner[5:9, 6:10] = True
    outer = torch.zeros(16, 16, dtype=torch.bool)
    outer[3:11, 4:12] = True
    assert found.any() and not (found[0, 0] & (inner | ~outer)).any()


def test_edges_between_colours_of_equal_brightness_are_found() -> None:
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    image[:, 0, :, :8], image[:, 1, :, 8:] = 200, 200
    assert not edges.Config().compute(image.float().mean(1, keepdim=True).byte()).any()
    assert edges.Config().compute(image).any()


def test_packed_edges_take_an_eighth() -> None:
    control = edges.Config()
    assert control.pack(control.compute(pictures(3))).shape == (3, 32)
    assert low_resolution.Config(factor=4).pack(low_resolution.Config(factor=4).compute(pictures(3))).shape[2:] == (
        4,
        4,
    )


@pytest.mark.parametrize("size", [(8,), (4, 8), (4, 4, 6)])
def test_low_resolution_is_the_mean_of_each_cell_for_any_axes(size: tuple[int, ...]) -> None:
    images = torch.randint(0, 256, (2, 1, *size)).byte()
    control = low_resolution.Config(factor=2)
    maps = control.compute(images)
    assert maps.shape == images.shape
    corner = (slice(None), 0, *(slice(0, 2) for _ in size))
    assert torch.equal(
        maps[corner].flatten(1),
        images[corner].float().flatten(1).mean(1).round().byte()[:, None].expand(-1, 2 ** len(size)),
    )
    assert torch.equal(control.unpack(control.pack(maps), size), maps)


def test_a_factor_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="factor 3 does not divide images of 16x16 pixels"):
        low_resolution.Config(factor=3).compute(pictures(1))


def test_low_thresholds_above_high_ones_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"low \(0.3\) must not be above high \(0.2\)"):
        validate(edges.Config, {"kind": "edges", "low": 0.3}, "test")


def test_edges_without_scikit_image_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(ConfigError, match=r"pip install 'artok\[control\]'"):
        edges.Config().compute(pictures(1))


# ------------------------------------------------------------------------------------------------- aligned


class Mapped(MemorySplit):
    """Images with maps beside them that are their first channel."""

    def read(self, indices: Any) -> Examples:
        read = super().read(indices)
        return replace(read, maps=read.images[:, :1])


class Stored(ControlConfig):
    stored = True
    kind: Literal["stored"] = "stored"

    def count_channels(self, image: int) -> int:
        return 1

    def compute(self, images: Tensor) -> Tensor:
        raise AssertionError

    @classmethod
    def tiny(cls) -> Stored:
        return cls()


def data(control: ControlConfig | None, **changes: Any) -> digits.Config:
    return digits.Config(size=16, augment=CHANGES, **changes).model_copy(update={"control": control})


def test_maps_are_made_of_the_augmented_images() -> None:
    split = data(None).open("train")
    with Loader(split, data(edges.Config()), 8, seed=3) as loader:
        batch = next(loader)
    assert batch.control is not None
    assert torch.equal(batch.control, edges.Config().compute(to_uint8(batch.images)))
    plain = next(evaluation_batches(split, data(edges.Config()), 8))
    assert torch.equal(plain.control, edges.Config().compute(plain.pixels))
    assert torch.equal(batch[2:4].control, batch.control[2:4])
    assert next(evaluation_batches(split, data(None), 8)).control is None


def test_maps_of_the_data_are_augmented_as_the_images_are() -> None:
    split = Mapped(pictures(20), torch.zeros(20, dtype=torch.int64), ("all",), "x")
    with Loader(split, data(Stored()), 8, seed=3) as loader:
        batch = next(loader)
    assert torch.equal(batch.control, to_uint8(batch.images)[:, :1])
    with Loader(split, data(Stored()), 8, seed=3, train=False) as loader:
        assert torch.equal(next(loader).control, pictures(20)[:8, :1])


# ------------------------------------------------------------------------------------------------- token caches

EDGES = edges.Config()
LAYOUT = TokenLayout(((4, 4),), 3, 300, (3, 16, 16))


def cache_of(folder: Path, control: ControlConfig = EDGES, shard: int | None = None) -> tuple[TokenCache, Tensor]:
    """A cache of 20 images in 2 copies, and the maps of all."""
    maps = control.compute(pictures(40))

    def encode(first: int, last: int, done: int) -> Any:
        for start in range(first, last, 3):
            end = min(start + 3, last)
            values = torch.arange(start, end)[:, None, None, None].expand(-1, 2, 16, 1)
            yield EncodedImages(values, torch.zeros(end - start).long(), control=maps[2 * start : 2 * end])

    index = TokenIndex.of(LAYOUT, "tok", "dat", ("all",), 20, 2, "flip", control=control)
    write_tokens(folder, index, encode, {}, lambda met: None, shard)
    return TokenCache.open(folder, index), maps.unflatten(0, (20, 2))


@pytest.mark.parametrize("control", [edges.Config(), low_resolution.Config(factor=4)], ids=lambda each: each.kind)
@pytest.mark.parametrize("shard", [None, 7])
def test_each_stored_copy_has_its_map(tmp_path: Path, control: ControlConfig, shard: int | None) -> None:
    cache, maps = cache_of(tmp_path / "cache", control, shard)
    for batch in islice(TokenLoader(cache, 8, seed=1), 5):
        images = batch.tokens.values[:, 0, 0]
        which = [torch.equal(one, maps[image, 1]) for one, image in zip(batch.control, images, strict=True)]
        assert any(which) and not all(which)
        assert all(
            torch.equal(one, maps[image, int(second)])
            for one, image, second in zip(batch.control, images, which, strict=True)
        )
    plain = next(evaluation_tokens(cache, 20))
    assert torch.equal(plain.control, maps[:, 0])
    assert torch.equal(plain[3:5].control, maps[3:5, 0])
    assert torch.equal(plain.to("cpu").control, maps[:, 0])


def test_a_cache_of_other_maps_is_refused(tmp_path: Path) -> None:
    cache, _ = cache_of(tmp_path / "cache")
    for other in (edges.Config(sigma=2), None):
        wanted = TokenIndex.of(LAYOUT, "tok", "dat", ("all",), 20, 2, "flip", control=other)
        with pytest.raises(DataError, match=r"are stored with the control .*sigma"):
            TokenCache.open(tmp_path / "cache", wanted)
    assert cache.index.maps == edges.Config()


def test_a_cache_without_its_maps_is_damaged(tmp_path: Path) -> None:
    cache_of(tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    stored = load_file(path)
    stored["control"] = stored["control"][:, :1].contiguous()
    save_file(stored, path)
    index = tmp_path / "cache" / "index.json"
    parsed = json.loads(index.read_text())
    parsed["shards"][0]["bytes"] = path.stat().st_size
    index.write_text(json.dumps(parsed))
    with pytest.raises(DataError, match="damaged or does not fit its index"):
        TokenCache.open(tmp_path / "cache")
