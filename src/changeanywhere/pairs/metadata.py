"""The ``metadata.jsonl`` beside pairs in folders: ours, a line by key; or a hub's list, which must say the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from changeanywhere.errors import PairsError
from changeanywhere.pairs.hub import METADATA, columns_of, rows_of, split_column, split_of, split_said
from changeanywhere.pairs.layouts import Layout, bare
from changeanywhere.pairs.names import CHANGE_FOLDER, IMAGE_FOLDERS, MASK_FOLDERS
from changeanywhere.regular import open_regular

OWN_COLUMN = f"{IMAGE_FOLDERS[0]}_file_name"
"""Of a line of ours, which names its files by folder."""


class Metadata:
    """Records of a ``metadata.jsonl`` by key; in memory are only the places of the lines."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._places: dict[str, int] = {}
        place = 0
        with open_regular(file) as lines:
            for number, line in enumerate(lines, 1):
                try:
                    if line.strip():  # editors end a file in an empty line
                        self._places[json.loads(line)["key"]] = place
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    said = "no 'key'" if isinstance(error, KeyError) else error
                    raise PairsError(f"{file}: damaged (line {number}: {said})") from error
                place += len(line)

    def of(self, key: str) -> dict[str, Any]:
        """The record of ``key``; empty if there is none."""
        if key not in self._places:
            return {}
        with self._file.open("rb") as lines:
            lines.seek(self._places[key])
            record: dict[str, Any] = json.loads(lines.readline())
        return record


def metadata_of(root: Path, layout: Layout) -> Metadata | None:
    """Records of the set in ``root``; None where there are none, or a list of the hub that agrees with the folders.

    :class:`PairsError` for a damaged file, for one of others that lists no pairs, and for a list of the hub that makes
    pairs of other files than those of equal names, leaves some out, or says other splits.
    """
    file = next((root / name for name in METADATA if (root / name).is_file()), None)
    if file is None:
        return None
    row = _first(file)
    columns = columns_of(name for name in row if name.endswith("_file_name"))
    if columns and not ("key" in row and columns[IMAGE_FOLDERS[0]] == OWN_COLUMN):
        _require_equal_names(file, root, layout)
        return None
    if file.suffix == ".csv":  # ours never is
        return None
    if row and "key" not in row:
        raise PairsError(
            f"{file}: line 1 has no 'key', so it is not of a generated set, and does not name images of both dates and "
            "a label (…_file_name); move it away, and the folders are read by the names of their files"
        )
    return Metadata(file)


def _first(file: Path) -> dict[str, Any]:
    """The first line as an object; empty where it is none, which :class:`Metadata` tells."""
    if file.suffix == ".csv":
        return next(rows_of(file), {})
    with open_regular(file) as lines:  # one of ours may be larger than memory
        line = next((line for line in lines if line.strip()), b"{}")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _require_equal_names(file: Path, root: Path, layout: Layout) -> None:
    """The pairs of a hub's list are those of ``layout``, which go by the names of files."""
    kinds = zip(
        (*IMAGE_FOLDERS, CHANGE_FOLDER, *MASK_FOLDERS), (*layout.images, layout.change, *layout.masks), strict=False
    )
    found = {kind: {_plain(path): bare(name) for name, path in layout.files(root, at).items()} for kind, at in kinds}
    named = set()
    listed = {split: {bare(name) for name in layout.split(root, split)} for split in layout.splits(root)}
    for number, row in enumerate(rows_of(file), 1):
        columns = columns_of(name for name in row if name.endswith("_file_name"))
        files = {kind: str(row[name]) for kind, name in columns.items() if found.get(kind)}
        names = {found[kind].get(_plain(file.parent / each)) for kind, each in files.items()}
        if len(names) != 1 or None in names:
            raise PairsError(
                f"{file}: line {number} makes a pair of {', '.join(files.values()) or 'no images'}, but the folders "
                "beside it are read by equal names; name the files so, or move either away"
            )
        named |= names
        column, (name,) = split_column(row), names
        said = split_said(row[column], f"{file}: line {number}") if column else None
        if said and (name not in listed.get(said, ()) if listed else said != (split_of(root.name) or "train")):
            raise PairsError(
                f"{file}: line {number} is of split {said!r}, which the folders beside it do not say of {name}; write "
                f"{root / 'list' / f'{said}.txt'}, or take the column {column!r} out"
            )
    present = set(found[IMAGE_FOLDERS[0]].values()) & set((found[CHANGE_FOLDER] or found[IMAGE_FOLDERS[0]]).values())
    if left := present - named:
        raise PairsError(
            f"{file}: lists {len(present) - len(left)} of the {len(present)} pairs in the folders beside it, not "
            f"{min(map(str, left))}; list all, or move it away to read all"
        )


def _plain(file: Path) -> str:
    """Without ``..``; links are not followed: nothing is opened by it."""
    return os.path.normpath(file)
