"""Encodes a data set to a token cache, for `artok encode` and at the start of a generator's training; captions too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, cast

import torch

from artok.cache import cache_directory, writing_cache
from artok.conditioning.encoders.frozen import FrozenEncoder
from artok.conditioning.encoders.stored import StoredTexts, write_texts
from artok.config import OPEN, dump, of_kind, override, read_yaml, validate
from artok.config import Config as Section
from artok.data.base import DataConfig, Split, SplitName, note_skipped
from artok.data.token_writing import EncodedImages, write_tokens
from artok.data.tokens import TokenCache, TokenIndex, holds
from artok.data.transforms import augmented_copies, split_maps, stack_maps
from artok.errors import ConfigError
from artok.noise import fold
from artok.saved import CONFIG, find_saved, fingerprint, load_tokenizer
from artok.tokenizers.base import Tokenizer
from artok.training.progress import Progress

BATCH = 64


def open_or_encode(
    tokenizer: Tokenizer,
    mark: str,
    data: DataConfig,
    name: SplitName,
    copies: int,
    folder: Path | None,
    device: torch.device,
    progress: Progress,
) -> TokenCache:
    """Open the tokens of a split in `folder`. Without a folder, use the user's cache, and encode if they are missing.

    Several processes that call this at once share the encoding. mark: the tokenizer's fingerprint. copies: encodings
    per image, the first without augmentation. DataError: the tokens in `folder` are not these, or damaged.
    """
    split = data.open(name)
    wanted = describe_tokens(tokenizer, mark, data, split, copies)
    if folder is None:
        augment = dump(data.augment) if copies > 1 else ""
        maps = () if data.control is None else (dump(data.control),)
        key = f"{fold(mark, split.fingerprint, data.size, copies, augment, *maps):016x}"
        folder = cache_directory() / "tokens" / f"{mark}-{key}"
        if not holds(folder, wanted):
            with writing_cache():
                folder.parent.mkdir(parents=True, exist_ok=True)
            write_cache(tokenizer, wanted, data, split, folder, device, progress)
    return TokenCache.open(folder, wanted)


def describe_tokens(tokenizer: Tokenizer, mark: str, data: DataConfig, split: Split, copies: int) -> TokenIndex:
    """The index of the cache that a tokenizer, data and a number of copies give."""
    augment = json.dumps(data.augment.model_dump(mode="json"))
    return TokenIndex.of(
        tokenizer.layout,
        mark,
        split.fingerprint,
        split.classes,
        len(split),
        copies,
        augment,
        captions=split.captioned,
        control=data.control,
    )


def write_cache(
    tokenizer: Tokenizer,
    index: TokenIndex,
    data: DataConfig,
    split: Split,
    folder: Path,
    device: torch.device,
    progress: Progress,
) -> None:
    """Encode a split into a folder. A stopped writing is resumed."""
    tokenizer, copies = tokenizer.to(device).eval(), index.copies

    @torch.no_grad()
    def encode(first: int, last: int, done: int) -> Iterator[EncodedImages]:
        for start in range(first, last, BATCH):
            indices = torch.arange(start, min(start + BATCH, last))
            examples = split.read(indices.tolist())
            changed = augmented_copies(stack_maps(examples), data.augment, data.size, indices, copies, seed=0)
            images, control = split_maps(changed.flatten(0, 1), examples.images.shape[1], data.control)
            values = torch.cat([tokenizer.encode(part.to(device)).values.cpu() for part in images.split(BATCH)])
            values = values.unflatten(0, (len(indices), copies))
            yield EncodedImages(values, examples.labels, examples.captions, control)
            progress.advance((done + start - first + len(indices)) * copies)

    progress.notes(split)
    progress.say(f"encoding {len(split):,} images, {copies} time{'s' if copies > 1 else ''} each, into {folder}")
    with progress.over(0, len(split) * copies):
        write_tokens(folder, index, encode, split.skipped, lambda met: note_skipped(split, met))
    if split.skipped:
        progress.skipped(list(split.skipped.values()))


def store_captions(encoder: FrozenEncoder, caches: Sequence[TokenCache], progress: Progress) -> None:
    """Give an encoder the features of the captions of token caches, encoded into the user's cache where they are not.

    Several processes that call this at once share the encoding. RunError: the cache cannot be written.
    """
    stores = []
    for cache in caches:
        if cache.captions is None:
            continue
        folder = cache_directory() / "texts" / f"{encoder.mark}-{fold(cache.index.data):016x}"
        store = StoredTexts.open(folder)
        if store is None:
            texts = cache.captions.distinct()
            progress.say(f"encoding {len(texts):,} captions by {encoder.config.name} into {folder}")
            with writing_cache(), progress.over(0, len(texts), "captions"):
                write_texts(folder, texts, encoder.entries, 2 * encoder.length * encoder.features, progress.advance)
            store = StoredTexts.open(folder)
        stores += [] if store is None else [store]
    encoder.stored = tuple(stores)


class DataOnly(Section):
    """A config with only a `data:` section."""

    data: Annotated[DataConfig, of_kind("data"), OPEN]


def read_data_section(
    folder: Path, image: tuple[int, ...], changes: Sequence[str], any_length: bool = False
) -> DataConfig:
    """Read a run's `data:` section, with changes as data.key=value on top.

    any_length: clips may have another number of frames. ConfigError: there is none, or its images are not of the
    model's shape `image`, (channels, *size).
    """
    section = read_yaml(folder / CONFIG).get("data")
    if section is None and not changes:
        raise ConfigError(f"{folder / CONFIG} names no data to measure on; add its 'data' section")
    changed = override({"data": section or {}}, changes)["data"]
    if isinstance(changed, dict):  # merging drops the size when the kind changes
        changed = {"size": image[-1], "channels": image[0]} | changed
    data = validate(DataOnly, {"data": changed}, str(folder / CONFIG)).data
    longer = any_length and len(image) == len(data.image) == 4 and data.image == (*image[:1], data.image[1], *image[2:])
    if data.image != tuple(image) and not longer:
        raise ConfigError(
            f"{folder} was trained on images of {tuple(image)} (channels, *size), but data gives {data.image}"
        )
    return data


def encode_command(
    name: str, changes: Sequence[str], split: str, copies: int, folder: Path | None, device: torch.device
) -> tuple[Path, TokenCache]:
    """`artok encode`: encode the tokenizer's own data, with changes, into a folder."""
    tokenizer, _ = load_tokenizer(name)
    if split not in ("train", "test"):
        raise ConfigError(f"split must be train or test, not {split!r}")
    settings = [f"data.{change}" for change in changes]
    data = read_data_section(find_saved(name), tokenizer.layout.image, settings, any_length=True)
    tokenizer.fit(data.image)
    opened = data.open(cast(SplitName, split))
    folder = folder or Path("tokens") / f"{Path(name).name}-{split}"
    index = describe_tokens(tokenizer, fingerprint(tokenizer), data, opened, copies)
    write_cache(tokenizer, index, data, opened, folder, device, Progress("encode"))
    return folder, TokenCache.open(folder, index)
