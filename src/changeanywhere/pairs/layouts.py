"""How bi-temporal datasets lie on disk: names of their folders, and what their labels say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from changeanywhere.pairs.names import CHANGE_FOLDER, IMAGE_FOLDERS, MASK_FOLDERS


@dataclass(frozen=True)
class Layout:
    """Folders of one kind of dataset."""

    images: tuple[str, str]
    """Folders of date 1 and date 2."""
    change: str = CHANGE_FOLDER
    """Folder of the labels that say what has changed."""
    masks: tuple[str, ...] = ()
    """Folders of full semantic masks of both dates, where there are any."""

    @property
    def names_classes(self) -> bool:
        """Whether labels name classes of changed ground by colour and leave the rest white (SECOND)."""
        return self.change != CHANGE_FOLDER


LAYOUTS = (
    Layout(IMAGE_FOLDERS, masks=MASK_FOLDERS),  # ours, LEVIR-CD, WHU-CD tiles, anything prepared for Open-CD
    Layout(("time1", "time2")),  # SYSU-CD, CLCD
    Layout(("im1", "im2")),  # WHU-GCD, and SECOND with labels made binary
    Layout(("im1", "im2"), change="label1"),  # SECOND; classes of changed ground only, so they are not read as masks
    Layout(("Image1", "Image2")),  # S2Looking
)


def layout_of(folder: Path) -> Layout | None:
    """What ``folder`` holds: the first of :data:`LAYOUTS` of which every needed folder exists."""
    whole = (layout for layout in LAYOUTS if all((folder / name).is_dir() for name in (*layout.images, layout.change)))
    return next(whole, None)


def expected() -> str:
    """For error messages."""
    return ", or ".join(", ".join(f"{name}/" for name in (*layout.images, layout.change)) for layout in LAYOUTS)
