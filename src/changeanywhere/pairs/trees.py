"""How bi-temporal datasets lie on disk: names of their folders, and what their labels say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.pairs.layout import CHANGE_FOLDER, IMAGE_FOLDERS, MASK_FOLDERS

UNCHANGED_COLOUR = 255
"""SECOND paints unchanged ground white; changed ground has its class's colour."""


@dataclass(frozen=True)
class Tree:
    """Folders of one kind of dataset."""

    images: tuple[str, str]
    """Folders of date 1 and date 2."""
    change: str = CHANGE_FOLDER
    """Folder of the labels that say what has changed."""
    masks: tuple[str, ...] = ()
    """Folders of full semantic masks of both dates, where there are any."""

    def changed(self, label: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Label as read, ``[H, W]`` or ``[H, W, C]`` → changed ground, bool ``[H, W]``."""
        if self.change == CHANGE_FOLDER or label.ndim == 2:
            return (label if label.ndim == 2 else label[..., 0]) > 0
        changed: npt.NDArray[np.bool_] = (label[..., :3] != UNCHANGED_COLOUR).any(axis=-1)
        return changed


TREES = (
    Tree(IMAGE_FOLDERS, masks=MASK_FOLDERS),  # ours, LEVIR-CD, WHU-CD tiles, anything prepared for Open-CD
    Tree(("time1", "time2")),  # SYSU-CD, CLCD
    Tree(("im1", "im2")),  # WHU-GCD, and SECOND with labels made binary
    Tree(("im1", "im2"), change="label1"),  # SECOND; classes of changed ground only, so they are not read as masks
    Tree(("Image1", "Image2")),  # S2Looking
)


def tree_of(folder: Path) -> Tree | None:
    """What ``folder`` holds: the first of :data:`TREES` of which every needed folder exists."""
    whole = (tree for tree in TREES if all((folder / name).is_dir() for name in (*tree.images, tree.change)))
    return next(whole, None)


def expected() -> str:
    """For error messages."""
    return ", or ".join(", ".join(f"{name}/" for name in (*tree.images, tree.change)) for tree in TREES)
