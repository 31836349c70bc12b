r"""What pairs on real second dates call unchanged that did change: `generate --second.use base` against labels.

    python benchmarks/second_dates.py --pairs base --labelled labelled --labels LEVIR/train/label
    python benchmarks/second_dates.py --pairs found --labelled labelled --labels LEVIR/train/label \
        --change-classes building

Of the ground that changed by the labels of the real pairs (which trained nothing): how much the set ignores, how much
of it is called unchanged, and what the masks of both dates say there. And how much of what is called changed did
change: of a set in which nothing is painted (--second.masks keep --targets.no-change 1) that is what was found; and
what it is worth to ask whether the same things stand there.
--change-classes: only changes to or from these count. Training pairs of the set alone.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import changeanywhere as ca
from changeanywhere.generation.found import Where, correlation
from changeanywhere.generation.second import SecondOptions
from changeanywhere.legend import Mask
from changeanywhere.sample import change_mask_of
from changeanywhere.training.detection import IGNORE
from changeanywhere.training.pair_batches import label_of

DATES = {"A": "B", "B": "A"}


def main(argv: Sequence[str] | None = None) -> None:
    """Print a few lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="folder that generate --second.use base wrote")
    parser.add_argument("--labelled", type=Path, required=True, help="its source: what label made of A/ and B/")
    parser.add_argument("--labels", type=Path, required=True, help="folder of change labels, named as the images")
    parser.add_argument("--change-classes", nargs="*", help="classes whose changes count; default: all")
    parser.add_argument("--tile-size", type=int, default=256)
    arguments = parser.parse_args(argv)
    source = ca.load_source(arguments.labelled, tile_size=arguments.tile_size)
    places = {item.key: number for number, item in enumerate(source.items)}
    pairs, px = ca.load_pairs(arguments.pairs, split="train"), Counter[str]()
    if arguments.change_classes:
        pairs = pairs.counting(arguments.change_classes)
    for number in range(len(pairs)):
        pair = pairs[number]
        date, _, name = pair.metadata["source_key"].partition("__")
        with Image.open(arguments.labels / f"{name}.png") as file:
            real = np.asarray(file.convert("L")) > 127
        first, second = (source.read(places[f"{each}__{name}"]) for each in (date, DATES[date]))
        same = correlation(first.pixels(), second.pixels()) >= SecondOptions.min_correlation
        px.update({what: int(where.sum()) for what, where in ground(pair, real, first.mask, second.mask, same).items()})
    print(f"{len(pairs)} pairs; {told(px)}")


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
