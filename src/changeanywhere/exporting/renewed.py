"""A folder that holds one export alone: the new one is written whole in a hidden folder in it, then takes the place of
the one before. No torch here.

``exported.jsonl`` lists what an export wrote, so that the next one removes exactly that: a line that says so, then a
name per line. It is written before the first file changes place and again after the last, so that an export that was
killed in between is known for one, and the same command again finishes it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from changeanywhere.documents import parse_json, to_json
from changeanywhere.errors import OutputError
from changeanywhere.folders import entries_of
from changeanywhere.regular import open_regular
from changeanywhere.storage import LocalStore, part_of, refuse_way_out, remove_leftovers

LISTED, LINES, CARD = "exported.jsonl", "metadata.jsonl", "README.md"
MARK = "export"
"""What the first line of the list says that the folder is."""
ALLOWED = "allowed: a folder that is new or empty, or that export wrote"


@contextmanager
def renewed(out: Path, layout: str) -> Iterator[Path]:
    """A folder to fill; at the end what is in it is the export in ``out``, and nothing of an earlier one is.

    Until then an earlier one stays as it is. Files that no export wrote stay; :class:`OutputError` where one is in the
    way, for a folder that is not empty and no export, and for one that cannot be written.
    """
    is_new = not os.path.lexists(out)
    old = _written(out)
    part = part_of(out / MARK)
    try:
        try:
            shutil.rmtree(part, ignore_errors=True)  # of a killed process that had our number: in containers they recur
            part.mkdir(parents=True)
            remove_leftovers(out)
        except OSError as error:
            raise OutputError(f"{out}: cannot be written ({error.strerror})") from error
        _refuse_another(out, part)
        try:
            yield part
        except OutputError as error:
            if str(part) not in str(error) or not isinstance(error.__cause__, OSError):
                raise
            why = f"({error.__cause__.strerror}); an earlier export in it stays as it was"
            raise OutputError(f"{out}: cannot be written {why}") from error.__cause__
        new = [file.relative_to(part).as_posix() for file in part.rglob("*") if file.is_symlink() or file.is_file()]
        _refuse_in_the_way(out, old, new)
        try:
            _replace(out, layout, part, old, new)
        except OSError as error:
            raise OutputError(f"{out}: cannot be written ({error.strerror}); the same command again ends it") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # an export is in it, or it could not be made
                out.rmdir()


def _written(out: Path) -> list[str]:
    """Names of what the export in ``out`` wrote; none where there is nothing. :class:`OutputError` for all else."""
    listing = out / LISTED
    try:
        if not os.path.lexists(out):
            return []
        if not out.is_dir():
            raise OutputError(f"{out}: is no folder; {ALLOWED}")
        if not os.path.lexists(listing):
            others = entries_of(out)
            if others:
                raise OutputError(f"{out}: holds {others[0].name!r}, which no export lists; {ALLOWED}")
            return []
        with open_regular(listing) as lines:
            head, *names = [parse_json(line) for line in lines]
        if not isinstance(head, dict) or head.get("changeanywhere") != MARK or not all(map(_is_name, names)):
            raise ValueError("not the list of an export")
    except ValueError as error:
        raise OutputError(f"{listing}: damaged ({error}); {ALLOWED}") from error
    except OSError as error:
        raise OutputError(f"{out}: cannot be read ({error.strerror})") from error
    return names


def _refuse_another(out: Path, part: Path) -> None:
    """:class:`OutputError` where another export fills this folder: the last of two would leave files of both."""
    others = sorted(other for other in out.glob(f".{MARK}.*.part") if other != part)
    if others:
        raise OutputError(
            f"{others[0]}: another export is writing to {out}; wait for it or give another --out; "
            "of one that was killed on another machine, delete this folder"
        )


def _is_name(name: object) -> bool:
    """Of a file in the folder: nothing else is ever removed."""
    path = PurePosixPath(name) if isinstance(name, str) and "\0" not in name else PurePosixPath()
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and path.name != LISTED


def _refuse_in_the_way(out: Path, old: Sequence[str], new: Sequence[str]) -> None:
    """:class:`OutputError` for what no export wrote, in the place of what is to be written, before anything goes."""
    ours = set(old)
    for folder in _folders((*old, *new)):
        refuse_way_out(out, out / folder)
    in_the_way = [name for name in new if _is_there(out / name) and (name not in ours or _is_folder(out / name))]
    for folder in _folders(new):
        if _is_there(out / folder) and not (out / folder).is_dir() and folder not in ours:
            in_the_way.append(folder)
    if in_the_way:
        raise OutputError(f"{out / in_the_way[0]}: no export wrote it, and it is in the way; move it, or another --out")


def _replace(out: Path, layout: str, part: Path, old: Sequence[str], new: Sequence[str]) -> None:
    """The card goes first and comes last, after what lists files: half an export is not taken for a whole one."""
    _note(out, layout, sorted({*old, *new}), whole=False)
    for name in sorted(old, key=_turn, reverse=True):
        if not _is_folder(out / name):
            (out / name).unlink(missing_ok=True)
    for folder in _folders(old):
        with suppress(OSError):  # something else is in it
            (out / folder).rmdir()
    for folder in reversed(_folders(new)):
        (out / folder).mkdir(exist_ok=True)
    for name in sorted(new, key=_turn):
        (part / name).replace(out / name)
    _note(out, layout, sorted(new), whole=True)


def _note(out: Path, layout: str, names: Iterable[str], whole: bool) -> None:
    with LocalStore(out).create(LISTED) as lines:
        for line in ({"changeanywhere": MARK, "layout": layout, "whole": whole}, *names):
            lines.write((to_json(line) + "\n").encode())


def _folders(names: Iterable[str]) -> list[str]:
    """Folders of files, inner ones first, without the uppermost."""
    found = {str(folder) for name in names for folder in PurePosixPath(name).parents} - {"."}
    return sorted(found, key=lambda folder: (-folder.count("/"), folder))


def _turn(name: str) -> tuple[bool, bool, bool, str]:
    return name == CARD, name == LINES, "/" not in name, name


def _is_there(place: Path) -> bool:
    return os.path.lexists(place)


def _is_folder(place: Path) -> bool:
    return place.is_dir() and not place.is_symlink()
