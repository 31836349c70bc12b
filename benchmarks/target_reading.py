"""How well segmenters read the ground of a target: buildings on changed ground of labelled pairs, and around new ones.

    python benchmarks/target_reading.py --pairs LEVIR --split test --segmenters mini-segmenter runs/target/segmenter

The labels say: changed ground is building at date 2 and none at date 1. Over that ground of both dates, in the pairs
that change: IoU of building, the share of new houses that is missed, the share of old ground that is called building;
and the ring, ground 4 to 12 px around new houses at date 2, of which so much is called building (some of it is). Each
as the most likely class, and as `changeanywhere label` cleans it. Calling all of it building is the first row.

And the change map that a segmenter is without any detector: building at date 2 and none at date 1 is changed
(post-classification comparison). F1, precision and recall of it over all pairs of the split; then the same without
ground that looks the same at both dates and without slivers, as `generate --second.masks keep` believes it. Nothing is
trained or chosen here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from changeanywhere.errors import ChangeAnywhereError, ConfigError
from changeanywhere.generation.found import Where, correlation, solid
from changeanywhere.generation.second import SecondOptions
from changeanywhere.labelling.label import label_image
from changeanywhere.labelling.options import LabelOptions
from changeanywhere.labelling.reading import ImageReader, open_readers
from changeanywhere.pairs import load_pairs
from changeanywhere.rasters.facts import Facts, Window
from changeanywhere.sample import ChangePair, rgb8

HEAD = (
    "| segmenter | reads | IoU of building | missed at date 2 | building at date 1 | ring "
    "| change: F1 | precision | recall | not the same: F1 | precision | recall |\n|---|---|---|---|---|---|"
    "---|---|---|---|---|---|"
)


@dataclass
class Count:
    """What one way of reading says, in px."""

    new: int = 0
    """Ground that became building."""
    found: int = 0
    """What of it is called building at date 2."""
    early: int = 0
    """What of it is called building at date 1 already."""
    ring: int = 0
    called: int = 0
    """What of the ring is called building."""
    said: int = 0
    """Ground that is building at date 2 alone, by this reading."""
    right: int = 0
    """What of it changed."""
    believed: int = 0
    """What of ``said`` is no sliver, on ground that does not look the same."""
    borne_out: int = 0
    """What of it changed."""

    def add(self, first: Where, second: Where, same: Where, changed: Where, ring: Where, known: Where) -> None:
        """A pair: where building is read at each date, and where both look the same; what changed, the ring, and of
        what labels speak."""
        said = second & ~first & known
        self.said, self.right = self.said + int(said.sum()), self.right + int((said & changed).sum())
        believed = solid(said & ~same)
        self.believed += int(believed.sum())
        self.borne_out += int((believed & changed).sum())
        new, found, early = int(changed.sum()), int((second & changed).sum()), int((first & changed).sum())
        self.new, self.found, self.early = self.new + new, self.found + found, self.early + early
        self.ring, self.called = self.ring + int(ring.sum()), self.called + int((second & ring).sum())

    def row(self, name: str, reads: str) -> str:
        """A line of the table; "-" is a share of nothing, where no ground changed."""
        iou = f"{self.found / (self.new + self.early):.3f}" if self.new + self.early else "-"
        shares = [(self.new - self.found, self.new), (self.early, self.new), (self.called, max(self.ring, 1))]
        for right, said in ((self.right, self.said), (self.borne_out, self.believed)):
            shares += [(2 * right, said + self.new), (right, max(said, 1)), (right, self.new)]
        told = (f"{100 * part / whole:.1f} %" if whole else "-" for part, whole in shares)
        return f"| {name} | {reads} | {iou} | " + " | ".join(told) + " |"


def read(image: npt.NDArray[np.uint8], options: LabelOptions, reader: ImageReader) -> tuple[Where, Where]:
    """Where building is the most likely class of an image uint8 ``[H, W, 3]``, and where ``label`` writes it."""
    height, width = image.shape[:2]
    pixels = (image / 127.5 - 1).astype(np.float32)
    building = reader.legend.index_of("building")
    cleaned = np.zeros((height, width), bool)

    def write(window: Window, mask: npt.NDArray[np.uint8]) -> None:
        cleaned[window.slices] = mask == building

    facts = Facts("PNG", height, width, 3, "uint8", 8)
    label_image(facts, lambda window: (pixels[window.slices], None), options, reader, write)
    return reader.read(Window(0, 0, height, width), pixels).argmax(0) + 1 == building, cleaned


def around(changed: Where, from_px: int, to_px: int) -> Where:
    """The ring around what changed."""
    distance = ndimage.distance_transform_edt(~changed)
    ring: Where = (distance >= from_px) & (distance <= to_px)
    return ring


def ground(pair: ChangePair, ring: Sequence[int]) -> tuple[Where, Where, Where]:
    """What changed, the ring around it, and all of which a label speaks."""
    known = np.ones_like(pair.change_mask) if pair.ignored is None else ~pair.ignored
    if not pair.change_mask.any():
        return pair.change_mask, pair.change_mask, known
    return pair.change_mask & known, around(pair.change_mask, ring[0], ring[1]) & known, known


def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="labelled pairs of buildings that appear")
    parser.add_argument("--split", default="test", help="which of them; null: all")
    parser.add_argument("--segmenters", nargs="+", default=["mini-segmenter"], help="mini-segmenter or folders")
    parser.add_argument("--ring", type=int, nargs=2, default=(4, 12), help="px around new houses, from and to")
    arguments = parser.parse_args(argv)
    try:
        measure(arguments)
    except ChangeAnywhereError as error:
        sys.exit(str(error))


def readers_of(pairs: Path, names: Sequence[str]) -> list[tuple[str, LabelOptions, ImageReader]]:
    """Segmenters by name. :class:`ConfigError` for one that knows no building."""
    found = []
    for name in names:
        options = LabelOptions(source=pairs, out=Path("unused"), segmenter=Path(name))
        reader = open_readers(options, torch.device("cpu")).of("", pairs, Facts("PNG", 1, 1, 3, "uint8", 8))
        if "building" not in reader.legend.names:
            classes = ", ".join(reader.legend.names)
            raise ConfigError(f"--segmenters {name}: has no class building, but {classes}; allowed: segmenters of it")
        found.append((name, options, reader))
    return found


def measure(arguments: argparse.Namespace) -> None:
    """Print the table. :class:`ChangeAnywhereError` for pairs or segmenters that cannot be read."""
    readers = readers_of(arguments.pairs, arguments.segmenters)
    dataset = load_pairs(arguments.pairs, split=None if arguments.split == "null" else arguments.split)
    pairs = [dataset[i] for i in range(len(dataset))]
    everything = Count()
    for pair in pairs:
        everywhere = np.ones_like(pair.change_mask)
        everything.add(everywhere, everywhere, ~everywhere, *ground(pair, arguments.ring))
    changing = sum(bool(pair.change_mask.any()) for pair in pairs)
    print(f"{changing} of {len(pairs)} pairs change, {everything.new} px of them\n\n{HEAD}")
    print(everything.row("all is building", ""))
    for name, options, reader in readers:
        likely, cleaned = Count(), Count()
        for pair in pairs:
            dates = [read(image, options, reader) for image in rgb8(pair)]
            one, two = ((image / 127.5 - 1).astype(np.float32) for image in rgb8(pair))
            same = correlation(one, two) >= SecondOptions.min_correlation
            for count, first, second in zip((likely, cleaned), *dates, strict=True):
                count.add(first, second, same, *ground(pair, arguments.ring))
        print(likely.row(name, "most likely class") + "\n" + cleaned.row(name, "as label cleans it"))


if __name__ == "__main__":
    main()
