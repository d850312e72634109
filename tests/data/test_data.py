"""Every source of images under the contract of `Split`, and what each kind promises of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pytest
import torch
from helpers.images import encoded, paint, values
from helpers.paths import CIFAR10, needs_cifar10
from PIL import Image
from pyarrow import parquet

from artok import config
from artok.data import digits, folder, hub, shapes, stacked
from artok.data.base import DataConfig, SplitName
from artok.data.holdout import hold_out, split_stratified
from artok.data.splits import MemorySplit
from artok.data.streaming import StreamSplit
from artok.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tables that `datasets` prepares go to a temporary folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    yield


# ---------------------------------------------------------------------------------------------- every kind


@pytest.fixture(params=config.kinds("data"))
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> DataConfig:
    found = config.find("data", request.param)
    assert issubclass(found, DataConfig)
    return found.tiny(tmp_path)


def test_contract_of_splits(tiny: DataConfig) -> None:
    for name in get_args(SplitName):
        split = tiny.open(name)
        assert len(split) > 0 and split.classes and split.shape == (*tiny.image[:-2], tiny.side, tiny.side)
        indices = [0, len(split) - 1, len(split) // 2]
        examples = split.read(sorted(indices))
        assert examples.images.shape == (3, *split.shape) and examples.images.dtype == torch.uint8
        assert examples.labels.dtype == torch.int64 and examples.labels.shape == (3,)
        assert ((examples.labels >= 0) & (examples.labels < len(split.classes))).all()
        again = tiny.open(name).read(sorted(indices))
        assert torch.equal(examples.images, again.images) and torch.equal(examples.labels, again.labels)
        assert split.skipped == {}


def test_fingerprint_names_the_images(tiny: DataConfig) -> None:
    train, test = tiny.open("train").fingerprint, tiny.open("test").fingerprint
    larger = type(tiny)(**{**tiny.model_dump(), "size": tiny.size + 8}).open("train").fingerprint
    assert train == tiny.open("train").fingerprint
    assert len({train, test, larger}) == 3


def test_train_and_test_share_no_image(tiny: DataConfig) -> None:
    sets = []
    for name in ("train", "test"):
        split = tiny.open(name)
        sets.append({image.numpy().tobytes() for image in split.read(range(len(split))).images})
    assert not sets[0] & sets[1] and len(sets[1]) > 1


def test_config_survives_yaml(tiny: DataConfig) -> None:
    assert type(tiny).model_validate(tiny.model_dump(mode="json")) == tiny


def test_resize_below_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"resize .8. must be at least size .16."):
        config.validate(digits.Config, {"size": 16, "resize": 8}, "x.yaml")


# ---------------------------------------------------------------------------------------------- holding out


def test_stratified_shares_are_exact() -> None:
    labels = torch.tensor([0] * 50 + [1] * 31 + [3] * 19)
    train, test = split_stratified(labels, 30, seed=1)
    assert torch.bincount(labels[test]).tolist() == [15, 9, 0, 6]
    assert sorted(train.tolist() + test.tolist()) == list(range(100))
    assert torch.equal(test, split_stratified(labels, 30, seed=1)[1]) and not torch.equal(
        test, split_stratified(labels, 30, seed=2)[1]
    )


def test_a_share_leaves_something_on_both_sides() -> None:
    assert [len(part) for part in hold_out(torch.zeros(3, dtype=torch.int64), 0.01, 0)] == [2, 1]
    assert [len(part) for part in hold_out(torch.zeros(3, dtype=torch.int64), 0.99, 0)] == [1, 2]
    assert [len(part) for part in hold_out(torch.zeros(3, dtype=torch.int64), 0.0, 0)] == [3, 0]


# ---------------------------------------------------------------------------------------------- digits


FIRST_TEST_DIGITS = [1, 3, 4, 5, 6, 9, 0, 4, 5, 6, 7, 0]  # as they were when the split was fixed


def test_digits_split_is_fixed() -> None:
    train, test = digits.Config().open("train"), digits.Config().open("test")
    assert (len(train), len(test)) == (1257, 540)
    assert torch.bincount(test.labels).tolist() == [54, 55, 53, 55, 54, 55, 54, 54, 52, 54]
    assert (torch.bincount(train.labels) + torch.bincount(test.labels)).tolist() == [
        *[178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    ]
    assert test.labels[:12].tolist() == FIRST_TEST_DIGITS


def test_digits_are_the_real_ones() -> None:
    from sklearn.datasets import load_digits

    small = digits.Config(size=8).open("train")
    grey = torch.from_numpy(load_digits().images)
    assert torch.equal((small.images[:, 0].double() * 16 / 255).round(), _rows_of(grey, small.images[:, 0]))
    assert digits.Config(size=24, channels=3).open("test").shape == (3, 24, 24)


def _rows_of(grey: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """For each image the nearest original."""
    levels = images.flatten(1).double() * 16 / 255
    return grey[torch.cdist(levels, grey.flatten(1)).argmin(1)]


# ---------------------------------------------------------------------------------------------- shapes


def test_grey_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be 3"):
        config.validate(shapes.Config, {"channels": 1}, "x.yaml")


# ---------------------------------------------------------------------------------------------- stacked


def test_channels_of_a_stack_are_images_of_the_same_split() -> None:
    for name in get_args(SplitName):
        split, single = stacked.Config(size=8).open(name), digits.Config(size=8).open(name)
        indices = [0, 5, 1_999, 123_456]  # beyond its nominal length too
        images, drawn = split.read(indices).images, split.draw_sources(indices)
        assert split.classes == ("all",) and images.shape == (4, 3, 8, 8)
        assert torch.equal(images, single.images[drawn.flatten(), 0].reshape(4, 3, 8, 8))
        assert split.single is not None and split.single.fingerprint == single.fingerprint


def test_stacks_have_every_mode_and_depend_on_seed_and_index_alone() -> None:
    split = stacked.Config(size=8).open("train")
    assert isinstance(split.single, MemorySplit)
    labels = split.single.labels[split.draw_sources(range(20_000))]
    modes = labels @ torch.tensor([100, 10, 1])
    assert len(modes.unique()) == 1_000
    assert len(split.draw_sources(range(2_000)).unique(dim=0)) > 1_995  # 1,257 images to the third power
    assert torch.equal(split.draw_sources([7, 9])[1], split.draw_sources([9])[0])
    assert not torch.equal(split.draw_sources([7]), stacked.Config(size=8, seed=1).open("train").draw_sources([7]))


def test_what_cannot_be_stacked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="channels must be 3"):
        config.validate(stacked.Config, {"channels": 1}, "x.yaml")
    with pytest.raises(ConfigError, match=r"source: .*must be 3, since the shapes"):
        config.validate(stacked.Config, {"source": {"kind": "shapes"}}, "x.yaml")
    path = table(tmp_path / "a.parquet", {"label": [i % 3 for i in range(30)]})
    source = {"kind": "hub", "files": path, "size": 8, "streaming": True, "classes": ["a", "b", "c"]}
    with pytest.raises(DataError, match="streamed cannot be stacked"):
        config.validate(stacked.Config, {"size": 8, "source": source}, "x.yaml").open("train")


def test_any_labelled_images_can_be_stacked(tmp_path: Path) -> None:
    source = {**folder.Config.tiny(tmp_path).model_dump(), "channels": 3}
    split = config.validate(stacked.Config, {"size": 12, "source": source}, "x.yaml").open("test")
    assert split.read([3]).images.shape == (1, 3, 12, 12)
    assert split.single is not None and split.single.shape == (1, 12, 12)


# ---------------------------------------------------------------------------------------------- folder


def test_class_folders_with_train_and_validation(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "b" / "deep" / "1.PNG", 10)
    paint(tmp_path / "train" / "a" / "2.bmp", 20)
    paint(tmp_path / "val" / "b" / "3.webp", 30)
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    settings = folder.Config(root=tmp_path, size=8)
    train, test = settings.open("train"), settings.open("test")
    assert train.classes == test.classes == ("a", "b")
    assert values(train) == [20, 10] and train.labels.tolist() == [0, 1]
    assert values(test) == [30] and test.labels.tolist() == [1]


def test_folders_without_test_hold_out_a_share_of_each_class(tmp_path: Path) -> None:
    for index in range(40):
        paint(tmp_path / ("a" if index < 30 else "b") / f"{index:02}.png", index)
    settings = folder.Config(root=tmp_path, size=8, holdout=0.2)
    train, test = settings.open("train"), settings.open("test")
    assert torch.bincount(test.labels).tolist() == [6, 2]
    assert sorted(values(train) + values(test)) == list(range(40))
    other = folder.Config(root=tmp_path, size=8, holdout=0.2, seed=1).open("test")
    assert values(other) != values(test)


def test_images_without_class_folders_are_one_class(tmp_path: Path) -> None:
    for index in range(10):
        paint(tmp_path / f"{index}.png", index)
    assert folder.Config(root=tmp_path, size=8).open("train").classes == ("all",)


def test_folder_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    first = folder.Config.tiny(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    second = folder.Config(root=tmp_path / "two" / "pictures", size=8, holdout=0.25)
    assert first.open("train").fingerprint == second.open("train").fingerprint
    for path in (tmp_path / "two").rglob("*.png"):
        paint(path, 99)
    assert first.open("train").fingerprint != second.open("train").fingerprint


def test_folder_mistakes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        folder.Config(root=tmp_path / "none", size=8).open("train")
    with pytest.raises(DataError, match="holds no images"):
        folder.Config(root=tmp_path, size=8).open("train")
    paint(tmp_path / "test" / "a" / "1.png", 1)
    with pytest.raises(DataError, match="no folder 'train' beside it"):
        folder.Config(root=tmp_path, size=8).open("train")
    paint(tmp_path / "train" / "b" / "1.png", 1)
    with pytest.raises(DataError, match="class folder 'a'"):
        folder.Config(root=tmp_path, size=8).open("test")
    paint(tmp_path / "train" / "stray.png", 1)
    with pytest.raises(DataError, match=r"both images \(such as stray.png\) and class folders"):
        folder.Config(root=tmp_path, size=8).open("train")
    paint(tmp_path / "one" / "a" / "1.png", 1)
    with pytest.raises(DataError, match=r"nothing of .* is held out"):
        folder.Config(root=tmp_path / "one", size=8).open("test")


# ---------------------------------------------------------------------------------------------- hub


def table(path: Path, columns: dict[str, Any], rows: int = 30) -> str:
    """A parquet file of grey images "img" whose values count up, with further columns."""
    images = [{"bytes": encoded(Image.new("RGB", (8, 8), (i, i, i))), "path": None} for i in range(rows)]
    parquet.write_table(pyarrow.table({"img": images, **columns}), path)
    return str(path)


def test_local_parquet_with_bare_numbers(tmp_path: Path) -> None:
    train = table(tmp_path / "a.parquet", {"label": [i % 3 * 2 for i in range(30)]})
    test = table(tmp_path / "b.parquet", {"label": [4, 2]}, rows=2)
    settings = hub.Config(files={"train": train, "test": test}, size=8)
    assert settings.open("train").classes == ("0", "2", "4")
    split = settings.open("test")
    assert values(split) == [0, 1] and split.read([0, 1]).labels.tolist() == [2, 1]  # as the training split counts
    named = hub.Config(files={"train": train, "test": test}, size=8, classes=["a", "b", "c", "d", "e"])
    assert named.open("test").read([0]).labels.tolist() == [4] and named.open("test").classes[4] == "e"


def test_hub_texts_as_labels_and_no_labels(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", {"class": ["dog", "cat"] * 15})
    split = hub.Config(files=path, size=8, holdout=0).open("train")
    assert split.classes == ("cat", "dog") and split.read([0, 1]).labels.tolist() == [1, 0]
    assert hub.Config(files=table(tmp_path / "b.parquet", {}), size=8).open("train").classes == ("all",)


def test_hub_holds_out_a_stratified_share(tmp_path: Path) -> None:
    settings = hub.Config(files=table(tmp_path / "a.parquet", {"label": [i % 3 for i in range(30)]}), size=8)
    train, test = settings.open("train"), settings.open("test")
    assert sorted(values(train) + values(test)) == list(range(30))
    assert torch.bincount(test.read(range(3)).labels).tolist() == [1, 1, 1]


def test_hub_fingerprint_follows_content(tmp_path: Path) -> None:
    labels = {"label": [i % 3 for i in range(30)]}
    first = hub.Config(files=table(tmp_path / "a.parquet", labels), size=8).open("train").fingerprint
    (tmp_path / "moved").mkdir()
    shutil.copy(tmp_path / "a.parquet", tmp_path / "moved" / "a.parquet")
    assert hub.Config(files=str(tmp_path / "moved" / "*.parquet"), size=8).open("train").fingerprint == first
    labels["label"][0] = 2
    assert hub.Config(files=table(tmp_path / "a.parquet", labels), size=8).open("train").fingerprint != first


def test_hub_mistakes_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"there is no file .*none.parquet"):
        hub.Config(files=str(tmp_path / "none.parquet"), size=8).open("train")
    (tmp_path / "bad.parquet").write_bytes(b"these are no tables")
    with pytest.raises(DataError, match="cannot be loaded"):
        hub.Config(files=str(tmp_path / "bad.parquet"), size=8).open("train")
    with pytest.raises(DataError, match=r"cannot be (loaded|read)"):
        hub.Config(files=str(tmp_path / "bad.parquet"), size=8, streaming=True).open("train").read([0])
    with pytest.raises(ConfigError, match="needs `path`"):
        config.validate(hub.Config, {"size": 8}, "x.yaml")
    path = table(tmp_path / "a.parquet", {"label": [0, 1, -1] * 10, "price": [0.5] * 30})
    with pytest.raises(DataError, match=r"label -1 at index 2 of .* is outside the 2 classes \(a, b\)"):
        hub.Config(files=path, size=8, classes=["a", "b"]).open("train")
    with pytest.raises(DataError, match=r"no column 'picture' .*its columns are img, label, price"):
        hub.Config(files=path, size=8, image_column="picture").open("train")
    with pytest.raises(DataError, match=r"'price' of .* holds float64, not class labels"):
        hub.Config(files=path, size=8, label_column="price").open("train")
    with pytest.raises(DataError, match="has no split 'training'; it has train"):
        hub.Config(files=path, size=8, train_split="training").open("train")
    parquet.write_table(pyarrow.table({"text": ["a"], "label": [1]}), tmp_path / "text.parquet")
    with pytest.raises(DataError, match=r"no column of .* holds images; its columns are text, label"):
        hub.Config(files=str(tmp_path / "text.parquet"), size=8).open("train")


def test_an_unreachable_hub_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach 'cifar10' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match="'cifar10' cannot be reached; download it and name the local files under"):
        hub.Config(path="cifar10", size=8).open("train")


def test_broken_images_in_a_table_are_skipped(tmp_path: Path) -> None:
    images = [{"bytes": encoded(Image.new("RGB", (8, 8), (i, i, i))), "path": None} for i in range(150)]
    images[5] = {"bytes": images[5]["bytes"][:30], "path": None}
    parquet.write_table(pyarrow.table({"image": images}), tmp_path / "a.parquet")
    for streaming in (False, True):
        split = hub.Config(files=str(tmp_path / "a.parquet"), size=8, test_split="train", streaming=streaming).open(
            "test"
        )
        assert values(split) == [0, 1, 2, 3, 4, 6, *range(6, 150)]
        assert list(split.skipped) == [5]


# ---------------------------------------------------------------------------------------------- streaming


def stream(path: str, **settings: Any) -> hub.Config:
    return hub.Config(files=path, size=8, streaming=True, classes=["a", "b", "c"], **settings)


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    return table(tmp_path / "a.parquet", {"label": [i % 3 for i in range(90)]}, rows=90)


def test_a_stream_is_mixed_complete_and_resumes_exactly(labelled: str) -> None:
    settings = stream(labelled, shuffle_buffer=16)
    split, test = settings.open("train"), settings.open("test")
    assert isinstance(split, StreamSplit) and split.sequential
    count = len(split)
    assert count + len(test) == 90
    first = values(split)
    second = split.read(range(count, 2 * count)).images[:, 0, 0, 0].tolist()
    assert sorted(first) == sorted(second) and first != second and first != sorted(first)
    assert not set(first) & set(values(test)) and values(test) == sorted(values(test))
    resumed = settings.open("train")
    middle = count + 11
    assert resumed.read(range(middle, middle + 5)).images[:, 0, 0, 0].tolist() == second[11:16]
    assert resumed.read([3, 4]).images[:, 0, 0, 0].tolist() == first[3:5]  # going back starts again
    assert resumed.read([0]).labels.tolist() == [first[0] % 3]


def test_stream_mistakes_are_sentences(labelled: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list their names in data.classes"):
        hub.Config(files=labelled, size=8, streaming=True).open("train")
    with pytest.raises(DataError, match="ended before row 100"):
        split = stream(labelled, lengths={"train": 100}).open("train")
        split.read(range(len(split)))
    short = hub.Config(files=labelled, size=8, streaming=True, classes=["a", "b"], shuffle_buffer=1, holdout=0)
    with pytest.raises(DataError, match=r"label 2 at index 2 of .* is outside the 2 classes"):
        short.open("train").read([0, 1, 2])


# ---------------------------------------------------------------------------------------------- CIFAR-10


@needs_cifar10
@pytest.mark.parametrize("streaming", [False, True])
def test_cifar10_is_found_by_itself(streaming: bool) -> None:
    settings = hub.Config(
        files={"train": str(CIFAR10 / "train.parquet"), "test": str(CIFAR10 / "test.parquet")},
        size=32,
        streaming=streaming,
    )
    split = settings.open("test")
    assert len(split) == 10_000 and split.classes[:2] == ("airplane", "automobile") and len(split.classes) == 10
    examples = split.read(range(50))
    assert examples.images.shape == (50, 3, 32, 32) and len(examples.labels.unique()) == 10
    assert split.enlarged == set() and split.skipped == {}
