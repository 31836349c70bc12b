"""The things that pass between the parts of the package. No torch here.

Arrays are numpy: images ``[H, W, C]`` in the units of their file, masks ``uint8 [H, W]`` with 0 = unknown,
change masks ``bool [H, W]``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import PairsError
from changeanywhere.legend import Legend, Mask

Image = npt.NDArray[Any]
"""Image ``[H, W, C]``, uint8, uint16 or float32, in the units of its file."""
ChangeMask = npt.NDArray[np.bool_]
"""``bool [H, W]``, True = changed."""


@dataclass(frozen=True)
class Normalisation:
    """Invertible linear stretch per band: ``low`` → -1, ``high`` → +1 (file units, one value per band)."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @staticmethod
    def eight_bit(bands: int = 3) -> Normalisation:
        """x / 127.5 - 1, what latent diffusion uses for 8-bit images."""
        return Normalisation((0.0,) * bands, (255.0,) * bands)

    def apply(self, image: Image) -> npt.NDArray[np.float32]:
        """File units ``[H, W, C]`` → float32 ``[H, W, C]``; not clipped, so that it can be undone."""
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        return ((image.astype(np.float32) - low) / (high - low) * 2 - 1).astype(np.float32)

    def filled(self, image: Image, valid: npt.NDArray[np.bool_] | None) -> Image:
        """File units ``[H, W, C]`` with the dark end where ``valid`` bool ``[H, W]`` (None: everywhere) is False: one
        NaN spoils all that a network says of a window."""
        if valid is None or valid.all():
            return image
        low = np.asarray(self.low)
        if np.issubdtype(image.dtype, np.integer):  # a stretch may begin below what the dtype holds
            low = low.clip(np.iinfo(image.dtype).min, np.iinfo(image.dtype).max)
        return np.where(valid[..., None], image, low.astype(image.dtype))

    def invert(self, image: npt.NDArray[np.float32], dtype: npt.DTypeLike) -> Image:
        """float32 ``[H, W, C]`` → file units of ``dtype`` (rounded and clipped to its range if integer)."""
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        values = (image + 1) / 2 * (high - low) + low
        if np.issubdtype(np.dtype(dtype), np.integer):
            limits = np.iinfo(np.dtype(dtype))
            values = np.clip(np.rint(values), limits.min, limits.max)
        return values.astype(dtype)


@dataclass(frozen=True)
class GeoReference:
    """Where a tile lies: ``crs`` (EPSG code or WKT) and the affine ``transform`` (a, b, c, d, e, f) of pixel → CRS."""

    crs: str
    transform: tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Meaning:
    """What a file says of a band: its name, that its values are ``scale`` × value + ``offset`` of ``unit``, and which
    ``colour`` it is ("red", "nir"; "": it does not say)."""

    name: str = ""
    unit: str = ""
    scale: float = 1.0
    offset: float = 0.0
    colour: str = ""


@dataclass(frozen=True)
class SourceItem:
    """What is known of a tile before its pixels are read.

    ``key`` is unique in its source and safe as a file name; ``scene`` must not be split between train and val;
    ``split`` is the source's own ("train", "val", "test") or None; ``gsd_m`` is the ground sampling in metres;
    ``attribution`` names whom the licence wants credited; ``labelled_by`` the machine that made its
    mask, "" for people.
    """

    key: str
    scene: str
    split: str | None = None
    licence: str = "unknown"
    gsd_m: float | None = None
    attribution: str = ""
    labelled_by: str = ""


@dataclass(frozen=True)
class SourceSample:
    """A single-date tile: ``image [H, W, C]``, ``mask uint8 [H, W]``, and where both come from."""

    item: SourceItem
    image: Image
    mask: Mask
    bands: tuple[str, ...]
    normalisation: Normalisation
    georef: GeoReference | None = None
    date: int = 1
    """2: the image is of the second date, the mask of the first."""
    meanings: tuple[Meaning, ...] = ()
    """Of the image's bands; empty: its file says nothing of them."""
    valid: npt.NDArray[np.bool_] | None = None
    """Which ground this date shows, ``bool [H, W]``; elsewhere (nodata, transparent) the image holds the dark end.
    None: all of it."""

    def pixels(self) -> npt.NDArray[np.float32]:
        """The image as networks see it: float32 ``[H, W, C]`` in [-1, 1]."""
        return self.normalisation.apply(self.image).clip(-1, 1)


