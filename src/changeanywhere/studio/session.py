"""What one open page holds: its own tiles, edit, painting and folder. Nothing of it is seen by another page."""

from __future__ import annotations

import shutil
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from changeanywhere.diffusion.options import Sampling
from changeanywhere.errors import InputError
from changeanywhere.pairs.split import assign_splits, stated_splits
from changeanywhere.sources import Source
from changeanywhere.studio.edits import Edit
from changeanywhere.studio.painting import Asked, Painted, seed_of
from changeanywhere.studio.review import Filter, Review

MAX_SESSIONS = 64
"""The one that was silent longest goes."""


@dataclass
class Session:
    """Of one page."""

    folder: Path
    source: Source
    """The studio's, whose tiles can be chosen; that of the tile which is edited is in ``edit``."""
    place: Path
    """Folder of ``source``, as commands name it."""
    edit: Edit | None = None
    painted: Painted | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    painting: bool = False
    variations: list[Painted] = field(default_factory=list)
    """What was painted last, by seed; ``painted`` is one of them."""
    seeds: list[int] = field(default_factory=list)
    kept: str = ""
    """The set that ``painted`` is in already."""
    review: Review | None = None
    at: str = ""
    """Key of the pair that is under review."""
    filter: Filter = field(default_factory=Filter)
    """Of the review."""
    job: str = ""
    """Name of the set that the page has made."""

    def choose(self, key: str) -> Edit:
        """Begin with a tile of the studio's source anew; where there is none of that key, all stays as it was."""
        if key not in {item.key for item in self.source.items}:
            raise InputError(f"no tile is called {key[:80]!r}")
        return self.begin(self.source, self.place, key)

    def begin(self, source: Source, place: Path, key: str) -> Edit:
        """Begin with a tile of a source that lies in ``place``."""
        self.edit = Edit.of(source.read(source.index_of(key)), source, place)
        return self.edit

    def take(self, number: int) -> Painted:
        """One of the variations is the painting from now on."""
        if not 0 <= number < len(self.variations):
            raise InputError("no such variation")
        self.painted, self.kept = self.variations[number], ""
        return self.painted

    def edited(self) -> Edit:
        """The edit; :class:`InputError` before a tile is chosen."""
        if self.edit is None:
            raise InputError("no tile is chosen yet")
        return self.edit

    def asked(self, sampling: Sampling, seed: int) -> Asked:
        """What is to be painted now."""
        edit = self.edited()
        items = edit.source.items
        splits = assign_splits(stated_splits(items))
        split = splits[edit.sample.item.scene]
        fellows = [i for i, item in enumerate(items) if splits[item.scene] == split]
        plan = edit.plan(seed_of(seed, edit.sample.item.key))
        return Asked(edit.sample, plan, sampling, edit.source, fellows, edit.place, split, edit.steps[-1].drawn)


class Sessions:
    """All open pages, by the hash that the page sends."""

    def __init__(self, source: Source, place: Path) -> None:
        self.root = Path(mkdtemp(prefix="changeanywhere-studio-"))
        self.source, self.place = source, place
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, name: str) -> Session:
        """The session of that name, a new one where there is none."""
        with self._lock:
            if name not in self._open:
                folder = Path(mkdtemp(dir=self.root))
                self._open[name] = Session(folder, self.source, self.place)
            self._open.move_to_end(name)
            session = self._open[name]
            while len(self._open) > MAX_SESSIONS:
                self._end(self._open.popitem(last=False)[1])
        return session

    def end(self, name: str) -> None:
        """The page was closed."""
        with self._lock:
            session = self._open.pop(name, None)
        if session is not None:
            self._end(session)

    def close(self) -> None:
        """All of them, and their folder."""
        for name in list(self._open):
            self.end(name)
        shutil.rmtree(self.root, ignore_errors=True)

    def _end(self, session: Session) -> None:
        session.stop.set()
        shutil.rmtree(session.folder, ignore_errors=True)
