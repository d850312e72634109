"""What a tree of many files holds, kept in the user's cache, so that a start neither lists nor asks for each file.

A manifest is used while every folder has the time of its last change (which files that come, go or are renamed change)
and a sample of the files have their sizes and times. A file that is overwritten in place by another of any size is met
in the sample or not; `data.verify` lists and reads everything anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from artok.cache import cache_directory
from artok.data.fingerprints import digest_contents, digest_parts
from artok.data.order import choose_rows
from artok.files import move

MANY = 10_000  # images from which on a source has a manifest
SAMPLE = 1_000  # files whose sizes and times are looked at
VERSION = 1


class Manifest:
    """The listing of a tree, and what was worked out from it.

    listed: as `list_all` gave it. trusted: it came from the cache. paths: all files that it lists.
    """

    def __init__(
        self,
        key: tuple[object, ...],
        list_all: Callable[[], tuple[dict[str, Any], dict[str, int], int]],
        paths: Callable[[dict[str, Any]], list[str]],
        verify: bool,
    ) -> None:
        """key: what the listing depends on. list_all: a listing that JSON can hold, the times of its folders, or of
        its files where these are few, and the number of images. paths: the files of a listing.

        verify: list anew, whatever is in the cache, and read all files.
        """
        self._place, self._key = _place(key), [str(part) for part in key]
        stored = _read(self._place, self._key)
        self._answers: dict[str, Any] = {}
        self.trusted, self.changed = False, False
        if stored is not None and not verify and _is_current(stored):
            self.listed, self._folders, self._files = stored["listed"], stored["folders"], stored["files"]
            self._answers, self.trusted = stored["answers"], True
            return
        self.listed, self._folders, images = list_all()
        everything = paths(self.listed)
        chosen = choose_rows(len(everything), SAMPLE).tolist() if images >= MANY else []
        self._files = {everything[row]: _state(everything[row]) for row in chosen}
        if verify:
            self._answers["contents"] = digest_contents(everything)
            before = None if stored is None else stored["answers"].get("contents")
            self.changed = before is not None and before != self._answers["contents"]

    @property
    def stamp(self) -> str:
        """Changes when a folder does."""
        return digest_parts(*sorted(self._folders.items()))

    def remember(self, name: str, work_out: Callable[[], Any]) -> Any:
        """The answer that JSON can hold to a question about the files, worked out once."""
        if name not in self._answers:
            self._answers[name] = work_out()
            if self._files:
                self._write()
        return self._answers[name]

    def _write(self) -> None:
        data = {"version": VERSION, "key": self._key, "listed": self.listed, "folders": self._folders}
        data |= {"files": self._files, "answers": self._answers}
        with suppress(OSError):  # a cache that cannot be written only costs the listing of the next start
            self._place.parent.mkdir(parents=True, exist_ok=True)
            aside = self._place.with_name(f"{self._place.name}.{os.getpid()}.new")
            aside.write_text(json.dumps(data))
            move(aside, self._place)


def _place(key: tuple[object, ...]) -> Path:
    return cache_directory() / "manifests" / f"{digest_parts(*key)}.json"


def _read(place: Path, key: list[str]) -> dict[str, Any] | None:
    try:
        stored = json.loads(place.read_text())
        return stored if stored["version"] == VERSION and stored["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_current(stored: dict[str, Any]) -> bool:
    try:
        folders = all(os.stat(path).st_mtime_ns == time for path, time in stored["folders"].items())
        return folders and all(_state(path) == state for path, state in stored["files"].items())
    except OSError:
        return False


def _state(path: str) -> list[int]:
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns]