def run_lengths(values: npt.NDArray[np.bool_]) -> list[int]:
    """Lengths of alternating runs of False and True in bool ``[N]``, first of False (maybe 0), the last of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], values.astype(np.int8), [0]])))
    return [int(n) for n in np.diff(np.concatenate([[0], edges]))]


def runs_of(shape: ChangeMask) -> str:
    """Bool ``[H, W]`` as text: its run lengths, row by row."""
    return " ".join(map(str, run_lengths(shape.ravel())))


def shape_of(runs: str, size: tuple[int, ...]) -> ChangeMask:
    """What :func:`runs_of` made of bool ``[H, W]``."""
    lengths = np.fromstring(runs, np.int64, sep=" ")
    values = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return np.pad(values, (0, int(np.prod(size)) - len(values))).reshape(size)


@dataclass(frozen=True)
class ShapeDonor:
    """Where the shape of an appearance was taken from, and how it was turned: quarter turns, mirror, scale, angle in
    degrees, in this order."""

    tile: int | None
    """Number of the tile in its source; None: the tile that changes."""
    box: tuple[int, int, int, int]
    """(row, column, height, width) in px."""
    turns: int = 0
    mirrored: bool = False
    factor: float = 1.0
    angle: float = 0.0
    runs: str = ""
    """Which px of the box are its own (:func:`runs_of`), since others of its class may lie in it; "": all of them."""

    def own(self, of_class: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Its px among those of its class in its box, bool ``[height, width]``."""
        return of_class & shape_of(self.runs, of_class.shape) if self.runs else of_class


