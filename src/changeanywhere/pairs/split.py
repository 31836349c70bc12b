"""Which split a scene belongs to. A scene is never divided."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from changeanywhere.pairs.names import SPLITS
from changeanywhere.sample import SourceItem

SHARES = (0.8, 0.1, 0.1)


def stated_splits(items: Iterable[SourceItem]) -> dict[str, str | None]:
    """Scene → the split that the source states for it, for any of its tiles; None where it states none. (No scene is in
    two: a source refuses that.)"""
    found: dict[str, str | None] = {}
    for item in items:
        found[item.scene] = found.get(item.scene) or item.split
    return found


def assign_splits(scenes: Mapping[str, str | None], sole_trains: bool = True) -> dict[str, str]:
    """Scene → the source's own split (or None) in; scene → "train", "val" or "test" out.

    The source's splits hold where it states more than one; else 80/10/10 by the hash of the scene's name, which
    stays as it is when scenes are added. A sole scene trains: by its hash a whole set could be of nothing to train on.
    ``sole_trains`` False: it goes by its hash as well, as in sets of earlier editions.
    """
    if len(scenes) == 1 and sole_trains:
        return dict.fromkeys(scenes, SPLITS[0])
    stated = {split for split in scenes.values() if split in SPLITS}
    if len(stated) > 1:
        return {scene: split if split in SPLITS else _by_hash(scene) for scene, split in scenes.items()}
    return {scene: _by_hash(scene) for scene in scenes}


def _by_hash(scene: str) -> str:
    place = int.from_bytes(hashlib.sha256(scene.encode()).digest()[:8], "big") / 2**64
    return SPLITS[0] if place < SHARES[0] else SPLITS[1] if place < SHARES[0] + SHARES[1] else SPLITS[2]
