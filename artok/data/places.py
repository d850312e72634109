"""Which files a table of images may name.

Rows may hold paths and URLs in place of bytes, and whoever made the table chose them: without a limit it could have any
file of this machine opened, and any address fetched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from artok.data.pictures import Encoded, Unreadable

ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "zstd")  # protocols that read inside of a file named after "::"


class Places:
    """The folders and addresses of a data set. Links in its folders are followed.

    folders: local ones. addresses: beginnings of URLs, each of which ends a name.
    """

    def __init__(self, folders: Iterable[str | Path], addresses: Iterable[str] = ()) -> None:
        self._folders = [os.path.abspath(folder) for folder in dict.fromkeys(map(str, folders))]
        self._folders += [real for folder in self._folders if (real := os.path.realpath(folder)) not in self._folders]
        self._addresses = tuple(addresses)

    @classmethod
    def of(cls, path: str | None, files: Mapping[str, Sequence[str]] | None) -> Places:
        """Those of a data set on the hub or in a folder, `path`, or of local and remote `files` by split."""
        if files is not None:
            every = [file for split in files.values() for file in split]
            remote = [file for file in every if "://" in file]
            local = [Path(file).parent for file in every if "://" not in file]
            return cls(local, [f"{address.rpartition('/')[0]}/" for address in remote])
        folder = Path(path or "").expanduser()
        if path is None or folder.is_dir():
            return cls([folder])
        import datasets
        from huggingface_hub import constants

        repositories = f"hf://datasets/{path}", f"{constants.ENDPOINT}/datasets/{path}"
        caches = constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH
        return cls(caches, [f"{each}{end}" for each in repositories for end in "/@"])

    def stored(self, value: object) -> Encoded:
        """The stored form of an image, its bytes if there are any, else the file that it names."""
        path = value
        if isinstance(value, Mapping):
            if value.get("bytes") is not None:
                return bytes(value["bytes"])
            path = value.get("path")
        return self._named(path) if isinstance(path, str) else bytes(path) if isinstance(path, bytes) else None

    def _named(self, place: str) -> str | Unreadable:
        *inside, outer = place.split("::")
        if all(part.partition("://")[0] in ARCHIVES for part in inside):
            if "://" not in outer:
                for path in (outer, *(os.path.join(folder, outer) for folder in self._folders)):
                    if self._holds(path) and os.path.exists(path):
                        return "::".join([*inside, path])
                if self._holds(outer):
                    return place
            elif outer.startswith(self._addresses) and "/../" not in outer:
                return place
        return Unreadable(f"it names {place}, which is not one of the data's own files")

    def _holds(self, path: str) -> bool:
        whole = os.path.abspath(path)
        return any(whole.startswith(os.path.join(folder, "")) for folder in self._folders)
