"""Real second dates: an image of the same ground at another time, without a mask. No torch here, unless a segmenter
reads.

Changes are painted on it (``base``), or what is painted takes its colours and sharpness (``style``). Where the dates
differ in earnest, or one of them shows nothing, nobody knows what is there: such ground is unknown, and no label
speaks of it.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import require
from changeanywhere.generation.found import Pixels, Where, correlation, doubtful, settled, shown_by_both
from changeanywhere.help import one_of, require_one
from changeanywhere.legend import Mask
from changeanywhere.progress import Progress
from changeanywhere.sample import GeoReference, SourceSample
from changeanywhere.sources import NO_DATES, SECOND_IMAGES, SECOND_MASKS, Source

USES = ("none", "base", "style")
MASKS = ("none", "ignore", "keep")
CELL = 4
"""Ground is ignored in cells of so many px: those of the latents in which it is painted."""
SMOOTHED, WIDE = 3.0, 24.0
"""Standard deviations, px: of what is looked at (less is registration and noise), and of what light differs by."""
ROUNDS, OUTLYING = 5, 2.5
"""Of a fit without what does not follow it: rounds, and how many deviations off that begins."""
LEAST_DEVIATION = 0.005
"""Share of the range from black to white: dates that are nearly alike differ nowhere."""
SPECK = 16
"""Px below which what differs is no object."""
SURE = 0.6
"""How probable a class must be to a segmenter at both dates."""
GAINS = (0.4, 2.5)
"""Least and largest factor of a band's contrast: a tile in fog says little of another."""
FINE, MOST_BLUR, MOST_SHARPNESS, HALVINGS = 1.0, 3.0, 1.5, 7
"""Detail is what a blur of so many px takes away; most that is blurred (px) and sharpened; steps of the search."""
MAD = 1.4826
"""Median of distances from the median → standard deviation of a normal distribution."""