@dataclass(frozen=True)
class ChangeEvent:
    """One change: ``kind`` ("appearance", "disappearance"), classes, and where.

    ``bbox`` is (row, column, height, width) in px of the changed ground; ``offset`` (rows, columns) is how far an
    appearance was moved from its donor; ``area`` is in px. ``runs``: which px of the box are its own
    (:func:`runs_of`), since boxes of two events of one transition may overlap; "": all of its transition.
    """

    kind: str
    from_class: int
    to_class: int
    bbox: tuple[int, int, int, int]
    offset: tuple[int, int]
    area: int
    donor: ShapeDonor | None = None
    runs: str = ""

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of ``bbox``."""
        row, column, height, width = self.bbox
        return slice(row, row + height), slice(column, column + width)

    def changed(self, before: Mask, after: Mask) -> ChangeMask:
        """Its px among those of its box, bool ``[height, width]``, as far as the two masks of the box show it."""
        where: ChangeMask = (before == self.from_class) & (after == self.to_class)
        return where & shape_of(self.runs, where.shape) if self.runs else where

    def within(self, bbox: tuple[int, int, int, int]) -> ChangeEvent:
        """The part of it in a box that lies in its own, both in px of one image; ``area`` stays that of the whole."""
        if not self.runs:
            return replace(self, bbox=bbox)
        top, left = bbox[0] - self.bbox[0], bbox[1] - self.bbox[1]
        part = shape_of(self.runs, self.bbox[2:])[top : top + bbox[2], left : left + bbox[3]]
        return replace(self, bbox=bbox, runs=runs_of(part))

    def to_dict(self, legend: Legend) -> dict[str, Any]:
        """For ``metadata.jsonl``: classes by name."""
        record = asdict(self)
        del record["donor"], record["runs"]  # other tiles stand in the record's donors, its px in the masks
        record["from_class"] = legend.name_of(self.from_class)
        record["to_class"] = legend.name_of(self.to_class)
        return record


@dataclass(frozen=True)
class ChangePlan:
    """The second mask of one pair. ``change_mask == change_mask_of(mask_t1, mask_t2)`` always holds."""

    mask_t2: Mask
    change_mask: ChangeMask
    events: tuple[ChangeEvent, ...]
    seed: int


@dataclass(frozen=True)
class ChangePair:
    """Two dates with labels: images ``[H, W, C]``, masks ``uint8 [H, W]``, change mask ``bool [H, W]``.

    ``metadata`` is the pair's line in ``metadata.jsonl``; ``mask_t1``/``mask_t2`` are None where a dataset has none;
    ``ignored`` is ground that no label speaks of (nodata, transparent, 255 beside 0 and 1), bool ``[H, W]``, None where
    there is none; ``seen``, of either date, where its image shows ground, bool ``[H, W]``, None: everywhere. Images
    hold what their files hold, nodata too: :func:`rgb8` makes it black. Pairs of ``stream_pairs`` have None, since
    images of containers name no nodata. ``meanings``, of either date, what a GeoTIFF of its image is to say of each
    band, empty: nothing.
    """

    key: str
    image_t1: Image
    image_t2: Image
    change_mask: ChangeMask
    mask_t1: Mask | None = None
    mask_t2: Mask | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    georef: GeoReference | None = None
    ignored: ChangeMask | None = None
    seen: tuple[ChangeMask | None, ChangeMask | None] = (None, None)
    meanings: tuple[tuple[Meaning, ...], tuple[Meaning, ...]] = ((), ())


def in_8_bits(pixels: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Pixels as networks see them, float in [-1, 1], of any shape → uint8, to the nearest; what lies outside is
    clipped, NaN (no data) is black. Of tensors, on their device: ``diffusion.pipeline.to_uint8``."""
    values: npt.NDArray[np.uint8] = np.rint((np.nan_to_num(pixels, nan=-1.0).clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return values


def rgb8(pair: ChangePair, bands: int = 3) -> tuple[Image, Image]:
    """Both images uint8 ``[H, W, bands]``, as detectors read them: the first bands; of a grey one red, green and blue.

    Images of other dtypes go through the stretch that their set was made with; :class:`PairsError` if there is none, or
    if there are fewer bands than asked for. What shows no ground is black, whatever value says so in a file.
    """
    images = []
    for image, seen in zip((pair.image_t1, pair.image_t2), pair.seen, strict=True):
        if image.dtype != np.uint8:
            stretch = pair.metadata.get("normalisation")
            if not stretch:
                raise PairsError(f"{pair.key}: images are {image.dtype}; allowed: uint8, or a set with its stretch")
            image = in_8_bits(Normalisation(**stretch).apply(image))
        image = image[..., None] if image.ndim == 2 else image
        if image.shape[2] < bands and bands == 3:
            image = image[..., [0, 0, 0]]
        if image.shape[2] < bands:
            raise PairsError(f"{pair.key}: images have {image.shape[2]} bands; the detector reads {bands}")
        image = image[..., :bands] if seen is None else np.where(seen[..., None], image[..., :bands], 0)
        images.append(np.ascontiguousarray(image, np.uint8))
    return images[0], images[1]


def change_mask_of(mask_t1: Mask, mask_t2: Mask) -> ChangeMask:
    """Changed ground (paper §2.3, XOR on known ground): ``known & (mask_t1 != mask_t2)``, bool ``[H, W]``."""
    change: ChangeMask = (mask_t1 != 0) & (mask_t2 != 0) & (mask_t1 != mask_t2)
    return change


def change_transitions(mask_t1: Mask, mask_t2: Mask, legend: Legend) -> dict[str, int]:
    """Changed pixels by class transition: ``{"bareland->building": 412}``, most first."""
    change = change_mask_of(mask_t1, mask_t2)
    codes, counts = np.unique(mask_t1[change].astype(np.int64) * 256 + mask_t2[change], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {
        f"{legend.name_of(int(codes[i]) // 256)}->{legend.name_of(int(codes[i]) % 256)}": int(counts[i]) for i in order
    }
