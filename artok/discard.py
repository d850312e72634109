"""Discards the folder of a run or a study for `--fresh`, and no other folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from artok.errors import CheckpointError

# The paths that artok writes below a run's folder and a study's, and files that a kill may leave anywhere.
MODEL = r"(config\.yaml|model\.safetensors)"
PASSING = r"(.*/)?\.([^/]+\.(tmp|lock)|tmp\w{6})"
RUN = rf"""(best/)?(tokenizer/)?{MODEL}|log\.jsonl|results\.json|report\.html|samples/\d+\.png
    |(snapshots|moments)/\d+\.safetensors
    |checkpoints/(damaged-\d+|\d+|\.\d+\.tmp)/[\w-]+\.(safetensors|bin|pkl|pt|json)
    |artok/(.*/)?events\.out\.tfevents[^/]*|{PASSING}"""
STUDY = rf"""(beside/)?(study\.yaml|results\.(json|csv)|report\.html|speeds\.json|configs/[^/]+\.yaml
    |records/.*\.json|slurm/.*|((tokenizers|probes)/[^/]+|trained/[^/]+/seed\d+)/({RUN})|{PASSING})"""
KNOWN = re.compile(f"{RUN}|{STUDY}", re.VERBOSE)

# A file of one of these names with such a line says that the folder is artok's.
MARKERS = {"config.yaml": r"^tokenizer:", "study.yaml": r"^entries:", "log.jsonl": r'^\{"event": '}


def check_discardable(folder: Path) -> None:
    """Raise a CheckpointError when a folder holds anything that artok did not write as a run or a study."""
    files = sorted(_list_files(folder)) if folder.exists() else []
    strange = [name for name in files if not KNOWN.fullmatch(name)]
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise CheckpointError(
            f"{folder} holds files that artok does not write ({', '.join(strange[:3])}{more}), so --fresh does not "
            "discard it; move them away, or choose another folder with --out"
        )
    if any(not re.fullmatch(PASSING, name) for name in files) and not any(
        map(_is_marker, map(folder.joinpath, MARKERS))
    ):
        raise CheckpointError(
            f"{folder} is no run or study of artok: it has no {', '.join(MARKERS)}, so --fresh does not discard it; "
            "choose another folder with --out"
        )


def discard(folder: Path) -> None:
    """Delete everything in a folder except lock files, which the caller may hold. Errors: `check_discardable`."""
    check_discardable(folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != ".lock":
            path.unlink(missing_ok=True)


def _list_files(folder: Path) -> Iterator[str]:
    """Paths of all files, and of all links, below a folder."""
    if folder.is_file():
        yield folder.name
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        yield from (Path(parent, name).relative_to(folder).as_posix() for name in [*files, *links])


def _is_marker(path: Path) -> bool:
    return path.is_file() and re.search(MARKERS[path.name], path.read_text(errors="replace"), re.MULTILINE) is not None
