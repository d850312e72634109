"""Finds the maps of images in the files of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from artok.data.captions import TABLES, name_rows, read_table
from artok.errors import DataError


def is_map(name: str, column: str | None) -> bool:
    """Whether a file is by its name the map of an image beside it, NAME.<column>.png of NAME.png."""
    return column is not None and os.path.splitext(os.path.splitext(name)[0])[1] == f".{column}"


def find_maps(
    root: object, images: Sequence[str], beside: Iterable[str], tables: Iterable[str], column: str
) -> dict[str, str]:
    """The normalised path of each image's map; those that have none are left out.

    beside: paths of files for which `is_map` holds. tables: paths of metadata files, whose column names files relative
    to the table; it may be called <column>_file_name, as `datasets` has it. A table goes before a file beside.
    DataError: no image has a map.
    """
    own = {os.path.splitext(os.path.splitext(path)[0])[0]: path for path in beside}
    found = {image: os.path.normpath(own[stem]) for image in images if (stem := os.path.splitext(image)[0]) in own}
    places = {os.path.normpath(image): image for image in images}
    for path in sorted(tables):
        for place, row in name_rows(path, read_table(path)):
            name = row.get(column) or row.get(f"{column}_file_name")
            if isinstance(name, str) and place in places:
                found[places[place]] = os.path.normpath(os.path.join(os.path.dirname(path), name))
    if not found:
        raise DataError(
            f"no image of {root} has a map '{column}' (data.control.column): there is no file NAME.{column}.png beside "
            f"a NAME.png, and no column '{column}' in {' or '.join(TABLES)}"
        )
    return found
