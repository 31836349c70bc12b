"""What a labelled folder holds of images that were taken out of its source since, as its records know it: removed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from changeanywhere.documents import read_json_object
from changeanywhere.errors import OutputError, SourceError
from changeanywhere.folders import entries_of, files_below, read_text
from changeanywhere.sources.entries import Layout
from changeanywhere.sources.files import SUFFIXES

ORIGIN = "provenance.csv"
OF_MASKS, OF_PARTS = (".png", ".tif"), (".json", ".jpg")


def patches_of(layout: Layout) -> list[str]:
    """Path of each image below its folder, without suffix; also its mask's. :class:`SourceError` for two alike."""
    found = [
        entry.image.relative_to(folder).with_suffix("").as_posix()
        for entry, folder in zip(layout.entries, layout.folders, strict=True)
    ]
    twice = next((patch for patch in found if found.count(patch) > 1), None) if len(set(found)) < len(found) else None
    if twice is not None:
        raise SourceError(f"{layout.name}: two images are called {twice} but for their suffix; rename one")
    return found


def remove_gone(out: Path, layout: Layout, called: str, linked: bool) -> int:
    """Remove from ``out`` images, masks and notes of images that ``label`` wrote there and ``layout`` no longer has,
    under their name and suffix. Returns how many images these were.

    Theirs is what a note in ``parts/`` or a row of ``provenance.csv`` that was labelled by ``called`` names; of images,
    links alone where ``linked``, else files alone. What links lead to stays, be they links to files or to folders.
    """
    present = dict(zip(patches_of(layout), (entry.image.name for entry in layout.entries), strict=True))
    count = 0
    for patch in sorted({*_noted(out), *_listed(out, called)}):
        images = [
            file
            for file in _written(out / "images", patch, SUFFIXES)
            if file.name != present.get(patch) and file.is_symlink() == linked
        ]
        if patch in present and not images:
            continue
        rest = [*_written(out / "masks", patch, OF_MASKS), *_written(out / "parts", patch, OF_PARTS)]
        for file in (*images, *(file for file in rest if not file.is_symlink())):
            file.unlink(missing_ok=True)  # another process may be as fast
        count += bool(images or rest)
    return count


def _written(folder: Path, patch: str, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files of ``patch`` in ``folder`` itself: nothing above it, nor behind a link to another folder."""
    place = folder / patch
    whole = folder.parent.resolve() / folder.name / patch
    if ".." in PurePosixPath(patch).parts or place.parent.resolve() != whole.parent:
        return
    for file in entries_of(place.parent):
        if file.suffix.lower() in suffixes and file.with_suffix("") == place and (file.is_symlink() or file.is_file()):
            yield file


def _noted(out: Path) -> Iterator[str]:
    """Patches with a note in ``parts/``."""
    for file in files_below(out / "parts"):
        if file.suffix == ".json":
            patch = file.relative_to(out / "parts").with_suffix("").as_posix()
            if read_json_object(file).get("patch") == patch:
                yield patch


def _listed(out: Path, called: str) -> list[str]:
    """Patches of ``provenance.csv`` that were labelled by ``called``. :class:`OutputError` where it cannot be read."""
    file = out / ORIGIN
    if not file.is_file():
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(file))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        mend = "delete it: it is written anew"
        raise OutputError(f"{file}: not readable as UTF-8 CSV ({' '.join(str(error).split())}); {mend}") from error
    return [row["patch"] for row in rows if row.get("patch") and row.get("labelled_by") == called]
