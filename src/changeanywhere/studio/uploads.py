"""Files that somebody drops on the page: bounded, renamed, kept in the session's own folder, read by the one gate."""

from __future__ import annotations

import shutil
from pathlib import Path

from changeanywhere.errors import InputError, LegendError, SourceError
from changeanywhere.legend import Legend
from changeanywhere.models.info import find_segmenter
from changeanywhere.sources import Source, SourceOptions, open_source
from changeanywhere.studio.painting import Networks

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MAX_MEGAPIXELS = 36.0
MAX_TILES = 64
"""Tiles of an upload that are read at once, so that a wrong mask is told now."""


def open_upload(image: Path, mask: Path | None, folder: Path, networks: Networks, max_mb: int) -> Source:
    """Tiles of the image, with the mask, or with one that the segmenter proposes; all that is written lies in
    ``folder``. :class:`InputError` in one line for files that are none of these."""
    place = _taken(image, folder / "images", max_mb)
    info = networks.info
    options = SourceOptions(tile_size=info.tile_size, bands=info.bands, stretch=info.stretch)
    try:
        if mask is None:
            source = _with_proposed_mask(folder, networks, options)
        else:
            _taken(mask, folder / "masks", max_mb)
            info.legend.save(folder / "legend.json")
            source = open_source(folder, options)
        for number in range(min(len(source), MAX_TILES)):
            source.read(number)
        return source
    except InputError as error:  # of a session, folders are nobody's business
        names = {str(place): _shown(image)} | ({} if mask is None else {str(folder / "masks"): _shown(mask)})
        text = str(error)
        for own, theirs in names.items():
            text = text.replace(own, theirs)
        raise type(error)(text.replace(f"{folder}/", "").replace(str(folder), "the upload")) from error


def _with_proposed_mask(folder: Path, networks: Networks, options: SourceOptions) -> Source:
    legend = Legend.load(find_segmenter(networks.segmenter) / "legend.json")
    if legend.names != networks.info.legend.names:
        raise LegendError(
            f"the segmenter reads {', '.join(legend.names)}, the model has other classes; drop a mask with the image"
        )
    from changeanywhere.labelling.label import label
    from changeanywhere.labelling.options import LabelOptions

    labelled = folder / "labelled"
    label(
        LabelOptions(
            source=folder / "images", out=labelled, segmenter=Path(networks.segmenter), images="copy", flips=False,
            device=networks.device, max_megapixels=MAX_MEGAPIXELS,
        )
    )  # fmt: skip
    return open_source(labelled, options)


def _taken(file: Path, folder: Path, max_mb: int) -> Path:
    """A copy under a name of ours: theirs names nothing on this machine."""
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise SourceError(f"{_shown(file)}: not an image by its name; allowed: {', '.join(SUFFIXES)}")
    size = file.stat().st_size
    if size > max_mb * 1_000_000:
        raise SourceError(f"{_shown(file)}: {size / 1e6:.1f} MB; allowed: {max_mb} MB (--max-upload-mb)")
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"upload{suffix}"
    shutil.copyfile(file, place)
    return place


def _shown(file: Path) -> str:
    return file.name[:80]
