r"""What pairs on real second dates call unchanged that did change: `generate --second.use base` against labels.

    python benchmarks/second_dates.py --pairs base --labelled labelled --labels LEVIR/train/label
    python benchmarks/second_dates.py --pairs found --labelled labelled --labels LEVIR/train/label \
        --change-classes building

Of the ground that changed by the labels of the real pairs (which trained nothing): how much the set ignores, how much
of it is called unchanged, and what the masks of both dates say there. And how much of what is called changed did
change: of a set in which nothing is painted (--second.masks keep --targets.no-change 1) that is what was found; and
what it is worth to ask whether the same things stand there.
--change-classes: only changes to or from these count. Training pairs of the set alone. Labels of images that generate
cut into tiles are cut in the same way.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import changeanywhere as ca
from changeanywhere.errors import ChangeAnywhereError, PairsError, SourceError
from changeanywhere.generation.found import Where, correlation, shown_by_both
from changeanywhere.generation.second import SecondOptions
from changeanywhere.legend import Mask
from changeanywhere.sample import change_mask_of
from changeanywhere.sources.dates import PARTNER
from changeanywhere.training.detection import IGNORE
from changeanywhere.training.pair_batches import label_of

WINDOW = re.compile(r"(?P<image>.+)_y(?P<row>\d{5,})_x(?P<column>\d{5,})")
"""Key of a tile that was cut from a larger image."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print a few lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="folder that generate --second.use base wrote")
    parser.add_argument("--labelled", type=Path, required=True, help="its source: what label made of A/ and B/")
    parser.add_argument("--labels", type=Path, required=True, help="folder of change labels, named as the images")
    parser.add_argument("--change-classes", nargs="*", help="classes whose changes count; default: all")
    parser.add_argument("--tile-size", type=int, default=256)
    arguments = parser.parse_args(argv)
    try:
        measure(arguments)
    except ChangeAnywhereError as error:
        sys.exit(str(error))


def measure(arguments: argparse.Namespace) -> None:
    """Print the lines. :class:`SourceError` and :class:`PairsError` name what does not fit together."""
    source = ca.load_source(arguments.labelled, tile_size=arguments.tile_size)
    pairs, px = ca.load_pairs(arguments.pairs, split="train"), Counter[str]()
    if arguments.change_classes:
        pairs = pairs.counting(arguments.change_classes)
    for number in range(len(pairs)):
        pair = pairs[number]
        key = pair.metadata.get("source_key")
        if key is None:
            raise PairsError(f"{arguments.pairs}: {pair.key} names no tile; allowed: sets that generate wrote")
        real = label_at(arguments.labels, key, pair.change_mask.shape)
        index = source.index_of(key)
        first, second, mask = source.read(index), source.read_second(index), source.read_second_mask(index)
        same = correlation(first.pixels(), second.pixels(), shown_by_both(first, second))
        known = ground(pair, real, first.mask, mask, same >= SecondOptions.min_correlation)
        px.update({what: int(where.sum()) for what, where in known.items()})
    print(f"{len(pairs)} pairs; {told(px)}")


def label_at(labels: Path, key: str, shape: tuple[int, ...]) -> Where:
    """What really changed on the tile ``key`` of ``shape``, by the label of its image in the folder ``labels``: that is
    named as the image without the folder of its date. :class:`SourceError` where it is not there, or does not fit."""
    parts = key.split("__")
    place = next((number for number, part in enumerate(parts[:-1]) if part.lower() in PARTNER), None)
    if place is None:
        dates = ", ".join(dict.fromkeys(PARTNER))
        raise SourceError(f"{key}: lies in no folder of a date; allowed: {dates}")
    whole = "__".join(parts[:place] + parts[place + 1 :])
    cut = WINDOW.fullmatch(whole)
    tries = [(whole, 0, 0), *([(cut["image"], int(cut["row"]), int(cut["column"]))] if cut else [])]
    files = [(labels / f"{name}.png", row, column) for each, row, column in tries for name in _spelt(each)]
    found = next((each for each in files if each[0].is_file()), None)
    if found is None:
        raise SourceError(f"{labels}: no label of {key}; expected {' or '.join(each[0].name for each in files)}")
    file, row, column = found
    try:
        with Image.open(file) as image:
            real: Where = np.asarray(image.convert("L")) > 127
    except (OSError, ValueError) as error:
        raise SourceError(f"{file}: cannot be read ({error})") from error
    part = real[row : row + shape[0], column : column + shape[1]]
    if part.shape != shape or (not cut and real.shape != shape):
        size = f"{real.shape[1]}x{real.shape[0]} px"
        raise SourceError(f"{file}: {size}, but {key} is {shape[1]}x{shape[0]} px from row {row}, column {column}")
    return part


def _spelt(name: str) -> list[str]:
    """A key's name as that of a file: as it is, and with its folders."""
    return list(dict.fromkeys([name, name.replace("__", "/")]))


def ground(pair: ca.ChangePair, real: Where, first: Mask, second: Mask, same: Where) -> dict[str, Where]:
    """Ground of a pair, by what is said of it: what ``real``-ly changed, its masks of both dates, what looks the
    same."""
    ignored = label_of(pair) == IGNORE  # as a training reads the set: unknown ground of either date too
    unknown, apart = (first == 0) | (second == 0), change_mask_of(first, second)
    wrong, right = (each & ~ignored & ~pair.change_mask for each in (real, ~real))
    found = {"real": real, "ignored": real & ignored, "wrong": wrong, "called": pair.change_mask}
    found |= {"hit": real & pair.change_mask, "wrong, unknown": wrong & unknown, "wrong, apart": wrong & apart}
    found |= {"other": ~real, "other, ignored": ~real & ignored, "right": right, "lost": right & (unknown | apart)}
    for name, where in (("unknown", unknown), ("apart", apart)):
        found |= {name: where, f"{name}, same": where & same, f"{name}, real": where & real}
        found[f"{name}, same, real"] = where & same & real
    return found


def told(px: Counter[str]) -> str:
    """What the counts are, in words."""

    def share(part: str, whole: str) -> str:
        return f"{px[part] / max(px[whole], 1):.1%}"

    times, apart = px["wrong"] / max(px["called"], 1), share("wrong, apart", "wrong")
    hit, of_real = share("hit", "called"), share("hit", "real")
    lines = [
        f"of the ground that really changed {share('ignored', 'real')} is ignored,",
        f"of other ground {share('other, ignored', 'other')};",
        f"{share('wrong', 'real')} of what changed is called unchanged, {times:.2f} times what is called changed.",
        f"There a mask is unknown on {share('wrong, unknown', 'wrong')}, classes differ on {apart};",
        f"so they are on {share('lost', 'right')} of the ground that is rightly called unchanged.",
        f"Of what is called changed {hit} really changed; {of_real} of what did is called so.",
    ]
    for name, words in (("unknown", "a mask is unknown"), ("apart", "classes differ")):
        same, changed = share(f"{name}, same", name), share(f"{name}, same, real", f"{name}, same")
        lines.append(f"Where {words}, {same} looks the same: {changed} of that really changed,")
        lines.append(f"{share(f'{name}, real', name)} of all such ground.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