@dataclass(frozen=True)
class SecondOptions:
    """Real second dates: images_t2/ beside images/, or B/ beside A/, under the same names."""

    use: str = one_of(USES, "none")
    """``base``: changes are painted on the second date, so that all other ground differs as real dates do; ``style``:
    what is painted takes the second date's colours, contrast and sharpness, in place of nuisances."""
    min_z: float = 4.0
    """How many robust standard deviations ground must differ from the rest of its tile, light apart, to count as
    changed in earnest: it is unknown in both masks, and 255 in ignore/."""
    segmenter: Path | None = None
    """``mini-segmenter``, or a segmenter's folder or address: ground that it reads otherwise at the second date, and is
    sure of at both, counts as changed in earnest too."""
    masks: str = one_of(MASKS, "none")
    """What the second date's own mask is for, where it has one (``label`` on a folder of two dates): ``ignore``: ground
    of another class at either date, or of an unknown one, counts as changed in earnest; ``keep``: ground of another
    class is a change of the pair as it stands, beside what is painted, and unknown ground is ignored. With ``base``."""
    min_correlation: float = 0.3
    """With ``masks``: where brightness in 8 px around correlates so much between the dates, the same things stand
    there: unchanged, whatever masks say or do not know, and whatever tests find; 1 = nowhere. Not of nodata."""
    no_change: bool = False
    """With ``style``: pairs without a change (targets.no_change) are painted on the second date, as with ``base``."""

    @property
    def shown(self) -> bool:
        """Whether the second date is to be seen in any pair: then there is ground of which no label speaks."""
        return self.use == "base" or self.no_change

    @property
    def asked(self) -> str:
        """What every tile of the source must have of a second date."""
        if self.use == "none":
            return NO_DATES
        return SECOND_IMAGES if self.masks == "none" else SECOND_MASKS

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed, or that would do nothing."""
        require_one("second.use", self.use, USES)
        require_one("second.masks", self.masks, MASKS)
        based = self.masks == "none" or self.use == "base"
        require(based, "second.masks", self.masks, "none, or second.use base, which alone reads masks of both dates")
        correlated = self.masks != "none" or self.min_correlation == SecondOptions.min_correlation
        require(correlated, "second.min_correlation", self.min_correlation, "with second.masks ignore or keep")
        require(0 < self.min_correlation <= 1, "second.min_correlation", self.min_correlation, "above 0, up to 1")
        require(self.min_z > 0, "second.min_z", self.min_z, "above 0")
        style = "with second.use style; base shows the second date in every pair"
        require(not self.no_change or self.use == "style", "second.no_change", True, style)
        for name in ("min_z", "segmenter"):
            read = self.shown or getattr(self, name) == getattr(SecondOptions(), name)
            require(read, f"second.{name}", getattr(self, name), "with second.use base, or second.no_change")


class SecondDate(Source):
    """The tiles of ``source`` at their second date: masks of the first, or where those of both dates count, of the
    second; unknown where the dates differ in earnest."""

    def __init__(self, source: Source, ignored: Sequence[str], other: Sequence[str] | None = None) -> None:
        self._source, self._ignored, self._other = source, ignored, other
        self.root, self.name, self.items = source.root, source.name, source.items
        self.legend, self.mapping, self.skipped = source.legend, source.mapping, source.skipped
        self.passed, self.unplaced = source.passed, source.unplaced

    def content_hash(self) -> str:
        return f"{self._source.content_hash()}{self._source.second_hash()}"

    def georef(self, index: int) -> GeoReference | None:
        return self._source.georef(index)

    def ignored(self, index: int) -> Where:
        """Where tile ``index`` differs in earnest."""
        return unpacked(self._ignored[index])

    def read_masks(self, index: int) -> tuple[Mask, Mask]:
        """What is known of tile ``index`` at the first and at the second date, uint8 ``[H, W]``."""
        first, ignored = self._source.read_mask(index), self.ignored(index)
        if self._other is None:
            known = np.where(ignored, 0, first).astype(np.uint8)
            return known, known
        return settled(first, self._source.read_second_mask(index), ignored, ~unpacked(self._other[index]))

    def read_mask(self, index: int) -> Mask:
        return self.read_masks(index)[1]

    def read(self, index: int) -> SourceSample:
        return replace(self._source.read_second(index), mask=self.read_mask(index))


def compare_dates(source: Source, options: SecondOptions, progress: Progress) -> tuple[list[str], list[str] | None]:
    """Of every tile, where its dates differ in earnest, or one of them shows nothing, whatever masks say of it; and,
    where masks of both count, where they do not show the same: see :func:`packed`."""
    read = _reader(options.segmenter) if options.segmenter is not None else None
    ignored, other = [], []
    for index in range(len(source)):
        first, second = source.read(index), source.read_second(index)
        images = first.pixels(), second.pixels()
        shown = shown_by_both(first, second)
        where = differing(*images, options.min_z, shown)
        if read is not None:
            where |= disagreeing(read(images[0]), read(images[1]))
        if options.masks != "none":
            same = correlation(*images, shown) >= options.min_correlation
            other.append(packed(~same))
            same = ~unpacked(other[-1])  # by whole cells, as whoever writes the masks reads it
            where = doubtful(where, first.mask, source.read_second_mask(index), same, options.masks == "keep")
        if shown is not None:
            where |= ~shown
        ignored.append(packed(where))
        progress("comparing dates", index + 1, len(source))
    return ignored, other if options.masks != "none" else None


def differing(first: Pixels, second: Pixels, min_z: float, shown: Where | None = None) -> Where:
    """Where two images ``[H, W, C]`` in [-1, 1] of one ground differ more than their light does.

    Brightness, and what each band has more than it (which shadows change little), of the first are fitted to the
    second by a line and a wide local shift, both from the ground that follows them; what is left is smoothed and
    compared with its own spread over the tile (median of distances). All of that on ground that both dates have
    ``shown`` alone (bool ``[H, W]``; None: all): nothing is found elsewhere.
    """
    from scipy import ndimage

    shown = np.ones(first.shape[:2], bool) if shown is None else shown
    if not shown.any():
        return np.zeros_like(shown)
    score = np.zeros(first.shape[:2])
    for one, two in zip(_looks(first), _looks(second), strict=True):
        left, follows = _fitted(one, two, shown)
        wide = ndimage.gaussian_filter(np.where(follows, left, 0), WIDE)
        share = ndimage.gaussian_filter(follows.astype(np.float64), WIDE)
        smooth = ndimage.gaussian_filter(np.where(shown, left - wide / np.maximum(share, 1e-3), 0), SMOOTHED)
        off = np.abs(smooth - np.median(smooth[shown]))
        score = np.maximum(score, off / max(MAD * float(np.median(off[shown])), LEAST_DEVIATION))
    return _objects((score > min_z) & shown)


def _looks(image: Pixels) -> list[npt.NDArray[np.float64]]:
    """Brightness ``[H, W]``, and of images of several bands each band without it, in 0 to 1 and around 0."""
    bands = (image.astype(np.float64) + 1) / 2
    grey = bands.mean(2)
    return [grey, *([bands[..., i] - grey for i in range(bands.shape[2])] if bands.shape[2] > 1 else [])]


def _fitted(
    one: npt.NDArray[np.float64], two: npt.NDArray[np.float64], shown: Where
) -> tuple[npt.NDArray[np.float64], Where]:
    """What is left of ``two`` beside its line through ``one``, and which ground that is ``shown`` follows the line."""
    follows, left = shown, two
    for _ in range(ROUNDS):
        x, y = one[follows], two[follows]
        spread = float(x.var())
        slope = float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread > 1e-8 else 0.0
        left = two - (y.mean() + slope * (one - x.mean()))
        off = np.abs(left - np.median(left[shown]))
        follows = shown & (off <= OUTLYING * max(MAD * float(np.median(off[shown])), LEAST_DEVIATION))
    return left, follows


def disagreeing(one: npt.NDArray[np.float32], two: npt.NDArray[np.float32]) -> Where:
    """Where probabilities ``[K, H, W]`` of two dates have another first class, sure at both."""
    sure = (one.max(0) >= SURE) & (two.max(0) >= SURE)
    return _objects(sure & (one.argmax(0) != two.argmax(0)))


def _objects(where: Where) -> Where:
    """Without specks."""
    from scipy import ndimage

    labels, count = ndimage.label(where, np.ones((3, 3)))
    large = np.bincount(labels.ravel(), minlength=count + 1) >= SPECK
    large[0] = False
    kept: Where = large[labels]
    return kept


def _reader(name: Path) -> Callable[[Pixels], npt.NDArray[np.float32]]:
    """Pixels ``[H, W, C]`` → probabilities ``[K, H, W]``, as they are and mirrored."""
    import torch

    from changeanywhere.models.first_stage import channels_last
    from changeanywhere.models.info import find_segmenter
    from changeanywhere.models.segmenter import Segmenter, of_any_size

    net = channels_last(Segmenter.load(find_segmenter(name)))

    @torch.no_grad()
    def read(pixels: Pixels) -> npt.NDArray[np.float32]:
        image = torch.from_numpy(pixels[..., :3]).permute(2, 0, 1)[None]
        found = of_any_size(net, torch.cat([image, image.flip(3)])).softmax(1)
        likely: npt.NDArray[np.float32] = ((found[0] + found[1].flip(2)) / 2).numpy()
        return likely

    return read


def packed(where: Where) -> str:
    """``where`` ``[H, W]`` in cells of :data:`CELL` px, each whole that any of its px is in, as text for a job."""
    height, width = where.shape
    cells = where.reshape(height // CELL, CELL, width // CELL, CELL).any((1, 3))
    bits = zlib.compress(np.packbits(cells).tobytes(), 9)
    return f"{height}x{width}:{base64.b64encode(bits).decode()}"


def share_of(ignored: Sequence[str]) -> float:
    """Share of ignored ground over all tiles of a job."""
    return float(np.mean([unpacked(each).mean() for each in ignored]))


def unpacked(text: str) -> Where:
    """Undo :func:`packed`: whole cells."""
    size, _, bits = text.partition(":")
    height, width = (int(side) for side in size.split("x"))
    raw = np.frombuffer(zlib.decompress(base64.b64decode(bits)), np.uint8)
    count = (height // CELL) * (width // CELL)
    cells = np.unpackbits(raw, count=count).reshape(height // CELL, width // CELL).astype(bool)
    return cells.repeat(CELL, 0).repeat(CELL, 1)


def in_style(
    image: Pixels, first: Pixels, like: Pixels, shown: tuple[Where | None, Where | None] = (None, None)
) -> tuple[Pixels, dict[str, float]]:
    """``image``, painted on ``first``, as ``like`` shows that ground at another date, all ``[H, W, C]`` in [0, 1]; and
    what was done, by name. ``shown``: which ground ``first`` and which ``like`` shows (bool ``[H, W]``; None: all):
    measured is where both do (nothing is done where none is), and what ``first`` does not show stays as it is.

    Every band's median and spread move as they do from ``first`` to ``like`` (medians, quartiles: what has changed
    counts little); then it is blurred or sharpened until its detail has the share of its spread that ``like``'s has.
    """
    ground, other = (np.ones(image.shape[:2], bool) if one is None else one for one in shown)
    both = ground & other
    if not both.any():
        return image, {}
    bands, done = [], {}
    for band in range(image.shape[2]):
        before, after = (np.percentile(each[both, band], (25, 50, 75)) for each in (first, like))
        gain = float(np.clip((after[2] - after[0]) / max(before[2] - before[0], LEAST_DEVIATION), *GAINS))
        bands.append((image[..., band] - before[1]) * gain + after[1])
        done[f"style_gain_{band + 1}"] = round(gain, 4)
        done[f"style_shift_{band + 1}"] = round(float(after[1] - before[1]), 4)
    result = np.stack(bands, 2)
    wanted = _detail(like, both) / max(_detail(first, both), 1e-6)
    blur, sharpness = _towards_detail(result, _detail(result, both) * wanted, both)
    if blur:
        result = _blurred(result, blur, ground)
    elif sharpness:
        result = result + sharpness * (result - _blurred(result, FINE, ground))
    done |= {"style_blur": round(blur, 4), "style_sharpness": round(sharpness, 4)}
    return np.where(ground[..., None], np.clip(result, 0, 1), image).astype(np.float32), done


def _detail(image: npt.NDArray[np.floating], shown: Where) -> float:
    """Typical size of what :data:`FINE` blurring takes away, as a share of the spread of brightness."""
    grey = image.mean(2, keepdims=True)
    fine = np.abs(grey - _blurred(grey, FINE, shown))[shown].mean()
    return float(fine / max(float(grey[shown].std()), LEAST_DEVIATION))


def _towards_detail(image: npt.NDArray[np.floating], wanted: float, shown: Where) -> tuple[float, float]:
    """How much to blur (standard deviation, px) or to sharpen (share of the detail that is added), by halving."""
    grey = image.mean(2, keepdims=True)
    softer = _detail(grey, shown) > wanted
    low, high = 0.0, MOST_BLUR if softer else MOST_SHARPNESS
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = _blurred(grey, middle, shown) if softer else grey + middle * (grey - _blurred(grey, FINE, shown))
        short = _detail(tried, shown) > wanted if softer else _detail(tried, shown) < wanted
        low, high = (middle, high) if short else (low, middle)
    amount = (low + high) / 2
    return (amount, 0.0) if softer else (0.0, amount)


def _blurred(image: npt.NDArray[np.floating], deviation: float, shown: Where) -> npt.NDArray[np.floating]:
    """Of ground that is ``shown`` alone, from such ground alone: what fills the rest would run into it."""
    from scipy import ndimage

    def blurred(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        result: npt.NDArray[np.floating] = ndimage.gaussian_filter(values, (deviation, deviation, 0))
        return result

    if shown.all():
        return blurred(image)
    share = blurred(shown[..., None].astype(np.float64))
    return np.where(shown[..., None], blurred(image * shown[..., None]) / np.maximum(share, 1e-6), image)
